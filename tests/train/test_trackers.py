"""Real trackers on real runs: what they hold, that none can stop a run, and that none changes it."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from factories import make_config, make_rollout, question_group, read_rows, small_run
from rich.console import Console
from safetensors.torch import load_file

from spark_rl.config import Config
from spark_rl.train.loop import Trainer
from spark_rl.train.metrics import Metrics
from spark_rl.train.telemetry import Display
from spark_rl.train.trackers import COLUMNS, Trackers, sample_rows

HELD_OUT = ["data.validation={path: embedded:validation, size: 12}", "validation.items=4"]


class Killed(BaseException):
    """The run dies here."""


class Said(Display):
    """Keeps what is said, and may die at a step."""

    def __init__(self, die_at: int | None = None) -> None:
        self.text, self.die_at = io.StringIO(), die_at
        super().__init__(3, Console(file=self.text, width=500))

    def step(self, step: int, metrics: Metrics) -> None:
        if step == self.die_at:
            raise Killed
        super().step(step, metrics)

    def lines(self, about: str) -> list[str]:
        return [line for line in self.text.getvalue().splitlines() if about in line]


def small(output: Path, *overrides: str) -> Config:
    return small_run(output, "train.sample_every=2", *overrides)


def rows(run: Path) -> list[dict[str, Any]]:
    return read_rows(run / "metrics.jsonl")


@lru_cache(maxsize=1)
def _read(folder: Path, _: int) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def events(run: Path) -> Any:
    """What TensorBoard reads from a run."""
    size = sum(path.stat().st_size for path in (run / "tensorboard").iterdir() if path.is_file())
    return _read(run / "tensorboard", size)


def scalars(run: Path, name: str) -> dict[int, float]:
    found = [(event.step, event.value) for event in events(run).Scalars(name)]
    assert len(found) == len(dict(found)), f"{name} was logged twice: {found}"
    return dict(found)


def assert_mirrored(run: Path) -> None:
    """TensorBoard holds every number of metrics.jsonl, under its name."""
    tags = set(events(run).Tags()["scalars"])
    of_file = {name for row in rows(run) for name in row if name != "step"}
    assert of_file <= tags
    for name in of_file:
        kept = {row["step"]: pytest.approx(row[name], rel=1e-5) for row in rows(run) if name in row}
        assert {step: value for step, value in scalars(run, name).items() if step in kept} == kept


def test_tensorboard_mirrors_the_run_and_does_not_change_it(tmp_path: Path) -> None:
    with_it, without = tmp_path / "with", tmp_path / "without"
    summary = Trainer(small(with_it, *HELD_OUT, "train.trackers=[tensorboard]")).run()
    Trainer(small(without, *HELD_OUT)).run()

    assert summary is not None
    assert_mirrored(with_it)
    held_out = scalars(with_it, "validation/answer_accuracy")
    assert held_out == {0: summary["before"]["answer_accuracy"], 3: summary["after"]["answer_accuracy"]}
    (table,) = events(with_it).Tensors("samples/text_summary")
    lines = table.tensor_proto.string_val[0].decode().splitlines()
    assert table.step == 2 and len(lines) > 3
    assert lines[0] == "| " + " | ".join(COLUMNS) + " |"
    assert all(line.count(" | ") == len(COLUMNS) - 1 for line in lines)
    (settings,) = events(with_it).Tensors("config/text_summary")
    assert "  groups_per_step: 12\n" in settings.tensor_proto.string_val[0].decode()
    assert not [path for path in (with_it / "tensorboard").iterdir() if path.is_dir()]  # it would show up as a run

    one, other = (load_file(run / "final" / "model.safetensors") for run in (with_it, without))
    assert all((one[name] == other[name]).all() for name in one)
    timeless = [
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows(r)] for r in (with_it, without)
    ]
    assert timeless[0] == timeless[1]
    for path in (without / "rollouts").iterdir():
        assert path.read_bytes() == (with_it / "rollouts" / path.name).read_bytes()


def test_a_resumed_run_goes_on_in_the_same_curves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = ["train.trackers=[tensorboard]", "train.steps=4", "checkpoint.every=2", *HELD_OUT]
    with pytest.raises(Killed):
        Trainer(small(run, *overrides), display=Said(die_at=3)).run()
    assert set(scalars(run, "loss")) == {1, 2, 3}
    Trainer(small(run, *overrides), resume=True).run()
    assert set(scalars(run, "loss")) == {1, 2, 3, 4}
    assert set(scalars(run, "validation/answer_accuracy")) == {0, 4}
    assert_mirrored(run)


def fail(*_: Any, **__: Any) -> None:
    raise ConnectionError("the server is\non fire")


def fake_wandb(fails: str) -> Any:
    """A wandb that fails at one of its calls; the real one cannot be made to."""

    def log(values: dict[str, Any], step: int) -> None:
        if fails == "log" and step == 2:
            fail()

    def table(**_: Any) -> str:
        return fail() or "" if fails == "table" else "a table"

    run = SimpleNamespace(log=log, finish=fail if fails == "finish" else lambda: None)
    return SimpleNamespace(
        login=lambda **_: True,
        init=fail if fails == "init" else lambda **_: run,
        config=SimpleNamespace(update=fail if fails == "config" else lambda *_, **__: None),
        Table=table,
    )


@pytest.mark.parametrize("fails", ["import", "init", "config", "log", "table", "finish"])
def test_a_tracker_that_fails_is_said_once_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None if fails == "import" else fake_wandb(fails))
    display = Said()
    overrides = ["train.trackers=[wandb,tensorboard]"]
    assert Trainer(small(tmp_path / "run", *overrides), display=display).run() is not None
    (line,) = display.lines("wandb")
    assert line.startswith("train.trackers: wandb ")
    assert ("pip install 'spark-rl[trackers]'" if fails == "import" else "(the server is on fire)") in line
    assert_mirrored(tmp_path / "run")


@pytest.mark.parametrize(
    ("has_key", "wandb_mode", "mode", "num_lines"),
    [(False, None, "offline", 1), (True, None, None, 0), (False, "online", None, 0)],
)
@pytest.mark.parametrize("is_old", [False, True])
def test_wandb_without_a_key_stays_offline_and_asks_nobody(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_key: bool,
    wandb_mode: str | None,
    mode: str | None,
    num_lines: int,
    is_old: bool,
) -> None:
    Accelerator(cpu=True)  # its trackers log through it
    begun: list[dict[str, Any]] = []
    said: list[str] = []
    wandb = fake_wandb("never")
    if is_old:
        wandb.login = lambda verify: pytest.fail("it would ask")
        wandb.api = SimpleNamespace(api_key="key" if has_key else None)
    else:
        wandb.login = lambda *, prompt, verify: has_key and not prompt
    start = wandb.init
    wandb.init = lambda **settings: begun.append(settings) or start()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if wandb_mode:
        monkeypatch.setenv("WANDB_MODE", wandb_mode)
    with Trackers(make_config(train={"trackers": ["wandb"]}), tmp_path, False, said.append).running(0):
        pass
    assert [settings["mode"] for settings in begun] == [mode]
    assert len(said) == num_lines and all("wandb login" in line and "wandb sync" in line for line in said)


def test_a_full_or_broken_tensorboard_folder_does_not_stop_the_run(tmp_path: Path) -> None:
    run, display = tmp_path / "run", Said()
    trainer = Trainer(small(run, "train.trackers=[tensorboard]"), display=display)
    (run / "tensorboard").write_text("a file in its place")
    assert trainer.run() is not None
    assert len(display.lines("tensorboard has failed and is left out")) == 1


def test_a_run_that_failed_before_its_first_step_may_leave_tracker_folders(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = Trainer(small(run, "train.trackers=[tensorboard]"))
    with pytest.raises(Killed), trainer.trackers.running(0):
        raise Killed
    trainer.run_directory.unlock()  # as the end of a process does
    assert (run / "tensorboard").exists()
    time.sleep(1.1)  # TensorBoard reads its files in the order of their names, which hold the second
    Trainer(small(run, "train.trackers=[tensorboard]")).run()
    assert set(scalars(run, "loss")) == {1, 2, 3}


def test_only_the_main_process_tracks(tmp_path: Path) -> None:
    config = make_config(train={"trackers": ["tensorboard"]})
    trackers = Trackers(config, tmp_path, resume=False, warn=pytest.fail, enabled=False)
    with trackers.running(0):
        trackers.log({"loss": 1.0}, 1)
        trackers.log_samples([question_group(2, [3])], 10)
    assert list(tmp_path.iterdir()) == []


def test_sample_rows_are_two_rollouts_of_each_role() -> None:
    groups = [question_group(2, [3, 4, None]), question_group(5, [6])]
    found = sample_rows(groups, 7)
    assert [len(row) for row in found] == [len(COLUMNS)] * 2
    assert [(row[0], row[1], row[4], row[5], row[6]) for row in found] == [
        (7, "answer", "3", "3", 1.0),
        (7, "answer", "3", "4", 0.0),
    ]


def test_long_texts_and_markup_stay_in_their_cells(tmp_path: Path) -> None:
    """Responses may hold pipes, tags and line breaks; none may break the table or reach the page as HTML."""
    group = question_group(2, [3])
    group.rollouts = [make_rollout("<script>|\n" + "x" * 9000, 0.0)]
    trackers = Trackers(make_config(train={"trackers": ["tensorboard"]}), tmp_path, False, pytest.fail)
    with trackers.running(0):
        trackers.log_samples([group], 10)
    (table,) = events(tmp_path).Tensors("samples/text_summary")
    head, _, row = table.tensor_proto.string_val[0].decode().splitlines()
    assert row.count("|") == head.count("|")
    assert "<script>" not in row and "characters left out" in row and len(row) < 4000


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a tracker's real library with its files under `tmp_path`, or skip."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return pytest.importorskip


def test_wandb_for_real(tmp_path: Path, offline: Callable[[str], Any]) -> None:
    offline("wandb")
    run, display = tmp_path / "run", Said()
    Trainer(small(run, *HELD_OUT, "train.trackers=[wandb]"), display=display).run()
    assert display.lines("wandb") == []
    run_id = (run / "wandb" / "run-id").read_text()
    (folder,) = (run / "wandb").glob(f"offline-run-*-{run_id}")
    assert (folder / f"run-{run_id}.wandb").stat().st_size > 0
    (table,) = folder.glob("files/media/table/samples_2_*.table.json")
    assert json.loads(table.read_text())["columns"] == list(COLUMNS)
    Trainer(small(run, *HELD_OUT, "train.trackers=[wandb]"), resume=True, display=display).run()
    assert (run / "wandb" / "run-id").read_text() == run_id and display.lines("wandb") == []


def test_trackio_for_real(tmp_path: Path, offline: Callable[[str], Any]) -> None:
    offline("trackio")
    import sqlite3

    run, display = tmp_path / "run", Said()
    Trainer(small(run, *HELD_OUT, "train.trackers=[trackio]"), display=display).run()
    assert display.lines("trackio") == []
    from trackio import utils

    (path,) = Path(utils.TRACKIO_DIR).glob("spark-rl*.db")
    with sqlite3.connect(path) as database:
        logged = database.execute("select step, metrics from metrics where run_name = 'run'").fetchall()
    assert {step for step, _ in logged} == {0, 1, 2, 3}
    assert sum(b'"samples"' in metrics for _, metrics in logged) == 1
