"""`spark-rl judge` with the base that ships: its contract, a kill at any moment, and one line for every mistake."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from factories import kill_once_it_writes, lines, read_rows
from rollout.openai_server import serving
from warm import PYTHON

from spark_rl.cli.model import settings_for, signature
from spark_rl.infer import Judge
from spark_rl.prompts import Prompts
from spark_rl.verify import box

Command = Callable[..., Any]
VERB = ["judge", "embedded", "--max-new-tokens", "24"]
ONE_ITEM = "one item is a --question with a --response, or with --a and --b; give these"
COMMAND = [*PYTHON, "-m", "spark_rl.cli", *VERB]
ROWS: list[dict[str, Any]] = [
    {"id": 7, "question": "What is 3+4?", "response": box("7"), "kept": [None, "ö"]},
    {"question": "What is 3+4?", "a": box("8"), "b": box("7")},
    {"question": "What is 12*3?", "response": f"It must be {box('30')}", "verdict": "mine", "a": None},
    {"question": "What is 25-7?", "response": "I do not know."},
    {"question": "What is 25-7?", "a": box("18"), "b": box("19")},
]
MANY = [{"question": f"What is {i}+4?", "response": box(str(i + 4 + i % 2))} for i in range(12)]


def written(folder: Path, rows: Sequence[Any] = ROWS, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text(lines(rows))
    return path


def judged(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with what the judge says, one by one."""
    judge = Judge.open("embedded", "engine.max_new_tokens=24")
    columns = [
        (
            judge.compare(row["question"], row["a"], row["b"])
            if "b" in row
            else judge.score(row["question"], row["response"])
        ).columns()
        for row in rows
    ]
    return [row | added for row, added in zip(rows, columns, strict=True)]


