"""A step's gradient does not depend on how the step is cut up. Shape suffixes: R rollouts, T completion tokens."""

from dataclasses import replace

import pytest
import torch
from factories import make_config, reward_group
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spark_rl.config import Config
from spark_rl.models import prefixes
from spark_rl.train.advantages import advantages
from spark_rl.train.batches import (
    Denominators,
    TrainGroup,
    denominators,
    fill_tokens,
    keeps,
    micro_batches,
    prefixes_of,
    to_tensors,
    train_groups,
    with_prefixes,
)
from spark_rl.train.loss import policy_loss
from spark_rl.types import Group, Role

CPU = torch.device("cpu")
PAD_ID = 6
AGGREGATIONS = ["grpo", "dapo", "dr_grpo"]


@st.composite
def ragged_groups(draw) -> list[Group]:
    """Groups of several roles with prompts and completions of all lengths, and rewards of all kinds."""
    groups = []
    for _ in range(draw(st.integers(1, 5))):
        rewards = draw(st.lists(st.sampled_from([None, 0.0, 0.5, 1.0]), min_size=1, max_size=8))
        lengths = draw(st.lists(st.integers(0, 6), min_size=len(rewards), max_size=len(rewards)))
        group = reward_group(rewards, draw(st.sampled_from(list(Role))), lengths)
        group.prompt_ids = draw(st.lists(st.integers(0, 6), min_size=1, max_size=5))
        for rollout in group.rollouts:
            rollout.token_ids = [draw(st.integers(0, 6)) for _ in rollout.token_ids]
        groups.append(group)
    return groups


def prepared(groups: list[Group], config: Config, total: Denominators | None = None) -> list[TrainGroup]:
    return train_groups(groups, advantages(groups, config), total or denominators(groups, config), config)


def table() -> Tensor:
    """A policy as small as can be: logits of the next token by the last one."""
    return torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gradient(batches: list[list[TrainGroup]], config: Config) -> tuple[Tensor, float]:
    """The accumulated gradient of some micro-batches and the sum of their losses, off policy and with KL penalty."""
    logits = table().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for groups in batches:
        micro = to_tensors(groups, PAD_ID, CPU)
        ids_RT, mask_RT = micro.batch.completion_ids_RT, micro.batch.completion_mask_RT
        last_R1 = micro.batch.prompt_ids_BP[micro.batch.group_R, -1:]
        before_RT = torch.cat([last_R1, ids_RT[:, :-1]], dim=1)
        logps_RT = (
            logits[before_RT] / torch.as_tensor(micro.temperature_R).expand(len(ids_RT))[:, None, None]
        ).log_softmax(-1)
        logps_RT = logps_RT.gather(-1, ids_RT[..., None])[..., 0] * mask_RT
        old_RT = (table() * 0.7).log_softmax(-1)[before_RT, ids_RT] * mask_RT
        loss = policy_loss(
            logps_RT,
            old_RT,
            mask_RT,
            micro.advantage_R,
            micro.scale_R,
            clip_low=config.loss.clip_low,
            clip_high=config.loss.clip_high,
            kl_coef=config.loss.kl_coef,
            reference_logps_RT=torch.full_like(logps_RT, -2.0) * mask_RT,
        ).loss
        loss.backward()
        total += loss.detach()
    return (torch.zeros_like(logits) if logits.grad is None else logits.grad), total.item()


def same(one: tuple[Tensor, float], other: tuple[Tensor, float]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-8)
    assert one[1] == pytest.approx(other[1], rel=1e-5, abs=1e-8)


configs = st.builds(
    lambda aggregation, kl_coef, count_dropped: make_config(
        loss={"aggregation": aggregation, "kl_coef": kl_coef, "count_dropped": count_dropped},
        roles={"pointwise": {"max_new_tokens": 9, "temperature": 0.5}},
        rollout={"max_new_tokens": 20},
    ),
    st.sampled_from(AGGREGATIONS),
    st.sampled_from([0.0, 0.1]),
    st.booleans(),
)

