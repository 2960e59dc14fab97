"""Saving a run and going on with it, on all ranks together.

All ranks must share the output folder. Every rank writes and checks its own files; the first one says which
checkpoints there are and names one complete, and none waits for another that cannot write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from spark_rl.config import Config
from spark_rl.data import Data
from spark_rl.prompts.build import prompts_as_json
from spark_rl.train.checkpoint import CannotWrite, RunDirectory, read_json, write_json
from spark_rl.train.hub import warn_without_token
from spark_rl.train.records import Changes, environment, hub_source, refuse_other_data, resumption
from spark_rl.train.state import load_weights, random_state, save_weights, set_random_state
from spark_rl.train.telemetry import Display
from spark_rl.verify import VerifierHangs

_FORMAT = 1
"""Of `trainer.json`: another number whenever what it holds is read in another way."""
T = TypeVar("T")


class Saver:
    """The run directory in the hands of a trainer."""

    def __init__(self, config: Config, data: Data, accelerator: Accelerator, display: Display) -> None:
        self.config, self.data, self.accelerator, self.display = config, data, accelerator, display
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.directory = RunDirectory(config.train.output)
        self._changes: Changes = {}
        """What a resumed run does otherwise; recorded with the first checkpoint that holds it."""
        self._resumed_at = 0

    def open(self, needed: int, resume: bool, allow_changes: bool) -> int | None:
        """Make the directory this run's own, and bring it back to the checkpoint to resume.

        Args:
            needed: bytes that checkpoints and the final model take.

        Returns the step of that checkpoint, None to begin at the beginning.

        Raises:
            ValueError: the directory is in use, too small, or holds another run or nothing to resume.
        """
        if self.accelerator.is_main_process:
            self.directory.create(resume)
            self.directory.lock(self.display.warn)
        try:
            return self._opened(needed, resume, allow_changes)
        except BaseException:
            self.directory.unlock()
            raise

    def _opened(self, needed: int, resume: bool, allow_changes: bool) -> int | None:
        """`open`, once the directory is locked."""
        if self.accelerator.is_main_process:
            self.directory.check_space(needed)
        self.accelerator.wait_for_everyone()
        found = self._find_whole() if resume else None
        self._resumed_at = found or 0
        if self.accelerator.is_main_process:
            self._bring_back(found, resume, allow_changes)
        self.accelerator.wait_for_everyone()
        return found

    def save(self, step: int, parts: Mapping[str, Any], model: Any, optimizer: Any, kept: Sequence[int | None]) -> None:
        """Checkpoint, atomically, and remove what is no longer kept.

        Args:
            parts: what there is to save beside weights, moments and random states, as JSON.
            kept: steps of checkpoints that stay beside the newest ones.
        """
        is_main = self.accelerator.is_main_process
        with self._writing():
            folder = self.directory.partial_checkpoint(step, clear=is_main)
        with self._writing():
            hashes = self._write(folder, parts, model, optimizer)
        with self._writing():
            if is_main and self._changes:
                self.directory.append("resumes.jsonl", {"step": self._resumed_at, "changes": self._changes})
                self._changes = {}
            if is_main:
                self.directory.complete_checkpoint(step, hashes)
                self.directory.prune(self.config.checkpoint.keep, *kept)

    def load(self, step: int, model: Any, optimizer: Any) -> dict[str, Any]:
        """Read what was saved after a step into model, optimizer and random generators; returns the other parts."""
        folder = self.directory.checkpoint(step)
        parts: dict[str, Any] = read_json(folder / "trainer.json")
        if parts["format"] != _FORMAT:
            raise ValueError(f"{folder} was made by another version of spark-rl; resume with that one")
        load_weights(folder, model, optimizer)
        if random_states := read_json(folder / f"random-{self.rank}.json"):  # none if there were fewer ranks
            set_random_state(random_states, self.accelerator.device)
        return parts

    def checkpoints(self) -> list[int]:
        """Steps of the complete checkpoints as the first rank sees them: what a rank sees of a network share may be
        late, and all must do the same."""
        steps = self.directory.checkpoints()
        listings: list[list[int]] = [steps] if self.world == 1 else gather_object([steps])
        return listings[0]

    def flaw(self, step: int) -> str | None:
        """What is wrong with a checkpoint, of whose files each rank looks at its share."""
        return self._of_any(self.directory.flaw(step, slice(self.rank, None, self.world)))

    def _find_whole(self) -> int | None:
        """The step of the newest checkpoint that is whole, None if the run has no checkpoint.

        Raises:
            ValueError: it has some, and none is whole.
        """
        flaws: list[str] = []
        for step in reversed(self.checkpoints()):
            if (flaw := self.flaw(step)) is None:
                for each in flaws:
                    self.display.warn(f"{each}; going on from {self.directory.checkpoint(step).name} instead")
                return step
            flaws.append(flaw)
        if flaws:
            raise ValueError(
                f"--resume: {'; '.join(flaws)}; no other checkpoint is there to go on from, so put back what is "
                "damaged from a copy, or begin a new run in another train.output"
            )
        return None

    def _of_any(self, mine: T | None) -> T | None:
        """What the first rank has that has something: the same on all of them."""
        return mine if self.world == 1 else next(filter(None, gather_object([mine])), None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What stops a run is raised on all ranks if it is raised on one, so that none waits for it."""
        failed: Exception | None = None
        try:
            yield
        except (CannotWrite, VerifierHangs) as error:
            failed = error
        if failed := self._of_any(failed):
            raise failed

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self.together(), self.directory.writing():
            yield

    def _environment(self) -> dict[str, Any]:
        return environment(self.accelerator, hub_source(self.config.model))

    def _bring_back(self, found: int | None, resume: bool, allow_changes: bool) -> None:
        """Compare with the checkpoint that was found, and bring the run directory back to it."""
        directory, machine = self.directory, self._environment()
        saved = directory.root if found is None else directory.checkpoint(found)
        if resume and (saved / "config.yaml").exists():
            resumed = resumption(saved, found or 0, self.config, machine, allow_changes, self.data.prompts)
            for warning in resumed.warnings:
                self.display.warn(warning)
            self._changes = resumed.changes
            refuse_other_data(read_json(saved / "data.json"), self.data.report)
        if resume and found is None:
            self.display.say(f"{directory.root} holds no checkpoint; starting from the beginning")
        for step in directory.checkpoints():
            if step > self._resumed_at:
                self.display.warn(f"the damaged checkpoint is kept as {directory.set_aside(step)} until step {step}")
        for name in directory.cut_back(self._resumed_at):
            self.display.warn(f"{directory.root / name} was damaged; the checkpoint's copy is put in its place")
        directory.clear_partial()
        directory.write_text("config.yaml", self.config.dump())
        directory.write_json("environment.json", machine)
        directory.write_json("data.json", self.data.report)
        directory.write_json("prompts.json", prompts_as_json(self.data.prompts))
        for message in self.data.messages:
            self.display.warn(message)
        warn_without_token(self.config, self.display.warn)

    def _write(self, folder: Path, parts: Mapping[str, Any], model: Any, optimizer: Any) -> dict[str, str]:
        """This rank's files of a checkpoint; the hashes of the large ones."""
        write_json(folder / f"random-{self.rank}.json", random_state(self.accelerator.device))
        if not self.accelerator.is_main_process:
            return {}
        write_json(folder / "trainer.json", {"format": _FORMAT, **parts})
        write_json(folder / "environment.json", self._environment())
        write_json(folder / "data.json", self.data.report)
        write_json(folder / "prompts.json", prompts_as_json(self.data.prompts))
        (folder / "config.yaml").write_text(self.config.dump(), encoding="utf-8")
        return save_weights(folder, model, optimizer)
