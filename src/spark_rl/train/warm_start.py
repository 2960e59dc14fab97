"""The supervised steps before RL, in which a model learns to answer as it is asked to.

RL makes nothing of a model that never states an answer: no rewards differ. Shown worked examples it may well state
some, and those that are right can be learnt from without the examples before them (rejection sampling: STaR, arXiv
2203.14465, RFT, 2308.01825; context distillation: 2209.15189). A step of the warm start is a step of the same loop:
its rollouts are recycled, too, so that judge and reflection prompts come in the next one and are learnt likewise. Rows
of data that have responses are taken for groups whose rollouts somebody else has made.

What is learnt is chosen so that no habit is: of a group each text once, and few of them; of verdicts as many of either
kind, since a judge that says Yes to everything is right about every right response; and as many reflections that
changed a wrong answer as ones that kept a right one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from spark_rl.config import Config
from spark_rl.data import Questions
from spark_rl.prompts import ChatRenderer
from spark_rl.train.metrics import Metrics, why_no_signal
from spark_rl.train.signal import signal_report
from spark_rl.types import Group, Role, Rollout, Task


def lessons(groups: Sequence[Group], config: Config) -> tuple[list[Group], Counter[str]]:
    """What of these graded groups is to be learnt: their right rollouts that have ended.

    Returns groups of them, and how many rollouts were left out by reason: `cut` (right, but not ended), `repeated`,
    `over_max_per_prompt`, `unbalanced`.
    """
    kept: list[Group] = []
    counts: Counter[str] = Counter()
    for group in groups:
        role = group.task.role
        right_at = role.right_at(config.recycle.right_at)
        right = [r for r in group.rollouts if r.reward is not None and r.reward >= right_at]
        if not right or config.roles[role].weight == 0:
            continue
        ended = [r for r in right if r.finish_reason == "stop"]
        different = list({r.text: r for r in ended}.values())
        few = different[: config.warm_start.max_per_prompt]
        counts["cut"] += len(right) - len(ended)
        counts["repeated"] += len(ended) - len(different)
        counts["over_max_per_prompt"] += len(different) - len(few)
        if few:
            kept.append(replace(group, rollouts=few))
    balanced = _balanced(kept, config.recycle.right_at)
    counts["unbalanced"] = _num_rollouts(kept) - _num_rollouts(balanced)
    return balanced, +counts


def _balanced(groups: Sequence[Group], right_at: float) -> list[Group]:
    """As many rollouts of either kind of a role's prompts, where a habit would be right about one: the first one of
    each group, then the second ones, and so on."""
    sides = {(role, kind): list[tuple[int, int]]() for role in Role for kind in (True, False)}
    num_kept: Counter[int] = Counter()
    for i, group in enumerate(groups):
        if (kind := _kind(group.task, right_at)) is None:
            num_kept[i] = len(group.rollouts)
        else:
            sides[group.task.role, kind] += [(place, i) for place in range(len(group.rollouts))]
    for (role, kind), places in sides.items():
        num_kept.update(i for _, i in sorted(places)[: len(sides[role, not kind])])
    return [replace(group, rollouts=group.rollouts[: num_kept[i]]) for i, group in enumerate(groups) if num_kept[i]]


def _kind(task: Task, right_at: float) -> bool | None:
    """What a habit could be right about: whether a verdict is the positive one, or a shown response to be kept; None
    where there is no such thing."""
    if task.role.is_judge:
        return task.label == task.positive
    return task.shown[0].reward >= right_at if task.shown else None


def _num_rollouts(groups: Sequence[Group]) -> int:
    return sum(len(group.rollouts) for group in groups)


class WarmStart:
    """The rows of a warm start, and what is learnt of its groups.

    Args:
        rows: with responses; None if there are none.
        renderer: makes the prompts that are trained on.
        max_prompt_tokens: rows with longer prompts are passed over.
        ends: tokens that end a turn.

    Raises:
        ValueError: no row of a source fits, or there are rows and no token ends a turn.
    """

    def __init__(
        self,
        config: Config,
        rows: Questions | None,
        renderer: ChatRenderer,
        max_prompt_tokens: int,
        ends: Sequence[int],
    ) -> None:
        self.config, self.rows, self.renderer, self.ends = config, rows, renderer, ends
        self.max_prompt_tokens = max_prompt_tokens
        if rows:
            renderer.encode_reply("", ends)
            try:
                rows.require(self._fits)
            except LookupError as error:
                raise ValueError(
                    f"{error}: every prompt is longer than {max_prompt_tokens} tokens, the smaller of "
                    "data.max_prompt_tokens and what the model's context leaves beside rollout.max_new_tokens; change "
                    "these, or leave it out of warm_start.data"
                ) from None

    def _fits(self, task: Task) -> bool:
        return len(self.renderer.encode_task(task)) <= self.max_prompt_tokens

    def given(self, step: int) -> list[Group]:
        """A step's rows of data, as groups that are not graded; none if there are no rows."""
        if self.rows is None:
            return []
        tasks, _ = self.rows.draw(self.config.rollout.groups_per_step, self._fits)
        return [
            Group(
                task,
                self.renderer.encode_task(task),
                [self._rollout(task, i, step) for i in range(len(task.responses))],
            )
            for task in tasks
        ]

    def _rollout(self, task: Task, number: int, step: int) -> Rollout:
        ids = self.renderer.encode_reply(task.responses[number], self.ends)
        text = self.renderer.opening + task.responses[number].removeprefix(self.renderer.opening)
        is_cut = len(ids) > self.config.max_new_tokens(task.role)
        return Rollout(f"{step}:{task.id}:given-{number}", ids, [], text, "length" if is_cut else "stop")

    def learnt(self, made: Sequence[Group], given: Sequence[Group]) -> tuple[list[Group], Metrics]:
        """The groups to be trained on, with the prompts that are trained on, and their numbers, `warm_start/...`.

        trained: responses that are trained on; trained_<role>: those of a role. right_rate: of the rollouts that were
        made. And what `lessons` leaves out.

        Args:
            made: rolled out, with whatever prompt, and graded.
            given: of rows, and graded.
        """
        chosen, counts = lessons([*made, *given], self.config)
        groups = [replace(group, prompt_ids=self.renderer.encode_task(group.task)) for group in chosen]
        by_role = {role: _num_rollouts([g for g in groups if g.task.role is role]) for role in Role}
        metrics: Metrics = {f"warm_start/{name}": float(count) for name, count in counts.items()}
        metrics["warm_start/trained"] = float(_num_rollouts(groups))
        metrics |= {f"warm_start/trained_{role}": float(n) for role, n in by_role.items() if n}
        if made:
            right_at = self.config.recycle.right_at
            rewards = [(g.task.role.right_at(right_at), r.reward) for g in made for r in g.rollouts]
            metrics["warm_start/right_rate"] = fmean(reward is not None and reward >= at for at, reward in rewards)
        return groups, metrics

    def state_dict(self) -> dict[str, Any]:
        """Where the next rows begin, as JSON types."""
        return self.rows.state_dict() if self.rows else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        if self.rows and state:
            self.rows.load_state_dict(dict(state))


