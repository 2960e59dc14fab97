"""Run directory and checkpoints: written whole or not at all, so that a run can be killed at any moment.

RUN/config.yaml  environment.json  metrics.jsonl  rollouts/step-000012.jsonl
RUN/checkpoints/step-000050/{accelerate state, trainer.json}
RUN/validation/{items.json, before.json}  RUN/final/  RUN/summary.json
RUN/resumes.jsonl  RUN/tensorboard/  RUN/wandb/
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

_PROBE = 2**20
"""Bytes that a disk must have left for a run to be begun at all."""
_FOLDERS = ("checkpoints", "rollouts", "validation")
_TRACKED = ("tensorboard", "wandb")
_WRITER_SAYS = ("PytorchStreamWriter", "inline_container", "iostream", "No space", "write failed", "Parent directory")
"""What is found in the messages of torch's file writer."""
_FILES = ("config.yaml", "environment.json", "data.json")


class CannotWrite(ValueError):
    """The run directory cannot be written: no room, no right, or a share that went away."""


class RunDirectory:
    """The files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metrics = root / "metrics.jsonl"

    def check(self, resume: bool) -> None:
        """See whether the directory can be made or resumed, and leave no trace.

        Raises:
            ValueError: it holds something already and `resume` is off, or something that is no run; or it cannot be
                written.
        """
        with self.writing():
            names = {path.name for path in self.root.iterdir()} if self.root.exists() else set()
            if names and not resume and self._holds_something(names):
                raise ValueError(
                    f"{self.root} is not empty; give another train.output, or continue that run with --resume"
                )
            if names and not {"config.yaml", "checkpoints"} <= names and self._holds_something(names):
                raise ValueError(
                    f"{self.root} holds no run to resume, but something else (no config.yaml, or no checkpoints/); "
                    "give another train.output"
                )
            existing = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.exists())
            with tempfile.TemporaryFile(dir=existing) as probe:
                probe.write(bytes(_PROBE))
                probe.flush()

    def create(self, resume: bool) -> None:
        """Make the directory, or check that it may be resumed; raises what `check` raises."""
        self.check(resume)
        with self.writing():
            for name in _FOLDERS:
                (self.root / name).mkdir(parents=True, exist_ok=True)

    def _holds_something(self, names: set[str]) -> bool:
        """Whether there is more here than a run leaves that failed before its first step."""
        ours = {*_FOLDERS, *_TRACKED, *_FILES, *(f"{name}.partial" for name in _FILES)}
        begun = any(any((self.root / name).glob("*")) for name in _FOLDERS)
        return not names <= ours or "checkpoints" not in names or begun

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Whatever is raised when something cannot be written here, as `CannotWrite`.

        torch's file writer raises plain RuntimeErrors, as do a full GPU and a lost process, which are no matter of
        the disk and pass.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap the system's error
            if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _WRITER_SAYS):
                raise
            reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
            raise CannotWrite(f"{self.root} cannot be written ({reason})") from error

    def check_space(self, needed: int) -> None:
        """Refuse a run whose checkpoints would fill the disk.

        Args:
            needed: bytes that checkpoints and the final model take; what is already here counts.

        Raises:
            ValueError: there is less room.
        """
        held = sum(_size(self.root / name) for name in ("checkpoints", "final"))
        free = shutil.disk_usage(self.root).free + held
        if free < needed:
            raise ValueError(
                f"checkpoints and final/ take up to {needed / 1e9:.2g} GB, but {self.root} has {free / 1e9:.2g} GB "
                "free for them; lower checkpoint.keep, or set train.output to a larger disk"
            )

    def write_text(self, name: str, text: str) -> None:
        """Write a file atomically."""
        with self.writing():
            write_atomically(self.root / name, text)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file atomically."""
        self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> Any | None:
        """The content of a JSON file, or None if there is none."""
        path = self.root / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """The whole rows of a JSONL file; none if there is no file."""
        path = self.root / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [row for line in lines if (row := _parse(line)) is not None]

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add a row to a JSONL file."""
        with self.writing(), (self.root / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        self.append(self.metrics.name, row)

    def write_rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with self.writing():
            (self.root / "rollouts" / f"{step_name(step)}.jsonl").write_text(lines, encoding="utf-8")

    def cut_back(self, step: int) -> None:
        """Forget everything logged after `step`, the torn last line of a killed run included, and that it was done."""
        with self.writing():
            (self.root / "summary.json").unlink(missing_ok=True)
            if self.metrics.exists():
                kept = [row for row in self.read_rows(self.metrics.name) if row["step"] <= step]
                write_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))
            for path in (self.root / "rollouts").glob("step-*.jsonl"):
                if int(path.stem.removeprefix("step-")) > step:
                    path.unlink()

    def partial_checkpoint(self, step: int, clear: bool) -> Path:
        """A folder for a checkpoint in the making, emptied if `clear`."""
        partial = self._partial(step)
        if clear:
            with self.writing():
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        return partial

    def complete_checkpoint(self, step: int) -> Path:
        """Give the folder its name, once all of it is on disk."""
        partial, final = self._partial(step), self.checkpoint(step)
        with self.writing():
            for path in partial.rglob("*"):
                if path.is_file():
                    _sync(path)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _sync(final.parent)
        return final

    def clear_partial(self) -> None:
        """Remove what a killed run had begun to save."""
        with self.writing():
            for folder in (self.root / "checkpoints").glob("*.partial"):
                shutil.rmtree(folder)

    def _partial(self, step: int) -> Path:
        return self.root / "checkpoints" / f"{step_name(step)}.partial"

    def checkpoint(self, step: int) -> Path:
        return self.root / "checkpoints" / step_name(step)

    def checkpoints(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        folders = (self.root / "checkpoints").glob("step-" + "[0-9]" * 6)
        return sorted(int(folder.name.removeprefix("step-")) for folder in folders)

    def prune(self, keep: int, *also: int | None) -> None:
        """Remove all but the newest `keep` checkpoints and those of the steps in `also`."""
        with self.writing():
            for step in self.checkpoints()[:-keep]:
                if step not in also:
                    shutil.rmtree(self.checkpoint(step))


def step_name(step: int) -> str:
    return f"step-{step:06d}"


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never a part of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    partial.replace(path)


def _size(folder: Path) -> int:
    """Bytes of all files under a folder; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row
