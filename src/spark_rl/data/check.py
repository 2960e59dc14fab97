"""Every row is read, and every gold graded against itself, before a run's first step."""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from spark_rl.config import DataConfig
from spark_rl.data.sources import Source
from spark_rl.types import Task
from spark_rl.verify import Check, VerifierPool, box, gold_problem

T = TypeVar("T")
Track = Callable[[Iterable[T], str, int], Iterable[T]]
"""Passes items on and shows how far they are: (items, what is done with them, how many there are)."""
_SAMPLE = 64
"""Generated rows are made when they are drawn; only so many are checked before."""


def untracked(items: Iterable[T], name: str, total: int) -> Iterable[T]:
    return items


def question_key(task: Task) -> int:
    """A 64-bit number for a question's text."""
    return _key(task.example.question)


class Checker:
    """Finds the rows of some sources that cannot be asked, and refuses them or leaves them out, as `bad_rows` says.

    Args:
        part: what the sources are for (`training`, ...), for messages.
        held_out: keys of the questions that must not be among them.
    """

    def __init__(
        self, sources: Sequence[Source], config: DataConfig, part: str, held_out: Collection[int], track: Track[Any]
    ) -> None:
        self.sources, self.config, self.part, self.held_out, self.track = sources, config, part, held_out, track
        self.first_reason: dict[Source, str] = {}

    def run(self, verifiers: VerifierPool) -> list[dict[str, Any]]:
        """Fill `left_out` of every source. Returns a report on each: `source`, `rows`, `skipped`, `fingerprint`.

        Raises:
            ValueError: a row is bad and the config refuses such, or a source has no other rows.
        """
        fingerprints = self._read_all()
        if self.config.check_golds:
            self._grade_golds(verifiers)
        for source in self.sources:
            if len(source.left_out) == source.num_rows:
                raise ValueError(f"{source.path}: no row is usable; the first one: {self.first_reason[source]}")
        return [
            {"source": s.path, "rows": s.num_rows, "skipped": counts(s.left_out.values()), "fingerprint": f}
            for s, f in zip(self.sources, fingerprints, strict=True)
        ]

    def messages(self) -> list[str]:
        """A sentence for every source of which rows were left out."""
        return [
            f"{len(s.left_out)} of the {s.num_rows} rows of {s.path} are left out of {self.part}; the first one is "
            f"{self.first_reason[s]}"
            for s in self.sources
            if s.left_out
        ]

    def _read_all(self) -> list[str]:
        """Read every stored row once; returns the sources' fingerprints."""
        ids, owners, fingerprints = array("Q"), list[tuple[int, Source]](), list[str]()
        for source in self.sources:
            digest = hashlib.blake2b(source.generator.encode(), digest_size=8)
            owners.append((len(ids), source))
            rows = range(0 if source.generator else source.num_rows)
            for index in self.track(rows, f"reading {source.path}", len(rows)):
                key = 0
                try:
                    task = source.read(index)
                except ValueError as error:
                    self._leave_out(source, index, "bad_row", str(error))
                else:
                    key = _key(task.example.id)
                    digest.update(f"{task.example.id}\0{task.example.question}\0{task.label}\0".encode())
                    if self.held_out and question_key(task) in self.held_out:
                        self._leave_out(source, index, "held_out", "the question is held out", refuse=False)
                ids.append(key or 1)
            fingerprints.append(digest.hexdigest())
        self._find_duplicates(ids, owners)
        return fingerprints

    def _find_duplicates(self, ids: array[int], owners: list[tuple[int, Source]]) -> None:
        """Keys that occur twice are looked up again: equal keys need not mean equal ids."""
        keys = np.frombuffer(ids, dtype=np.uint64)
        ordered = np.sort(keys)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        repeated = np.flatnonzero(np.isin(keys, twice)) if len(twice) else twice
        first: dict[str, str] = {}
        for position in repeated.tolist():
            start, source = next(owner for owner in reversed(owners) if owner[0] <= position)
            index = position - start
            if source.left_out.get(index) == "bad_row":
                continue
            id = source.task(index).example.id
            if id in first:
                reason = f"its id {id!r} is also that of {first[id]}; give every row an 'id' of its own"
                self._leave_out(source, index, "duplicate_id", reason)
            else:
                first[id] = source.where(index)

    def _grade_golds(self, verifiers: VerifierPool) -> None:
        asked: deque[tuple[Source, int, str]] = deque()

        def checks() -> Iterator[Check]:
            for source in self.sources:
                rows = range(min(source.num_rows, _SAMPLE) if source.generator else source.num_rows)
                for index in self.track(rows, f"checking the golds of {source.path}", len(rows)):
                    if index in source.left_out:
                        continue
                    example = source.task(index).example
                    if example.answer:
                        asked.append((source, index, example.verifier))
                        yield Check(box(example.answer), example.answer, example.verifier, example.metadata)

        for verdict in verifiers.stream(checks()):
            source, index, verifier = asked.popleft()
            if problem := gold_problem(verdict, verifier):
                self._leave_out(source, index, "bad_gold", problem)

    def _leave_out(self, source: Source, index: int, kind: str, reason: str, refuse: bool = True) -> None:
        place = f"{source.where(index)}: {reason}"
        if refuse and self.config.bad_rows == "refuse":
            raise ValueError(f"{place.removesuffix('.')} (or leave such rows out: data.bad_rows=skip)")
        self.first_reason.setdefault(source, place)
        source.left_out[index] = kind


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def counts(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason occurs."""
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return counts
