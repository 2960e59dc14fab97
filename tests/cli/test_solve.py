"""`spark-rl solve` with the base that ships: its contract, a kill at any moment, and one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from factories import kill_once_it_writes, lines, read_rows
from warm import PYTHON

from spark_rl.cli import main
from spark_rl.cli.model import settings_for, signature
from spark_rl.infer.strategies import STRATEGIES
from spark_rl.models.folder import model_folder
from spark_rl.prompts import Prompts
from spark_rl.verify import grade

Command = Callable[..., Any]
VERB = ["solve", "embedded", "--max-new-tokens", "24", "--verifier", "numeric"]
COMMAND = [*PYTHON, "-m", "spark_rl.cli", *VERB]
ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "What is 3+4?", "answer": 7, "kept": {"ö": None}},
    {"prompt": [{"role": "user", "content": r"What is 12*3? Answer in \boxed{}."}], "answer": "36", "text": "old"},
    {"prompt": "What is 25-7?", "answer": "18", "metadata": {"tolerance": 0.5}},
]
MANY = [{"prompt": f"What is {i}+4?", "answer": str(i + 4)} for i in range(10)]
COLUMNS = ["answer", "text", "tokens", "prompt_tokens", "generated_tokens"]


def written(folder: Path, rows: Sequence[Any] = ROWS) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(lines(rows))
    return path


# ------------------------------------------------------------------------------------------------ rows


def test_a_stream_comes_out_in_order_with_answers() -> None:
    command = [sys.executable, "-m", "spark_rl.cli", *VERB, "--chunk", "2"]
    done = subprocess.run(command, input=lines(ROWS), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row, given in zip(rows, ROWS, strict=True):
        kept = {key: value for key, value in given.items() if key not in COLUMNS}
        assert {key: value for key, value in row.items() if key not in COLUMNS} == kept | {"gold": given["answer"]}
        assert set(COLUMNS) < set(row)
        assert row["tokens"] == row["prompt_tokens"] + row["generated_tokens"] > 0
        assert row["answer"] is None or row["answer"] in row["text"]
    assert rows[1]["text"] != "old"
    assert done.stderr.startswith("3 rows: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy(name: str, tmp_path: Path, spark_rl: Command) -> None:
    strategy = name.removesuffix("k") + "3" * name.endswith("k")
    out = tmp_path / "out.jsonl"
    done = spark_rl(*VERB, written(tmp_path), "--strategy", strategy, "--out", out, "--check", "--trace", "--json")
    assert done.code == 0, done.err
    rows, summary = read_rows(out), json.loads(done.out)
    by = signature(settings_for("embedded", [], 0, 24), Prompts(), strategy, "--trace", "--check")
    assert {row["by"] for row in rows} == {by}
    for row in rows:
        right = grade(row["answer"] or "", str(row["gold"]), "numeric", row.get("metadata"))
        assert row["reward"] == right.reward
        assert row["steps"][0]["kind"] == "answer"
        assert row["text"] in [step["text"] for step in row["steps"]]
        assert row["answer"] in [step["answer"] for step in row["steps"]]
    totals = {key: sum(row[key] for row in rows) for key in ("prompt_tokens", "generated_tokens")}
    assert {key: summary[key] for key in totals} == totals
    assert summary["answered"] == sum(row["answer"] is not None for row in rows)
    assert (summary["rows"], summary["graded"], summary["strategy"]) == (3, 3, strategy)
    assert summary["mean_reward"] == pytest.approx(sum(row["reward"] for row in rows) / 3)
    assert done.err.count("\n") == 1


@pytest.fixture
def no_system(tmp_path: Path) -> str:
    """The setting of a chat template that refuses system turns."""
    own = (model_folder("embedded") / "chat_template.jinja").read_text()
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (tmp_path / "no_system.jinja").write_text(refusing + own)
    return f"model.chat_template={tmp_path / 'no_system.jinja'}"


def test_a_row_that_the_chat_template_refuses_is_named_before_anything_is_generated(
    tmp_path: Path, spark_rl: Command, no_system: str
) -> None:
    rows = [*MANY[:5], {**MANY[5], "system": "Be brief."}, *MANY[6:]]
    file, out = written(tmp_path, rows), tmp_path / "out.jsonl"
    done = spark_rl(*VERB, file, no_system, "--out", out, "--chunk", "2")
    assert done.code == 2 and not out.exists()
    assert f"{file}, row 6: the tokenizer's chat template cannot be rendered for the turns system, user" in done.err
    assert "no system" in done.err and "--skip-bad leaves such rows out" in done.err
    done = spark_rl(*VERB, file, no_system, "--out", out, "--chunk", "2", "--skip-bad", "--json")
    assert done.code == 0, done.err
    assert (json.loads(done.out)["rows"], json.loads(done.out)["bad_rows"]) == (9, 1)
    assert [row["prompt"] for row in read_rows(out)] == [row["prompt"] for row in MANY if row != MANY[5]]
    done = spark_rl(*VERB, file, no_system, "--out", out, "--chunk", "2", "--skip-bad", "--json", "--resume")
    assert (json.loads(done.out)["rows"], json.loads(done.out)["bad_rows"]) == (9, 1)


def test_the_gold_is_not_seen_without_check(tmp_path: Path, spark_rl: Command) -> None:
    """Not even as what answers are compared by."""
    answers = []
    for i, gold in enumerate(["7", "no number", None]):
        source = written(tmp_path, [row | {"answer": gold} for row in MANY[:3]])
        assert spark_rl(*VERB, source, "--strategy", "majority@3", "--out", tmp_path / str(i)).code == 0
        answers.append([[row[key] for key in COLUMNS] for row in read_rows(tmp_path / str(i))])
    assert answers[0] == answers[1] == answers[2]


def test_bad_rows_are_left_out_on_request(tmp_path: Path, spark_rl: Command) -> None:
    source, out = written(tmp_path, [ROWS[0], "{", {"prompt": "1+1? " * 800}, ROWS[2], {"prompt": 3}]), tmp_path / "out"
    done = spark_rl(*VERB, source, "--out", out, "--json", "--skip-bad")
    assert done.code == 0, done.err
    assert [row["prompt"] for row in read_rows(out)] == [ROWS[0]["prompt"], ROWS[2]["prompt"]]
    assert (json.loads(done.out)["rows"], json.loads(done.out)["bad_rows"]) == (2, 3)


def test_a_budget_is_kept(tmp_path: Path, spark_rl: Command) -> None:
    source = written(tmp_path)
    for i, limit in enumerate((1, 120)):
        out = tmp_path / str(i)
        done = spark_rl(*VERB, source, "--strategy", "majority@8", "--out", out, f"solve.max_tokens={limit}")
        assert done.code == 0, done.err
        assert all(row["generated_tokens"] <= limit for row in read_rows(out))


# ------------------------------------------------------------------------------------------------ one question


def test_one_question_by_options(spark_rl: Command) -> None:
    one = [*VERB, "--question", "What is 3+4?", "--strategy", "majority@3"]
    row = json.loads(spark_rl(*one, "--json").out)
    assert list(row) == ["prompt", *COLUMNS]
    told = spark_rl(*one)
    assert (told.code, told.out) == (0, f"{row['text'].strip()}\n")
    answer = "no answer" if row["answer"] is None else f"answer: {row['answer']}"
    assert told.err == f"{answer}; {row['prompt_tokens']} tokens read, {row['generated_tokens']} written\n"
    assert spark_rl(*one, "--trace").out.count("[answer") == 3


# ------------------------------------------------------------------------------------------------ going on


GOING_ON = ["--strategy", "majority@2", "--check", "--chunk", "1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a call that was left alone, beside its rows."""
    folder = tmp_path_factory.mktemp("solve")
    with pytest.raises(SystemExit, match="0"):
        main([*VERB, str(written(folder, MANY)), "--out", str(folder / "whole"), *GOING_ON])
    return folder / "whole"


