"""Checkpoints that are damaged, planted or of an earlier version, files of a run that are, and runs that are locked."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from factories import read_rows, small_run
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_loop import assert_same_run, spark_rl, train_command
from warm import PYTHON

from spark_rl.config import Config
from spark_rl.train.checkpoint import RunDirectory
from spark_rl.train.checksums import flaw, seal
from spark_rl.train.loop import Trainer
from spark_rl.train.telemetry import Display

IN_SOAK = bool(os.environ.get("SPARK_RL_SOAK"))
FILES = [
    "checksums.txt",
    "config.yaml",
    "data.json",
    "environment.json",
    "metrics.jsonl",
    "model.safetensors",
    "optimizer.safetensors",
    "prompts.json",
    "random-0.json",
    "trainer.json",
]
"""Of a checkpoint of one process."""


def settings(run: Path, *overrides: str) -> Config:
    held_out = ("data.validation={path: embedded:validation, size: 40}", "validation.items=4")
    return small_run(run, "train.steps=4", "checkpoint.every=1", "checkpoint.keep=2", *held_out, *overrides)


def resume(run: Path, *overrides: str) -> str:
    """Go on to the end; what was said."""
    said = io.StringIO()
    trainer = Trainer(settings(run, *overrides), resume=True, display=Display(4, Console(file=said, width=1000)))
    assert trainer.run() is not None
    return said.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to, not to be written to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert Trainer(settings(run, "checkpoint.keep=3")).run() is not None
    return run


@pytest.fixture
def killed(whole: Path, tmp_path: Path) -> Path:
    """The same after a kill in step 4, with the checkpoints of steps 2 and 3."""
    run = shutil.copytree(whole, tmp_path / "run")
    for name in ("checkpoints/step-000004", "final"):
        shutil.rmtree(run / name)
    (run / "summary.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "torn')
    return run


def checkpoint(run: Path, step: int = 3) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def flip(path: Path, place: int | None = None, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content)) if place is None else place] ^= 1 << bit
    path.write_bytes(content)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(1, len(content))])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE: list[Callable[[Path], None]] = [flip, cut, empty, Path.unlink]


# ------------------------------------------------------------------------------------------------ every byte counts


def test_a_checkpoint_holds_what_is_said_and_no_pickle(killed: Path) -> None:
    assert sorted(path.name for path in checkpoint(killed).iterdir()) == FILES


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_each_file_that_is_damaged_is_noticed_and_named(
    killed: Path, name: str, damage: Callable[[Path], None]
) -> None:
    directory = RunDirectory(killed)
    assert directory.flaw(3) is None
    damage(checkpoint(killed) / name)
    assert f"{checkpoint(killed)} is damaged ({name} is " in str(directory.flaw(3)) and directory.flaw(2) is None
    shares = [directory.flaw(3, slice(rank, None, 2)) for rank in range(2)]
    assert any(shares), "several processes look at it together"


def test_no_bit_of_the_checksums_themselves_can_change(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    seal(tmp_path)
    path = tmp_path / "checksums.txt"
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            flip(path, place, bit)
            assert flaw(tmp_path), (place, bit)
            path.write_bytes(content)
        path.write_bytes(content[:place])
        assert flaw(tmp_path), place
        path.write_bytes(content)
    assert flaw(tmp_path) is None


@given(content=st.binary(min_size=1, max_size=300), place=st.integers(0), bit=st.integers(0, 7))
def test_no_bit_of_a_file_can_change(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, place: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "file").write_bytes(content)
    seal(folder)
    assert flaw(folder) is None
    flip(folder / "file", place % len(content), bit)
    assert flaw(folder) == "file is not what was written"


# ------------------------------------------------------------------------------------------------ going on


CASES = [(name, damage) for name in FILES for damage in DAMAGE]


@pytest.mark.parametrize(
    ("name", "damage"),
    CASES if IN_SOAK else [("model.safetensors", flip), ("trainer.json", Path.unlink)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    killed: Path, whole: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """And the run is what it would have been."""
    damage(checkpoint(killed) / name)
    said = resume(killed)
    assert f"{checkpoint(killed)} is damaged ({name} " in said and "going on from step-000002 instead" in said
    assert "kept as" in said and "resumed after step 2" in said
    assert_same_run(whole, killed)
    assert [path.name for path in sorted((killed / "checkpoints").iterdir())] == ["step-000003", "step-000004"]
    assert RunDirectory(killed).flaw(3) is None, "the damaged one was made anew"


def test_when_no_checkpoint_is_whole_one_sentence_names_the_files(killed: Path) -> None:
    flip(checkpoint(killed, 3) / "model.safetensors")
    (checkpoint(killed, 2) / "random-0.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in killed.rglob("*")}
    (killed.parent / "run.yaml").write_text(settings(killed).dump())
    done = subprocess.run(
        spark_rl("train", str(killed.parent / "run.yaml"), "--resume"),
        capture_output=True,
        text=True,
    )
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2
    for part in ("step-000003 is damaged (model.safetensors is not", "step-000002 is damaged (random-0.json is missi"):
        assert part in line
    assert "put back what is damaged from a copy, or begin a new run" in line
    after = {path: path.stat().st_mtime_ns for path in killed.rglob("*") if path.name != "run.lock"}
    assert after.items() <= before.items(), "all is left as it was"


def test_a_damaged_best_checkpoint_is_not_taken_for_the_model(tmp_path: Path) -> None:
    best = ("validation.every=1", "checkpoint.final=best")
    said = io.StringIO()
    trainer = Trainer(settings(tmp_path / "run", *best), display=Display(4, Console(file=said, width=1000)))
    train = trainer._finish

    def damaged(before: object) -> object:
        trainer.state.best_step, trainer.state.best_score = 2, 2.0
        shutil.copytree(checkpoint(tmp_path / "run", 3), checkpoint(tmp_path / "run", 2), dirs_exist_ok=True)
        flip(checkpoint(tmp_path / "run", 2) / "model.safetensors")
        return train(before)  # type: ignore[arg-type]

    trainer._finish = damaged  # type: ignore[method-assign, assignment]
    summary = trainer.run()
    assert summary is not None and summary["final_from_step"] == 4
    assert "is damaged (model.safetensors" in said.getvalue() and "final/ holds the last weights" in said.getvalue()


LOGGED = ("metrics.jsonl", "config.yaml", "data.json", "prompts.json", "environment.json", "validation/items.json")
LOGGED_TOO = ("validation/before.json", "validation/checksums.txt")


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_what_is_damaged_beside_the_checkpoints_changes_nothing(
    killed: Path, whole: Path, damage: Callable[[Path], None]
) -> None:
    """All at once: a resume takes them from the checkpoint. What was logged and is gone, is said."""
    for name in (*LOGGED, *LOGGED_TOO):
        damage(killed / name)
    if damage is flip:
        flip(killed / "metrics.jsonl", place=0)  # not in what is cut off anyway
    said = resume(killed)
    assert ("metrics.jsonl was damaged; the checkpoint's copy" in said) or damage is cut
    assert_same_run(whole, killed)
    for name in ("data.json", "prompts.json", "validation/items.json", "validation/before.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damaged_held_out_items_are_made_again_before_the_first_checkpoint(
    killed: Path, whole: Path, damage: Callable[[Path], None]
) -> None:
    shutil.rmtree(killed / "checkpoints")
    (killed / "checkpoints").mkdir()
    damage(killed / "validation" / "items.json")
    said = resume(killed)
    assert "validation is damaged (items.json is " in said and "starting from the beginning" in said
    assert (killed / "validation" / "items.json").read_bytes() == (whole / "validation" / "items.json").read_bytes()


# ------------------------------------------------------------------------------------------------ pickles


class Attack:
    """Unpickled, it leaves a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