def same(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> bool:
    """Equal up to the rounding of forwards in other batches."""
    return [row | {"probability": pytest.approx(row["probability"], abs=1e-5)} for row in rows] == list(others)


# ------------------------------------------------------------------------------------------------ rows


def test_a_stream_comes_out_in_order_with_verdicts() -> None:
    command = [sys.executable, "-m", "spark_rl.cli", *VERB, "--chunk", "2"]
    done = subprocess.run(command, input=lines(ROWS), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert same(judged(ROWS), rows)
    assert [list(row)[: len(given)] for row, given in zip(rows, ROWS, strict=True)] == [list(row) for row in ROWS]
    assert done.stderr.startswith("5 rows: ") and done.stderr.count("\n") == 1


def test_a_file_is_judged_and_summed_up(tmp_path: Path, spark_rl: Command) -> None:
    out = tmp_path / "out.jsonl"
    done = spark_rl(*VERB, written(tmp_path), "--out", out, "--json")
    assert done.code == 0, done.err
    rows = read_rows(out)
    assert {row.pop("by") for row in rows} == {signature(settings_for("embedded", [], 0, 24), Prompts(), "judge")}
    assert same(judged(ROWS), rows)
    summary = json.loads(done.out)
    verdicts = [row.get("verdict") or row.get("preferred") for row in rows]
    assert summary["rows"] == 5 and summary["bad_rows"] == summary["rows_before"] == 0
    assert {word: n for word, n in summary["verdicts"].items() if word in verdicts} == {
        word: verdicts.count(word) for word in verdicts if word
    }
    assert sum(summary["verdicts"].values()) == 5
    assert summary["parse_rate"] == 1 - sum(row["probability"] is None for row in rows) / 5
    assert summary["prompt_tokens"] > summary["generated_tokens"] > 0
    assert done.err.startswith("5 rows: ") and done.err.count("\n") == 1


def test_bad_rows_are_left_out_on_request(tmp_path: Path, spark_rl: Command) -> None:
    long = {"question": "What is 1+1?", "response": "1+1=2. " * 500}
    source = written(tmp_path, [ROWS[0], "{", long, ROWS[1], {"question": "What?"}])
    out = tmp_path / "out.jsonl"
    done = spark_rl(*VERB, source, "--out", out, "--json", "--skip-bad", "judge.view=reasoning")
    assert done.code == 0, done.err
    assert [row["question"] for row in read_rows(out)] == [ROWS[0]["question"], ROWS[1]["question"]]
    summary = json.loads(done.out)
    assert (summary["rows"], summary["bad_rows"]) == (2, 3)
    again = spark_rl(*VERB, source, "--out", out, "--json", "--skip-bad", "judge.view=reasoning", "--resume")
    assert (json.loads(again.out)["rows"], json.loads(again.out)["rows_before"], json.loads(again.out)["bad_rows"]) == (
        2,
        2,
        3,
    )


def test_sampled_judgements_follow_the_seed(tmp_path: Path, spark_rl: Command) -> None:
    source = written(tmp_path, MANY)
    outs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert spark_rl(*VERB, source, "judge.samples=2", "--seed", seed, "--out", tmp_path / name).code == 0
        outs[name] = [row["probability"] for row in read_rows(tmp_path / name)]
    assert outs["a"] == outs["b"] != outs["c"]


# ------------------------------------------------------------------------------------------------ one item


def test_one_item_by_options(spark_rl: Command) -> None:
    one = [*VERB, "--question", ROWS[0]["question"]]
    (expected,) = judged([{"question": ROWS[0]["question"], "response": ROWS[0]["response"]}])
    assert same([expected], [json.loads(spark_rl(*one, "--response", ROWS[0]["response"], "--json").out)])
    told = spark_rl(*one, "--response", ROWS[0]["response"])
    assert told.code == 0 and told.err == ""
    assert (
        told.out.splitlines()[-1]
        == f"{expected['verdict']} (probability that it is right: {expected['probability']:.3f})"
    )
    pair = spark_rl(*one, "--a", box("8"), "--b", box("7"))
    assert pair.code == 0 and "(probability that a is better: " in pair.out


# ------------------------------------------------------------------------------------------------ going on


@pytest.fixture(scope="module")
def on_a_terminal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file of a call that was left alone, beside its rows, and what was shown."""
    folder = tmp_path_factory.mktemp("judge")
    terminal, end = pty.openpty()
    command = [*COMMAND, str(written(folder, MANY)), "--out", str(folder / "whole"), "--chunk", "1"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stderr=end, env=environment) as process, open(terminal, "rb", 0) as screen:
        os.close(end)
        shown = b""
        with suppress(OSError):  # the other end is closed
            while more := screen.read(1000):
                shown += more
    assert process.returncode == 0, shown
    return folder / "whole", shown.decode()


@pytest.fixture
def whole(on_a_terminal: tuple[Path, str]) -> Path:
    return on_a_terminal[0]


def test_progress_is_shown_on_a_terminal(on_a_terminal: tuple[Path, str]) -> None:
    out, shown = on_a_terminal
    assert " 0 of 12 rows" in shown and " 12 of 12 rows" in shown
    assert len(read_rows(out)) == len(MANY)


def test_killed_at_any_moment_and_resumed_it_is_the_same_file(whole: Path, tmp_path: Path, spark_rl: Command) -> None:
    source, out = whole.with_name("rows.jsonl"), tmp_path / "killed"
    kill_once_it_writes([*COMMAND, str(source), "--out", str(out), "--chunk", "1"], out)
    before = len(read_rows(out))
    assert before > 0
    done = spark_rl(*VERB, source, "--out", out, "--chunk", "1", "--resume", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows_before"] == before and json.loads(done.out)["rows"] == len(MANY)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("end", [0, 1, 2, 60, -1, -30, -200, None])
def test_cut_anywhere_and_resumed_it_is_the_same_file(
    end: int | None, whole: Path, tmp_path: Path, spark_rl: Command
) -> None:
    out = tmp_path / "cut"
    out.write_bytes(whole.read_bytes()[:end])
    done = spark_rl(*VERB, whole.with_name("rows.jsonl"), "--out", out, "--chunk", "1", "--resume")
    assert done.code == 0, done.err
    assert out.read_bytes() == whole.read_bytes()


def test_a_server_that_dies_ends_it_with_code_1_and_it_goes_on_later(tmp_path: Path, spark_rl: Command) -> None:
    source, out = written(tmp_path, MANY), tmp_path / "out"
    with serving(dies_after=7) as (address, state):
        command = ["judge", address, source, "--out", out, "--chunk", "2", "engine.retries=0"]
        died = spark_rl(*command)
        assert died.code == 1
        assert "does not answer any more" in died.err and died.err.count("\n") == 1
        assert len(read_rows(out)) == 6, "whole chunks"
        state.dies_after = None
        again = spark_rl(*command, "--resume", "--json")
    assert again.code == 0, again.err
    assert [row["question"] for row in read_rows(out)] == [row["question"] for row in MANY]
    assert json.loads(again.out)["verdicts"] == {"wrong": len(MANY)}, "it repeats its prompt"


OURS = json.dumps(ROWS[0] | {"verdict": None, "probability": None})


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ("my notes", "row 1: was not written by this command; name another file"),
        ("my notes\nand more", "row 1: was not written by this command"),
        ('{"mine": 1}', "row 1: was not written by this command"),
        (f"{OURS}\n", "row 1: was not written by this command"),
        (OURS[:-1] + ', "by": "runs/other/final judge 0"}\n', "row 1: was made by 'runs/other/final judge 0', not by"),
        ('{"by": "BY"}\n{"half', "its row 1 was not made of row 1 of"),
        ("WHOLE\nWHOLE\n", "its row 2 was not made of row 2 of"),
        ("WHOLE\nmine", "row 2: was not written by this command"),
    ],
)
def test_a_file_of_something_else_is_left_as_it_is(held: str, message: str, tmp_path: Path, spark_rl: Command) -> None:
    source, out = written(tmp_path), tmp_path / "out"
    assert spark_rl(*VERB, source, "--out", out).code == 0
    first = out.read_text().splitlines()[0]
    held = held.replace("WHOLE", first).replace("BY", json.loads(first)["by"])
    out.write_text(held)
    done = spark_rl(*VERB, source, "--out", out, "--resume")
    assert done.code == 2
    assert message in done.err and done.err.count("\n") == 1
    assert out.read_text() == held


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "rows", "message"),
    [
        ([], [{"response": "7"}], "rows.jsonl, row 1: has no 'question'; add it (--skip-bad leaves such rows out)"),
        ([], [ROWS[0], {"question": "?"}], "row 2: has neither a 'response' nor 'a' and 'b'"),
        ([], [ROWS[0], "", {"question": "?", "a": "7"}], "row 3: has no 'b'; add it"),
        ([], [{"question": "?", "a": "7", "response": "8"}], "row 1: has a 'response' as well as 'a' or 'b'"),
        ([], [{"question": "?", "response": 7}], "row 1: 'response' must be text, not 7"),
        ([], ["{"], "row 1: not valid JSON"),
        ([], [], "has no rows; give at least one"),
        (["judge.view=reasoning"], [ROWS[0] | {"response": "1+1=2. " * 500}], "row 1: leaves no room for a reply"),
        (["judge.sampels=2"], ROWS, "judge.sampels"),
        (["judge.samples=0"], ROWS, "judge.samples"),
        (["model.path=runs/other"], ROWS, "the model is given twice, embedded and model.path=runs/other"),
        (["--chunk", "0"], ROWS, "--chunk must be at least 1"),
        (["--max-new-tokens", "5000"], ROWS, "engine.max_new_tokens is 5000"),
        (["--question", "?"], ROWS, "--question judges one item; leave out the file, --out and --resume"),
        (["--out", "rows.jsonl"], ROWS, "is the file that is read"),
        (["--out", "rows.jsonl/no/x"], ROWS, "cannot be written (Not a directory)"),
        (["--out", "/dev/full"], ROWS, "--out /dev/full: cannot be written (No space left on device)"),
    ],
)
def test_a_mistake_gets_one_line_and_code_2(
    arguments: list[str],
    rows: list[Any],
    message: str,
    tmp_path: Path,
    spark_rl: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, rows)
    done = spark_rl(*VERB, "rows.jsonl", *["--out", "out"] * ("--out" not in arguments), *arguments)
    assert done.code == 2
    assert message in done.err and done.err.count("\n") == 1, done.err
    assert done.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--response", "7"], ONE_ITEM),
        (["--question", "?"], ONE_ITEM),
        (["--question", "?", "--a", "7"], ONE_ITEM),
        (["--question", "?", "--a", "7", "--response", "7"], ONE_ITEM),
        (["--question", "1+1? " * 800, "--response", "7"], "leaves no room for a reply"),
        (["--resume"], "--resume goes on with a file; name it with --out"),
        (["--json"], "name a file for them with --out"),
    ],
)
def test_options_that_make_no_sense(arguments: list[str], message: str, spark_rl: Command) -> None:
    done = spark_rl(*VERB, *["-"] * (len(arguments) == 1), *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err and done.err.count("\n") == 1, done.err
