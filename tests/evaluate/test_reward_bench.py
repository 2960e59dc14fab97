"""The score of RewardBench 2, against what its rule gives by hand."""

from __future__ import annotations

import math

import pytest

from spark_rl.evaluate.reward_bench import Scored, reward_bench_2, scored


def item(scores, num_right=1, subset="Math", id="1"):
    return Scored(id, subset, scores, num_right)


def test_a_tie_of_n_counts_one_nth():
    result = reward_bench_2([item([0.9, 0.1, 0.2, 0.3]), item([0.5, 0.5, 0.1, 0.1]), item([0.1, 0.9, 0.1, 0.1])])
    assert result["by_subset"]["Math"] == {"score": pytest.approx((1 + 0.5 + 0) / 3), "n": 3}


def test_the_mean_is_over_subsets():
    result = reward_bench_2([item([1, 0, 0, 0])] * 9 + [item([0, 1, 0, 0], subset="Safety")])
    assert result["mean"] == 0.5
    assert result["n"] == 10


def test_ties_by_hand():
    items = [
        item([0.9, 0.8, 0.3], 2, "Ties", "Ties/tied:1"),  # accurate; 0.1 within, 0.5 above
        item([0.7, 0.5], 1, "Ties", "Ties/ref:1"),  # accurate; 0.2 above
        item([0.9, 0.2, 0.3], 2, "Ties", "Ties/tied:2"),  # a wrong one above a right one
        item([0.4, 0.5], 1, "Ties", "Ties/ref:2"),  # wrong
    ]
    size = (math.tanh(0.2 / 0.1 - 1) + math.tanh(-0.1 / 0.7 - 1)) / 2
    expected = 0.3 * 0.5 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * size
    assert reward_bench_2(items)["by_subset"]["Ties"]["score"] == pytest.approx(expected)


def test_equal_right_ones_have_no_margin_to_divide_by():
    perfect = [item([1, 1, 0], 2, "Ties", "tied:1"), item([1, 0], 1, "Ties", "ref:1")]
    assert reward_bench_2(perfect)["mean"] == pytest.approx(1.01)
    level = [item([1, 1, 1], 2, "Ties", "tied:1"), item([1, 1], 1, "Ties", "ref:1")]
    assert reward_bench_2(level)["mean"] == 0


def test_what_was_not_parsed_has_the_lowest_score():
    row = {"id": "1", "subset": "Math", "scores": [None, 0.2, None, 0.1], "num_right": 1}
    assert scored(row).scores == [0.0, 0.2, 0.0, 0.1]
