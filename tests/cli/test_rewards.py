"""A reward function on a scale of its own, from the first step to the evaluation, through the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import SMALL_RUN, lines, read_rows

Command = Callable[..., Any]
STARS = """
from spark_rl.verify import extract_answer

def stars(completions, answer, **kwargs):
    given = [extract_answer(completion[0]["content"]) for completion in completions]
    return [-1 if g is None else 5 if g == gold else 2 if len(g) == len(gold) else -1 for g, gold in zip(given, answer)]
"""
NAME = "trl:star_rewards:stars"
QUESTIONS = [{"prompt": f"What is {a}+{b}?", "answer": str(a + b)} for a in range(2, 8) for b in range(2, 8)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "star_rewards.py").write_text(STARS)
    (tmp_path / "train.jsonl").write_text(lines(QUESTIONS[::2]))
    (tmp_path / "held_out.jsonl").write_text(lines(QUESTIONS[1::2]))
    (tmp_path / "run.yaml").write_text("preset: spark\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_function_that_gives_2_minus_1_and_5_trains_resumes_and_is_evaluated(folder: Path, spark_rl: Command) -> None:
    scale = ["recycle.right_at=5", "recycle.wrong_at=-1", f"data.verifier={NAME}"]
    data = ["data.train=[train.jsonl]", "data.validation=[held_out.jsonl]", "validation.items=10"]
    settings = [*SMALL_RUN[:-2], *scale, *data, "train.output=run", "validation.every=1"]
    settings += ["train.learning_rate=1e-5", "checkpoint.every=1", "validation.best=answer_reward"]

    first = spark_rl("train", "run.yaml", *settings, "train.steps=1")
    assert first.code == 0, first.err
    assert "reward" in first.err and (folder / "run" / "final").exists()
    done = spark_rl("train", "run.yaml", *settings, "train.steps=2", "--resume", "--allow-changes", "--json")
    assert done.code == 0, done.err

    summary = json.loads(done.out)
    for when in (summary["before"], summary["after"], *summary["before"]["by_source"].values()):
        shares = [value for name, value in when.items() if name.endswith("accuracy")]
        assert all(0 <= share <= 1 for share in shares)
    assert -1 <= summary["before"]["answer_reward"] <= 5
    assert any(finding.startswith("answer mean reward: ") for finding in summary["findings"])
    assert "answer_reward" in (folder / "run" / "final" / "README.md").read_text()
    rewards = set()
    for row in read_rows(folder / "run" / "rollouts" / "step-000001.jsonl"):
        for rollout in row["rollouts"]:
            rewards.add(rollout["reward"])
            assert (rollout["reason"] == "correct") == (rollout["reward"] == 5)
    assert rewards == {-1.0, 2.0, 5.0}
    steps = read_rows(folder / "run" / "metrics.jsonl")
    assert all(0 <= step["answer/accuracy"] <= 1 and step["answer/reward"] > step["answer/accuracy"] for step in steps)

    options = ["--verifier", NAME, "--right-at", 5]
    measured = spark_rl(
        *("eval", "run/final", "--suite", "held_out.jsonl", "--limit", 6, "--json", *options),
        *("--strategies", "greedy,majority@2", "engine.max_new_tokens=16"),
    )
    assert measured.code == 0, measured.err
    greedy = json.loads(measured.out)["models_measured"]["model"]["strategies"]["greedy"]
    assert 0 <= greedy["accuracy"]["low"] <= greedy["accuracy"]["value"] <= greedy["accuracy"]["high"] <= 1
    assert greedy["reward"]["low"] <= greedy["reward"]["value"] <= 5
    assert "| mean reward |" in (folder / "eval" / "report.md").read_text()

    solved = spark_rl(
        *("solve", "run/final", "held_out.jsonl", "--check", "--out", "solved.jsonl", "--json", *options),
        "engine.max_new_tokens=16",
    )
    assert solved.code == 0, solved.err
    rows, counted = read_rows(folder / "solved.jsonl"), json.loads(solved.out)
    assert counted["accuracy"] == pytest.approx(sum(row["reward"] == 5 for row in rows) / len(rows))
    assert counted["mean_reward"] == pytest.approx(sum(row["reward"] for row in rows) / len(rows))


@pytest.mark.parametrize("verb", ["verify", "solve", "eval"])
def test_what_is_right_must_be_a_number(verb: str, folder: Path, spark_rl: Command) -> None:
    model = () if verb == "verify" else ("embedded",)
    done = spark_rl(verb, *model, "--right-at", "nan")
    assert (done.code, done.err.count("\n")) == (2, 1) and "--right-at nan" in done.err


def test_a_published_suite_has_its_own_scale(folder: Path, spark_rl: Command) -> None:
    done = spark_rl("eval", "embedded", "--right-at", 2)
    assert done.code == 2 and "--right-at 2: embedded says itself how its answers are graded" in done.err


def test_graded_responses_are_named_by_the_scale(folder: Path, spark_rl: Command) -> None:
    (folder / "rows.jsonl").write_text(
        lines({"answer": rf"\boxed{{{n}}}", "gold": 12, "verifier": NAME} for n in (12, 13, 4))
    )
    done = spark_rl("verify", "rows.jsonl", "--verifier", NAME, "--right-at", 5)
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [(row["reward"], row["reason"]) for row in rows] == [(5, "correct"), (2, "partial"), (-1, "wrong")]