# ------------------------------------------------------------------------------------------------ invariances


@given(groups=ragged_groups(), config=configs, max_tokens=st.integers(1, 60))
def test_cutting_a_step_into_micro_batches_changes_neither_loss_nor_gradient(groups, config, max_tokens):
    ready = prepared(groups, config)
    whole = gradient([ready] if ready else [], config)
    same(whole, gradient(micro_batches(ready, max_tokens), config))


@given(groups=ragged_groups(), config=configs, max_tokens=st.integers(1, 60), fill=st.integers(1, 60))
def test_batches_of_a_prefix_hold_no_other_and_the_last_has_room_for_it(groups, config, max_tokens, fill):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "_FREE", 0)
        patch.setattr(prefixes, "_FIXED", 0)
        ready = with_prefixes(prepared(groups, config))
    batches = micro_batches(ready, max_tokens, min(fill, max_tokens))
    same(gradient([ready] if ready else [], config), gradient(batches, config))
    shared = prefixes_of(batches)
    for i, (parts, prefix) in enumerate(zip(batches, shared, strict=True)):
        assert all(part.prefix_ids == list(prefix.ids if prefix else ()) for part in parts)
        held = prefix.length if prefix and prefix not in shared[i + 1 :] else 0
        assert held + sum(part.num_tokens for part in parts) <= max_tokens or len(parts) == 1
    by_ids = {tuple(prefix.ids): prefix for prefix in shared if prefix}
    assert len(by_ids) == len({prefix for prefix in shared if prefix})


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_one_group_of_eight_equals_eight_parts_of_one(aggregation):
    config = make_config(loss={"aggregation": aggregation})
    ready = prepared([reward_group([1, 0, 0, 1, 0.5, 0, 1, 1], lengths=[3, 1, 4, 1, 5, 2, 6, 5])], config)
    batches = micro_batches(ready, max_tokens=1)
    assert [len(part.completions) for batch in batches for part in batch] == [1] * 8 and len(batches) == 8
    whole = gradient([ready], config)
    same(whole, gradient(batches, config))
    assert whole[0].abs().max() > 1e-4


@given(groups=ragged_groups(), config=configs, data=st.data())
def test_two_ranks_with_common_denominators_sum_to_one_process(groups, config, data):
    on_first = data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups)))
    total = denominators(groups, config)
    parts = [[g for g, first in zip(groups, on_first, strict=True) if first is rank] for rank in (True, False)]
    ranks = [prepared(part, config, total) for part in parts]
    one = gradient([prepared(groups, config)], config) if any(ranks) else gradient([], config)
    first, second = (gradient([rank], config) if rank else gradient([], config) for rank in ranks)
    same(one, (first[0] + second[0], first[1] + second[1]))


def test_denominators_of_the_rank_alone_would_be_wrong():
    config = make_config(loss={"aggregation": "dapo"})
    groups = [reward_group([1, 0], lengths=[5, 5]), reward_group([1, 0], lengths=[1, 2])]
    total = denominators(groups, config)
    (right,), (wrong,) = prepared(groups[:1], config, total), prepared(groups[:1], config)
    assert right.scales == [1 / 13] * 2 and wrong.scales == [1 / 10] * 2


@given(groups=ragged_groups(), config=configs, max_tokens=st.integers(1, 60))
def test_micro_batches_hold_every_rollout_once_and_fit_if_a_row_does(groups, config, max_tokens):
    ready = prepared(groups, config)
    batches = micro_batches(ready, max_tokens)

    def rows(groups: list[TrainGroup]) -> list[tuple]:
        return sorted(
            (tuple(g.prompt_ids), tuple(c), a, s, g.temperature)
            for g in groups
            for c, a, s in zip(g.completions, g.advantages, g.scales, strict=True)
        )

    assert rows([part for batch in batches for part in batch]) == rows(ready)
    for batch in batches:
        tokens = sum(part.num_tokens for part in batch)
        single_row = len(batch) == 1 and len(batch[0].completions) == 1
        longest = max(map(len, (c for part in batch for c in part.completions)))
        assert tokens <= max_tokens or single_row or longest == 0


