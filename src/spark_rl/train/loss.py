"""The clipped policy loss (PPO, GRPO, DAPO) with an optional k3 KL penalty, and the cross-entropy. Pure.

Shape suffixes: R rollouts, T completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(slots=True)
class LossOutput:
    """The loss, and sums over tokens to report (divide by `num_tokens`)."""

    loss: Tensor
    clipped: Tensor
    """Tokens whose ratio the clip cut off."""
    kl: Tensor
    """k3 estimate of KL(policy || reference), nats."""
    num_tokens: Tensor


def rollout_scale(
    aggregation: Literal["grpo", "dapo", "dr_grpo"],
    length: int,
    length_limit: int,
    *,
    num_rollouts: int,
    num_tokens: int,
) -> float:
    """Weight of every token of one rollout, such that the step's loss is the weighted sum over all tokens.

    `num_rollouts` and `num_tokens` are those of the whole step, over all ranks and micro-batches, so how a step is cut
    up never changes its gradient.

    - `grpo`: 1 / (rollouts x own length), DeepSeekMath (2402.03300), eq. 3
    - `dapo`: 1 / tokens, DAPO (2503.14476), eq. 12
    - `dr_grpo`: 1 / (rollouts x length limit), Understanding R1-Zero-Like Training (2503.20783)
    """
    match aggregation:
        case "grpo":
            return 1 / (num_rollouts * max(1, length))
        case "dapo":
            return 1 / max(1, num_tokens)
        case "dr_grpo":
            return 1 / (num_rollouts * length_limit)


def policy_loss(
    logps_RT: Tensor,
    old_logps_RT: Tensor,
    mask_RT: Tensor,
    advantage_R: Tensor,
    scale_R: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl_coef: float = 0.0,
    reference_logps_RT: Tensor | None = None,
) -> LossOutput:
    """-sum_rt scale_r x (min(ratio A, clip(ratio) A) - kl_coef x k3); ratio = exp(logp - old logp).

    k3 = exp(d) - d - 1 with d = reference logp - logp (Schulman, "Approximating KL divergence").
    """
    mask_RT = mask_RT * (scale_R != 0)[:, None]  # rows without weight neither train nor count
    ratio_RT = (logps_RT - old_logps_RT).exp()
    clipped_RT = ratio_RT.clamp(1 - clip_low, 1 + clip_high)
    gain_RT = torch.minimum(ratio_RT * advantage_R[:, None], clipped_RT * advantage_R[:, None])
    was_clipped_RT = (ratio_RT * advantage_R[:, None]) > gain_RT
    kl_RT = torch.zeros_like(gain_RT)
    if reference_logps_RT is not None:
        difference_RT = reference_logps_RT - logps_RT
        kl_RT = difference_RT.exp() - difference_RT - 1
    loss_RT = -(gain_RT - kl_coef * kl_RT) * scale_R[:, None]
    return LossOutput(
        loss=(loss_RT * mask_RT).sum(),
        clipped=(was_clipped_RT * mask_RT).sum().detach(),
        kl=(kl_RT * mask_RT).sum().detach(),
        num_tokens=mask_RT.sum().detach(),
    )


def likelihood_loss(logps_RT: Tensor, mask_RT: Tensor, scale_R: Tensor) -> LossOutput:
    """-sum_rt scale_r x logp: the cross-entropy of completions that are given; where the scales of all tokens sum to 1,
    their mean negative log-likelihood, nats.

    Its gradient is that of `policy_loss` on policy, with every advantage 1.
    """
    mask_RT = mask_RT * (scale_R != 0)[:, None]
    loss_RT = -logps_RT * scale_R[:, None]
    nothing = torch.zeros((), device=logps_RT.device)
    return LossOutput((loss_RT * mask_RT).sum(), nothing, nothing, mask_RT.sum().detach())
