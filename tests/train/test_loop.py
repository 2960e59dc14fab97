"""The real loop on the embedded base: what a run writes, every setting of the loss, exact resume after any death."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import read_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from warm import PYTHON, kill

from spark_rl.config import Config, load_config
from spark_rl.models.folder import resolve_path
from spark_rl.models.packed_row import prefix_states
from spark_rl.train.checkpoint import RunDirectory
from spark_rl.train.loop import Trainer
from spark_rl.types import Role

SMALL = [
    "preset=spark",
    "rollout.groups_per_step=12",
    "rollout.num_generations=4",
    "rollout.max_new_tokens=24",
    "train.learning_rate=1e-3",
    "train.threads=1",
    "train.steps=3",
]


def small(output: Path, *overrides: str) -> Config:
    return load_config(None, [*SMALL, f"train.output={output}", *overrides])


def timeless(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in metrics]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, metrics but times, and rollouts, to the last bit."""
    assert timeless(read_rows(one / "metrics.jsonl")) == timeless(read_rows(other / "metrics.jsonl"))
    names = sorted(path.name for path in (one / "rollouts").iterdir())
    assert names == sorted(path.name for path in (other / "rollouts").iterdir())
    for name in names:
        assert (one / "rollouts" / name).read_bytes() == (other / "rollouts" / name).read_bytes()
    mine, theirs = weights(one / "final"), weights(other / "final")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_run_writes_everything_and_its_model_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    validation = ("data.validation=[embedded:validation]", "validation.items=20", "validation.every=2")
    monitor = "data.monitor=[embedded:retention]"
    summary = Trainer(small(run, *validation, monitor, "checkpoint.every=1", "checkpoint.keep=1")).run()

    said = [line[:11] for line in capsys.readouterr().err.splitlines() if line.endswith(" ...") or " accuracy " in line]
    assert said[:2] == ["making held", "evaluating "] and said[-2:] == ["step 3/3  a", "evaluating "]

    assert summary is not None
    for when in ("before", "after"):
        for name in ("answer_accuracy", "pointwise_balanced_accuracy", "pairwise_accuracy", "reflection_accuracy"):
            assert 0 <= summary[when][name] <= 1
        assert summary[when]["n_answer"] == 20
        assert set(summary[when]["by_source"]["answer"]) >= {"sum", "retention"}
    assert json.loads((run / "summary.json").read_text()) == summary
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [1, 2, 3]
    assert "validation/answer_accuracy" in read_rows(run / "metrics.jsonl")[1]
    assert len(list((run / "checkpoints").iterdir())) <= 2  # the newest and the best
    formats = ("data.answer_format=boxed", "prompts.verdict_format=boxed")  # those in use are written out
    assert load_config(run / "config.yaml") == small(
        run, *validation, monitor, *formats, "checkpoint.every=1", "checkpoint.keep=1"
    )

    last = read_rows(run / "rollouts" / "step-000003.jsonl")
    assert len(last) == 12
    written = {r["id"] for path in (run / "rollouts").iterdir() for row in read_rows(path) for r in row["rollouts"]}
    recycled = [row for row in last if row["role"] != Role.ANSWER]
    assert recycled
    assert all(parent in written for row in recycled for parent in row["parents"])

    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    model = AutoModelForCausalLM.from_pretrained(run / "final")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 3+4+2?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert model.generate(**prompt, max_new_tokens=5, do_sample=False).shape[1] > prompt["input_ids"].shape[1]
    base = AutoModelForCausalLM.from_pretrained(resolve_path("embedded"))
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, base.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.aggregation=grpo", "loss.advantage_scale=role"],
        ["loss.aggregation=dr_grpo", "loss.advantage_scale=none", "loss.count_dropped=false"],
        ["loss.kl_coef=0.01"],
        ["loss.kl_coef=0.01", "train.epochs_per_step=2", "train.learning_rate=1e-4"],
        ["model.activation_checkpointing=true"],
        ["recycle.schedule=alternating", "roles.answer.share=0.5"],
        ["preset=paper", "train.learning_rate=1e-4"],
        ["preset=grpo"],
        ["loss.truncated=mask", "rollout.max_new_tokens=8"],
        ["roles.pointwise.num_generations=6", "roles.reflection.max_new_tokens=12", "roles.pairwise.temperature=0.7"],
        ["train.shared_prefix=plain", "train.micro_batch_tokens=500"],
        ["rollout.top_p=0.9", "rollout.stop=['\\n']"],
        ["rollout.refill_rounds=2"],
    ],
    ids=lambda overrides: " ".join(overrides)[:40],
)
def test_every_setting_trains_without_breaking(tmp_path: Path, overrides: list[str]) -> None:
    trainer = Trainer(small(tmp_path / "run", *overrides))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.run()
    metrics = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(trainer.model.parameters(), before, strict=True))
    assert all(value == value for row in metrics for value in row.values())
    if trainer.config.loss.kl_coef:
        assert (metrics[0]["kl"] < 1e-6) == (trainer.config.train.epochs_per_step == 1)
        assert metrics[-1]["kl"] > 1e-6


