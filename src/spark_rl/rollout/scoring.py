"""Scoring is a stage of its own: groups come in with rollouts and leave with rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from spark_rl.prompts import Prompts
from spark_rl.rollout.engine import Engine
from spark_rl.types import Group, Rollout
from spark_rl.verify import Check, VerifierPool


class Scorer(Protocol):
    """Fills `reward`, `extracted` and `reason` of every rollout, in place. May ask the engine for more text."""

    def score(self, groups: Sequence[Group], engine: Engine) -> None: ...


class RuleScorer:
    """Grades every rollout by its task's rule verifier; needs no generation.

    Args:
        pool: runs the verifiers.
        truncated: what a rollout cut at its length limit is worth: `grade` it like any other, give it `zero`, or
            `mask` it (reward None, so that it trains nothing).
        right_at: the reward from which on an answer is right, for `reason`.
        wrong_at: where it is below 0, what is given instead of 0 for want of an answer: on a scale of -1 to 1 no answer
            must not be better than a wrong one.
        prompts: how replies state answers and verdicts.
    """

    def __init__(
        self,
        pool: VerifierPool,
        truncated: Literal["grade", "zero", "mask"] = "grade",
        *,
        right_at: float = 1.0,
        wrong_at: float = 0.0,
        prompts: Prompts = Prompts(),
    ) -> None:
        self.pool, self.truncated, self.prompts = pool, truncated, prompts
        self.right_at, self.least = right_at, min(0.0, wrong_at)

    def score(self, groups: Sequence[Group], engine: Engine | None = None) -> None:
        rollouts = [(group.task, rollout) for group in groups for rollout in group.rollouts]
        stated = self.prompts.format
        verdicts = self.pool.stream(
            Check(rollout.text, task.label, task.verifier, task.example.metadata, task.messages, stated(task.role))
            for task, rollout in rollouts
        )
        for (task, rollout), verdict in zip(rollouts, verdicts, strict=True):
            least = 0.0 if task.role.is_judge else self.least
            rollout.reward, rollout.extracted = verdict.reward, verdict.extracted
            rollout.reason, rollout.detail = verdict.at(task.role.right_at(self.right_at)).reason, verdict.detail
            if verdict.reward is None:
                continue
            if not verdict.is_graded:
                rollout.reward = least
            self.settle_cut(rollout, least)

    def settle_cut(self, rollout: Rollout, least: float = 0.0) -> bool:
        """Give a rollout that was cut at its length limit what it is worth. Returns whether that is settled."""
        if rollout.finish_reason != "length" or self.truncated == "grade":
            return False
        rollout.reward = least if self.truncated == "zero" else None
        rollout.reason = "truncated"
        return True
