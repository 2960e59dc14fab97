"""What a step says about its roles, and what it warns of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from factories import make_example, make_group, reward_group

from spark_rl.data import question_task
from spark_rl.train.metrics import balanced_accuracy, is_positive, role_metrics, side, warnings, why_no_signal
from spark_rl.types import Response, Role

SLOTS = {Role.ANSWER: 4, Role.POINTWISE: 0, Role.PAIRWISE: 0, Role.REFLECTION: 0}


def test_rates_are_shares_of_rollouts_and_groups() -> None:
    metrics = role_metrics([reward_group([1, 0, None, 1]), reward_group([0, 0])])
    assert metrics["answer/groups"] == 2 and metrics["answer/rollouts"] == 6
    assert metrics["answer/accuracy"] == pytest.approx(2 / 5)
    assert metrics["answer/zero_variance_rate"] == 0.5
    assert metrics["answer/ungraded_rate"] == pytest.approx(1 / 6)
    assert "pointwise/groups" not in metrics


def test_judges_report_their_yes_rate_beside_the_labels() -> None:
    task = replace(question_task(make_example()), role=Role.POINTWISE, label="No", verifier="choice")
    group = make_group(task, [r"\boxed{Yes}", r"\boxed{No}", r"\boxed{\text{Yes}}", "no verdict"])
    metrics = role_metrics([group])
    assert metrics["pointwise/yes_rate"] == pytest.approx(2 / 3)
    assert metrics["pointwise/label_rate"] == 0
    assert metrics["pointwise/parse_rate"] == 0.75


def test_reflection_is_told_apart_by_what_was_shown() -> None:
    task = replace(question_task(make_example(2)), role=Role.REFLECTION)
    groups = [
        make_group(replace(task, shown=(Response("r", "", "3", reward),)), texts)
        for reward, texts in ((1.0, [r"\boxed{3}", r"\boxed{4}"]), (0.0, [r"\boxed{3}", r"\boxed{3}"]))
    ]
    metrics = role_metrics(groups)
    assert metrics["reflection/accuracy_on_right"] == 0.5
    assert metrics["reflection/accuracy_on_wrong"] == 1.0


def test_balanced_accuracy_ignores_the_label_mix() -> None:
    assert balanced_accuracy([("Yes", 1.0)] * 9 + [("No", 0.0)]) == 0.5


def test_a_verdict_is_read_as_the_grader_reads_it() -> None:
    pointwise, pairwise = (replace(question_task(make_example(2)), role=r) for r in (Role.POINTWISE, Role.PAIRWISE))
    assert all(is_positive(pointwise, text) for text in ("yes", r"\text{Yes}")) and is_positive(pairwise, "(A)")
    assert not is_positive(pointwise, "No") and not is_positive(pairwise, "B")
    german = replace(pointwise, verdicts=("Ja", "Nein"))
    assert is_positive(german, "ja") and not is_positive(german, "Yes")
    right, wrong = (side(replace(german, label=label)) for label in german.verdicts or ())
    assert [side(replace(pointwise, label=label)) for label in ("Yes", "No")] == [right, wrong] and right != wrong


def step(accuracy: float, **rates: float) -> dict[str, float]:
    names = {"zero_variance_rate": 1.0, "parse_rate": 1.0, "truncated_rate": 0.0, "ungraded_rate": 0.0, **rates}
    return {"answer/groups": 4.0, "answer/accuracy": accuracy, **{f"answer/{k}": v for k, v in names.items()}}


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (step(1.0), "too easy"),
        (step(0.0), "too hard"),
        (step(0.0, parse_rate=0.1), "only 10% of the rollouts hold an answer: look at rollouts/"),
        (step(0.0, parse_rate=0.0), "no rollout holds an answer"),
        (step(0.0, truncated_rate=0.9), "max_new_tokens"),
        (step(0.0, ungraded_rate=1.0), "could be graded"),
    ],
)
def test_no_signal_is_explained(metrics: dict[str, float], words: str) -> None:
    (warning,) = warnings([metrics] * 3, SLOTS)
    assert warning.startswith("answer: no learning signal") and words in warning


def test_one_step_with_signal_is_enough_and_absent_steps_do_not_count() -> None:
    alive = step(0.5, zero_variance_rate=0.5)
    assert warnings([step(1.0), alive, step(1.0)], SLOTS) == []
    assert "too easy" in warnings([step(1.0), {}, {}], SLOTS)[0]


def test_a_role_without_prompts_is_explained() -> None:
    (warning,) = warnings([step(0.5, zero_variance_rate=0.5)] * 3, {**SLOTS, Role.PAIRWISE: 2})
    assert warning.startswith("pairwise: no prompts")


def test_what_was_said_is_not_explained_again() -> None:
    """An explanation grades every reply in every format."""
    explained, said, unread = list[Role](), set[str](), step(0.0, parse_rate=0.0)

    def explain(role: Role) -> str:
        explained.append(role)
        return "an answer"

    told = [warnings([unread] * 3, SLOTS, explain=explain, said=said) for _ in range(3)]
    assert list(map(len, told)) == [1, 0, 0] and explained == [Role.ANSWER]
    failing = step(0.5, zero_variance_rate=0.5, ungraded_rate=0.5)
    assert len(warnings([failing] * 3, SLOTS, explain=explain, said=said)) == 1, "of another kind"


def test_accuracy_is_a_share_whatever_the_rewards_are() -> None:
    task = replace(question_task(make_example()), role=Role.POINTWISE, label="Yes", verifier="choice")
    groups = [reward_group([5, 2, -1, None]), make_group(task, [r"\boxed{Yes}", r"\boxed{No}"])]
    metrics = role_metrics(groups, right_at=3)
    assert metrics["answer/accuracy"] == pytest.approx(1 / 3) and metrics["answer/reward"] == 2
    assert metrics["answer/zero_variance_rate"] == 0
    assert metrics["pointwise/accuracy"] == metrics["pointwise/reward"] == 0.5


def test_a_verifier_that_fails_on_many_rollouts_is_said() -> None:
    healthy, failing = (role_metrics([reward_group(rewards)]) for rewards in ([1, 0, 1, 0], [1, None, None, 0]))
    assert warnings([healthy] * 3, SLOTS) == []
    (warning,) = warnings([failing] * 3, SLOTS)
    assert warning.startswith("answer: many rollouts could not be graded in the last 3 steps (50%)")
    assert why_no_signal({"accuracy": 1.0, "ungraded_rate": 0.5}).startswith("since only 50% of the rollouts could be")
