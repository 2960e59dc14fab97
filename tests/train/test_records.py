"""Resuming with other settings, on another machine, in another folder; and disks that are full, small or read-only."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import SMALL_RUN, read_rows, small_run
from rich.console import Console
from safetensors.torch import load_file, save_file

from spark_rl.config import Config, load_config
from spark_rl.train.checkpoint import CannotWrite, RunDirectory
from spark_rl.train.checksums import seal
from spark_rl.train.estimate import bytes_needed
from spark_rl.train.loop import Trainer
from spark_rl.train.records import refuse_other_data
from spark_rl.train.state import write_tensors
from spark_rl.train.telemetry import Display


def small(output: Path, *overrides: str) -> Config:
    return small_run(output, "train.steps=2", *overrides)


def train(output: Path, *overrides: str, resume: bool = False, allow_changes: bool = False) -> str:
    """Run to the end; what was said."""
    said = io.StringIO()
    display = Display(2, Console(file=said, width=1000))
    trainer = Trainer(small(output, *overrides), resume=resume, allow_changes=allow_changes, display=display)
    assert trainer.run() is not None
    return said.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, not to be written to."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train(run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def timeless(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_rows(path)]


# ------------------------------------------------------------------------------------------------ changed settings


def test_settings_without_effect_are_said_in_one_line(run: Path) -> None:
    changed = ["checkpoint.keep=3", "checkpoint.every=1", "verify.workers=2", "train.sample_every=7"]
    lines = [line for line in train(run, *changed, resume=True).splitlines() if "without effect" in line]
    assert len(lines) == 1
    assert "checkpoint.keep was 2 and is 3" in lines[0] and "train.sample_every was 10 and is 7" in lines[0]
    assert not (run / "resumes.jsonl").exists(), "no step was made with them"
    assert load_config(run / "config.yaml").checkpoint.keep == 3


def test_settings_that_change_results_are_refused_together(run: Path) -> None:
    before = (run / "config.yaml").read_text()
    with pytest.raises(ValueError, match="--allow-changes") as refused:
        Trainer(small(run, "train.learning_rate=0.5", "loss.kl_coef=0.1", "checkpoint.keep=3"), resume=True)
    for part in ("train.learning_rate was 0.001 and is 0.5", "loss.kl_coef was 0.0 and is 0.1"):
        assert part in str(refused.value)
    assert "checkpoint.keep" not in str(refused.value)
    assert (run / "config.yaml").read_text() == before and not (run / "resumes.jsonl").exists()


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("model.path=/other/model", "weights"),
        ("train.seed=1", "data order"),
        ("data.train=[embedded:test]", "questions"),
        ("data.verifier=numeric", "questions"),
        ("data.validation=[embedded:validation]", "held-out"),
        ("validation.items=3", "held-out items"),
    ],
)
def test_some_settings_can_never_change(run: Path, override: str, why: str) -> None:
    from accelerate import Accelerator

    from spark_rl.train.records import environment, resumption

    machine = environment(Accelerator(cpu=True))
    with pytest.raises(ValueError, match=why) as refused:
        resumption(run, 2, small(run, override), machine, allow_changes=True)
    assert override.partition("=")[0] in str(refused.value) and "new run" in str(refused.value)


def test_the_longest_prompt_may_change_though_the_data_may_not(run: Path) -> None:
    assert "data.max_prompt_tokens" in train(run, "data.max_prompt_tokens=900", resume=True, allow_changes=True)


def test_a_finished_run_goes_on_to_more_steps(run: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.steps was 2 and is 4"):
        Trainer(small(run, "train.steps=4"), resume=True)
    said = train(run, "train.steps=4", resume=True, allow_changes=True)
    assert "train.steps was 2 and is 4" in said
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [1, 2, 3, 4]
    assert json.loads((run / "summary.json").read_text())["steps"] == 4
    (record,) = read_rows(run / "resumes.jsonl")
    assert record["step"] == 2 and record["changes"]["train.steps"] == [2, 4]
    assert "| changed after step 2 | train.steps: 2 to 4 |" in (run / "final" / "README.md").read_text()
    with pytest.raises(ValueError, match="has made 4"):
        Trainer(small(run, "train.steps=3"), resume=True, allow_changes=True)


def test_more_steps_of_a_constant_schedule_are_what_they_would_have_been(run: Path, tmp_path: Path) -> None:
    """A run of 2 that is prolonged to 4 equals one of 4, where nothing depends on the number of steps."""
    constant = ["train.schedule=constant", "train.warmup_ratio=0"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, *constant, "train.steps=4")
    train(parts, *constant)
    train(parts, *constant, "train.steps=4", resume=True, allow_changes=True)
    assert timeless(whole / "metrics.jsonl") == timeless(parts / "metrics.jsonl")
    one, other = (load_file(folder / "final" / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_changed_optimizer_settings_are_really_used(run: Path) -> None:
    """A checkpoint brings its own learning rate, betas and decay; the new ones must win, from the first step on."""
    changes = ["train.learning_rate=1e-5", "train.betas=[0.5,0.6]", "train.weight_decay=0.1", "train.steps=3"]
    changes += ["train.schedule=constant", "train.warmup_ratio=0"]
    trainer = Trainer(small(run, *changes), resume=True, allow_changes=True)
    trainer.run()
    assert read_rows(run / "metrics.jsonl")[-1]["learning_rate"] == 1e-5
    (group,) = trainer.updater.optimizer.param_groups
    assert (tuple(group["betas"]), group["weight_decay"], group["lr"]) == ((0.5, 0.6), 0.1, 1e-5)


MOVED = "since the machine has changed"


def test_a_change_that_trained_no_step_can_be_taken_back(run: Path) -> None:
    """A resume with other settings that dies before a checkpoint leaves the run what its newest checkpoint is."""
    dead = Trainer(small(run, "loss.kl_coef=0.1"), resume=True, allow_changes=True)
    dead.run_directory.unlock()  # as the end of a process does
    assert load_config(run / "config.yaml").loss.kl_coef == 0.1
    train(run, resume=True)
    assert not (run / "resumes.jsonl").exists()


def test_another_machine_is_said_in_one_line(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step-000002"
    saved = json.loads((checkpoint / "environment.json").read_text())
    saved["processes"], saved["packages"]["torch"] = 8, "1.0"
    (checkpoint / "environment.json").write_text(json.dumps(saved))
    seal(checkpoint)
    (line,) = [line for line in train(run, resume=True).splitlines() if MOVED in line]
    assert "processes was 8 and is 1" in line and "packages.torch was '1.0'" in line


@pytest.mark.parametrize("text", ["train: [", "trian: {}\n", "train:\n  stepps: 3\n", "- a\n", "\x00", ""])
def test_a_saved_config_that_cannot_be_read_gets_a_sentence(run: Path, text: str) -> None:
    shutil.rmtree(run / "checkpoints" / "step-000002")
    (run / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^--resume: ") as refused:
        Trainer(small(run), resume=True)
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------ folders


def test_resuming_nothing_starts_and_says_so(tmp_path: Path) -> None:
    assert "holds no checkpoint; starting from the beginning" in train(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", ["thesis.txt", "config.yaml", "rollouts/step-000001.jsonl", "checkpoints/x.bin"])
def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path, name: str, resume: bool) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"give another train\.output"):
        RunDirectory(tmp_path).create(resume)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("made", range(7))
def test_a_run_that_died_before_its_first_step_can_be_begun_again(tmp_path: Path, resume: bool, made: int) -> None:
    """Whatever part of its first files and folders was made."""
    names = ["checkpoints/", "rollouts/", "validation/", "config.yaml.partial", "config.yaml", "data.json", "wandb/"]
    for name in names[:made]:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("{}")
    RunDirectory(tmp_path).create(resume)


def test_a_folder_that_cannot_be_made_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        RunDirectory(tmp_path / "file" / "run").create(False)


# ------------------------------------------------------------------------------------------------ changed data


def report(**parts: str) -> dict[str, Any]:
    """`data.json`, of names that are fingerprints too: `train="a b"`."""
    made = {part: parts.get(part, "").split() for part in ("train", "validation", "monitor")}
    return {
        part: [{"source": f"{name[0]}.jsonl", "rows": 3, "skipped": {}, "fingerprint": name} for name in names]
        for part, names in made.items()
    }


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"train": "a b c"}, "data.train opens 3 sources, and 2 when the run was begun (c.jsonl is new); put the data"),
        ({"train": "b"}, "data.train opens 1 sources, and 2 when the run was begun (a.jsonl is gone)"),
        ({"train": "a b", "monitor": "m"}, "data.monitor opens 1 sources, and 0 when the run was begun (m.jsonl is"),
        (
            {"train": "a b2"},
            "b.jsonl has changed since the run was begun: its rows or their images, or which rows are left out (3 rows "
            "then, 3 now); put the data back",
        ),
        ({"train": "a2 b", "validation": "v2"}, "v.jsonl has changed since the run was begun"),
    ],
    ids=str,
)
def test_other_data_are_refused_and_named(now: dict[str, str], words: str) -> None:
    begun = report(train="a b", validation="v")
    refuse_other_data(begun, begun)
    refuse_other_data(None, begun)
    with pytest.raises(ValueError) as caught:
        refuse_other_data(begun, report(**{"validation": "v", **now}))
    assert f"--resume: {words}" in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ disks


def test_the_room_a_run_needs_is_counted(tmp_path: Path) -> None:
    model = torch.nn.Linear(1000, 1000, bias=False)
    weights, checkpoint = 4_000_000, 12_000_000

    def needed(*overrides: str) -> int:
        return bytes_needed(model, small(tmp_path, "train.steps=100", *overrides))

    assert needed("checkpoint.every=10", "checkpoint.keep=2") == 3 * checkpoint + weights
    assert needed("checkpoint.every=0") == checkpoint + weights
    assert needed("checkpoint.every=50", "checkpoint.keep=9") == 2 * checkpoint + weights
    held_out = ["data.validation=[embedded:validation]", "validation.every=5"]
    assert needed("checkpoint.every=10", "checkpoint.keep=2", *held_out) == 4 * checkpoint + weights
    assert needed("checkpoint.every=0", "checkpoint.keep=2", *held_out) == 4 * checkpoint + weights
    model.requires_grad_(False)
    assert needed("checkpoint.every=0") == 2 * weights


def test_the_estimate_holds_for_a_real_run(finished: Path) -> None:
    """One checkpoint and `final/` take what was foreseen, but for tokenizer, pool and the like."""
    trainer_model = torch.nn.ParameterList([torch.empty(1)])
    weights = sum(tensor.numel() for tensor in load_file(finished / "final" / "model.safetensors").values())
    trainer_model[0] = torch.nn.Parameter(torch.empty(weights))
    needed = bytes_needed(trainer_model, small(finished))
    used = sum(
        p.stat().st_size for name in ("checkpoints", "final") for p in (finished / name).rglob("*") if p.is_file()
    )
    assert 0.95 * used < needed < 1.05 * used


def test_too_little_room_is_refused_and_what_is_there_already_counts(run: Path) -> None:
    directory = RunDirectory(run)
    free = shutil.disk_usage(run).free
    directory.check_space(free // 2)
    with pytest.raises(ValueError, match=r"GB free for them; lower checkpoint\.keep, or set train\.output"):
        directory.check_space(2 * free + 10**9)
    (run / "checkpoints" / "step-000009").mkdir()
    with (run / "checkpoints" / "step-000009" / "large").open("wb") as file:
        file.truncate(10**12)  # a sparse file: as large as it says, at no cost
    directory.check_space(10**12)


@pytest.mark.parametrize(
    ("write", "path", "reason"),
    [
        (write_tensors, "/dev/full", "No space left on device"),
        (write_tensors, "/no/such/folder/model.safetensors", "No such file"),
        (lambda path, tensors: save_file(tensors, path), "/no/such/folder/model.safetensors", "No such file"),
    ],
    ids=["full", "no folder", "final/ without a folder"],
)
def test_whatever_fails_to_write_gets_one_sentence(tmp_path: Path, write: Any, path: str, reason: str) -> None:
    """Of checkpoints, and of `final/`, which safetensors writes (and would put a file in the place of a device)."""
    with pytest.raises(CannotWrite, match=rf"cannot be written \(.*{reason}"), RunDirectory(tmp_path).writing():
        write(Path(path), {"weights": torch.zeros(10**5)})


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("NCCL error: unhandled")])
def test_what_is_no_matter_of_the_disk_passes(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, RunDirectory(tmp_path).writing():
        raise error
    assert raised.value is error


def test_a_package_without_metadata_stops_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such is spark-rl itself when it is run from a source folder."""
    from importlib import metadata

    from accelerate import Accelerator

    from spark_rl.train.records import environment

    version = metadata.version

    def without_ours(name: str) -> str:
        if name == "spark-rl":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_ours)
    packages = environment(Accelerator(cpu=True))["packages"]
    assert packages["spark-rl"] == "not installed" and packages["torch"] == torch.__version__


