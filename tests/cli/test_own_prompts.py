"""A whole run with templates and formats of the user's own, through the command: recycled, trained, resumed, judged."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path

import httpx
import pytest
from factories import lines, read_rows
from warm import PYTHON

from spark_rl.prompts import build_prompts, saved_prompts

GERMAN = """
answer:
  name: antwort
  text: |
    {question}

    Rechne, und gib das Ergebnis so an: {form}
pointwise:
  name: urteil
  verdicts: [Ja, Nein]
  text: |
    {question}

    {response}

    Stimmt das? Schließe mit {yes} oder {no}.
pairwise:
  name: wahl
  verdicts: [Erste, Zweite]
  text: |
    {question}

    {first}

    {second}

    Welche stimmt? Schließe mit {a} oder {b}.
reflection:
  name: noch-einmal
  text: |
    {question}

    {response}

    Antworte noch einmal und gib das Ergebnis so an: {form}
"""
SAMPLED = [
    {
        "id": f"q{i}",
        "prompt": f"What is {i}+2?",
        "answer": str(i + 2),
        "rollouts": [{"text": f"<answer>{i + 2}</answer>"}, {"text": f"<answer>{i}</answer> or \\boxed{{{i + 2}}}"}],
    }
    for i in range(6)
]
OWN = ["prompts.templates=de.yaml", "prompts.verdict_format=json:urteil"]
RUN = """
preset: spark
data:
  train:
    - {path: "embedded:train", size: 50, weight: 1}
    - {path: items.jsonl, columns: {prompt: messages, answer: label}, weight: 3}
  answer_format: tags
prompts: {templates: de.yaml, verdict_format: "json:urteil"}
rollout: {groups_per_step: 16, num_generations: 2, max_new_tokens: 8}
train: {steps: 2, output: out, threads: 1}
checkpoint: {every: 1}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("de.yaml").write_text(GERMAN, encoding="utf-8")
    Path("rolls.jsonl").write_text(lines(SAMPLED))
    Path("run.yaml").write_text(RUN)
    return tmp_path


def test_a_run_with_prompts_of_ones_own(folder: Path, spark_rl) -> None:
    done = spark_rl("recycle", "rolls.jsonl", "--verify", "--format", "tags", *OWN, "--out", "items.jsonl")
    assert done.code == 0, done.err
    items = read_rows(Path("items.jsonl"))
    assert Counter(item["label"] for item in items if item["role"] != "reflection").keys() == {
        *("Ja", "Nein", "Erste", "Zweite")
    }
    done = spark_rl("train", "run.yaml")
    assert done.code == 0, done.err
    trained = [row for path in sorted(Path("out/rollouts").iterdir()) for row in read_rows(path)]
    judged = [row for row in trained if row["role"] == "pointwise"]
    assert {row["answer"] for row in judged} == {"Ja", "Nein"}
    assert all('Schließe mit {"urteil": "Ja"}' in row["prompt"][-1]["content"] for row in judged)
    steps = read_rows(Path("out/metrics.jsonl"))
    rates = [(step["pointwise/label_rate"], step["pointwise/groups"]) for step in steps if "pointwise/groups" in step]
    assert sum(rate * n for rate, n in rates) == pytest.approx(sum(row["answer"] == "Ja" for row in judged))

    prompts = saved_prompts(Path("out/final"))
    assert prompts is not None and (prompts.answer_format.name, prompts.verdict_format.name) == ("tags", "json:urteil")
    assert prompts == build_prompts(_settings(), "tags")

    Path("de.yaml").write_text(GERMAN.replace("Stimmt das?", "Passt das?"), encoding="utf-8")
    refused = spark_rl("train", "run.yaml", "--resume")
    assert refused.code == 2 and "prompts.templates.pointwise was " in refused.err
    assert "which no run can change on its way" in refused.err
    Path("de.yaml").write_text(GERMAN, encoding="utf-8")
    shown = spark_rl("train", "run.yaml", "--dry-run")
    assert "Stimmt das? Schließe mit" in shown.out + shown.err


def _settings():
    from spark_rl.config import PromptsConfig

    return PromptsConfig(templates=Path("de.yaml"), verdict_format="json:urteil")


@pytest.fixture
def final(folder: Path) -> Path:
    """The base as a run with these prompts would leave it."""
    import shutil

    from spark_rl.models.folder import resolve_path
    from spark_rl.prompts import save_prompts

    shutil.copytree(resolve_path("embedded"), "final", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    Path("de.yaml").write_text(GERMAN.replace("Ja", "Yes"), encoding="utf-8")  # which the base says, in a box
    save_prompts(build_prompts(_settings().model_copy(update={"verdict_format": "boxed"}), "tags"), Path("final"))
    return folder / "final"


def test_test_time_asks_and_reads_as_the_folder_says(final: Path, spark_rl) -> None:
    judge = ["judge", final, "--question", "What is 3+4+2?", "--response", "<answer>9</answer>", "--json"]
    solve = ["solve", final, "--question", "What is 3+4+2?", "--json"]
    verdict, solved = (json.loads(spark_rl(*command).out) for command in (judge, solve))
    assert verdict["verdict"] == "right" and 0.5 < verdict["probability"] < 1
    assert solved["text"].startswith(r"\boxed{") and solved["answer"] is None  # the base writes no tags
    boxed = json.loads(spark_rl(*solve, "data.answer_format=boxed").out)
    assert boxed["answer"] and rf"\boxed{{{boxed['answer']}}}" in boxed["text"]
    assert json.loads(spark_rl(*judge, "prompts.verdict_format=tags").out)["verdict"] is None

    command = [*PYTHON, "-m", "spark_rl.cli", "serve", str(final), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            (url,) = re.findall(r"at (http://127\.0\.0\.1:\d+);", process.stderr.readline())
            body = {"question": "What is 3+4+2?", "response": "<answer>9</answer>"}
            served = httpx.post(f"{url}/score", json=body, timeout=60).json()
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
    assert served["verdict"] == "right" and served["probability"] == pytest.approx(verdict["probability"], abs=2e-5)


def test_verify_reads_by_the_format_that_is_named(tmp_path: Path, spark_rl) -> None:
    rows = [
        {"answer": r"#### 1/2 \boxed{3}", "gold": "3"},
        {"answer": "so\n#### 0.5", "gold": "1/2"},
        {"answer": r"\boxed{0.5}", "gold": "1/2"},
    ]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    for name, expected in (("hash", ["3", "0.5", None]), (r"####\s*(\S+)", ["1/2", "0.5", None])):
        out = spark_rl("verify", tmp_path / "rows.jsonl", "--format", name).out
        graded = [json.loads(line) for line in out.splitlines()]
        assert [row["extracted"] for row in graded] == expected
        assert [row["reward"] for row in graded] == [float(expected[0] == "3"), 1.0, 0.0]


def test_the_run_says_what_no_prompt_asks_for(folder: Path, spark_rl) -> None:
    Path("chats.jsonl").write_text(lines([{"prompt": [{"role": "user", "content": "1+1?"}], "answer": 2}]))
    done = spark_rl("train", "run.yaml", "--dry-run", "data.train=chats.jsonl")
    assert "no prompt of chats.jsonl asks for <answer></answer>" in " ".join((done.out + done.err).split())
