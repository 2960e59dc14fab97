"""Grades many responses: cheap verifiers inline, isolated ones in killable worker processes.

Each worker is a fresh interpreter (the caller's main module, and with it torch, is never imported there) with its own
socket and at most one item, so that a hung or crashed item costs itself and nobody else. The kernel's CPU limit stops
what spins, a wall-clock limit what sleeps.

An answer that makes a verifier fail which grades the gold is to blame for that, and earns 0: else a policy could hide
from a 0 there.

Why no executor from a library: with a queue shared by the workers, the death of one cannot always be told from the
work of another (pebble never notices a worker that leaves with status 0), and multiprocessing re-imports `__main__`.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from spark_rl.types import Message
from spark_rl.verify.formats import BOXED, Format
from spark_rl.verify.process import Job, Worker
from spark_rl.verify.verifiers import Verdict, grade, resolve

if TYPE_CHECKING:
    from spark_rl.config import VerifyConfig

LOOK_AHEAD = 1024
"""Items a stream reads beyond the verdict it yields next; also how far identical items are recognised."""
_WATCHED = 32
"""Items of a function of the user's that are looked back on, to see whether it hangs."""
_LEAST = 6
"""So many of them must have run out of time."""


@dataclass(frozen=True, slots=True)
class Check:
    """A response to grade."""

    text: str
    """The whole response; its answer is read from it."""
    gold: str
    verifier: str = "math"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    prompt: Sequence[Message] = ()
    """What the response answers, for verifiers that read whole responses."""
    format: Format = BOXED
    """How the response states its answer."""


class VerifierHangs(RuntimeError):
    """A function of the user's runs out of time so often that to go on would take forever."""


@dataclass(slots=True)
class _Work:
    """What one stream has for the workers."""

    waiting: deque[Job] = field(default_factory=deque)
    recent: dict[bytes, Job] = field(default_factory=dict)
    """The last jobs, whatever became of them: identical ones are done once."""

    def add(self, job: Job, first: bool = False) -> None:
        """Have `job` done, unless it is done already or will be."""
        if job.payload and job.payload not in self.recent:
            self.recent[job.payload] = job
            (self.waiting.appendleft if first else self.waiting.append)(job)
            if len(self.recent) > LOOK_AHEAD:
                del self.recent[next(iter(self.recent))]


