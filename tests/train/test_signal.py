import pytest

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
    (sentence,) = signal_sentences(signal_report([step("answer", 8, 0.5)]), SLOTS)
    assert sentence == "pairwise: never trained, since no question had both right and wrong rollouts to recycle"


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({"accuracy": 0.0}, "no learning signal (0.0% of 8 groups had rewards that differ), since no rollout is right"),
        ({"accuracy": 1.0}, "every rollout is right"),
        ({"accuracy": 0.0, "parse_rate": 0.1}, r"only 10% of the rollouts hold a \boxed{} answer"),
        ({"accuracy": 0.0, "truncated_rate": 0.9}, "90% of the rollouts are cut"),
        ({"accuracy": 0.0, "ungraded_rate": 1.0}, "no rollout could be graded"),
        ({"accuracy": 0.2}, "all samples are alike"),
    ],
)
def test_no_signal_is_said_with_its_likeliest_cause(rates, words):
    report = signal_report([step("answer", 8, 1.0, **rates), step("pairwise", 2, 0.0)])
    (sentence,) = signal_sentences(report, SLOTS)
    assert sentence.startswith("answer: no learning signal") and words in sentence


def test_a_little_signal_is_called_little():
    report = signal_report([step("answer", 100, 0.97), step("pairwise", 2, 0.0)])
    (sentence,) = signal_sentences(report, SLOTS)
    assert sentence.startswith("answer: hardly any learning signal (3.0% of 100 groups")


@pytest.mark.parametrize(
    ("before", "after", "n", "words"),
    [
        (0.16, 0.91, 500, "better"),
        (0.91, 0.16, 500, "worse"),
        (0.16, 0.18, 500, "no change beyond chance"),
        (0.16, 0.18, 50_000, "better"),
        (0.0, 0.0, 100, "no change beyond chance"),
        (0.5, 0.9, 4, "no change beyond chance"),
    ],
)
def test_a_change_counts_when_it_is_more_than_chance(before, after, n, words):
    (sentence,) = change_sentences({"answer_accuracy": before}, {"answer_accuracy": after, "n_answer": n})
    assert words in sentence and f"on {n} items" in sentence
