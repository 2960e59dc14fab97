"""Shape suffixes: R rollouts, T completion tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spark_rl.train.loss import LossOutput, policy_loss, rollout_scale

LOW, HIGH = 0.2, 0.28


def tensor(*rows) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def loss(logps_RT, old_logps_RT, advantage_R, mask_RT=None, scale_R=None, **options) -> LossOutput:
    mask_RT = torch.ones_like(logps_RT) if mask_RT is None else mask_RT
    scale_R = torch.ones_like(advantage_R) if scale_R is None else scale_R
    options = {"clip_low": LOW, "clip_high": HIGH, **options}
    return policy_loss(logps_RT, old_logps_RT, mask_RT, advantage_R, scale_R, **options)


def of_ratio(ratio: float, advantage: float, **options) -> tuple[float, float, float]:
    """(loss, its gradient by the log-probability, clipped tokens) of one token with this probability ratio."""
    logps = tensor([math.log(ratio)]).requires_grad_()
    out = loss(logps, torch.zeros_like(logps), tensor(advantage), **options)
    (gradient,) = torch.autograd.grad(out.loss, logps)
    return out.loss.item(), gradient.item(), out.clipped.item()


# ------------------------------------------------------------------------------------------------ the objective


def test_on_policy_the_gradient_is_minus_advantage_times_scale():
    logps = (-torch.rand(3, 4, dtype=torch.float64)).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    advantage, scale = tensor(0.5, -2.0, 0.0), tensor(0.25, 0.125, 1.0)
    out = loss(logps, logps.detach(), advantage, mask, scale)
    assert out.loss.item() == pytest.approx(-(4 * 0.5 * 0.25 + 2 * -2.0 * 0.125))
    (gradient,) = torch.autograd.grad(out.loss, logps)
    expected = -(advantage * scale)[:, None] * mask
    torch.testing.assert_close(gradient, expected)
    assert (out.num_tokens.item(), out.clipped.item(), out.kl.item()) == (7, 0, 0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "is_clipped"),
    [
        (1.0, 2.0, 2.0, False),
        (1.2, 2.0, 2.4, False),
        (1.5, 2.0, 2 * (1 + HIGH), True),  # more of a good thing than the clip allows
        (0.5, 2.0, 1.0, False),  # a good thing made rarer: the way back is open
        (0.9, -2.0, -1.8, False),
        (0.5, -2.0, -2 * (1 - LOW), True),  # less of a bad thing than the clip allows
        (1.5, -2.0, -3.0, False),  # a bad thing made likelier: the way back is open
        (1.5, 0.0, 0.0, False),
    ],
)
def test_both_sides_of_the_clip(ratio, advantage, gain, is_clipped):
    value, gradient, clipped = of_ratio(ratio, advantage)
    assert value == pytest.approx(-gain)
    assert gradient == pytest.approx(0 if is_clipped else -ratio * advantage)
    assert clipped == is_clipped


def test_the_two_clips_are_set_apart():
    assert of_ratio(1.25, 1.0, clip_high=0.28)[2] == 0
    assert of_ratio(1.25, 1.0, clip_high=0.2)[2] == 1
    assert of_ratio(0.75, -1.0, clip_low=0.3)[2] == 0
    assert of_ratio(0.75, -1.0, clip_low=0.2)[2] == 1
    assert of_ratio(1.25, 1.0, clip_low=0.0, clip_high=0.28)[2] == 0
    assert of_ratio(0.75, -1.0, clip_low=0.3, clip_high=0.0)[2] == 0


@settings(deadline=None)
@given(ratio=st.floats(0.1, 5), advantage=st.floats(-3, 3), low=st.floats(0, 0.9), high=st.floats(0, 2))
def test_clipping_never_raises_the_objective_and_is_the_formula(ratio, advantage, low, high):
    value, _, clipped = of_ratio(ratio, advantage, clip_low=low, clip_high=high)
    ratio = math.exp(math.log(ratio))
    plain, cut = ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage
    assert -value == pytest.approx(min(plain, cut))
    assert -value <= plain + 1e-12
    assert clipped == (cut < plain)


# ------------------------------------------------------------------------------------------------ the KL penalty


@settings(deadline=None)
@given(logp=st.floats(-8, 0), reference=st.floats(-8, 0))
def test_k3_is_the_formula_and_never_negative(logp, reference):
    logps = tensor([logp])
    out = loss(logps, logps, tensor(0.0), kl_coef=1.0, reference_logps_RT=tensor([reference]))
    difference = reference - logp
    assert out.kl.item() == pytest.approx(math.expm1(difference) - difference, abs=1e-9)
    assert out.kl.item() >= -1e-12
    assert out.loss.item() == pytest.approx(out.kl.item())


def test_k3_estimates_the_kl_divergence():
    """The mean of k3 over the policy's own tokens is KL(policy || reference), exactly."""
    policy, reference = (torch.randn(2, 9, dtype=torch.float64) * 2).log_softmax(-1)
    out = [
        loss(p[None, None], p[None, None], tensor(0.0), reference_logps_RT=r[None, None]).kl * p.exp()
        for p, r in zip(policy, reference, strict=True)
    ]
    assert sum(out).item() == pytest.approx((policy.exp() * (policy - reference)).sum().item())


