"""Run directory and checkpoints: written whole or not at all, so that a run can be killed at any moment.

RUN/config.yaml  environment.json  data.json  prompts.json  metrics.jsonl  resumes.jsonl  rollouts/step-000012.jsonl
RUN/checkpoints/step-000050/
    model.safetensors  optimizer.safetensors  random-0.json (one a rank)  trainer.json
    config.yaml  environment.json  data.json  prompts.json (what a resume compares)
    metrics.jsonl  resumes.jsonl (as they were)
    checksums.txt (last: the hashes of all these)
RUN/checkpoints/step-000050.{partial, damaged}/
RUN/validation/{items.json, before.json, checksums.txt}  RUN/final/  RUN/summary.json
RUN/tensorboard/  RUN/wandb/  RUN/run.lock

A resume reads nothing but a checkpoint of which every byte is what was written, and what is logged beside it is cut
back to it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from weakref import WeakValueDictionary

from safetensors import SafetensorError

from spark_rl.train.checksums import flaw, seal

_PROBE = 2**20
"""Bytes that a disk must have left for a run to be begun at all."""
_FOLDERS = ("checkpoints", "rollouts", "validation")
_TRACKED = ("tensorboard", "wandb")
_LOCK = "run.lock"
_PICKLES = ("custom_checkpoint_0.pkl", "optimizer.bin")
"""What accelerate left in the checkpoints of earlier versions."""
_FILES = ("config.yaml", "environment.json", "data.json", "prompts.json")
_LOGS = ("metrics.jsonl", "resumes.jsonl")
"""What a checkpoint keeps a copy of, and a resume cuts back to it."""
_held: WeakValueDictionary[Path, RunDirectory] = WeakValueDictionary()
"""Runs that this process has locked. It must not open their lock files: closing one would give up its own lock."""


class CannotWrite(ValueError):
    """The run directory cannot be written: no room, no right, or a share that went away."""


class RunDirectory:
    """The files of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metrics = root / "metrics.jsonl"
        self._lock: IO[str] | None = None

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
            is_run = "checkpoints" in names and ("config.yaml" in names or self.checkpoints())
            if names and not is_run and self._holds_something(names):
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
        ours = {*_FOLDERS, *_TRACKED, *_FILES, *(f"{name}.partial" for name in _FILES), _LOCK}
        begun = any(any((self.root / name).glob("*")) for name in _FOLDERS)
        return not names <= ours or "checkpoints" not in names or begun

    def lock(self, warn: Callable[[str], None]) -> None:
        """Keep other processes out of the run until `unlock`, or until this one has died of whatever.

        A record lock: servers of network file systems know it, and no child that outlives its parent inherits it.

        Args:
            warn: told in a sentence if the file system has no locks.

        Raises:
            ValueError: another process has the run, or another part of this one.
        """
        self._refuse_if_held()
        with self.writing():
            file = (self.root / _LOCK).open("a+", encoding="utf-8")
        try:
            self._try_lock(file, fcntl.LOCK_EX)
        except OSError as error:
            warn(f"{self.root} cannot be locked ({error.strerror}); see that no other process works on this run")
        with self.writing():
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        self._lock = file
        _held[self.root.resolve()] = self

    def unlock(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None
            _held.pop(self.root.resolve(), None)

    def refuse_if_at_work(self) -> None:
        """Raises what `lock` raises, and leaves the run as it is."""
        self._refuse_if_held()
        with suppress(OSError), (self.root / _LOCK).open(encoding="utf-8") as file:  # else there is none, or no locks
            self._try_lock(file, fcntl.LOCK_SH)

    def _refuse_if_held(self) -> None:
        if self.root.resolve() in _held:
            raise self._at_work("this process")

    def _try_lock(self, file: IO[str], kind: int) -> None:
        """Raises OSError if the file system has no locks."""
        try:
            fcntl.lockf(file, kind | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which of them, depends on the system
            with file:
                file.seek(0)
                raise self._at_work(file.read() or "another process") from None

    def _at_work(self, holder: str) -> ValueError:
        return ValueError(f"{self.root}: {holder} is at work on this run; wait for its end, or stop it")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Whatever is raised when something cannot be written here, as `CannotWrite`."""
        try:
            yield
        except (OSError, SafetensorError) as error:  # safetensors wraps the system's error
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

    def write_sealed(self, folder: str, values: Mapping[str, Any]) -> None:
        """Write the JSON files of a folder, and their hashes."""
        for name, value in values.items():
            self.write_json(f"{folder}/{name}", value)
        with self.writing():
            seal(self.root / folder)

    def read_json(self, name: str) -> Any:
        """The content of a JSON file, or None if there is none."""
        return read_json(self.root / name)

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

    def cut_back(self, step: int) -> list[str]:
        """Forget everything logged after `step`, the torn last line of a killed run included, and that it was done.

        Returns the files that were damaged: before `step` they held something else than its checkpoint's copies, which
        take their place.
        """
        damaged = []
        with self.writing():
            (self.root / "summary.json").unlink(missing_ok=True)
            for name in _LOGS:
                path, copy = self.root / name, self.checkpoint(step) / name
                then = copy.read_bytes() if copy.exists() else b""
                if not (path.read_bytes() if path.exists() else b"").startswith(then):
                    damaged.append(name)
                if then:
                    write_atomically(path, then)
                else:
                    path.unlink(missing_ok=True)
            for path in (self.root / "rollouts").glob("step-*.jsonl"):
                if _number(path) > step:
                    path.unlink()
        return damaged

    def partial_checkpoint(self, step: int, clear: bool) -> Path:
        """A folder for a checkpoint in the making, emptied if `clear`; damaged ones that it replaces make room."""
        partial = self._partial(step)
        if clear:
            with self.writing():
                for damaged in (self.root / "checkpoints").glob("step-*.damaged"):
                    if _number(damaged) <= step:
                        shutil.rmtree(damaged)
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        return partial

    def complete_checkpoint(self, step: int, known: Mapping[str, str]) -> Path:
        """Add copies of what was logged, seal the folder, and give it its name once all of it is on disk.

        Args:
            known: hashes of its large files.
        """
        partial, final = self._partial(step), self.checkpoint(step)
        with self.writing():
            for name in _LOGS:
                if (self.root / name).exists():
                    shutil.copyfile(self.root / name, partial / name)
            seal(partial, known)
            for path in partial.rglob("*"):
                _sync(path)
            _sync(partial)
            self._remove(final)
            partial.rename(final)
            _sync(final.parent)
        return final

    def flaw(self, step: int, part: slice = slice(None)) -> str | None:
        """What is wrong with a checkpoint; None if every byte (of that part of its files) is what was written."""
        folder = self.checkpoint(step)
        if not folder.exists():
            return f"{folder} is gone"
        found = flaw(folder, part)
        if found and any((folder / name).exists() for name in _PICKLES):
            return f"{folder} was made by an earlier version, and its pickles, which could run code, are never read"
        return found and f"{folder} is damaged ({found})"

    def set_aside(self, step: int) -> Path:
        """Keep a damaged checkpoint under another name, until the run comes to its step again."""
        aside = self.checkpoint(step).with_suffix(".damaged")
        with self.writing():
            shutil.rmtree(aside, ignore_errors=True)
            self.checkpoint(step).rename(aside)
        return aside

    def clear_partial(self) -> None:
        """Remove what a killed run had begun to save."""
        with self.writing():
            for folder in (self.root / "checkpoints").glob("*.partial*"):
                shutil.rmtree(folder)

    def _partial(self, step: int) -> Path:
        return self.root / "checkpoints" / f"{step_name(step)}.partial"

    def checkpoint(self, step: int) -> Path:
        return self.root / "checkpoints" / step_name(step)

    def checkpoints(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        folders = (self.root / "checkpoints").glob("step-" + "[0-9]" * 6)
        return sorted(map(_number, folders))

    def prune(self, keep: int, *also: int | None) -> None:
        """Remove all but the newest `keep` checkpoints and those of the steps in `also`."""
        with self.writing():
            for step in self.checkpoints()[:-keep]:
                if step not in also:
                    self._remove(self.checkpoint(step))

    def _remove(self, folder: Path) -> None:
        """A checkpoint that is half removed is none."""
        if folder.exists():
            shutil.rmtree(folder.rename(folder.with_suffix(".partial-old")))


def step_name(step: int) -> str:
    return f"step-{step:06d}"


def _number(path: Path) -> int:
    """The step in a name."""
    return int(path.stem.removeprefix("step-"))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Readers see the old file or the new one, never a part of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    _sync(partial)
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value), encoding="utf-8")


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if there is none.

    Raises:
        ValueError: it holds something else.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise ValueError(f"{path} is damaged ({reason}); put it back from a copy, or remove it") from None


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