class VerifierPool:
    """Grades checks in order, each within its limits; failures are verdicts, and counted.

    Workers start when the first isolated item comes, and stay until `close`. Not thread-safe.

    >>> from spark_rl.verify import Check, VerifierPool, box
    >>> with VerifierPool() as pool:
    ...     [verdict.reason for verdict in pool.verify([Check(box("1/2"), "0.5"), Check("It is 0.5", "0.5")])]
    ['correct', 'unparsed']

    Args:
        cpu_seconds: of one item.
        wall_seconds: of one item.
        memory_gb: of a worker.
        timed_out: what an answer is worth on which the verifier runs out of time although it grades the gold: reward 0
            (`zero`) or None (`mask`). Likewise where a verifier of ours fails in another way; where a function of the
            user's does, the function may be to blame, and the reward is None.
        max_timeout_rate: the largest share of its last items on which a function of the user's may run out of time.
    """

    def __init__(
        self,
        workers: int = 1,
        cpu_seconds: float = 5,
        wall_seconds: float = 60,
        memory_gb: float = 4,
        timed_out: Literal["zero", "mask"] = "zero",
        max_timeout_rate: float = 0.5,
    ) -> None:
        if workers < 1 or min(cpu_seconds, wall_seconds, memory_gb) <= 0:
            raise ValueError("A verifier pool needs at least 1 worker and limits above 0.")
        self.num_workers = workers
        self.limits = (cpu_seconds, wall_seconds, memory_gb)
        self.timed_out, self.max_timeout_rate = timed_out, max_timeout_rate
        self.counts: Counter[str] = Counter()
        """Verdicts given so far, by reason."""
        self._workers: list[Worker] = []
        self._late: dict[str, deque[bool]] = {}
        """By function of the user's: which of its last items ran out of time."""

    @classmethod
    def of(cls, settings: VerifyConfig) -> Self:
        """A pool with the settings of a run."""
        return cls(**dict(settings))

    def verify(self, checks: Sequence[Check]) -> list[Verdict]:
        """The verdicts on `checks`, in their order. Raises as `stream`."""
        return list(self.stream(checks))

    def stream(self, checks: Iterable[Check]) -> Iterator[Verdict]:
        """The verdicts on `checks`, in their order, reading at most `LOOK_AHEAD` ahead (constant memory).

        Raises:
            ValueError: there is no such verifier.
            VerifierHangs: a function of the user's runs out of time on too many items.
        """
        work = _Work()
        window: deque[tuple[Check, Job]] = deque()
        for check in checks:
            window.append((check, job := self._job(check, work.recent)))
            work.add(job)
            if work.waiting:
                self._advance(work.waiting, block=False)
            while window and (window[0][1].verdict or len(window) >= LOOK_AHEAD):
                yield self._next(*window.popleft(), work)
        while window:
            yield self._next(*window.popleft(), work)

    def _job(self, check: Check, recent: Mapping[bytes, Job]) -> Job:
        rule = resolve(check.verifier)
        answer, metadata = check.format.read(check.text), dict(check.metadata)
        read = answer
        if rule.reads == "response":
            read = check.text
            metadata |= {"prompt": [dict(message) for message in check.prompt]} if check.prompt else {}
        if read is None:
            return Job(None, check.verifier, verdict=Verdict(0.0, None, "unparsed"))
        arguments = (read, check.gold, check.verifier, metadata)
        if not rule.isolated:
            return Job(answer, check.verifier, verdict=replace(grade(*arguments), extracted=answer))
        payload = pickle.dumps(arguments)
        return recent.get(payload) or Job(answer, check.verifier, payload)

    def _next(self, check: Check, job: Job, work: _Work) -> Verdict:
        verdict = self._done(job, work)
        blames = ("timeout",) if ":" in check.verifier else ("timeout", "crash", "error")
        if self.timed_out == "zero" and verdict.reward is None and verdict.reason.startswith(blames):
            gold = self._job(replace(check, text=check.format.write(check.gold)), work.recent)
            work.add(gold, first=True)
            if self._done(gold, work).reward is not None:
                verdict = replace(verdict, reward=0.0)
        self.counts[verdict.reason] += 1
        return verdict

    def _done(self, job: Job, work: _Work) -> Verdict:
        while job.verdict is None:
            self._advance(work.waiting, block=True)
        if job.payload and not job.watched:
            job.watched = True
            self._watch(job.verifier, job.verdict.reason == "timeout")
        return job.verdict

    def _watch(self, verifier: str, is_late: bool) -> None:
        """Note whether an item ran out of time. What a policy can do to our own verifiers must not stop a run."""
        if ":" not in verifier:
            return
        late = self._late.setdefault(verifier, deque(maxlen=_WATCHED))
        late.append(is_late)
        if (count := sum(late)) >= _LEAST and count > self.max_timeout_rate * len(late):
            cpu, wall, _ = self.limits
            raise VerifierHangs(
                f"the verifier {verifier} ran out of time on {count} of the last {len(late)} answers (its limits are "
                f"{wall:g} seconds, of CPU time {cpu:g}); mend it, raise verify.wall_seconds or verify.cpu_seconds, or "
                "let it go on with verify.max_timeout_rate=1"
            )

    def _advance(self, waiting: deque[Job], block: bool) -> None:
        """Hand waiting jobs to idle workers, then collect what is done; when blocking, wait for at least one event."""
        if not self._workers:
            self._workers = [Worker(*self.limits) for _ in range(self.num_workers)]
        for worker in self._workers:
            if waiting and worker.job is None:
                worker.give(waiting.popleft())
        busy = [worker for worker in self._workers if worker.job]
        patience = max(0.0, min(worker.deadline for worker in busy) - time.monotonic()) if block else 0
        speaking = wait([worker.channel for worker in busy], patience)
        for worker in busy:
            if worker.channel in speaking:
                worker.collect()
            elif time.monotonic() > worker.deadline:
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