PICKLES = ("custom_checkpoint_0.pkl", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "pytorch_model.bin")


def test_a_planted_pickle_is_never_loaded(killed: Path, whole: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for name in (*PICKLES, "trainer.pkl", "model.bin"):
        (checkpoint(killed) / name).write_bytes(pickle.dumps(Attack(trace)))
    assert "resumed after step 3" in resume(killed)
    assert not trace.exists()
    assert_same_run(whole, killed)
    pickle.loads(pickle.dumps(Attack(trace)))
    assert trace.exists(), "the attack would have been seen"


@pytest.mark.parametrize("sealed", [True, False])
def test_a_pickle_in_the_place_of_a_file_is_damage_or_no_safetensors(
    killed: Path, tmp_path: Path, sealed: bool
) -> None:
    for step in (2, 3):
        (checkpoint(killed, step) / "optimizer.safetensors").write_bytes(pickle.dumps(Attack(tmp_path / "trace")))
        if sealed:
            seal(checkpoint(killed, step))
    with pytest.raises(Exception, match="header" if sealed else r"damaged \(optimizer\.safetensors"):
        resume(killed)
    assert not (tmp_path / "trace").exists()


def test_a_checkpoint_of_an_earlier_version_gets_a_sentence(killed: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkpoint(killed, 2))
    (checkpoint(killed) / "checksums.txt").unlink()
    for name in PICKLES:
        (checkpoint(killed) / name).write_bytes(pickle.dumps(Attack(tmp_path / "trace")))
    with pytest.raises(ValueError, match=r"step-000003 was made by an earlier version, and its pickles.*never read"):
        resume(killed)
    assert not (tmp_path / "trace").exists()


def test_a_checkpoint_of_a_later_version_gets_a_sentence(killed: Path) -> None:
    path = checkpoint(killed) / "trainer.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    seal(checkpoint(killed))
    with pytest.raises(ValueError, match="step-000003 was made by another version of spark-rl; resume with that one"):
        resume(killed)


# ------------------------------------------------------------------------------------------------ locks


def test_a_living_run_cannot_be_resumed_and_a_killed_one_can_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # an interpreter of its own: the lock tells its number
    command = [sys.executable, *train_command(run, "train.steps=500")[len(PYTHON) :]]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not (run / "checkpoints" / "step-000002").exists():
            assert process.poll() is None
            time.sleep(0.02)
        resumed = train_command(run, "train.steps=500", "--resume")
        refused = subprocess.run(resumed, capture_output=True, text=True, check=False)
        (line,) = refused.stderr.strip().splitlines()
        assert refused.returncode == 2 and f"process {process.pid} on " in line and "at work on this run" in line
        with pytest.raises(ValueError, match=f"process {process.pid} on .* is at work on this run; wait for its end"):
            RunDirectory(run).lock(pytest.fail)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    directory = RunDirectory(run)
    directory.lock(pytest.fail)
    directory.unlock()
    assert read_rows(run / "metrics.jsonl")


def test_a_process_neither_shares_its_run_with_itself_nor_loses_it_by_asking(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path / "link")
    first.lock(pytest.fail)
    for refused in (second.refuse_if_at_work, lambda: second.lock(pytest.fail)):
        with pytest.raises(ValueError, match="this process is at work on this run; wait for its end, or stop it"):
            refused()
    other = (
        "import sys, pathlib; from spark_rl.train.checkpoint import RunDirectory; run = pathlib.Path(sys.argv[1])\n"
        "RunDirectory(run).refuse_if_at_work()"
    )
    done = subprocess.run([*PYTHON, "-c", other, str(tmp_path)], capture_output=True, text=True)
    assert f"process {os.getpid()} on {socket.gethostname()} is at work on this run" in done.stderr
    first.unlock()
    before = (tmp_path / "run.lock").stat()
    second.refuse_if_at_work()
    after = (tmp_path / "run.lock").stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
    second.lock(pytest.fail)
    second.unlock()


def test_where_nothing_can_be_locked_it_is_said_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def none_here(*arguments: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none_here)
    said: list[str] = []
    RunDirectory(tmp_path).lock(said.append)
    assert said == [f"{tmp_path} cannot be locked (No locks available); see that no other process works on this run"]
