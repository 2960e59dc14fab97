"""What a step asks: recycled prompts up to their shares, questions for the rest, and replacements for dead groups."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from spark_rl.config import Config
from spark_rl.data import Questions
from spark_rl.prompts import CannotRender, ChatRenderer
from spark_rl.recycle import Bundle, Pool, recycle
from spark_rl.train.preflight import check_examples
from spark_rl.types import Group, Image, Role, Task
from spark_rl.verify import SELF

_PATIENCE = 10
"""Passes over the data after which a step gives up looking for questions that a rule verifies."""


class Selection:
    """Draws questions and recycled prompts that fit, and takes in what a step's groups give to recycle.

    Args:
        max_prompt_tokens: longer prompts are passed over and counted.
        asks_unverified: whether, at the time, questions that no rule verifies are asked; else they are passed over.
    """

    def __init__(
        self,
        config: Config,
        questions: Questions,
        renderer: ChatRenderer,
        max_prompt_tokens: int,
        asks_unverified: Callable[[], bool] = lambda: True,
    ) -> None:
        self.config, self.questions, self.renderer = config, questions, renderer
        self.max_prompt_tokens, self.asks_unverified = max_prompt_tokens, asks_unverified
        self.pool = Pool(config.recycle.pool_size, config.recycle.max_age)
        self._asked: Counter[str] = Counter()

    def select(self, step: int) -> tuple[list[Task], Counter[str]]:
        """The tasks of a step, and what was passed over or dropped, by reason."""
        size, slots = self.config.rollout.groups_per_step, self.config.slots()
        self._asked.clear()
        recycled: list[Task] = []
        counts: Counter[str] = Counter()
        if self.config.recycle.schedule == "cobatched":
            recycled, counts = self._take(slots, step)
        else:
            recycled, counts = self._take_all(slots, step, size)
        questions, passed = self._draw(size - len(recycled))
        return self._with_own_ids([*questions, *recycled]), counts + passed

    def replace(self, dead: Sequence[Group], step: int) -> tuple[list[Task], Counter[str]]:
        """Fresh tasks for groups without signal: of the same roles while the pool has such, else questions.

        Where the schedule alternates, a step of recycled prompts gets no questions.
        """
        slots = Counter(group.task.role for group in dead)
        recycled, counts = self._take(slots, step)
        if slots[Role.ANSWER] == 0 and self.config.recycle.schedule == "alternating":
            return self._with_own_ids(recycled), counts
        questions, passed = self._draw(len(dead) - len(recycled))
        return self._with_own_ids([*questions, *recycled]), counts + passed

    def recycle(self, groups: Sequence[Group], step: int) -> Counter[str]:
        """Recycle groups that a rule has graded into the pool. Returns what was made and what was left out, by reason.

        Where the schedule alternates, all that waits is asked, so it is here that the roles' shares are kept.
        """
        if all(self.config.roles[role].share == 0 for role in Role if role.is_recycled):
            return Counter()
        prompts = self.renderer.prompts
        made = recycle(groups, self.config.recycle, seed=self.config.train.seed, step=step, prompts=prompts)
        room = self._room()
        wanted: list[Bundle] = []
        for bundle in made.bundles:
            role = bundle[0].role
            if self.config.roles[role].share == 0:
                made.counts["role_off"] += len(bundle)
            elif room[role] < len(bundle):
                made.counts["over_share"] += len(bundle)
            elif not all(map(self._renders, bundle)):
                made.counts["unrenderable"] += len(bundle)
            else:
                wanted.append(bundle)
                room[role] -= len(bundle)
        return _named("recycle", made.counts) + _named("pool", self.pool.add(wanted))

    def fits(self, task: Task) -> bool:
        """Whether a task's prompt is short enough."""
        return len(self.renderer.encode_task(task)) <= self.max_prompt_tokens

    def _renders(self, task: Task) -> bool:
        """Whether the chat template makes a prompt of a task: it may stumble over what a response says."""
        try:
            self.renderer.check_task(task)
        except CannotRender:
            return False
        return True

    def require_one(self) -> None:
        """Refuse worked examples that leave no room, and a source of which nothing fits, before a run depends on it.

        Raises:
            ValueError: there are such examples, or every question of a source is too long.
        """
        renderer = self.renderer
        check_examples(self.config, renderer.prompts, self.max_prompt_tokens, renderer.example_tokens)
        try:
            self.questions.require(self.fits)
        except LookupError as error:
            raise self._nothing_fits(error) from None

    def state_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return {"questions": self.questions.state_dict(), "pool": self.pool.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], images: Mapping[str, Image]) -> None:
        """The inverse of `state_dict`, with the images where they are now (by the hash of their content)."""
        self.questions.load_state_dict(state["questions"])
        self.pool.load_state_dict(state["pool"], images)

    def _room(self) -> dict[Role, float]:
        """How many tasks of each role a step may leave to later ones: a couple at least."""
        of_answers = self.config.roles.answer.share
        if self.config.recycle.schedule == "cobatched" or not of_answers:
            return dict.fromkeys(Role, math.inf)
        size = self.config.rollout.groups_per_step
        return {role: max(2, round(size * self.config.roles[role].share / of_answers)) for role in Role}

    def _take(self, slots: Mapping[Role, int], step: int) -> tuple[list[Task], Counter[str]]:
        taken, counts = self.pool.take(slots, step, self.fits)
        return taken, _named("pool", counts)

    def _take_all(self, slots: Mapping[Role, int], step: int, size: int) -> tuple[list[Task], Counter[str]]:
        """A step of recycled prompts, in the roles' proportions as far as they wait; nothing unless it is full (but
        for what turns out not to fit)."""
        _, counts = self._take({}, step)  # drops what is too old
        if len(self.pool) < size:
            return [], counts
        of_recycled = sum(n for role, n in slots.items() if role.is_recycled)
        taken, dropped = self._take({role: n * size // of_recycled for role, n in slots.items()}, step)
        for role in (role for role in Role if role.is_recycled):
            more, more_dropped = self._take({role: size - len(taken)}, step)
            taken, dropped = taken + more, dropped + more_dropped
        return taken, counts + dropped

    def _draw(self, count: int) -> tuple[list[Task], Counter[str]]:
        tasks: list[Task] = []
        passed: Counter[str] = Counter()
        while len(tasks) < count:
            try:
                drawn, more = self.questions.draw(count - len(tasks), self.fits)
            except LookupError as error:
                raise self._nothing_fits(error) from None
            asked = [task for task in drawn if task.verifier != SELF or self.asks_unverified()]
            tasks, passed = tasks + asked, passed + more + Counter(unverified=len(drawn) - len(asked))
            if passed["unverified"] > count + _PATIENCE * self.questions.num_rows:
                raise ValueError(
                    "data.train: hardly any question that can be asked is verified by a rule, which self_reward needs "
                    "to train its judge; add some, or raise their weight"
                )
        return tasks, _named("questions", passed)

    def _nothing_fits(self, source: LookupError) -> ValueError:
        return ValueError(
            f"{source}: every question is longer than {self.max_prompt_tokens} tokens, the smaller of "
            "data.max_prompt_tokens and what the model's context leaves beside rollout.max_new_tokens, or is held out "
            "as well"
        )

    def _with_own_ids(self, tasks: list[Task]) -> list[Task]:
        """A small data set may give a question twice in a step: two groups, two ids."""
        named = []
        for task in tasks:
            self._asked[task.id] += 1
            times = self._asked[task.id]
            named.append(task if times == 1 else replace(task, id=f"{task.id}#{times}"))
        return named


def _named(prefix: str, counts: Mapping[str, int]) -> Counter[str]:
    return Counter({f"{prefix}/{reason}": count for reason, count in counts.items()})