def test_killed_at_any_moment_and_resumed_it_is_the_same_file(whole: Path, tmp_path: Path, spark_rl: Command) -> None:
    source, out = whole.with_name("rows.jsonl"), tmp_path / "killed"
    kill_once_it_writes([*COMMAND, str(source), "--out", str(out), *GOING_ON], out)
    before = len(read_rows(out))
    assert before > 0
    done = spark_rl(*VERB, source, "--out", out, *GOING_ON, "--resume", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows_before"] == before and json.loads(done.out)["rows"] == len(MANY)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("end", [0, 100, -20, None])
def test_cut_anywhere_and_resumed_it_is_the_same_file(
    end: int | None, whole: Path, tmp_path: Path, spark_rl: Command
) -> None:
    out = tmp_path / "cut"
    out.write_bytes(whole.read_bytes()[:end])
    done = spark_rl(*VERB, whole.with_name("rows.jsonl"), "--out", out, *GOING_ON, "--resume")
    assert done.code == 0, done.err
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "changed", [["--seed", "1"], ["solve.temperature=2"], ["--strategy", "majority@3"], ["--trace"]]
)
def test_what_was_made_otherwise_is_not_gone_on_with(changed: list[str], whole: Path, spark_rl: Command) -> None:
    before = whole.read_bytes()
    done = spark_rl(*VERB, whole.with_name("rows.jsonl"), "--out", whole, *GOING_ON, *changed, "--resume")
    assert done.code == 2
    assert "row 1: was made by 'embedded majority@2 --check " in done.err and done.err.count("\n") == 1
    assert whole.read_bytes() == before


