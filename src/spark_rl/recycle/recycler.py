"""Groups to recycled tasks: pure functions (SPARK section 3.2).

A question's rollouts and their verified rewards hold labels that cost nothing: whether one response is right
(pointwise), which of two is (pairwise), and the gold answer for a second try (reflection).

Deviation: the paper draws one pointwise or pairwise item of a group, so labels follow the policy's accuracy and the
question's difficulty predicts them. Here (`recycle.balanced`) items come in bundles that enter a step together: a
right and a wrong response to the same question, both orders of a pair. A judge that looks at anything but the
responses scores one half. Right responses are shown for reflection too, or it would learn to always change the answer.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from spark_rl.config import RecycleConfig
from spark_rl.prompts import Prompts, View, shown
from spark_rl.recycle.probes import claim, claimed, hollow
from spark_rl.types import Group, Response, Role, Rollout, Task
from spark_rl.verify import SELF, failed

Bundle = tuple[Task, ...]
"""Tasks of one role that are taken from the pool together, so that their labels balance."""


@dataclass(slots=True)
class Recycled:
    """What a step's groups gave."""

    bundles: list[Bundle] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Tasks made by role (`made_pointwise`, ...) and what was left out, by reason."""


def recycle(
    groups: Sequence[Group],
    config: RecycleConfig,
    *,
    seed: int,
    step: int,
    prompts: Prompts = Prompts(),
) -> Recycled:
    """Make recycled tasks of graded groups.

    The draw for a group depends on `(seed, step, task id)` alone, so neither the order of the groups nor what else is
    in the step changes it. Judge groups are not recycled, nor reflection items of the data, nor what the model's own
    verdicts have graded.
    """
    result = Recycled()
    keepable: list[Bundle] = []
    changeable: list[Bundle] = []
    for group in groups:
        if group.task.role.is_judge or (group.task.role is Role.REFLECTION and not group.task.shown):
            continue  # the latter are ready items of the data, whose bare question is not known
        if group.task.verifier == SELF:  # by its own verdicts the model would learn to agree with itself
            result.counts["graded_by_the_model"] += len(group.rollouts)
            continue
        if group.task.depth >= config.max_depth:
            result.counts["too_deep"] += 1
            continue
        rng = random.Random(f"recycle-{seed}-{step}-{group.task.id}")
        maker = _Maker(group, config, rng, step, result.counts, prompts)
        result.bundles += maker.judge_bundles()
        if group.task.role is Role.ANSWER:
            changeable += maker.reflections(maker.wrong)
            if maker.right and maker.wrong:
                keepable += maker.reflections(maker.right)
    kept = _share(keepable, len(changeable), config.keep_right_share)
    result.counts["over_keep_right_share"] += len(keepable) - len(kept)
    result.bundles += changeable + kept
    result.bundles.sort(key=lambda bundle: bundle[0].id)
    random.Random(f"order-{seed}-{step}").shuffle(result.bundles)  # the pool takes them in this order
    result.counts.update(f"made_{task.role}" for bundle in result.bundles for task in bundle)
    return result


def _share(keepable: list[Bundle], num_changeable: int, share: float) -> list[Bundle]:
    """As many of `keepable` as make up `share` of the whole; all of them at share 1."""
    wanted = len(keepable) if share == 1 else round(num_changeable * share / (1 - share))
    return sorted(keepable, key=lambda bundle: bundle[0].id)[:wanted]  # ids are hashes: any order, always the same


def _is_set(rollout: Rollout) -> bool:
    """Whether a setting has decided the reward, which then says nothing about the answer: `loss.truncated`, where there
    is an answer, and `verify.timed_out`."""
    return failed(rollout.reason) or (rollout.reason == "truncated" and rollout.extracted is not None)


class _Maker:
    """Makes the tasks of one group."""

    def __init__(
        self,
        group: Group,
        config: RecycleConfig,
        rng: random.Random,
        step: int,
        counts: Counter[str],
        prompts: Prompts,
    ) -> None:
        self.task, self.config, self.rng, self.step, self.counts = group.task, config, rng, step, counts
        self.prompts = prompts
        graded = [
            Response(r.id, r.text, r.extracted, r.reward)
            for r in group.rollouts
            if r.reward is not None and not _is_set(r)
        ]
        self.right = [r for r in graded if r.reward >= config.right_at]
        self.wrong = [r for r in graded if r.reward <= config.wrong_at and r.reward < config.right_at]
        counts["ungraded"] += len(group.rollouts) - len(graded)
        counts["neither_right_nor_wrong"] += len(graded) - len(self.right) - len(self.wrong)
        rng.shuffle(self.right)
        rng.shuffle(self.wrong)
        self._made: set[str] = set()

    def judge_bundles(self) -> Iterator[Bundle]:
        mixed = bool(self.right and self.wrong)
        if not self.config.balanced:
            if mixed and self.rng.random() < self.config.pair_rate:
                yield from self._pairs([(self.right[0], self.wrong[0])])
            elif self.right or self.wrong:
                yield from self._bundle([self._pointwise([self.rng.choice(self.right + self.wrong)])])
            return
        if not mixed:
            self.counts["unmixed_groups"] += 1
        couples = list(zip(self.right, self.wrong, strict=False))[: self.config.items_per_group]
        for couple in couples:
            yield from self._bundle([self._pointwise(self._probed(couple, alike=True))])
        yield from self._pairs(self._probed(couple, alike=False) for couple in couples)
        if self.task.role is Role.REFLECTION:
            yield from self._pairs(self._before_and_after())

    def _probed(self, couple: tuple[Response, Response], alike: bool) -> tuple[Response, Response]:
        """The couple, or for `probe_rate` of them a disturbed one: the wrong response hollow, or with a claim in both
        (`alike`) or either one."""
        rng, (right, wrong) = self.rng, couple
        if self.config.probe_rate == 0 or rng.random() >= self.config.probe_rate:
            return couple
        if rng.random() < 0.3:
            return right, hollow(wrong, rng, self.prompts.answer_format)
        line, first = claim(rng), rng.random() < 0.5
        which = rng.choice((0, 1))
        if alike or which == 0:
            right = claimed(right, line, first)
        if alike or which == 1:
            wrong = claimed(wrong, line, first)
        return right, wrong

    def reflections(self, responses: Sequence[Response]) -> list[Bundle]:
        """One single-task bundle for each response."""
        bundles: list[Bundle] = []
        for response in responses[: self.config.items_per_group]:
            bundles += self._bundle([self._tasks(Role.REFLECTION, [(response,)], self.task.example.answer)])
        return bundles

    def _before_and_after(self) -> list[tuple[Response, Response]]:
        """The earlier response and one second try, as (right, wrong), where just one of them is right."""
        (before,) = self.task.shown
        others = self.wrong if before.reward >= self.config.right_at else self.right
        pairs = ((before, after) if others is self.wrong else (after, before) for after in others[:1])
        return list(pairs)

    def _pairs(self, couples: Iterable[tuple[Response, Response]]) -> Iterator[Bundle]:
        for right, wrong in couples:
            orders = [(right, wrong), (wrong, right)]
            if not self.config.both_orders:
                orders = [self.rng.choice(orders)]
            yield from self._bundle([self._tasks(Role.PAIRWISE, orders)])

    def _pointwise(self, responses: Sequence[Response]) -> list[Task] | None:
        return self._tasks(Role.POINTWISE, [(response,) for response in responses])

    def _bundle(self, made: list[list[Task] | None]) -> Iterator[Bundle]:
        """The tasks as a bundle, unless there was nothing to show or the like was made before."""
        for tasks in made:
            if tasks is None:
                self.counts["nothing_to_show"] += 1
            elif len({task.id for task in tasks}) < len(tasks):
                self.counts["indistinguishable"] += 1
            elif any(task.id in self._made for task in tasks):
                self.counts["duplicate"] += 1
            else:
                self._made.update(task.id for task in tasks)
                yield tuple(tasks)

    def _tasks(
        self, role: Role, showings: Sequence[tuple[Response, ...]], label: str | None = None
    ) -> list[Task] | None:
        """A task for each tuple of responses, all with one template and one view; None if a view shows nothing."""
        template = self.rng.choice(self.prompts.recycled_in(role))
        view = View.REASONING if self.rng.random() < self.config.reasoning_view else View.ANSWER
        if any(r.extracted is None or r.disturbed for showing in showings for r in showing):
            view = View.REASONING  # there is no answer to show, or it is not the answer that was disturbed
        tasks = []
        for showing in showings:
            limit, stated = self.config.max_response_chars, self.prompts.answer_format
            texts = [text for r in showing if (text := shown(r.text, r.extracted, view, limit, stated))]
            if len(texts) < len(showing):
                return None
            names = ("response",) if len(showing) == 1 else ("first", "second")
            quoted = {"question": self.task.example.question, **dict(zip(names, texts, strict=True))}
            tasks.append(
                Task(
                    id=_task_id(role, self.task.example.id, texts),
                    role=role,
                    messages=self.prompts.fill(template, **quoted),
                    label=label if label is not None else template.verdicts[showing[0].reward < self.config.right_at],
                    verifier=self.task.example.verifier if role is Role.REFLECTION else "choice",
                    example=self.task.example,
                    template=template.name,
                    shown=showing,
                    depth=self.task.depth + 1,
                    step=self.step,
                    verdicts=template.verdicts if role.is_judge and template.verdicts != role.verdicts else None,
                )
            )
        return tasks


def _task_id(role: Role, example_id: str, texts: Sequence[str]) -> str:
    """The same for the same role, question and shown texts, whatever the template: duplicates share an id."""
    digest = hashlib.sha256("\0".join([example_id, *texts]).encode()).hexdigest()[:16]
    return f"{role}-{digest}"
