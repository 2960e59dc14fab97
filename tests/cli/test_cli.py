"""The real command in a subprocess: help, dry run, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from warm import PYTHON


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*PYTHON, "-m", "spark_rl.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_names_the_verbs_and_needs_nothing_slow() -> None:
    slow = {"torch", "transformers", "numpy", "PIL", "pyarrow", "openai", "spark_rl.data"}
    code = f"import sys, spark_rl.cli; assert not {slow} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "train" in run("--help").stdout and "--debug" in run("--help").stdout
    assert "spark-rl train recipes/quickstart.yaml" in run("train", "--help").stdout
    assert {"embedded:vision-test,", "paper-vision,"} <= set(run("eval", "--help").stdout.split())


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


@pytest.mark.parametrize("at", [0, 1, 2])
def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path, at: int) -> None:
    arguments = ["train", str(tmp_path / "missing.yaml")]
    assert "Traceback" in run(*arguments[:at], "--debug", *arguments[at:]).stderr
    assert "Traceback" not in run(*arguments).stderr


def test_ctrl_c_before_the_first_step_is_said_in_a_line(tmp_path: Path) -> None:
    code = "import sys, spark_rl.cli; print('ready', flush=True); spark_rl.cli.main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "train", "recipes/quickstart.yaml", f"train.output={tmp_path / 'run'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr and process.stdout.readline() == "ready\n"
        while "torch" not in Path(f"/proc/{process.pid}/maps").read_text():  # Linux tells what it has begun to import
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 1
    assert said == "spark-rl: interrupted; a run that has a checkpoint goes on with --resume\n"


def test_a_run_prints_its_own_lines_only_and_a_model_that_others_can_read(tmp_path: Path) -> None:
    """The model has what transformers and accelerate warn about: tied weights, clean-up of spaces, a temperature."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from spark_rl.models.folder import resolve_path

    model, output = tmp_path / "model", tmp_path / "run"
    tokenizer = AutoTokenizer.from_pretrained(resolve_path("embedded"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": None, "pad_token_id": 0}
    config = Qwen3Config(vocab_size=len(tokenizer), tie_word_embeddings=True, eos_token_id=2, **sizes, **heads)
    Qwen3ForCausalLM(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    for name, value in (
        ("tokenizer_config", {"clean_up_tokenization_spaces": True}),
        ("generation_config", {"temperature": 0.6}),
    ):
        path = model / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | value))

    size = ["rollout.groups_per_step=4", "rollout.max_new_tokens=8", "train.steps=2", "train.threads=1", "preset=grpo"]
    data = ["data.train={path: embedded:train, size: 50}", f"model.path={model}", f"train.output={output}"]
    (tmp_path / "config.yaml").write_text("{}")
    result = run("train", str(tmp_path / "config.yaml"), *size, *data, "train.trackers=[tensorboard]")
    assert result.returncode == 0, result.stderr
    said = [line.split("  ")[0] for line in result.stderr.splitlines()]
    assert said[::2] == ["step 1/2", "step 2/2"] and said[1].startswith("warning, step 1: answer: no reply holds")

    os.umask(mask := os.umask(0))
    assert {path.stat().st_mode & 0o777 for path in (output / "final").iterdir()} == {0o666 & ~mask}
    assert json.loads((output / "final" / "generation_config.json").read_text())["do_sample"] is True