def test_settings_that_change_no_result_do_not_matter(whole: Path, spark_rl: Command) -> None:
    pace = ["engine.max_batch_tokens=512", "verify.workers=2", "serve.max_batch=1"]
    done = spark_rl(*VERB, whole.with_name("rows.jsonl"), "--out", whole, *GOING_ON, *pace, "--resume")
    assert done.code == 0, done.err


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "rows", "message"),
    [
        (["--strategy", "majorty@8"], ROWS, "unknown strategy 'majorty@8': did you mean 'majority@8'?"),
        (["--strategy", "best-of-1"], ROWS, "with any number of samples from 2 on"),
        ([], [ROWS[0], {"question": "1+1?"}], "rows.jsonl, row 2: has no 'prompt'; add it (--skip-bad leaves"),
        ([], [{"prompt": 3}], "row 1: 'prompt' must be text or a list, not 3"),
        (
            [],
            [{"prompt": [{"role": "assistant", "content": "Hi"}]}],
            "row 1: 'prompt' ends with a turn of the role 'assi",
        ),
        ([], [{"prompt": ""}], "row 1: "),
        ([], [ROWS[0] | {"images": ["a.png"]}], "row 1: the image "),
        ([], [ROWS[0] | {"verifier": "mth"}], "row 1: unknown verifier 'mth': did you mean 'math'?"),
        ([], [ROWS[0] | {"verifier": "os:abort"}], "row 1: 'verifier' names the function 'os:abort'"),
        (["--check"], [{"prompt": "1+1?"}], "row 1: has no 'answer', the gold that --check grades against; add it"),
        (["--verifier", "mth"], ROWS, "unknown verifier 'mth'"),
        (["solve.rounds=0"], ROWS, "solve.rounds"),
        (["solve.round=2"], ROWS, "did you mean 'rounds'"),
        (["--question", "?"], ROWS, "--question solves one; leave out the file, --out, --resume and --check"),
        ([], [ROWS[0], {"prompt": "1+1? " * 800}], "row 2: leaves no room for a reply in the model's context"),
    ],
)
def test_a_mistake_gets_one_line_and_code_2(
    arguments: list[str], rows: list[Any], message: str, tmp_path: Path, spark_rl: Command
) -> None:
    written(tmp_path, rows)
    out = tmp_path / "out"
    done = spark_rl(*VERB, tmp_path / "rows.jsonl", "--out", out, *arguments)
    assert done.code == 2
    assert message in done.err and done.err.count("\n") == 1, done.err
    assert done.out == ""
    assert not out.exists() or ("no room" in message and len(read_rows(out)) == 1)
