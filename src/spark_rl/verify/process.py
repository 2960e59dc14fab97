"""The parent's side of a worker: its process, the socket to it, and at most one job.

What comes over the socket may be written by anyone that a verifier has let loose. So every request has a number, lines
that answer another one are dropped, and whoever sends anything but lines of JSON is replaced.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from spark_rl.verify.verifiers import Verdict

_START_SECONDS = 60.0
"""Within which a worker must start, and the modules of a verifier be imported, if its limit is not longer."""
_MOST_BYTES = 2**16
"""Of a line: a verdict takes a thousand at most."""
_KILLS = (-signal.SIGKILL, -signal.SIGTERM)
"""What a process dies of that somebody else has ended: the machine's memory ran out, or a hand."""
_numbers = itertools.count(1)


@dataclass(slots=True, eq=False)
class Job:
    """One distinct piece of work for a worker, shared by all identical checks."""

    answer: str | None
    verifier: str
    payload: bytes = b""
    verdict: Verdict | None = None
    killed: bool = False
    """Whether its worker was killed once by somebody else."""
    watched: bool = False
    """Whether it was counted among those that did or did not end in time."""


class Worker:
    """One child process, the socket to it and at most one job."""

    def __init__(self, cpu_seconds: float, wall_seconds: float, memory_gb: float) -> None:
        self.limits = (str(cpu_seconds), str(memory_gb))
        self.wall_seconds = wall_seconds
        self.job: Job | None = None
        self._start()

    def _start(self) -> None:
        self.deadline, self._number, self._heard = 0.0, 0, b""
        self._ready = False
        self._begun: set[str] = set()
        """Verifiers whose modules are imported there."""
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(_START_SECONDS)
        module_path = os.pathsep.join(path or os.getcwd() for path in [*sys.path, ""])  # "": yours may be right here
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "spark_rl.verify.worker", str(theirs.fileno()), *self.limits],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a verifier prints must not mix with our output
                env={**os.environ, "PYTHONPATH": module_path, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is the parent's business, and a kill takes the children along
            )
        self._running = True

    def give(self, job: Job) -> None:
        """Start on `job`, in a new process if there is none that can be relied on."""
        if self._ready and wait([self.channel], 0):  # an idle one has nothing to say: it died, or somebody else speaks
            self.stop()
        for _ in range(2):  # it may be killed while it starts, too
            if not self._running:
                self._start()
            if self._ready or self._becomes_ready():
                break
            self.stop()
        else:
            raise RuntimeError("A verification worker could not start; its own error is printed above.")
        self.job, self._number = job, next(_numbers)
        is_begun = job.verifier in self._begun
        self.deadline = time.monotonic() + (self.wall_seconds if is_begun else max(self.wall_seconds, _START_SECONDS))
        with suppress(OSError):  # one that takes nothing is found dead, or late
            self.channel.sendall(b"%d %d\n" % (self._number, len(job.payload)) + job.payload)

    def _becomes_ready(self) -> bool:
        with suppress(OSError):
            self._ready = self.channel.recv(_MOST_BYTES) == b'"ready"\n'
        return self._ready

    def collect(self) -> None:
        """Read what the worker says: a verdict on the job, or nothing more since it died."""
        try:
            heard = self.channel.recv(_MOST_BYTES)
        except OSError:
            heard = b""
        if not heard:
            self._has_died()
            return
        *lines, self._heard = (self._heard + heard).split(b"\n")
        try:
            for line in lines:
                self._hear(json.loads(line))
        except (ValueError, TypeError, OverflowError, RecursionError):
            self.fail("crash")
        if len(self._heard) > _MOST_BYTES:
            self.fail("crash")

    def _hear(self, message: Any) -> None:
        """Raises ValueError, TypeError or OverflowError if the worker cannot have said that."""
        number, *verdict = message
        if self.job is None or number != self._number:
            return
        if not verdict:
            self._begun.add(self.job.verifier)
            self.deadline = time.monotonic() + self.wall_seconds
            return
        reward, reason, detail = verdict
        is_reward = reward is None or (isinstance(reward, int | float) and not isinstance(reward, bool))
        if not is_reward or not isinstance(reason, str) or not isinstance(detail, str):
            raise TypeError
        reward = None if reward is None else float(reward)
        if reward is not None and not math.isfinite(reward):
            raise ValueError
        self.job.verdict = Verdict(reward, self.job.answer, reason, detail)
        self.job = None

    def _has_died(self) -> None:
        status, job = self.stop(), self.job
        if job and status in _KILLS and not job.killed:
            job.killed = True
            self.give(job)
        else:
            self.fail("timeout" if status == -signal.SIGXCPU else "crash")

    def fail(self, reason: str) -> None:
        """Stop, and give up on the job if there is one."""
        if self._running:
            self.stop()
        if self.job:
            self.job.verdict, self.job = Verdict(None, self.job.answer, reason), None

    def stop(self) -> int:
        """Kill the process with its children; its exit status, of an earlier death if it was dead."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # nobody has waited for it yet, so the number is still its own
        self.channel.close()
        self._running = self._ready = False
        return self.process.wait()
