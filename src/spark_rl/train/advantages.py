"""Group-relative advantages (GRPO), one list a group, one number a rollout.

Roles never share a baseline: a verdict is right half of the time by guessing, an answer hardly ever, so a common mean
would reward the easy role for being easy. A group holds rollouts of one task, hence of one role.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

from spark_rl.config import Config
from spark_rl.types import Group, Role
from spark_rl.verify import SELF


def advantages(groups: Sequence[Group], config: Config) -> list[list[float | None]]:
    """A_i = weight x (r_i - mean r) / (std + eps); see `loss.advantage_scale`. None for ungraded rollouts.

    Rewards that are the model's own verdicts are probabilities. Divided by their standard deviation, all but equal ones
    (0.01 and 0.02 for two wrong answers) would teach as much as 0 and 1; so it counts as one half, the most it can be.
    """
    of_rules = [group for group in groups if group.task.verifier != SELF]
    role_std = {role: _role_std([g for g in of_rules if g.task.role is role]) for role in Role}
    result: list[list[float | None]] = []
    for group in groups:
        rewards = group.rewards or [0.0]
        match config.loss.advantage_scale:
            case "group":
                scale = pstdev(rewards) + config.loss.advantage_eps
            case "role":
                scale = role_std[group.task.role] + config.loss.advantage_eps
            case "none":
                scale = 1.0
        if group.task.verifier == SELF:
            scale = max(scale, 0.5)
        factor, mean = group.weight * config.roles[group.task.role].weight / scale, fmean(rewards)
        result.append([None if r.reward is None else factor * (r.reward - mean) for r in group.rollouts])
    return result


def _role_std(groups: Sequence[Group]) -> float:
    """Standard deviation of a role's rewards around their group means."""
    distances = [reward - fmean(group.rewards) for group in groups for reward in group.rewards]
    return pstdev(distances, 0.0) if distances else 0.0