def test_the_penalty_is_weighted_scaled_masked_and_pulls_towards_the_reference():
    logps = tensor([-1.0, -2.0, -9.0]).requires_grad_()
    reference, mask = tensor([-1.5, -1.0, 0.0]), torch.tensor([[1, 1, 0]])
    out = loss(logps, logps.detach(), tensor(0.0), mask, tensor(0.5), kl_coef=0.1, reference_logps_RT=reference)
    k3 = [math.exp(-0.5) + 0.5 - 1, math.exp(1.0) - 1.0 - 1]
    assert out.kl.item() == pytest.approx(sum(k3))
    assert out.loss.item() == pytest.approx(0.5 * 0.1 * sum(k3))
    (gradient,) = torch.autograd.grad(out.loss, logps)
    expected = [0.05 * (1 - math.exp(-0.5)), 0.05 * (1 - math.exp(1.0)), 0.0]
    torch.testing.assert_close(gradient, tensor(expected))
    assert gradient[0, 0] > 0 > gradient[0, 1], "descent lowers what the reference likes less, and lifts the other"


def test_gain_and_penalty_add_up():
    logps, old, reference = (-torch.rand(2, 3, dtype=torch.float64) for _ in range(3))
    advantage, scale = tensor(1.0, -0.5), tensor(0.5, 0.25)
    options = {"reference_logps_RT": reference}
    gain = loss(logps, old, advantage, scale_R=scale).loss
    penalty = loss(logps, old, 0 * advantage, scale_R=scale, kl_coef=1.0, **options).loss
    both = loss(logps, old, advantage, scale_R=scale, kl_coef=0.3, **options).loss
    torch.testing.assert_close(both, gain + 0.3 * penalty)


def test_a_reference_is_reported_even_if_it_weighs_nothing():
    logps = tensor([-1.0])
    out = loss(logps, logps, tensor(1.0), kl_coef=0.0, reference_logps_RT=tensor([-2.0]))
    assert out.kl.item() > 0 and out.loss.item() == pytest.approx(-1)


# ------------------------------------------------------------------------------------------------ masks and sums


def test_masked_tokens_change_nothing():
    logps, old = (-torch.rand(2, 4, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    advantage = tensor(1.0, -1.0)
    out = loss(logps, old, advantage, mask, reference_logps_RT=old)
    noise = torch.where(mask == 1, 0.0, torch.randn(2, 4, dtype=torch.float64))
    other = loss(logps + noise, old - noise, advantage, mask, reference_logps_RT=old + noise)
    for name in ("loss", "clipped", "kl", "num_tokens"):
        torch.testing.assert_close(getattr(out, name), getattr(other, name))


def test_the_loss_of_a_step_is_the_sum_over_its_parts():
    logps, old, reference = (-torch.rand(6, 3, dtype=torch.float64) for _ in range(3))
    mask = torch.arange(3) < torch.tensor([1, 3, 2, 3, 1, 2])[:, None]
    advantage, scale = torch.randn(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    options = {"kl_coef": 0.1}

    def part(rows: slice) -> LossOutput:
        return loss(
            *(t[rows] for t in (logps, old, advantage, mask, scale)), reference_logps_RT=reference[rows], **options
        )

    whole = part(slice(None))
    for size in (1, 2, 4):
        parts = [part(slice(i, i + size)) for i in range(0, 6, size)]
        for name in ("loss", "clipped", "kl", "num_tokens"):
            total = sum(getattr(p, name) for p in parts)
            torch.testing.assert_close(total, getattr(whole, name))


def test_what_is_reported_holds_no_graph():
    logps = tensor([-1.0]).requires_grad_()
    out = loss(logps, tensor([-1.2]), tensor(1.0), kl_coef=1.0, reference_logps_RT=tensor([-2.0]))
    assert out.loss.requires_grad
    assert not any(value.requires_grad for value in (out.clipped, out.kl, out.num_tokens))


# ------------------------------------------------------------------------------------------------ denominators


def test_scales_by_hand():
    options = {"num_rollouts": 4, "num_tokens": 50}
    assert rollout_scale("grpo", 5, 20, **options) == 1 / (4 * 5)
    assert rollout_scale("dapo", 5, 20, **options) == 1 / 50
    assert rollout_scale("dr_grpo", 5, 20, **options) == 1 / (4 * 20)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=10))
def test_weights_of_all_tokens(lengths):
    options = {"num_rollouts": len(lengths), "num_tokens": sum(lengths)}
    sums = {name: [n * rollout_scale(name, n, 30, **options) for n in lengths] for name in ("grpo", "dapo", "dr_grpo")}
    assert sum(sums["grpo"]) == pytest.approx(1) and sum(sums["dapo"]) == pytest.approx(1)
    assert sums["grpo"] == pytest.approx([1 / len(lengths)] * len(lengths)), "every rollout weighs the same"
    assert sums["dapo"] == pytest.approx([n / sum(lengths) for n in lengths]), "every token weighs the same"
    assert sums["dr_grpo"] == pytest.approx([n / 30 / len(lengths) for n in lengths]), "no length bias"


def test_empty_rollouts_divide_nothing_by_zero():
    assert rollout_scale("grpo", 0, 20, num_rollouts=4, num_tokens=0) == 1 / 4
    assert rollout_scale("dapo", 0, 20, num_rollouts=4, num_tokens=0) == 1
