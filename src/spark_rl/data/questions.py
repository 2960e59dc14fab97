"""The order in which questions are asked: seeded, and resumable from one number."""

from __future__ import annotations

import random
from collections.abc import Sequence

from spark_rl.types import Task


class Questions:
    """Draws tasks epoch by epoch, each epoch in its own seeded order. `cursor` is all of its state."""

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        if not tasks:
            raise ValueError("data.train holds no questions")
        self.tasks, self.seed, self.cursor = tasks, seed, 0
        self._epoch, self._order = -1, list[int]()

    def draw(self, count: int) -> list[Task]:
        """The next `count` tasks."""
        drawn = [self._at(self.cursor + i) for i in range(count)]
        self.cursor += count
        return drawn

    def _at(self, position: int) -> Task:
        epoch, index = divmod(position, len(self.tasks))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self.tasks)))
            random.Random(f"order-{self.seed}-{epoch}").shuffle(self._order)
        return self.tasks[self._order[index]]
