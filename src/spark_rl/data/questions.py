"""The order in which questions are asked: seeded, mixed by weight, and resumable from a few numbers."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from spark_rl.data.check import question_key
from spark_rl.data.sources import Source
from spark_rl.prompts import Prompts
from spark_rl.types import Task


class Questions:
    """Draws tasks from sources, each source epoch by epoch, every epoch in its own seeded order.

    Of the sources that are behind their share, the next question comes from the one that would be a whole question
    behind first. So the mixture is exact to one question at any time, which taking the one furthest behind is not.
    Without weights every source has its number of rows as weight: all are through at once.

    Args:
        held_out: keys of questions that generated sources must not ask.
        prompts: how these are asked.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int,
        held_out: Collection[int] = (),
        prompts: Prompts = Prompts(),
    ) -> None:
        if not sources:
            raise ValueError("data.train names no source of questions")
        self.sources, self.seed, self.held_out, self.prompts = sources, seed, held_out, prompts
        self.drawn = [0] * len(sources)
        """Tasks given so far, of each source."""
        self.cursors = [0] * len(sources)
        """Rows passed so far, those that were left out included."""
        weights = [s.num_rows - len(s.left_out) if s.weight is None else s.weight for s in sources]
        self._shares = [weight / sum(weights) for weight in weights]
        self._orders: list[tuple[int, array[int]]] = [(-1, array("q"))] * len(sources)

    @property
    def num_rows(self) -> int:
        """Rows that can be asked, of all sources."""
        return sum(source.num_rows - len(source.left_out) for source in self.sources)

    def draw(self, count: int, fits: Callable[[Task], bool] = lambda task: True) -> tuple[list[Task], Counter[str]]:
        """The next `count` tasks that fit, and how many were passed over: `too_long` or `held_out`.

        Raises:
            LookupError: not one task of a source fits.
        """
        tasks: list[Task] = []
        passed: Counter[str] = Counter()
        while len(tasks) < count:
            number = sum(self.drawn) + 1
            behind = [k for k, share in enumerate(self._shares) if share * number - self.drawn[k] > 1e-9]
            k = min(behind, key=lambda k: (self.drawn[k] + 1) / self._shares[k])
            tasks.append(self._next(k, fits, passed))
            self.drawn[k] += 1
        return tasks, passed

    def require(self, fits: Callable[[Task], bool]) -> None:
        """Look for one task that fits in every source, and draw none.

        Raises:
            LookupError: a source has none.
        """
        for k, cursor in enumerate(self.cursors):
            self._next(k, fits, Counter())
            self.cursors[k] = cursor

    def _next(self, k: int, fits: Callable[[Task], bool], passed: Counter[str]) -> Task:
        source = self.sources[k]
        for _ in range(2 * source.num_rows):  # from anywhere in an epoch's order through all of the next one's
            index = self._index(k)
            self.cursors[k] += 1
            if index in source.left_out:
                continue
            task = source.task(index)
            if source.generator and question_key(task, self.prompts) in self.held_out:
                passed["held_out"] += 1
            elif not fits(task):
                passed["too_long"] += 1
            else:
                return task
        raise LookupError(source.path)

    def _index(self, k: int) -> int:
        """The row at the source's cursor."""
        num_rows = self.sources[k].num_rows
        epoch, position = divmod(self.cursors[k], num_rows)
        if self._orders[k][0] != epoch:
            order = array("q", range(num_rows))
            random.Random(f"order-{self.seed}-{epoch}" + (f"-{k}" if k else "")).shuffle(order)
            self._orders[k] = (epoch, order)
        return self._orders[k][1][position]

    def state_dict(self) -> dict[str, Any]:
        """Where the next draw begins."""
        return {"drawn": list(self.drawn), "cursors": list(self.cursors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: it is of another number of sources.
        """
        if len(state["drawn"]) != len(self.sources):
            raise ValueError(
                f"data.train now opens {len(self.sources)} sources, and {len(state['drawn'])} when the checkpoint was "
                "made; resume with the same files"
            )
        self.drawn, self.cursors = list(state["drawn"]), list(state["cursors"])
