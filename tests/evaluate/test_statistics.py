"""Intervals against simulation and against the textbook."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_rl.evaluate.statistics import Interval, mean_interval, p_value, paired_difference

NOTHING = Interval(None, None, None, 0)
RATES = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=4)


def asked_once(values):
    return {str(i): [float(value)] for i, value in enumerate(values)}


def test_wilson_by_the_book():
    interval = mean_interval(asked_once([1] * 8 + [0] * 2))
    assert (interval.value, interval.n) == (0.8, 10)
    assert (interval.low, interval.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_nothing_measured_is_not_zero():
    assert mean_interval({}) == NOTHING == mean_interval({"a": []})
    assert paired_difference({"a": [1.0]}, {"b": [1.0]}) == NOTHING
    assert p_value({"a": [1.0]}, {"b": [1.0]}) is None


@given(st.dictionaries(st.text(max_size=3), RATES, min_size=1, max_size=30))
def test_intervals_hold_the_figure_and_are_never_empty(values):
    interval = mean_interval(values)
    assert 0 <= interval.low <= interval.value + 1e-9
    assert interval.value - 1e-9 <= interval.high <= 1
    assert interval.high - interval.low > 0.01


def test_repetitions_of_a_sure_question_are_worth_no_more_than_it():
    repeated = {str(i): [float(i % 2)] * 10 for i in range(40)}
    once = {key: each[:1] for key, each in repeated.items()}
    assert mean_interval(repeated).low == pytest.approx(mean_interval(once).low, abs=1e-9)
    differing = {str(i): [0.0, 1.0] * 5 for i in range(40)}
    assert mean_interval(differing).low > mean_interval(once).low + 0.05


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.98])
def test_95_percent_of_the_intervals_hold_the_truth(rate):
    rng, held = random.Random(0), 0
    for _ in range(1000):
        interval = mean_interval(asked_once([rng.random() < rate for _ in range(60)]))
        held += interval.low <= rate <= interval.high
    assert 0.92 <= held / 1000 <= 0.99


def test_95_percent_of_the_paired_intervals_hold_the_truth():
    rng, held = random.Random(0), 0
    for _ in range(1000):
        base = [rng.random() < 0.6 for _ in range(60)]
        ours = [(rng.random() < 0.9) if right else (rng.random() < 0.4) for right in base]
        interval = paired_difference(asked_once(ours), asked_once(base))
        held += interval.low <= 0.6 * 0.9 + 0.4 * 0.4 - 0.6 <= interval.high
    assert 0.92 <= held / 1000 <= 0.99


def test_bonett_and_price_by_the_book():
    ours = asked_once([1] * 36 + [1] * 10 + [0] * 2 + [0] * 2)
    base = asked_once([1] * 36 + [0] * 10 + [1] * 2 + [0] * 2)
    interval = paired_difference(ours, base)
    assert interval.value == pytest.approx(0.16)
    centre, half = 8 / 52, 1.96 * ((11 / 52 + 3 / 52 - (8 / 52) ** 2) / 52) ** 0.5
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half), abs=1e-5)


def test_pairing_is_by_question():
    ours, base = {"a": [1.0], "b": [0.0], "only ours": [1.0]}, {"b": [0.0], "a": [0.0], "only theirs": [1.0]}
    assert paired_difference(ours, base).value == 0.5
    assert paired_difference(ours, base).n == 2


def test_the_sign_test_is_mcnemar_exact():
    assert p_value(asked_once([1] * 10), asked_once([0] * 10)) == pytest.approx(2 / 2**10)
    assert p_value(asked_once([1, 0]), asked_once([0, 1])) == 1
    assert p_value(asked_once([1, 1]), asked_once([1, 1])) == 1


NUMBERS = st.dictionaries(
    st.text(max_size=3), st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=4), min_size=2, max_size=20
)


@given(NUMBERS, NUMBERS)
def test_any_finite_numbers_have_intervals(ours, theirs):
    difference = paired_difference(ours, theirs)
    for interval in (mean_interval(ours), *([difference] if difference.n > 1 else [])):
        assert interval.low <= interval.value <= interval.high
    p = p_value(ours, theirs)
    assert p is None or 0 < p <= 1


def test_95_percent_of_the_intervals_of_rewards_hold_the_truth():
    rng, held = random.Random(0), 0
    for _ in range(1000):
        interval = mean_interval(asked_once([rng.choice([2, -1, 5]) for _ in range(60)]))
        held += interval.low <= 2 <= interval.high
    assert 0.92 <= held / 1000 <= 0.98


def test_one_number_says_nothing_of_its_error():
    assert mean_interval({"a": [5.0]}) == Interval(5.0, None, None, 1)
