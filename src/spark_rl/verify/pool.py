"""Grades many responses: cheap verifiers inline, isolated ones in killable worker processes.

Each worker is a fresh interpreter (the caller's main module, and with it torch, is never imported there) with its own
pipe and at most one item, so that a hung or crashed item costs itself and nobody else. The kernel's CPU limit stops
what spins, a wall-clock limit what sleeps.

Why no executor from a library: with a queue shared by the workers, the death of one cannot always be told from the
work of another (pebble never notices a worker that leaves with status 0), and multiprocessing re-imports `__main__`.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Pipe, wait
from types import TracebackType
from typing import Any, Self

from spark_rl.types import Message
from spark_rl.verify.extract import extract_answer
from spark_rl.verify.verifiers import Verdict, grade, resolve

LOOK_AHEAD = 1024
"""Items a stream reads beyond the verdict it yields next; also how far identical items are recognised."""


@dataclass(frozen=True, slots=True)
class Check:
    """A response to grade."""

    text: str
    """The whole response; its answer is extracted from it."""
    gold: str
    verifier: str = "math"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    prompt: Sequence[Message] = ()
    """What the response answers, for verifiers that read whole responses."""


@dataclass(slots=True, eq=False)
class _Job:
    """One distinct piece of work for a worker, shared by all identical checks."""

    answer: str | None
    payload: bytes = b""
    verdict: Verdict | None = None


class _Worker:
    """One child process, its pipe and at most one job."""

    def __init__(self, cpu_seconds: float, wall_seconds: float, memory_gb: float) -> None:
        self.limits = (str(cpu_seconds), str(memory_gb))
        self.wall_seconds = wall_seconds
        self.start()

    def start(self) -> None:
        self.job: _Job | None = None
        self.deadline = 0.0
        self.ready = False
        self.connection, theirs = Pipe()
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

    def give(self, job: _Job) -> None:
        """Start on `job`, in a new process if the last one died."""
        if self.process.poll() is not None:
            self.stop()
            self.start()
        if not self.ready:
            try:
                self.ready = self.connection.recv_bytes() == b"ready"
            except EOFError as error:
                raise RuntimeError("A verification worker could not start; its own error is printed above.") from error
        self.job, self.deadline = job, time.monotonic() + self.wall_seconds
        with suppress(BrokenPipeError, ConnectionResetError):  # collect() will find it dead
            self.connection.send_bytes(job.payload)

    def collect(self) -> None:
        """Read the verdict on the job, or what the worker died of."""
        assert self.job is not None
        try:
            self.job.verdict, self.job = self.connection.recv(), None
        except (EOFError, OSError):
            self.fail("timeout" if self.stop() == -signal.SIGXCPU else "crash")

    def fail(self, reason: str) -> None:
        """Stop, and give up on the job if there is one."""
        self.stop()
        if self.job:
            self.job.verdict, self.job = Verdict(None, self.job.answer, reason), None

    def stop(self) -> int:
        """Kill the process with its children; its exit status, of an earlier death if it was dead."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.connection.close()
        return self.process.wait()


class VerifierPool:
    """Grades checks in order, each within its limits; failures are verdicts with reward None, and counted.

    `cpu_seconds` and `wall_seconds` are per item, `memory_gb` per worker. Workers start when the first isolated item
    comes, and stay until `close`. Not thread-safe.

    >>> from spark_rl.verify import Check, VerifierPool, box
    >>> with VerifierPool() as pool:
    ...     [verdict.reason for verdict in pool.verify([Check(box("1/2"), "0.5"), Check("It is 0.5", "0.5")])]
    ['correct', 'unparsed']
    """

    def __init__(
        self, workers: int = 1, cpu_seconds: float = 5, wall_seconds: float = 60, memory_gb: float = 4
    ) -> None:
        if workers < 1 or min(cpu_seconds, wall_seconds, memory_gb) <= 0:
            raise ValueError("A verifier pool needs at least 1 worker and limits above 0.")
        self.num_workers = workers
        self.limits = (cpu_seconds, wall_seconds, memory_gb)
        self.counts: Counter[str] = Counter()
        """Verdicts given so far, by reason."""
        self._workers: list[_Worker] = []

    def verify(self, checks: Sequence[Check]) -> list[Verdict]:
        """The verdicts on `checks`, in their order."""
        return list(self.stream(checks))

    def stream(self, checks: Iterable[Check]) -> Iterator[Verdict]:
        """The verdicts on `checks`, in their order, reading at most `LOOK_AHEAD` ahead (constant memory)."""
        window: deque[_Job] = deque()
        waiting: deque[_Job] = deque()
        recent: dict[bytes, _Job] = {}
        for check in checks:
            window.append(job := self._job(check, recent))
            if job.payload and job.payload not in recent:
                recent[job.payload] = job
                waiting.append(job)
                self._advance(waiting, block=False)
            if len(recent) > LOOK_AHEAD:
                del recent[next(iter(recent))]
            while window and (window[0].verdict or len(window) >= LOOK_AHEAD):
                yield self._next(window, waiting)
        while window:
            yield self._next(window, waiting)

    def _job(self, check: Check, recent: Mapping[bytes, _Job]) -> _Job:
        rule = resolve(check.verifier)
        answer, metadata = extract_answer(check.text), dict(check.metadata)
        read = answer
        if rule.reads == "response":
            read = check.text
            metadata |= {"prompt": [dict(message) for message in check.prompt]} if check.prompt else {}
        if read is None:
            return _Job(None, verdict=Verdict(0.0, None, "unparsed"))
        arguments = (read, check.gold, check.verifier, metadata)
        if not rule.isolated:
            return _Job(answer, verdict=grade(*arguments))
        payload = pickle.dumps(arguments)
        return recent.get(payload) or _Job(answer, payload)

    def _next(self, window: deque[_Job], waiting: deque[_Job]) -> Verdict:
        while (verdict := window[0].verdict) is None:
            self._advance(waiting, block=True)
        window.popleft()
        self.counts[verdict.reason] += 1
        return verdict

    def _advance(self, waiting: deque[_Job], block: bool) -> None:
        """Hand waiting jobs to idle workers, then collect what is done; when blocking, wait for at least one event."""
        if not self._workers:
            self._workers = [_Worker(*self.limits) for _ in range(self.num_workers)]
        for worker in self._workers:
            if waiting and worker.job is None:
                worker.give(waiting.popleft())
        busy = {worker.connection: worker for worker in self._workers if worker.job}
        patience = max(0.0, min(worker.deadline for worker in busy.values()) - time.monotonic()) if block else 0
        for connection in wait(list(busy), patience):
            busy.pop(connection).collect()  # type: ignore[call-overload]
        for worker in busy.values():
            if time.monotonic() > worker.deadline:
                worker.fail("timeout")

    def close(self) -> None:
        """Stop the workers; a later call starts new ones."""
        while self._workers:
            self._workers.pop().fail("crash")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
