"""Trackers: `metrics.jsonl` and sample rollouts, mirrored to TensorBoard, Weights & Biases and Trackio.

accelerate's tracker classes do the talking. `Accelerator.init_trackers` and `Accelerator.log` are not used, since they
call one tracker after the other: the first to fail takes the others and the run with it. Here whatever a tracker
raises is said once, in a sentence, and that tracker is left out from then on.

What a tracker does never enters training: everything random there is addressed by its place (see `loop`).

A resumed run goes on in the same tracker run. Its steps after the checkpoint are made again: TensorBoard hides the
former ones, Weights & Biases keeps them and drops the new (equal) ones, Trackio shows both.
"""

from __future__ import annotations

import html
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from spark_rl.config import Config, flat
from spark_rl.prompts.quoting import cut
from spark_rl.types import Group, Role

COLUMNS = ("step", "role", "prompt", "response", "label", "extracted", "reward", "reason")
"""Of the table of sample rollouts."""
_MAX_CHARS = 1500


class Trackers:
    """The trackers of a run that still work.

    Args:
        root: the run directory; what TensorBoard and Weights & Biases write locally goes into it.
        resume: go on in the tracker runs that were begun from this directory.
        warn: told in a sentence when a tracker is left out.
        enabled: off on all processes but the main one.
    """

    def __init__(
        self, config: Config, root: Path, resume: bool, warn: Callable[[str], None], enabled: bool = True
    ) -> None:
        self.config, self.root, self.resume, self.warn = config, root, resume, warn
        self.names = dict.fromkeys(config.train.trackers if enabled else [])
        self._working: dict[str, GeneralTracker] = {}

    @contextmanager
    def running(self, step: int) -> Iterator[None]:
        """Begin or go on after `step`, and finish in the end whatever happens."""
        settings = {key: _plain(value) for key, value in flat(self.config.model_dump(mode="json")).items()}
        for name in self.names:
            with self._left_out_if_it_fails(name):
                tracker = self._make(name, step)
                tracker.start()
                self._working[name] = tracker
                if isinstance(tracker, TensorBoardTracker):  # its hyperparameters show up as a run of their own
                    tracker.log({"config": f"```yaml\n{self.config.dump()}```"}, step=step)
                else:
                    tracker.store_init_configuration(settings)
        try:
            yield
        finally:
            self._each(_finish)
            self._working.clear()

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """The numbers among `metrics`, under their own names."""
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self._each(lambda tracker: tracker.log(numbers, step=step))

    def log_samples(self, groups: Sequence[Group], step: int) -> None:
        """A table of a few rollouts of this step, if one is due."""
        every = self.config.train.sample_every
        if self._working and every and step % every == 0 and (rows := sample_rows(groups, step)):
            self._each(lambda tracker: _show(tracker, rows, step))

    def _each(self, call: Callable[[GeneralTracker], object]) -> None:
        for name, tracker in list(self._working.items()):
            with self._left_out_if_it_fails(name):
                call(tracker)

    @contextmanager
    def _left_out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            with redirect_stdout(sys.stderr):  # trackio prints, and stdout may be read as JSON
                yield
        except ImportError:
            self._leave_out(name, "is not installed, so it is left out; pip install 'spark-rl[trackers]'")
        except Exception as error:  # of any kind: a run is worth more than its curves
            reason = " ".join(str(error).split()) or type(error).__name__
            self._leave_out(name, f"has failed and is left out from here on ({reason})")

    def _leave_out(self, name: str, why: str) -> None:
        self._working.pop(name, None)
        self.warn(f"train.trackers: {name} {why}")

    def _make(self, name: str, step: int) -> GeneralTracker:
        project, run = self.config.train.project, self.root.resolve().name
        match name:
            case "tensorboard":
                # hides what was logged after the checkpoint; the held-out metrics of the start are logged at 0
                return TensorBoardTracker("tensorboard", self.root, purge_step=step + 1 if step else 0)
            case "wandb":
                offline = "WANDB_MODE" not in os.environ and not _has_wandb_key()
                if offline:  # on a terminal, wandb would ask for a key and wait
                    self.warn(
                        f"train.trackers: wandb has no API key, so this run stays offline in {self.root / 'wandb'}; "
                        "log in with `wandb login` before a run, or send it later with `wandb sync`"
                    )
                return WandBTracker(
                    project,
                    name=run,
                    id=self._wandb_id(),
                    resume="allow",
                    dir=self.root,
                    mode="offline" if offline else None,
                    settings={"console": "off"},  # the live table would be recorded frame by frame
                )
            case "trackio":
                return TrackioTracker(project, name=run, resume="allow" if self.resume else "never")
        raise AssertionError(name)

    def _wandb_id(self) -> str:
        """The id of this directory's run, kept beside what wandb writes."""
        path = self.root / "wandb" / "run-id"
        if not (self.resume and path.exists()):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        return path.read_text(encoding="utf-8")


def _has_wandb_key() -> bool:
    """Whether wandb could upload, without asking anybody."""
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # an older wandb, whose `login` always asks
        return bool(wandb.api.api_key)


def sample_rows(groups: Sequence[Group], step: int) -> list[list[Any]]:
    """Two rollouts of the first group of each role; see `COLUMNS`."""
    first = {group.task.role: group for group in reversed(groups)}
    return [
        [
            step,
            role.value,
            str(group.task.messages[-1]["content"])[-_MAX_CHARS:],
            cut(rollout.text, _MAX_CHARS),
            group.task.label,
            rollout.extracted,
            rollout.reward,
            rollout.reason,
        ]
        for role in Role
        if (group := first.get(role))
        for rollout in group.rollouts[:2]
    ]


def _show(tracker: GeneralTracker, rows: list[list[Any]], step: int) -> None:
    if isinstance(tracker, WandBTracker):
        tracker.log_table("samples", columns=list(COLUMNS), data=rows, step=step)
    elif isinstance(tracker, TrackioTracker):
        import trackio

        tracker.log({"samples": trackio.Table(columns=list(COLUMNS), data=rows)}, step=step)
    else:
        tracker.log({"samples": _markdown(rows)}, step=step)


def _finish(tracker: GeneralTracker) -> None:
    if isinstance(tracker, TrackioTracker):
        import trackio

        trackio.finish()  # the run's own `finish`, which accelerate calls, is called once more at exit, aloud
    else:
        tracker.finish()


def _markdown(rows: list[list[Any]]) -> str:
    """A Markdown table whose cells show text as it is."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return html.escape(str(value)).replace("|", "&#124;").replace("\n", "<br>")


def _plain(value: Any) -> str | bool | int | float:
    """A setting as a table of hyperparameters can hold it."""
    return value if isinstance(value, str | bool | int | float) else json.dumps(value)
