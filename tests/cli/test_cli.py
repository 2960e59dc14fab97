"""The real command in a subprocess: help, dry run, and one clear line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spark_rl.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_names_the_verbs_and_needs_no_torch() -> None:
    code = "import sys, spark_rl, spark_rl.cli; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "train" in run("--help").stdout
    assert "spark-rl train recipes/quickstart.yaml" in run("train", "--help").stdout


def test_dry_run_shows_arithmetic_and_two_prompts_of_each_role_and_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "run"
    shown = run("train", "recipes/quickstart.yaml", f"train.output={output}", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    for role in ("answer", "pointwise", "pairwise", "reflection"):
        assert shown.stdout.count(f"# {role} prompt") == 2
    assert "64 groups, 512 rollouts" in shown.stdout
    assert not output.exists()


GOOD = {"prompt": "What is 1+1?", "answer": "2"}


@pytest.mark.parametrize(
    ("config", "overrides", "rows", "message"),
    [
        (None, [], None, "missing.yaml: cannot be read"),
        ("train: [", [], None, "not valid YAML"),
        ("trian: {}", [], None, "did you mean 'train'?"),
        ("preset: sprak", [], None, "choose one of grpo, paper, spark"),
        ("{}", ["train.steps=0"], None, "train.steps: input should be greater than or equal to 1, not 0"),
        ("{}", ["roles.pointwise.share=0.5"], None, "add up to 1.5"),
        ("{}", ["nonsense"], None, "section.key=value"),
        ("{}", ["model.path=/no/such/model"], None, "/no/such/model"),
        ("{}", ["data.train=[/no/such.jsonl]"], None, "/no/such.jsonl"),
        ("{}", ["data.train=['embedded:nothing']"], None, "embedded:nothing"),
        ("{}", ["data.verifier=mth"], [GOOD], "math"),
        ("{}", [], ["{"], "row 1"),
        ("{}", [], [{"prompt": "What is 1+1?"}], "row 1"),
        ("{}", [], [GOOD, {"prompt": 3, "answer": "2"}], "row 2"),
        ("{}", [], [], "no rows"),
        ("{}", ["data.max_prompt_tokens=2"], [GOOD], "max_prompt_tokens"),
    ],
)
def test_a_mistake_gets_one_line_and_code_2(
    tmp_path: Path, config: str | None, overrides: list[str], rows: list[object] | None, message: str
) -> None:
    path = tmp_path / ("missing.yaml" if config is None else "config.yaml")
    if config is not None:
        path.write_text(config)
    if rows is not None:
        data = tmp_path / "data.jsonl"
        data.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        overrides = [f"data.train=[{data}]", *overrides]
    result = run("train", str(path), f"train.output={tmp_path / 'run'}", *overrides)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["train", "x.yaml", "--resmue"]])
def test_usage_errors_end_with_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_a_run_that_failed_before_its_first_step_can_be_started_again(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    command = ["train", str(tmp_path / "config.yaml"), f"train.output={tmp_path / 'run'}"]
    assert "longer than" in run(*command, "data.max_prompt_tokens=2").stderr
    assert "max_new_tokens" in run(*command, "rollout.max_new_tokens=5000").stderr
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "config.yaml").write_text("{}")
    result = run("train", str(tmp_path / "config.yaml"), f"train.output={tmp_path}")
    assert result.returncode == 2
    assert "not empty" in result.stderr and "--resume" in result.stderr
    assert (tmp_path / "precious.txt").read_text() == "mine"
