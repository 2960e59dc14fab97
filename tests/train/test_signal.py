from dataclasses import replace

import pytest
from factories import make_example

from spark_rl.data import question_task
from spark_rl.train.signal import change_sentences, signal_report, signal_sentences
from spark_rl.types import Role

SLOTS = {Role.ANSWER: 4, Role.POINTWISE: 0, Role.PAIRWISE: 2, Role.REFLECTION: 0}


def step(role, groups, zero_variance, **rates):
    values = {"groups": groups, "zero_variance_rate": zero_variance, "accuracy": 0.5, "parse_rate": 1.0, **rates}
    return {f"{role}/{name}": value for name, value in values.items()}


def test_rates_are_means_over_groups_not_over_steps():
    report = signal_report([step("answer", 1, 0.0), step("answer", 3, 1.0, accuracy=0.1), {"loss": 1.0}])
    assert report["answer"]["groups"] == 4
    assert report["answer"]["mixed_rate"] == pytest.approx(0.25)
    assert report["answer"]["accuracy"] == pytest.approx((0.5 + 3 * 0.1) / 4)
    assert report.keys() == {"answer"}


def test_a_role_with_signal_gets_no_sentence_and_one_that_never_came_up_does():
    (sentence,) = signal_sentences([step("answer", 8, 0.5)], SLOTS)
    assert sentence.startswith("pairwise: never trained, since recycling made no prompt of it")
    (sentence,) = signal_sentences([{**step("answer", 8, 0.5), "recycle/made_pairwise": 6}], SLOTS)
    assert sentence.startswith("pairwise: never trained, although 6 prompts were made")


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({"accuracy": 0.0}, "no learning signal (0.0% of 8 groups had rewards that differ), since no rollout is right"),
        ({"accuracy": 1.0}, "every rollout is right"),
        ({"accuracy": 0.0, "parse_rate": 0.1}, "only 10% of the rollouts hold an answer: look at"),
        ({"accuracy": 0.0, "truncated_rate": 0.9}, "90% of the rollouts are cut"),
        ({"accuracy": 0.0, "ungraded_rate": 1.0}, "no rollout could be graded"),
        ({"accuracy": 0.2}, "all samples are alike"),
    ],
)
def test_no_signal_is_said_with_its_likeliest_cause(rates, words):
    (sentence,) = signal_sentences([step("answer", 8, 1.0, **rates), step("pairwise", 2, 0.0)], SLOTS)
    assert sentence.startswith("answer: no learning signal") and words in sentence


def test_a_little_signal_is_called_little():
    (sentence,) = signal_sentences([step("answer", 100, 0.97), step("pairwise", 2, 0.0)], SLOTS)
    assert sentence.startswith("answer: hardly any learning signal (3.0% of 100 groups")


@pytest.mark.parametrize(
    ("before", "after", "n", "words"),
    [
        (0.16, 0.91, 500, "better"),
        (0.91, 0.16, 500, "worse"),
        (0.16, 0.18, 500, "no change beyond chance"),
        (0.16, 0.18, 10_000, "better"),
        (0.0, 0.0, 100, "no change beyond chance"),
        (0.5, 0.9, 4, "no change beyond chance"),
    ],
)
def test_a_change_counts_when_it_is_more_than_chance(before, after, n, words):
    items = [question_task(make_example(i)) for i in range(n)]
    (sentence,) = change_sentences({"answer_accuracy": before}, {"answer_accuracy": after, "n_answer": n}, items)
    assert words in sentence and f"on {n} items" in sentence


def test_a_signal_that_ended_is_said():
    steps = [step("answer", 8, 0.5)] * 9 + [step("answer", 8, 1.0, accuracy=0.25)] * 3
    (sentence,) = signal_sentences(steps, {**SLOTS, Role.PAIRWISE: 0})
    assert sentence.startswith("answer: the learning signal has ended (none of its last 24 groups")


def test_guessing_the_commonest_answer_is_not_called_skill():
    """A model that gives every question the commonest gold gets better, and has learned nothing."""
    items = [question_task(make_example(i % 4, id=str(i))) for i in range(200)]
    before, after = {"answer_accuracy": 0.05}, {"answer_accuracy": 0.25, "n_answer": 200}
    (sentence,) = change_sentences(before, after, items)
    assert "better, but saying the same to every item would get 25.0%" in sentence
    (sentence,) = change_sentences(before, {**after, "answer_accuracy": 0.6}, items)
    assert "the same" not in sentence


def test_a_judge_that_always_says_yes_is_at_one_half():
    questions = [question_task(make_example(i)) for i in range(100)]
    items = [replace(task, role=Role.POINTWISE, label=label) for task in questions for label in ("Yes", "No")]
    before = {"pointwise_balanced_accuracy": 0.2}
    (sentence,) = change_sentences(before, {"pointwise_balanced_accuracy": 0.52, "n_pointwise": 200}, items)
    assert "better, but saying the same to every item would get 50.0%" in sentence


def test_items_of_one_question_are_one_piece_of_evidence():
    """A judge that prefers the same response in both orders is right in both or in none."""
    pairs = [replace(question_task(make_example(i)), role=Role.PAIRWISE) for i in range(100)]
    before, after = {"pairwise_accuracy": 0.5}, {"pairwise_accuracy": 0.62}
    (sentence,) = change_sentences(before, {**after, "n_pairwise": 200}, pairs * 2)
    assert "on 200 items, no change beyond chance" in sentence


@pytest.mark.parametrize(("after", "words"), [(3.0, "better"), (-1.0, "worse"), (1.1, "no change beyond chance")])
def test_mean_rewards_are_told_where_they_are_no_accuracies(after, words):
    items = [question_task(make_example(i)) for i in range(100)]
    rates = {"answer_accuracy": 0.5, "n_answer": 100, "answer_reward_std": 2.0}
    accuracy, reward = change_sentences({**rates, "answer_reward": 1.0}, {**rates, "answer_reward": after}, items)
    assert accuracy.startswith("answer accuracy: 50.0% to 50.0% on 100 items, no change")
    assert reward == f"answer mean reward: 1 to {after:g} on 100 items, {words} (noise 0.57)"
    plain = {**rates, "answer_reward": 0.5}
    assert len(change_sentences(plain, plain, items)) == 1