def test_micro_batches_and_sharing_do_not_change_the_update(tmp_path: Path) -> None:
    """Two steps with the prompt shared in one micro-batch equal two with it repeated in many, up to rounding."""
    finals = []
    for i, overrides in enumerate([[], ["train.shared_prefix=plain", "train.micro_batch_tokens=300"]]):
        Trainer(small(tmp_path / str(i), "train.steps=2", "train.learning_rate=1e-4", *overrides)).run()
        finals.append(weights(tmp_path / str(i) / "final"))
    for name in finals[0]:
        torch.testing.assert_close(finals[0][name], finals[1][name], rtol=1e-3, atol=2e-5)


def test_prefixes_do_not_change_the_update(tmp_path: Path, every_prefix: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions begin in several ways, and the reference and the second epoch of a step have keys and values of their
    own; groups are cut."""
    computed: list[int] = []

    def counted(body: Any, ids: Sequence[Any], **kwargs: Any) -> Any:
        computed.append(len(ids))
        return prefix_states(body, ids, **kwargs)

    monkeypatch.setattr("spark_rl.train.forward.prefix_states", counted)
    finals = []
    settings = ["train.steps=1", "train.learning_rate=1e-4", "train.micro_batch_tokens=150", "loss.kl_coef=0.01"]
    settings += ["train.epochs_per_step=2"]
    for sharing in ("auto", "plain"):
        run = tmp_path / sharing
        Trainer(small(run, *settings, f"train.shared_prefix={sharing}")).run()
        finals.append(weights(run / "final"))
    # before the first epoch, for the reference, and in each epoch; and once for the self-check
    assert len(computed) == 4 + 1 and max(computed) > 1
    for name in finals[0]:
        torch.testing.assert_close(finals[0][name], finals[1][name], rtol=1e-3, atol=2e-5)


def test_alternating_steps_hold_one_kind_of_prompt(tmp_path: Path) -> None:
    Trainer(small(tmp_path / "run", "recycle.schedule=alternating", "train.steps=6")).run()
    kinds = []
    for path in sorted((tmp_path / "run" / "rollouts").iterdir()):
        roles = {row["role"] for row in read_rows(path)}
        kinds.append(roles == {"answer"})
        assert roles == {"answer"} or "answer" not in roles
    assert True in kinds and False in kinds


def test_dead_groups_are_replaced_and_still_recorded_and_recycled(tmp_path: Path) -> None:
    plain, refilled = tmp_path / "plain", tmp_path / "refilled"
    Trainer(small(plain, "train.steps=1")).run()
    Trainer(small(refilled, "train.steps=1", "rollout.refill_rounds=3")).run()
    (one,), (other,) = read_rows(plain / "metrics.jsonl"), read_rows(refilled / "metrics.jsonl")
    first, all_groups = (read_rows(run / "rollouts" / "step-000001.jsonl") for run in (plain, refilled))
    assert all_groups[: len(first)] == first, "the first round is the same"
    mixed = [len({r["reward"] for r in row["rollouts"]}) > 1 for row in all_groups]
    assert 0 < sum(mixed[:12]) < 12 < len(all_groups)
    assert other["answer/groups"] == len(all_groups) and other["trained_tokens"] > one["trained_tokens"]
    assert len({row["id"] for row in all_groups}) == len(all_groups)
    assert other["pool/pointwise"] >= one["pool/pointwise"]


def spark_rl(*arguments: str) -> list[str]:
    return [*PYTHON, "-m", "spark_rl.cli", *arguments]


def train_command(run: Path, *arguments: str) -> list[str]:
    (run.parent / "empty.yaml").write_text("{}")
    options = [a for a in arguments if a.startswith("--")]
    overrides = [a for a in arguments if not a.startswith("--")]
    settings = [*SMALL, f"train.output={run}", "train.steps=6", "checkpoint.every=2", *overrides]
    return spark_rl("train", str(run.parent / "empty.yaml"), *settings, *options)


HELD_OUT = ("data.validation=[embedded:validation]", "validation.items=8", "validation.every=3")
PICTURES = (
    "model.path=embedded-vision",
    "data.train=[embedded:vision-train]",
    "data.validation=[embedded:vision-validation]",
    *HELD_OUT[1:],
)
NUM_KILLS = 50 if os.environ.get("SPARK_RL_SOAK") else 2
STEPS_A_LIFE = 3
"""Steps that a process makes, on average, before it is killed."""


WARM_START = (
    *HELD_OUT,
    "warm_start.steps=4",
    "warm_start.from_rollouts=true",
    'prompts.examples={answer: [{question: "What is 2+2?", reply: 2+2=4, answer: 4}]}',
)
IN_SOAK = pytest.mark.skipif(not os.environ.get("SPARK_RL_SOAK"), reason="test_warm_start.py has a short version")


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(HELD_OUT, id="text"),
        pytest.param(PICTURES, id="pictures"),
        pytest.param(WARM_START, id="warm start", marks=IN_SOAK),
    ],
)
def test_killed_at_random_moments_and_resumed_equals_never_killed(tmp_path: Path, settings: tuple[str, ...]) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = STEPS_A_LIFE * NUM_KILLS
    settings = (*settings, f"train.steps={steps}")
    subprocess.run([*PYTHON, "-c", ""], check=True)  # from here on they are warm
    started = time.monotonic()
    with subprocess.Popen(train_command(whole, *settings), stderr=subprocess.DEVNULL) as process:
        while not (whole / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.01)
        first = time.monotonic() - started
    assert process.returncode == 0
    life = first + 2 * STEPS_A_LIFE * (time.monotonic() - started - first) / steps

    rng = random.Random(int.from_bytes(os.urandom(4), "big"))
    moments = [rng.uniform(0.2, 1.0) * life for _ in range(NUM_KILLS)]
    directory = RunDirectory(killed)
    for moment in moments:
        process = subprocess.Popen(train_command(killed, *settings, "--resume"), stderr=subprocess.DEVNULL)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            kill(process)
        assert not any(map(directory.flaw, directory.checkpoints())), moments
    # the last one is an interpreter of its own, whose sets and dicts have another order
    command = [sys.executable, *train_command(killed, *settings, "--resume")[len(PYTHON) :]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "damaged" not in done.stderr, (moments, done.stderr)
    assert_same_run(whole, killed)
    one, other = (json.loads((run / "summary.json").read_text()) for run in (whole, killed))
    assert one["before"] == other["before"] and one["after"] == other["after"], moments


def test_sigterm_finishes_the_step_saves_and_leaves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(train_command(run, "train.steps=500"), stderr=subprocess.PIPE, text=True)
    while not (run / "metrics.jsonl").exists() or not read_rows(run / "metrics.jsonl"):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "--resume" in errors and "Traceback" not in errors
    step = read_rows(run / "metrics.jsonl")[-1]["step"]
    assert (run / "checkpoints" / f"step-{step:06d}" / "trainer.json").exists()


def test_a_verifier_that_hangs_on_most_answers_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it asks is gone once the golds are graded."""
    grader = f"    time.sleep(9 * os.path.exists({str(tmp_path / 'gone')!r}))\n    return 1.0\n"
    (tmp_path / "sleepy.py").write_text(f"import os, time\ndef grade(answer, gold, metadata):\n{grader}")
    rows = "".join(json.dumps({"prompt": f"What is {i}+1?", "answer": i + 1}) + "\n" for i in range(12))
    (tmp_path / "sums.jsonl").write_text(rows)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = [f"data.train={tmp_path / 'sums.jsonl'}", "data.verifier=sleepy:grade", "verify.wall_seconds=0.5"]
    trainer = Trainer(small(tmp_path / "run", *settings))
    (tmp_path / "gone").touch()
    assert trainer.run() is None
    said = capsys.readouterr().err
    assert "stopped in step 0: the verifier sleepy:grade ran out of time on " in said and "--resume" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    Trainer(small(tmp_path / "run", "train.steps=1")).run()
    with pytest.raises(ValueError, match=r"train\.learning_rate was 0\.001 and is 0\.5"):
        Trainer(small(tmp_path / "run", "train.steps=1", "train.learning_rate=0.5"), resume=True)


@pytest.mark.skipif(not os.environ.get("SPARK_RL_SOAK"), reason="an allocator may live on what it has for seconds")
def test_a_run_that_gets_no_more_memory_says_so(tmp_path: Path) -> None:
    """As under `ulimit -v`, from some moment on."""
    run = tmp_path / "run"
    command = [sys.executable, *train_command(run, "train.steps=500", "checkpoint.every=1")[len(PYTHON) :]]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (run / "checkpoints" / "step-000001").exists():
            assert process.poll() is None
            time.sleep(0.01)
        used = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(process.pid, resource.RLIMIT_AS, (used // 2, used // 2))
        _, errors = process.communicate(timeout=60)
    last = errors.strip().splitlines()[-1]
    assert process.returncode == 1 and "Traceback" not in errors
    assert "there is not enough memory" in last and "--dry-run" in last and "--resume" in last
    assert not any(map(RunDirectory(run).flaw, RunDirectory(run).checkpoints()))