def warm_start_report(steps: Sequence[Metrics]) -> dict[str, float]:
    """Over the warm start's steps: how many, the responses that were `trained` on (`trained_<role>` of a role), the
    share of rollouts that were right (`right_rate`), and the mean negative log-likelihood of the first and the last
    step that had some."""
    losses = [step["warm_start/nll"] for step in steps if "warm_start/nll" in step]
    trained = Counter[str]()
    for step in steps:
        trained.update(
            {n.removeprefix("warm_start/"): v for n, v in step.items() if n.startswith("warm_start/trained")}
        )
    rates = [step["warm_start/right_rate"] for step in steps if "warm_start/right_rate" in step]
    return {
        "steps": len(steps),
        **trained,
        **({"right_rate": fmean(rates)} if rates else {}),
        **({"first_nll": losses[0], "last_nll": losses[-1]} if losses else {}),
    }


def nothing_learnt(steps: Sequence[Metrics]) -> str:
    """Why RL does not follow a warm start that had nothing to learn from, in a sentence."""
    rates, cut = signal_report(steps).get(Role.ANSWER, {}), sum(step.get("warm_start/cut", 0) for step in steps)
    why = f", {why_no_signal(rates)}" if rates else ""
    if cut:
        why = f", since the {cut:.0f} right ones do not end within max_new_tokens: raise it"
    return (
        f"stopped: no response of the warm start's {len(steps)} steps could be learnt from{why}; RL would begin with "
        "less. Choose easier questions, other worked examples (prompts.examples) or rows with responses "
        "(warm_start.data), and begin a new run"
    )
