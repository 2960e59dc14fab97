"""Scoring is a stage of its own: groups come in with rollouts and leave with rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

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
    """

    def __init__(self, pool: VerifierPool, truncated: Literal["grade", "zero", "mask"] = "grade") -> None:
        self.pool = pool
        self.truncated = truncated

    def score(self, groups: Sequence[Group], engine: Engine | None = None) -> None:
        rollouts = [(group.task, rollout) for group in groups for rollout in group.rollouts]
        verdicts = self.pool.stream(
            Check(rollout.text, task.label, task.verifier, task.example.metadata, task.messages)
            for task, rollout in rollouts
        )
        for (_, rollout), verdict in zip(rollouts, verdicts, strict=True):
            rollout.reward, rollout.extracted = verdict.reward, verdict.extracted
            rollout.reason, rollout.detail = verdict.reason, verdict.detail
            if verdict.reward is not None:
                self.settle_cut(rollout)

    def settle_cut(self, rollout: Rollout) -> bool:
        """Give a rollout that was cut at its length limit what it is worth. Returns whether that is settled."""
        if rollout.finish_reason != "length" or self.truncated == "grade":
            return False
        rollout.reward = 0.0 if self.truncated == "zero" else None
        rollout.reason = "truncated"
        return True
