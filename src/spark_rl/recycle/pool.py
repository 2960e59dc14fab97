"""Where recycled tasks wait for their step: bounded, nearly on-policy, serialisable.

The pool never blocks a step: what it cannot fill goes to questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter

from spark_rl.recycle.recycler import Bundle
from spark_rl.types import Image, Role, Task, with_images_at_hand

_BUNDLES = TypeAdapter(list[Bundle])


class Pool:
    """Waiting bundles by role, the newest taken first.

    Args:
        size: tasks of one role that may wait; beyond it the oldest bundles leave.
        max_age: steps after which a bundle is dropped.
    """

    def __init__(self, size: int, max_age: int) -> None:
        self.size, self.max_age = size, max_age
        self._waiting: dict[Role, list[Bundle]] = {role: [] for role in Role if role.is_recycled}

    def add(self, bundles: Iterable[Bundle]) -> Counter[str]:
        """Take in new bundles; returns how many tasks were left out or pushed out, by reason.

        A task that is waiting already stays with its older self, unless the new bundle can replace the old one whole.
        """
        counts: Counter[str] = Counter()
        for bundle in bundles:
            waiting = self._waiting[bundle[0].role]
            ids = {task.id for task in bundle}
            clashing = [old for old in waiting if not ids.isdisjoint(task.id for task in old)]
            if any({task.id for task in old} != ids for old in clashing):
                counts["duplicate"] += len(bundle)
                continue
            for old in clashing:
                waiting.remove(old)
                counts["renewed"] += len(old)
            waiting.append(bundle)
        for waiting in self._waiting.values():
            while sum(map(len, waiting)) > self.size:
                counts["evicted"] += len(waiting.pop(0))
        return counts

    def take(
        self, slots: Mapping[Role, int], step: int, fits: Callable[[Task], bool] = lambda task: True
    ) -> tuple[list[Task], Counter[str]]:
        """Up to `slots[role]` tasks of each role, whole bundles only, newest first; drops what is too old, and what
        does not fit when its turn comes (few are ever taken, and to measure a prompt takes time).

        Returns the tasks and how many were dropped as `expired` or `too_long`.
        """
        taken: list[Task] = []
        counts: Counter[str] = Counter()
        for role, waiting in self._waiting.items():
            fresh = [bundle for bundle in waiting if step - bundle[0].step <= self.max_age]
            counts["expired"] += sum(map(len, waiting)) - sum(map(len, fresh))
            free, left = slots.get(role, 0), []
            for bundle in reversed(fresh):
                if len(bundle) > free:
                    left.append(bundle)
                elif all(map(fits, bundle)):
                    taken += bundle
                    free -= len(bundle)
                else:
                    counts["too_long"] += len(bundle)
            self._waiting[role] = left[::-1]
        return taken, counts

    def __len__(self) -> int:
        return sum(self.num_waiting(role) for role in self._waiting)

    def num_waiting(self, role: Role) -> int:
        """Tasks of one role that wait."""
        return sum(map(len, self._waiting[role]))

    def mean_age(self, step: int) -> float:
        """Mean age of the waiting tasks, steps; 0 when none waits."""
        ages = [step - task.step for waiting in self._waiting.values() for bundle in waiting for task in bundle]
        return sum(ages) / len(ages) if ages else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return {role.value: _BUNDLES.dump_python(waiting, mode="json") for role, waiting in self._waiting.items()}

    def load_state_dict(self, state: Mapping[str, Any], images: Mapping[str, Image]) -> None:
        """The inverse of `state_dict`, with the images where they are now (by the hash of their content)."""
        for role in self._waiting:
            bundles = _BUNDLES.validate_python(state[role.value])
            self._waiting[role] = [tuple(with_images_at_hand(task, images) for task in bundle) for bundle in bundles]
