"""CPU time without a clock: in steps of a Python loop that runs beside what is measured, however fast the machine."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time


def seconds_of(work: Callable[[], object]) -> float:
    """The CPU time of one call."""
    started = process_time()
    work()
    return process_time() - started


def step() -> float:
    """The seconds of one step of a loop, now and here: 20 ns where this was written."""
    return seconds_of(lambda: sum(1 for _ in range(100_000))) / 100_000


def steps_of(work: Callable[[], object]) -> float:
    """The CPU time of one call, in steps."""
    return seconds_of(work) / step()
