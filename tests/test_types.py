import dataclasses

import pytest
from factories import make_example, reward_group

from spark_rl.types import Role


def test_only_verdict_roles_are_judges_and_only_questions_are_not_recycled():
    assert [role.value for role in Role] == ["answer", "pointwise", "pairwise", "reflection"]
    assert [role for role in Role if role.is_judge] == [Role.POINTWISE, Role.PAIRWISE]
    assert [role for role in Role if role.is_recycled] == [Role.POINTWISE, Role.PAIRWISE, Role.REFLECTION]


@pytest.mark.parametrize(
    ("rewards", "graded", "has_signal"),
    [
        ([1.0, 0.0], [1.0, 0.0], True),
        ([0.5, 0.5, 0.25], [0.5, 0.5, 0.25], True),
        ([1.0, 1.0], [1.0, 1.0], False),
        ([0.0, 0.0], [0.0, 0.0], False),
        ([1.0, None], [1.0], False),  # one graded rollout has nothing to be compared with
        ([None, 0.0, None, 1.0], [0.0, 1.0], True),
        ([None, None], [], False),
        ([], [], False),
    ],
)
def test_ungraded_rollouts_neither_count_nor_give_signal(rewards, graded, has_signal):
    group = reward_group(rewards)
    assert group.rewards == graded
    assert group.has_signal is has_signal


def test_examples_and_tasks_can_not_be_changed_after_the_fact():
    for value in (make_example(), reward_group([1.0]).task):
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.id = "other"