def test_groups_of_like_shape_run_together():
    config = make_config()
    shapes = [(9, 2), (3, 2), (9, 2), (3, 2)]
    groups = [reward_group([1, 0], lengths=[n, n]) for _, n in shapes]
    for group, (prompt, _) in zip(groups, shapes, strict=True):
        group.prompt_ids = [1] * prompt
    batches = micro_batches(prepared(groups, config), max_tokens=26)
    assert [[len(part.prompt_ids) for part in batch] for batch in batches] == [[3, 3], [9, 9]]


def test_small_groups_fill_less_than_one_alone_may_have():
    group = prepared([reward_group([1, 0], lengths=[4, 4])], make_config())  # 3 + 2 x 4 tokens
    (large,) = prepared([reward_group([1, 0], lengths=[8, 8])], make_config())
    batches = micro_batches([*group * 3, large], max_tokens=100, fill=22)
    assert [len(batch) for batch in batches] == [2, 1, 1]
    assert len(micro_batches([large, large], max_tokens=100, fill=10)) == 2
    assert fill_tokens(10**6, "cuda") == 10**6 and fill_tokens(100, "cpu") == 100
    assert fill_tokens(10**6, "cpu") < 10**4


def test_the_limit_is_met_exactly():
    group = prepared([reward_group([1, 0], lengths=[4, 4])], make_config())  # 3 + 2 x 4 tokens
    assert len(micro_batches([*group, *group], max_tokens=22)) == 1
    assert len(micro_batches([*group, *group], max_tokens=21)) == 2
    assert len(micro_batches(group, max_tokens=11)) == 1
    assert [len(b[0].completions) for b in micro_batches(group, max_tokens=10)] == [1, 1]
    assert micro_batches([], max_tokens=10) == []


# ------------------------------------------------------------------------------------------------ denominators

STEP = [
    reward_group([1, 0, None], lengths=[2, 4, 50]),
    reward_group([1, 1], lengths=[3, 7]),  # no signal
    reward_group([0, 1], Role.POINTWISE, lengths=[1, 2]),
    reward_group([None, None], lengths=[9, 9]),
]


@pytest.mark.parametrize(
    ("count_dropped", "kl_coef", "expected"),
    [
        (True, 0.0, Denominators(6, 19)),
        (False, 0.0, Denominators(4, 9)),
        (False, 0.1, Denominators(6, 19)),  # with a KL penalty nothing graded is dropped
        (True, 0.1, Denominators(6, 19)),
    ],
)
def test_denominators_count_graded_rollouts_and_dropped_ones_if_wanted(count_dropped, kl_coef, expected):
    config = make_config(loss={"count_dropped": count_dropped, "kl_coef": kl_coef})
    assert denominators(STEP, config) == expected


@pytest.mark.parametrize(
    ("aggregation", "scales"),
    [
        ("grpo", [[1 / (6 * 2), 1 / (6 * 4)], [1 / (6 * 1), 1 / (6 * 2)]]),
        ("dapo", [[1 / 19] * 2, [1 / 19] * 2]),
        ("dr_grpo", [[1 / (6 * 100)] * 2, [1 / (6 * 10)] * 2]),
    ],
)
def test_what_is_trained_and_how_much_each_token_weighs(aggregation, scales):
    config = make_config(
        loss={"aggregation": aggregation, "advantage_scale": "none"},
        rollout={"max_new_tokens": 100, "temperature": 0.8},
        roles={"pointwise": {"max_new_tokens": 10, "temperature": 0.5}},
    )
    answer, pointwise = prepared(STEP, config)
    assert [answer.scales, pointwise.scales] == [pytest.approx(s) for s in scales]
    assert [len(c) for c in answer.completions] == [2, 4] and [len(c) for c in pointwise.completions] == [1, 2]
    assert (answer.advantages, pointwise.advantages) == ([0.5, -0.5], [-0.5, 0.5])
    assert (answer.temperature, pointwise.temperature) == (0.8, 0.5)
    assert (answer.prompt_ids, answer.width, pointwise.width) == ([1, 2, 3], 4, 2)


