"""`spark-rl verify`, the real command in a subprocess: its contract, and one line for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warm import PYTHON

from spark_rl.cli.rows import Input, Output
from spark_rl.jsonl import MAX_ROW_BYTES
from spark_rl.verify import box

COMMAND = [*PYTHON, "-m", "spark_rl.cli", "verify"]


def run(*arguments: Any, rows: str | bytes = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    data = rows.encode() if isinstance(rows, str) else rows
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, input=data, capture_output=True, timeout=120, cwd=cwd)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n") if line]


def test_rows_come_out_in_order_with_their_grade() -> None:
    rows = [
        {"answer": rf"so {box('1/2')}", "gold": 0.5, "id": 7, "extra": {"kept": [None, "ö\u2028"]}},
        {"answer": "no box", "gold": "5"},
        {"answer": box("b"), "gold": "A", "verifier": "choice"},
        {"answer": box("3.1"), "gold": 3, "verifier": "numeric", "metadata": {"tolerance": 0.2}},
        {"answer": box("5"), "gold": "?", "verifier": "math"},
        {"answer": 5, "gold": "5"},
    ]
    done = run(rows=lines(*rows))
    assert done.returncode == 0, done.stderr
    grades: list[tuple[float | None, str | None, str]] = [
        (1.0, "1/2", "correct"),
        (0.0, None, "unparsed"),
        (0.0, "b", "wrong"),
        (1.0, "3.1", "correct"),
        (None, "5", "bad_gold"),
        (0.0, None, "unparsed"),
    ]
    named = [dict(zip(("reward", "extracted", "reason"), grade, strict=True)) for grade in grades]
    assert parsed(done.stdout) == [row | grade for row, grade in zip(rows, named, strict=True)]
    assert done.stderr.startswith("6 rows: 2 correct, 2 unparsed, ")
    assert "mean reward 0.400" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_file_is_read_and_written_and_summed_up(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\ufeff" + lines({"answer": box("5"), "gold": 5}) + "\n" + lines({"answer": 1}))
    done = run("in.jsonl", "--verifier", "numeric", "--out", "out.jsonl", "--json", "--skip-bad", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary.pop("rows_per_second") > 0
    assert summary == {"rows": 1, "bad_rows": 1, "reasons": {"correct": 1}, "mean_reward": 1.0}
    assert parsed((tmp_path / "out.jsonl").read_text())[0]["reward"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_reward_function_of_the_current_directory(tmp_path: Path) -> None:
    function = "def brevity(completions, **kwargs):\n    return [1 / len(c[0]['content']) for c in completions]\n"
    (tmp_path / "rewards.py").write_text(function)
    done = run("--verifier", "trl:rewards:brevity", rows=lines({"answer": "four", "gold": ""}), cwd=tmp_path)
    assert parsed(done.stdout)[0]["reward"] == 0.25
    assert parsed(done.stdout)[0]["reason"] == "partial"
    missing = run("--verifier", "rewards:clarity", rows=lines({"answer": box("5"), "gold": 5}), cwd=tmp_path)
    (row,) = parsed(missing.stdout)
    assert (row["reward"], row["reason"]) == (None, "error: AttributeError")
    assert row["detail"] == "AttributeError: module 'rewards' has no attribute 'clarity'"


SLOW = "import time\ndef grade(answer, gold, metadata):\n    return time.sleep(9) if 'x' in answer + gold else 1\n"


@pytest.mark.parametrize(("settings", "reward"), [([], 0), (["verify.timed_out=mask"], None)])
def test_an_answer_that_times_out_has_the_reward_0(tmp_path: Path, settings: list[str], reward: float | None) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    rows = lines({"answer": box("x"), "gold": 5}, {"answer": box("4"), "gold": 5}, {"answer": box("4"), "gold": "x"})
    limit = "verify.wall_seconds=0.3"
    done = run("-", limit, *settings, "--verifier", "slow:grade", rows=rows, cwd=tmp_path)
    given = [(row["reward"], row["reason"]) for row in parsed(done.stdout)]
    assert given == [(reward, "timeout"), (1, "correct"), (None, "timeout")], done.stderr


def test_a_function_that_hangs_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    rows = lines(*({"answer": box(f"x{i}"), "gold": "x"} for i in range(50)))
    arguments = ["verify.wall_seconds=0.1", "--verifier", "slow:grade", "--workers", 3, "--out", "out.jsonl"]
    done = run(*arguments, rows=rows, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("spark-rl: the verifier slow:grade ran out of time on 6 of the last 6 answers")
    assert "verify.max_timeout_rate=1" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_no_rows_are_no_mistake() -> None:
    done = run("-", rows="\n")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("0 rows: nothing graded")


GOOD = lines({"answer": box("5"), "gold": 5, "verifier": "numeric"})


@pytest.mark.parametrize(
    ("arguments", "rows", "message"),
    [
        (["missing.jsonl"], "", "missing.jsonl: cannot be read (No such file or directory); name a JSONL file"),
        (["."], "", ".: cannot be read (Is a directory)"),
        (["-"], "{", "standard input, row 1: not valid JSON"),
        ([], GOOD + "\n5\n", "row 3: must be a JSON object"),
        ([], GOOD + '{"gold": 5}', "row 2: has no 'answer'; add it (--skip-bad leaves such rows out)"),
        ([], '{"answer": "5", "gold": null}', "row 1: has no 'gold'"),
        ([], '{"answer": ["5"], "gold": 5}', "row 1: 'answer' must be text or a number, not [\"5\"]"),
        ([], '{"answer": "5", "gold": true}', "'gold' must be text or a number, not true"),
        ([], '{"answer": "5", "gold": NaN}', "NaN is no number there"),
        ([], '{"answer": "5", "gold": 1e999}', "1e999 is no number there"),
        ([], '{"answer": "5", "gold": 5, "metadata": []}', "'metadata' must be an object"),
        ([], '{"answer": "5", "gold": 5, "verifier": "mth"}', "row 1: unknown verifier 'mth': did you mean 'math'?"),
        ([], '{"answer": "5", "gold": 5, "verifier": "os:abort"}', "'os:abort'; to trust it, give --verifier os:abort"),
        ([], '{"answer": "5", "gold": 5, "verifier": "trl:f"}', "write it as trl:module:function"),
        ([], '{"answer": "\\ud800", "gold": 5}', "half of a surrogate pair"),
        ([], b'{"answer": "\xff", "gold": 5}', "row 1: is not UTF-8 text"),
        ([], "[" * 100_000, "nested too deeply"),
        ([], GOOD + '{"answer": "' + "a" * MAX_ROW_BYTES + '"}', "row 2: is longer than 4 MiB"),
        (["--verifier", "maths"], "", "did you mean 'math'?"),
        (["--workers", "0"], "", "--workers must be at least 1"),
        (["--cpu-seconds", "nan"], "", "--cpu-seconds above 0"),
        (["verify.wall_second=1"], "", "unknown key 'verify.wall_second'; did you mean 'wall_seconds'?"),
        (["-", "verify.memory_gb=0"], "", "verify.memory_gb: input should be greater than 0, not 0"),
        (["-", "verify.timed_out=none"], "", "verify.timed_out: input should be 'zero' or 'mask', not 'none'"),
        (["-", "other.jsonl"], "", "'other.jsonl' is no setting of grading; give verify.key=value"),
        (["--json"], "", "name a file for them with --out"),
        (["--out", "/dev/null/no/x"], GOOD, "--out /dev/null/no/x: cannot be written (Not a directory)"),
        (["--out", "."], GOOD, "--out .: cannot be written (Is a directory)"),
        (["--out", "/dev/full"], GOOD, "--out /dev/full: cannot be written (No space left on device)"),
    ],
)
def test_a_mistake_gets_one_line_and_code_2(
    tmp_path: Path, arguments: list[str], rows: str | bytes, message: str
) -> None:
    if "--out" not in arguments and "--json" not in arguments:
        arguments = [*arguments, "--out", "out.jsonl"]
    done = run(*arguments, rows=rows, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_file_that_is_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD)
    (tmp_path / "link").symlink_to(path)
    done = run(path, "--out", tmp_path / "link")
    assert done.returncode == 2
    assert "is the file that is read" in done.stderr
    assert path.read_text() == GOOD


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    script = script.replace("verify", f"{sys.executable} -m spark_rl.cli verify --verifier numeric rows.jsonl")
    return subprocess.run(["bash", "-c", script], cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text(GOOD * 20_000)
    return tmp_path


def test_a_reader_that_leaves_early_is_left_quietly(many: Path) -> None:
    done = shell("verify | head -n 1", many)
    assert json.loads(done.stdout)["reward"] == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("verify > /dev/full", "standard output: cannot be written (No space left on device)"),
        ("ulimit -f 100; verify --out out.jsonl", "--out out.jsonl: cannot be written (File too large)"),
    ],
)
def test_a_full_disk_gets_one_line_and_leaves_nothing(many: Path, script: str, message: str) -> None:
    done = shell(script, many)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in many.iterdir()] == ["rows.jsonl"]


def test_an_interrupt_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    old = tmp_path / "out.jsonl"
    old.write_text("what was there\n")
    command = [*COMMAND, "--verifier", "numeric", "--out", str(old)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stderr
        process.stdin.write(GOOD * 5000)
        process.stdin.flush()
        while len(os.listdir(tmp_path)) == 1:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 1
        assert "Traceback" not in process.stderr.read()
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    assert old.read_text() == "what was there\n"


@given(rows=st.lists(st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.none() | st.floats(-9, 9))))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.jsonl"
    with Output(path, Input("-")) as output:
        for row in rows:
            output.write(row)
    assert list(Input(str(path)).read(lambda row, number: (number, row))) == list(enumerate(rows, start=1))


def test_a_long_row_costs_itself_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "' + "a" * 3 * MAX_ROW_BYTES + '"}\n' + '{"a": 2}\n' + '{"a": "' + "b" * MAX_ROW_BYTES)
    source = Input(str(path), skip_bad=True)
    assert list(source.read(lambda row, number: (number, row))) == [(2, {"a": 2})]
    assert source.num_bad == 2


def test_a_program_that_is_written_to_may_be_a_pipe(tmp_path: Path) -> None:
    done = run("--out", "/dev/stdout", rows=GOOD, cwd=tmp_path)
    assert parsed(done.stdout)[0]["reward"] == 1


def test_it_needs_no_torch() -> None:
    code = "import sys; from spark_rl.cli.verify import verify; verify('-'); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], input=GOOD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_responses_in_another_format_are_told_of_it(tmp_path: Path) -> None:
    rows = [{"answer": f"I add.\n#### {i - i % 2}", "gold": i, "verifier": "numeric"} for i in range(10, 220)]
    done = run("--out", tmp_path / "out.jsonl", rows=lines(*rows, {"answer": box("3"), "gold": 3}))
    assert done.returncode == 0 and done.stderr.splitlines()[1] == (
        r"1 of 211 responses hold an answer as `\boxed{}`; 100 of the first 200 others hold the gold as `#### ...`: "
        "set --format=hash"
    )
    for quiet in (["--format", "hash"], ["--verifier", "trl:json:dumps"]):  # read by it, and read whole
        rows = [{key: row[key] for key in ("answer", "gold")} for row in rows[:20]]
        assert run(*quiet, "--out", tmp_path / "out.jsonl", rows=lines(*rows)).stderr.count("\n") == 1
