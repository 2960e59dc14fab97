"""In a log file every long stage of every verb is seen: here what takes longer than some milliseconds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import SMALL_RUN, lines

Command = Callable[..., Any]
SUMS = [{"prompt": f"What is {i}+4?", "answer": str(i + 4)} for i in range(12)]
GRADED = [{"answer": r"\boxed{\frac12}", "gold": r"\frac12", "verifier": "math"}] * 3
JUDGED = [{"question": "What is 1+1?", "response": rf"\boxed{{{i}}}"} for i in range(300)]
ROLLED = [{"prompt": "1/2+1/2?", "answer": r"\frac22", "rollouts": [{"text": r"\boxed{1}"}]}]
PARSED = [
    {"message": json.dumps([{"role": "user", "content": f"What is {i}+1?"}]), "answer": "2"} for i in range(20_000)
]
TIME = r"\d+:\d\d:\d\d (so far|left)"
LINE = re.compile(rf".+: ([\d,]+( of [\d,]+)?( \w+)?( \(\d+%\))?, )?([\d,.e-]+/s, )?(about )?{TIME}")
"""Of one stage."""


def stages(log: str) -> str:
    """The lines of progress in a log, which all are well formed."""
    told = [line for line in log.splitlines() if re.search(TIME, line)]
    for line in told:
        for stage in line.split("; "):
            assert LINE.fullmatch(stage), stage
    return "\n".join(told)


@pytest.mark.parametrize(
    ("arguments", "rows", "seen"),
    [
        (["verify", "FILE", "--out", "OUT"], GRADED, ["verify: 0 of 3 rows (0%)"]),
        (["recycle", "FILE", "--verify", "--out", "OUT"], ROLLED, ["recycle: "]),
        (["data", "convert", "FILE", "OUT"], PARSED, ["convert: ", " of 20,000 rows ("]),
        (
            ["solve", "embedded", "FILE", "--max-new-tokens", "64", "--chunk", "6", "--out", "OUT"],
            SUMS,
            ["loading the model: ", "solve: 0 of 12 rows", "solve: 6 of 12 rows (50%)", "; replies under way: "],
        ),
        (
            ["judge", "embedded", "FILE", "--max-new-tokens", "64", "--out", "OUT"],
            JUDGED,
            ["judge: 0 of 300 rows", "; replies under way: "],
        ),
        (
            ["eval", "embedded", "--suite", "FILE", "--strategies", "greedy", "--out", "OUT"],
            [*SUMS, {"prompt": "1/2?", "answer": r"\frac12"}],
            ["opening FILE: ", "loading embedded: ", "embedded: answer, greedy, seed 0: ", "; replies under way: "],
        ),
        (["doctor"], [], ["looking at verifier: ", "looking at model: "]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value and isinstance(value[0], str) else "",
)
def test_a_log_shows_what_takes_long(
    arguments: list[str],
    rows: list[Any],
    seen: list[str],
    tmp_path: Path,
    spark_rl: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPARK_RL_LOG_SECONDS", "0.001")
    file = tmp_path / "rows.jsonl"
    file.write_text(lines(rows))
    names = {"FILE": str(file), "OUT": str(tmp_path / "out.jsonl")}
    done = spark_rl(*[names.get(argument, argument) for argument in arguments])
    assert done.code == 0, done.err
    told = stages(done.err)
    assert [words for words in seen if words.replace("FILE", str(file)) not in told] == []


def test_a_run_in_a_log_file_shows_all_its_stages(tmp_path: Path) -> None:
    """The run of whose held-out items nobody saw anything for twenty minutes, made small."""
    settings = [*SMALL_RUN, "train.steps=1", "data.validation={path: embedded:validation, size: 12}"]
    settings += ["rollout.max_new_tokens=48", f"train.output={tmp_path / 'run'}", "verify.workers=1"]
    (tmp_path / "run.yaml").write_text("{}")
    command = [sys.executable, "-m", "spark_rl.cli", "train", str(tmp_path / "run.yaml"), *settings]
    with (tmp_path / "log").open("w") as log:
        subprocess.run(command, stderr=log, check=True, env={**os.environ, "SPARK_RL_LOG_SECONDS": "0.01"}, timeout=120)
    told = stages((tmp_path / "log").read_text())
    for name in (
        "loading the model, rendering the prompts: ",
        "making held-out items of 12 questions (after step 0 of 1): ",
        "held-out items (after step 0 of 1): ",
        "generating (after step 0 of 1): ",
        "updating (after step 0 of 1): ",
    ):
        assert name in told
    assert re.search(r"making held-out items .*: [1-9]\d* of 48 \(\d+%\), .*/s, about 0:00:\d\d left", told)