def on_small_disk(size: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a bash script where `$DISK` is a disk of this size and `train` the command; skip if none can be made."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0:
        pytest.skip("no user namespaces here")
    overrides = shlex.join([*SMALL_RUN, "train.steps=6", "checkpoint.every=1", "checkpoint.keep=1"])
    setup = f"""
        export OMP_NUM_THREADS=1
        DISK=$(mktemp -d) && mount -t tmpfs -o size={size} none $DISK && echo '{{}}' > /tmp/empty-$$.yaml
        train() {{ {sys.executable} -m spark_rl.cli train /tmp/empty-$$.yaml {overrides} train.output=$DISK/run "$@"; }}
    """
    try:
        return subprocess.run(
            ["unshare", "-rm", "bash", "-c", setup + script], capture_output=True, text=True, timeout=200
        )
    except FileNotFoundError:
        pytest.skip("unshare is not installed")


def test_a_disk_that_is_too_small_is_refused_at_the_start() -> None:
    done = on_small_disk("10M", "train; echo code $?; rm -f /tmp/empty-$$.yaml")
    assert "code 2" in done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert "checkpoint.keep" in line and "train.output" in line and "0.01 GB" in line


def test_a_read_only_disk_is_refused_at_the_start() -> None:
    done = on_small_disk("50M", "mount -o remount,ro $DISK; train; echo code $?; rm -f /tmp/empty-$$.yaml")
    assert "code 2" in done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert "cannot be written (Read-only file system)" in line


def test_a_disk_that_fills_up_stops_the_run_and_it_goes_on_when_there_is_room() -> None:
    script = """
        train > /dev/null 2> /tmp/err-$$ & run=$!
        until [ -s $DISK/run/metrics.jsonl ]; do sleep 0.05; done
        head -c 60M /dev/zero > $DISK/filler 2> /dev/null
        wait $run; echo code $?; cat /tmp/err-$$ >&2
        rm $DISK/filler; train --resume > /dev/null 2>&1; echo code $?
        wc -l < $DISK/run/metrics.jsonl; ls $DISK/run/final/model.safetensors; rm -f /tmp/err-$$ /tmp/empty-$$.yaml
    """
    done = on_small_disk("50M", script)
    assert done.stdout.startswith("code 1\ncode 0\n6\n"), done.stdout + done.stderr
    assert done.stdout.strip().endswith("model.safetensors")
    stopped = [line for line in done.stderr.splitlines() if "cannot be written" in line]
    assert len(stopped) == 1 and "--resume" in stopped[0]
    assert "Traceback" not in done.stderr
