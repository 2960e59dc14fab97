"""Requests in, batches out: one thread judges together what waits together."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spark_rl.config.inference import ServeConfig
from spark_rl.infer import Judge, Preference, Verdict
from spark_rl.types import Image


class Single(NamedTuple):
    """A response to score; the images are those of the question, as those of an `Example`."""

    question: str
    response: str
    images: tuple[Image, ...] = ()


class Pair(NamedTuple):
    """Two responses to compare."""

    question: str
    a: str
    b: str
    images: tuple[Image, ...] = ()


Item = Single | Pair
Judgement = Verdict | Preference

_log = logging.getLogger(__name__)


class Busy(Exception):
    """More would wait than may."""


class Stopped(Exception):
    """The batcher is closed."""


class JudgingFailed(Exception):
    """The judge raised an exception, on this item or because its model is gone."""


@dataclass(slots=True, eq=False)
class _Entry:
    item: Item
    future: Future[Judgement] = field(default_factory=Future)


class Batcher:
    """A bounded queue before a judge, which only the batcher's own thread uses.

    Args:
        on_batch: told of each batch: its size in items. Called by the batcher's thread.
    """

    def __init__(self, judge: Judge, settings: ServeConfig, on_batch: Callable[[int], None]) -> None:
        self._judge, self._settings, self._on_batch = judge, settings, on_batch
        self._queue: deque[_Entry] = deque()
        self._reserved = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="judge", daemon=True)
        self._thread.start()

    @contextmanager
    def room(self, count: int) -> Iterator[None]:
        """Room in the queue for all items of a request, or none. They must be submitted within, once their images are
        decoded: so no more of these are than may wait.

        Raises:
            Busy: there is not as much.
            Stopped: the batcher is closed.
        """
        with self._changed:
            if self._closed:
                raise Stopped
            self._drop_cancelled()
            if len(self._queue) + self._reserved + count > self._settings.max_queue:
                raise Busy
            self._reserved += count
        try:
            yield
        except BaseException:
            with self._changed:
                self._reserved -= count
            raise

    def submit(self, items: Sequence[Item]) -> list[Future[Judgement]]:
        """Queue the items of a `room`. A future that is cancelled while it waits is not judged.

        The futures raise `Stopped` if the batcher is closed before they are judged, `JudgingFailed` if the judge fails.

        Raises:
            Stopped: the batcher is closed.
        """
        entries = [_Entry(item) for item in items]
        with self._changed:
            if self._closed:
                raise Stopped
            self._queue.extend(entries)
            self._reserved -= len(entries)
            self._changed.notify()
        return [entry.future for entry in entries]

    @property
    def num_waiting(self) -> int:
        """Items that somebody still waits for, those included whose images are being decoded."""
        with self._changed:
            self._drop_cancelled()
            return len(self._queue) + self._reserved

    @property
    def ready(self) -> bool:
        """Whether what is submitted would be judged."""
        return self._thread.is_alive() and not self._closed

    def close(self) -> None:
        """Judge nothing more: what waits gets `Stopped`, a batch under way is finished."""
        with self._changed:
            self._closed = True
            waiting, self._queue = self._queue, deque()
            self._changed.notify()
        for entry in waiting:
            if entry.future.set_running_or_notify_cancel():
                entry.future.set_exception(Stopped())

    def ends_within(self, seconds: float) -> bool:
        """Whether the batch under way, of a batcher that is closed, is finished within so long."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _drop_cancelled(self) -> None:
        self._queue = deque(entry for entry in self._queue if not entry.future.cancelled())

    def _work(self) -> None:
        while batch := self._next_batch():
            self._on_batch(len(batch))
            self._answer([e for e in batch if isinstance(e.item, Single)], self._judge.score_all)
            self._answer([e for e in batch if isinstance(e.item, Pair)], self._judge.compare_all)

    def _next_batch(self) -> list[_Entry]:
        """What is to be judged next; empty once the batcher is closed."""
        batch: list[_Entry] = []
        size, wait = self._settings.max_batch, self._settings.batch_wait_ms / 1000
        with self._changed:
            while not batch and not self._closed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                self._changed.wait_for(lambda: len(self._queue) >= size or self._closed, wait)
                while self._queue and len(batch) < size:
                    entry = self._queue.popleft()
                    if entry.future.set_running_or_notify_cancel():
                        batch.append(entry)
        return batch

    @classmethod
    def _answer(cls, entries: Sequence[_Entry], judge_all: Callable[[list[Any]], Sequence[Judgement]]) -> None:
        """Judge items of one kind, equal ones once: equal items get equal judgements, sampled ones too.

        Where they cannot be judged together, each is tried alone: one client's picture may be what the model refuses.
        But a model server that is gone was asked again and again already.
        """
        if not entries:
            return
        unique = list(dict.fromkeys(entry.item for entry in entries))
        try:
            judgements = dict(zip(unique, judge_all(unique), strict=True))
        except Exception as error:
            _log.exception("a batch of %d items could not be judged", len(unique))
            if len(unique) > 1 and not isinstance(error, ConnectionError):
                for item in unique:
                    cls._answer([entry for entry in entries if entry.item == item], judge_all)
                return
            for entry in entries:
                entry.future.set_exception(JudgingFailed(type(error).__name__))
            return
        for entry in entries:
            entry.future.set_result(judgements[entry.item])
