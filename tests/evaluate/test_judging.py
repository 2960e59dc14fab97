"""Judge metrics on verdicts whose figures can be counted by hand."""

from __future__ import annotations

import pytest

from spark_rl.evaluate.judging import PairwiseJudgement, PointwiseJudgement, pairwise_metrics, pointwise_metrics


def point(label, verdict, probability=None, group=""):
    return PointwiseJudgement(label, verdict, probability, group)


def test_counts_by_hand():
    judgements = (
        [point(True, True, group=str(i)) for i in range(6)]
        + [point(True, False, group=str(i)) for i in range(6, 8)]
        + [point(False, True, group=str(i)) for i in range(3)]
        + [point(False, None, group="3")]
        + [point(False, False, group=str(i)) for i in range(4, 8)]
    )
    metrics = pointwise_metrics(judgements)
    assert metrics["accuracy"]["value"] == 10 / 16
    assert metrics["balanced_accuracy"] == (6 / 8 + 4 / 8) / 2
    assert (metrics["precision"], metrics["recall"]) == (6 / 9, 6 / 8)
    assert metrics["f1"] == pytest.approx(2 * (6 / 9) * (6 / 8) / (6 / 9 + 6 / 8))
    assert metrics["yes_rate"] == 9 / 15
    assert metrics["parse_rate"] == 15 / 16
    assert metrics["ece"] is None


def test_two_verdicts_on_one_question_are_one_piece_of_evidence():
    alike = [point(label, i % 2 == 0, group=str(i)) for i in range(20) for label in (True, True)]
    apart = [point(True, i % 2 == 0, group=str(i)) for i in range(40)]
    width = {
        name: metrics["accuracy"]["high"] - metrics["accuracy"]["low"]
        for name, metrics in (("alike", pointwise_metrics(alike)), ("apart", pointwise_metrics(apart)))
    }
    assert width["alike"] > 1.2 * width["apart"]


def test_calibration():
    sure = [point(True, True, 0.9)] * 9 + [point(False, True, 0.9)]
    metrics = pointwise_metrics(sure)
    assert metrics["ece"] == pytest.approx(0, abs=1e-9)
    assert metrics["brier"] == pytest.approx(0.09)
    assert metrics["reliability"] == [
        {"from": 0.9, "to": 1.0, "n": 10, "said": pytest.approx(0.9), "was": pytest.approx(0.9)}
    ]
    assert pointwise_metrics([point(True, True, 1.0)])["reliability"][0]["from"] == 0.9


def test_undefined_figures_are_none_and_not_zero():
    metrics = pointwise_metrics([point(True, None)])
    assert metrics["precision"] is metrics["yes_rate"] is metrics["f1"] is metrics["balanced_accuracy"] is None
    assert pointwise_metrics([])["accuracy"]["value"] is None


def test_a_judge_that_accepts_only_what_is_wrong_has_an_f1_of_0():
    metrics = pointwise_metrics([point(True, False), point(False, True)])
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (0, 0, 0)
    assert pointwise_metrics([point(True, False), point(False, False)])["f1"] is None, "nothing was accepted"


def test_pairs():
    pairs = [
        PairwiseJudgement(True, 0.9, True, "0"),
        PairwiseJudgement(True, 0.6, False, "1"),
        PairwiseJudgement(None, 0.5, False, "2"),
        PairwiseJudgement(False, 0.1, True, "3"),
        PairwiseJudgement(True, 0.9, None, "4"),
    ]
    metrics = pairwise_metrics(pairs)
    assert metrics["accuracy"]["value"] == 2 / 5, "by one order only it is unparsed"
    assert metrics["order_consistency"]["value"] == 2 / 4
    assert metrics["right_in_both_orders"] == 1 / 5
    assert metrics["parse_rate"] == 4 / 5