def test_groups_without_signal_stay_only_for_the_kl_penalty():
    plain, with_kl = make_config(), make_config(loss={"kl_coef": 0.001})
    assert [keeps(group, plain) for group in STEP] == [True, False, True, False]
    assert [keeps(group, with_kl) for group in STEP] == [True, True, True, False]
    assert [len(g.completions) for g in prepared(STEP, with_kl)] == [2, 2, 2]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_dropping_groups_without_signal_leaves_the_gradient_alone(aggregation):
    """With `count_dropped`, dropping is only a saving: the gradient is that of the step with nothing dropped."""
    config = make_config(loss={"aggregation": aggregation})
    total = denominators(STEP, config)
    assert len(prepared(STEP, config)) == 2
    kept = gradient([prepared(STEP, config)], config)
    all_graded = make_config(loss={"aggregation": aggregation, "kl_coef": 1e-30})
    assert len(prepared(STEP, all_graded)) == 3
    same(kept, gradient([prepared(STEP, all_graded, total)], config))


def test_a_step_without_anything_to_train_on_is_empty():
    config = make_config(loss={"count_dropped": False})
    assert denominators(STEP[1:2], config) == Denominators(0, 0)
    assert prepared(STEP[1:2], config) == []


def test_tensors_line_up_with_the_rows():
    groups = [
        TrainGroup([5], [[1, 2], [3]], [0.5, -0.5], [0.25, 0.125], 0.7),
        TrainGroup([4, 4, 4], [[], [2, 2, 2]], [1.0, -1.0], [0.5, 0.0625], 1.0),
    ]
    micro = to_tensors(groups, PAD_ID, CPU)
    assert micro.batch.prompt_ids_BP.tolist() == [[6, 6, 5], [4, 4, 4]]
    assert micro.batch.completion_ids_RT.tolist() == [[1, 2, 6], [3, 6, 6], [6, 6, 6], [2, 2, 2]]
    assert micro.batch.completion_mask_RT.sum(-1).tolist() == [2, 1, 0, 3]
    assert micro.batch.group_R.tolist() == [0, 0, 1, 1]
    assert micro.advantage_R.tolist() == [0.5, -0.5, 1.0, -1.0]
    assert micro.scale_R.tolist() == [0.25, 0.125, 0.5, 0.0625]
    assert micro.temperature_R.tolist() == pytest.approx([0.7, 0.7, 1.0, 1.0])


def test_splitting_keeps_rows_with_their_numbers():
    group = TrainGroup([1, 1], [[1], [2], [3]], [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], 1.0)
    parts = [part for batch in micro_batches([group], max_tokens=4) for part in batch]
    assert parts == [
        replace(group, completions=[[1], [2]], advantages=[0.1, 0.2], scales=[0.4, 0.5]),
        replace(group, completions=[[3]], advantages=[0.3], scales=[0.6]),
    ]


def test_one_long_rollout_does_not_blow_up_a_batch():
    """Attention pads to the longest completion of a batch, so it is kept away from many short ones."""
    groups = [TrainGroup([1] * 5, [[1] * 4] * 8, [1.0] * 8, [1.0] * 8, 1.0) for _ in range(40)]
    groups.append(TrainGroup([1] * 5, [[1] * 4] * 7 + [[1] * 600], [1.0] * 8, [1.0] * 8, 1.0))
    for batch in micro_batches(groups, 4096, 2048):
        rows = sum(len(group.completions) for group in batch)
        assert rows * max(group.width for group in batch) <= 2 * 4096
