"""How far something long is: a bar on a terminal, and in a log a plain line now and then.

A log gets a line whenever nothing was said for `LOG_SECONDS`, also in the middle of one long call: a thread of its own
looks. What is over sooner leaves none.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")
LOG_SECONDS = 30.0
"""Between two lines of a log, at most; the environment variable `SPARK_RL_LOG_SECONDS` has others."""
_REDRAW = 0.1
"""Seconds between two looks of a bar at what it shows: rows may come by the ten thousand."""
Report = Callable[[float, float | None], None]
"""Told (done, all), the latter None where it is not known. `done` may count what is half done as a half."""


def log_seconds() -> float:
    """`LOG_SECONDS`, or what the environment says.

    Raises:
        ValueError: that is no number of seconds.
    """
    given = os.environ.get("SPARK_RL_LOG_SECONDS")
    try:
        seconds = LOG_SECONDS if given is None else float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise ValueError(f"SPARK_RL_LOG_SECONDS is {given!r}; make it a number of seconds above 0")
    return seconds


@dataclass(slots=True)
class Stage:
    """Something under way, and how far it is."""

    name: str
    total: float | None = None
    unit: str = ""
    """What is counted, in the plural."""
    done: float | None = None
    first: float = 0.0
    """What was done when it was first told: nothing, or what an earlier call had done."""
    began: float = field(default_factory=time.monotonic)

    def tell(self, done: float, total: float | None) -> None:
        """It is so far."""
        if self.done is None:
            self.first = done
        self.done, self.total = done, total

    @property
    def count(self) -> str:
        """`4,096 of 100,000 rows`, whole ones."""
        of_all = "" if self.total is None else f" of {self.total:,.0f}"
        return f"{int(self.done or 0):,}{of_all} {self.unit}".rstrip()

    def line(self, now: float) -> str:
        """In words, with the time that is left at the pace so far."""
        seconds = now - self.began
        made = (self.done or 0) - self.first
        said = [self.count] if self.done or self.total else []
        if self.total:
            said[0] += f" ({(self.done or 0) / self.total:.0%})"
        if made > 0 and seconds > 0:
            rate = made / seconds
            said.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
        if made > 0 and self.total is not None:
            said.append(f"about {_clock(seconds * (self.total - (self.done or 0)) / made)} left")
        else:
            said.append(f"{_clock(seconds)} so far")
        return f"{self.name}: {', '.join(said)}"


class Pulse:
    """Says in a log how far the stage under way is, and what is under way inside of it."""

    def __init__(self, say: Callable[[str], None], seconds: float | None = None) -> None:
        self.say, self.seconds = say, seconds or log_seconds()
        self._stage: Stage | None = None
        self._part: Stage | None = None
        self._said = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._said = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def begin(self, stage: Stage) -> None:
        """A stage begins, and the one before is over."""
        self._part, self._stage = None, stage

    def part(self, name: str, done: float, total: float | None) -> None:
        """How far a call inside of the stage is; one that is told less than before is another one."""
        part = self._part
        if part is None or part.name != name or part.total != total or done < (part.done or 0):
            part = self._part = Stage(name)
            part.tell(0, total)
        part.tell(done, total)

    def heard(self) -> None:
        """Something was said: the next line has time."""
        self._said = time.monotonic()

    def line(self) -> str | None:
        """Where things stand; None if nothing is under way."""
        stage, part, now = self._stage, self._part, time.monotonic()
        if stage is None:
            return None
        return stage.line(now) + ("" if part is None else f"; {part.line(now)}")

    def _run(self) -> None:
        while not self._ended.wait(max(0.001, self._said + self.seconds - time.monotonic())):
            if time.monotonic() - self._said < self.seconds:
                continue
            self.heard()
            if (line := self.line()) is not None:
                try:
                    self.say(line)
                except (OSError, ValueError):  # who reads is gone, or the file is closed
                    return


class Shown:
    """The stages of a command, shown on standard error.

    >>> with Shown() as shown:
    ...     report = shown.stage("counting", 3)
    ...     for i in range(3):
    ...         report(i + 1, 3)

    Args:
        bar: whether a terminal, which may show the command's own output, gets a bar.
    """

    def __init__(self, *, bar: bool = True, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, emoji=False)
        self._has_bar = bar and self.console.is_terminal
        columns = (
            TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(
            *columns,
            console=self.console,
            disable=not self._has_bar,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=None, visible=False, count="")
        self._pulse = None if self.console.is_terminal else Pulse(self._say)

    def __enter__(self) -> Self:
        self._bar.start()
        if self._pulse:
            self._pulse.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pulse:
            self._pulse.__exit__(kind, error, trace)
        self._bar.stop()

    def stage(self, name: str, total: float | None = None, unit: str = "") -> Report:
        """A stage begins; what it gives is told how far it is."""
        stage, drawn = Stage(name, total, unit), 0.0
        if self._pulse:
            self._pulse.begin(stage)
        self._bar.reset(self._task, description=escape(name), total=total, visible=True, count="")

        def report(done: float, total: float | None = total) -> None:
            nonlocal drawn
            stage.tell(done, total)
            if self._has_bar and (done == total or time.monotonic() - drawn > _REDRAW):
                drawn = time.monotonic()
                self._bar.update(self._task, completed=done, total=total, count=stage.count)

        return report

    def part(self, done: float, total: float) -> None:
        """How many replies of a generation call, inside of the stage, have come."""
        if self._pulse:
            self._pulse.part("replies under way", done, total)

    def track(self, items: Iterable[T], name: str, total: int | None, unit: str = "rows") -> Iterator[T]:
        """The items, and a stage meanwhile."""
        report = self.stage(name, total, unit)
        for number, item in enumerate(items, start=1):
            yield item
            report(number, total)

    def _say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
