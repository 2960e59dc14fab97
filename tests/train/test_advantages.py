import math

import pytest
from factories import make_config, reward_group
from hypothesis import given
from hypothesis import strategies as st

from spark_rl.train.advantages import advantages
from spark_rl.types import Role

rewards = st.lists(st.none() | st.sampled_from([0.0, 0.25, 1.0]) | st.floats(-2, 2), max_size=8)
groups = st.lists(st.builds(reward_group, rewards, st.sampled_from(list(Role))), max_size=6)
scales = st.sampled_from(["group", "role", "none"])


def compute(*groups, weights=None, **loss) -> list[list[float | None]]:
    roles = {role: {"weight": weight} for role, weight in (weights or {}).items()}
    return advantages(groups, make_config(loss=loss, roles=roles))


def test_group_scale_divides_by_the_population_standard_deviation_and_eps():
    (values,) = compute(reward_group([1.0, 0.0, 0.0, 0.0]), advantage_scale="group", advantage_eps=0.5)
    std = math.sqrt(3) / 4
    assert values == pytest.approx([0.75 / (std + 0.5), *[-0.25 / (std + 0.5)] * 3])


def test_default_eps_hardly_matters():
    (values,) = compute(reward_group([1.0, 0.0, 1.0, 0.0]))
    assert values == pytest.approx([1, -1, 1, -1], abs=1e-5)


def test_no_scale_is_the_plain_distance_to_the_mean_whatever_eps():
    (values,) = compute(reward_group([1.0, 0.0, 0.0, 0.0]), advantage_scale="none", advantage_eps=0.5)
    assert values == [0.75, -0.25, -0.25, -0.25]


def test_role_scale_is_the_spread_around_the_group_means_over_the_role():
    groups = [
        reward_group([1.0, 0.0]),  # distances 0.5, -0.5
        reward_group([1.0, 1.0]),  # 0, 0: counts, though it has no signal
        reward_group([0.9, 0.1], Role.PAIRWISE),  # another role's spread
    ]
    values = compute(*groups, advantage_scale="role", advantage_eps=0.25)
    std = math.sqrt(2 * 0.25 / 4)
    assert values[0] == pytest.approx([0.5 / (std + 0.25), -0.5 / (std + 0.25)])
    assert values[1] == [0, 0]
    assert values[2] == pytest.approx([0.4 / (0.4 + 0.25), -0.4 / (0.4 + 0.25)])


def test_role_scale_keeps_uneven_groups_apart_which_group_scale_levels():
    uneven, even = reward_group([1.0] + [0.0] * 7), reward_group([1.0, 0.0] * 4)
    by_group, by_role = (compute(uneven, even, advantage_scale=scale) for scale in ("group", "role"))
    assert by_group[0][0] == pytest.approx(7**0.5, abs=1e-4)
    assert by_role[0][0] / by_role[1][0] == pytest.approx(0.875 / 0.5)


def test_roles_never_share_a_baseline():
    hard, easy = reward_group([0.0, 0.0, 1.0, 0.0]), reward_group([1.0, 1.0, 0.0, 1.0], Role.POINTWISE)
    for scale in ("group", "role", "none"):
        assert compute(hard, easy, advantage_scale=scale)[0] == compute(hard, advantage_scale=scale)[0]


def test_ungraded_rollouts_have_no_advantage_and_do_not_move_the_others():
    (with_none,) = compute(reward_group([1.0, None, 0.0, None]))
    (without,) = compute(reward_group([1.0, 0.0]))
    assert with_none == [without[0], None, without[1], None]
    assert compute(reward_group([None, None]), reward_group([])) == [[None, None], []]


@pytest.mark.parametrize("scale", ["group", "role", "none"])
def test_weights_multiply_the_advantages_of_their_role(scale):
    groups = [reward_group([1.0, 0.0, 0.0]), reward_group([1.0, 0.0, 0.0], Role.PAIRWISE)]
    values = compute(*groups, weights={"pairwise": 0.25, "answer": 2.0}, advantage_scale=scale)
    plain = compute(*groups, advantage_scale=scale)
    assert values[0] == pytest.approx([2 * a for a in plain[0]])
    assert values[1] == pytest.approx([0.25 * a for a in plain[1]])


@given(groups=groups, scale=scales, eps=st.sampled_from([1e-6, 1e-2]))
def test_advantages_of_a_group_sum_to_zero_and_are_ordered_like_rewards(groups, scale, eps):
    for group, values in zip(groups, compute(*groups, advantage_scale=scale, advantage_eps=eps), strict=True):
        graded = [(r.reward, a) for r, a in zip(group.rollouts, values, strict=True) if r.reward is not None]
        assert [a is None for a in values] == [r.reward is None for r in group.rollouts]
        assert math.fsum(a for _, a in graded) == pytest.approx(0, abs=1e-6)
        assert [r for r, _ in sorted(graded, key=lambda pair: pair[1])] == pytest.approx(sorted(r for r, _ in graded))


@given(rewards=st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=2, max_size=8), scale=scales)
def test_equal_rewards_teach_nothing(rewards, scale):
    (values,) = compute(reward_group([rewards[0]] * len(rewards)), advantage_scale=scale)
    assert values == pytest.approx([0] * len(rewards), abs=1e-9)


@given(
    rewards=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=8), shift=st.sampled_from([-3.0, 0.5, 8.0])
)
def test_only_differences_of_rewards_count(rewards, shift):
    for scale in ("group", "role", "none"):
        (plain,) = compute(reward_group(rewards), advantage_scale=scale)
        (shifted,) = compute(reward_group([r + shift for r in rewards]), advantage_scale=scale)
        assert shifted == pytest.approx(plain, abs=1e-9)
