"""Run directory and checkpoints: written whole or not at all, so that a run can be killed at any moment.

RUN/config.yaml  environment.json  metrics.jsonl  rollouts/step-000012.jsonl
RUN/checkpoints/step-000050/{accelerate state, trainer.json}
RUN/validation/{items.json, before.json}  RUN/final/  RUN/summary.json
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class RunDirectory:
    """The files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metrics = root / "metrics.jsonl"

    def create(self, resume: bool) -> None:
        """Make the directory, or check that it may be resumed.

        Raises:
            ValueError: it holds something already and `resume` is off, or it cannot be written.
        """
        try:
            if not resume and self.root.exists() and self._holds_something():
                raise ValueError(
                    f"{self.root} is not empty; give another train.output, or continue that run with --resume"
                )
            (self.root / "checkpoints").mkdir(parents=True, exist_ok=True)
            (self.root / "rollouts").mkdir(exist_ok=True)
            (self.root / "validation").mkdir(exist_ok=True)
        except OSError as error:
            raise ValueError(f"{self.root} cannot be written ({error.strerror}); set train.output") from None

    def _holds_something(self) -> bool:
        """Whether there is more here than a run leaves that failed before its first step."""
        ours = {"config.yaml", "environment.json", "checkpoints", "rollouts", "validation"}
        names = {path.name for path in self.root.iterdir()}
        begun = any(any((self.root / name).glob("*")) for name in ("checkpoints", "rollouts", "validation"))
        return bool(names) and (not names <= ours or "config.yaml" not in names or begun)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file atomically."""
        write_atomically(self.root / name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> Any | None:
        """The content of a JSON file, or None if there is none."""
        path = self.root / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def write_rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.root / "rollouts" / f"{step_name(step)}.jsonl").write_text(lines, encoding="utf-8")

    def cut_back(self, step: int) -> None:
        """Forget everything logged after `step`, the torn last line of a killed run included."""
        if self.metrics.exists():
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if (row := _parse(line)) is not None and row["step"] <= step]
            write_atomically(self.metrics, "".join(line + "\n" for line in kept))
        for path in (self.root / "rollouts").glob("step-*.jsonl"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()

    def partial_checkpoint(self, step: int, clear: bool) -> Path:
        """A folder for a checkpoint in the making, emptied if `clear`."""
        partial = self._partial(step)
        if clear:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        return partial

    def complete_checkpoint(self, step: int) -> Path:
        """Give the folder its name, once all of it is on disk."""
        partial, final = self._partial(step), self.checkpoint(step)
        for path in partial.rglob("*"):
            if path.is_file():
                _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(final.parent)
        return final

    def clear_partial(self) -> None:
        """Remove what a killed run had begun to save."""
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

    def prune(self, keep: int, best: int | None) -> None:
        """Remove all but the newest `keep` checkpoints and the best one."""
        for step in self.checkpoints()[:-keep]:
            if step != best:
                shutil.rmtree(self.checkpoint(step))


def step_name(step: int) -> str:
    return f"step-{step:06d}"


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never a part of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    partial.replace(path)


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
