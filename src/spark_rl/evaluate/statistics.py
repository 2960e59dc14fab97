"""What a number measured on a sample of questions is worth: intervals, paired differences, a test. Pure.

A question that was asked several times counts once, as the mean of its values: its repetitions are not independent.
Nor are the variants of one problem, which therefore count as one question asked several times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

Values = Mapping[str, Sequence[float]]
"""What was measured on each question, one value for each time it was asked. Shares are between 0 and 1, and have
intervals that hold for few questions and at the ends; other numbers have the normal ones of their means."""
_Z = 1.959964
"""Of 95 %, two-sided."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its 95 % interval; all None where nothing was measured, the interval where one number was that is no
    share."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Questions; the variants of a problem are one."""


def mean_interval(values: Values) -> Interval:
    """The mean over questions; of shares with Wilson's interval for the sample size that its variance amounts to.

    That is the number of questions when each was asked once, and up to that of all values when repetitions differ. The
    interval is never empty: ten right of ten are not yet 100 %.
    """
    means = [fmean(each) for each in values.values() if each]
    if not means:
        return Interval(None, None, None, 0)
    if not _are_shares(values):
        return _normal(means)
    mean, n = fmean(means), float(len(means))
    if len(means) > 1 and 0 < mean < 1:
        n = min(max(n, n * mean * (1 - mean) / max(variance(means), 1e-12)), sum(map(len, values.values())))
    centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2))
    return Interval(mean, max(0.0, centre - half), min(1.0, centre + half), len(means))


def paired_difference(ours: Values, baseline: Values) -> Interval:
    """Mean of ours - baseline over the questions that both were asked; of shares with the interval of Bonett and Price
    (2012): that of the differences and two more, +1 and -1. So it is not empty either when all are equal.
    """
    differences = _differences(ours, baseline)
    if not differences:
        return Interval(None, None, None, 0)
    if not (_are_shares(ours) and _are_shares(baseline)):
        return _normal(differences)
    n = len(differences) + 2
    centre = sum(differences) / n
    half = _Z * math.sqrt(((sum(d * d for d in differences) + 2) / n - centre**2) / n)
    return Interval(fmean(differences), max(-1.0, centre - half), min(1.0, centre + half), len(differences))


def p_value(ours: Values, baseline: Values) -> float | None:
    """Two-sided exact sign test on the questions on which they differ (McNemar's, when each was asked once); None
    where there is none in common."""
    differences = _differences(ours, baseline)
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    if not differences:
        return None
    n = better + worse
    tail = sum(math.comb(n, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**n)


def _are_shares(values: Values) -> bool:
    return all(0 <= value <= 1 for each in values.values() for value in each)


def _normal(values: Sequence[float]) -> Interval:
    """Of independent numbers; one alone says nothing of its error."""
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None, 1)
    half = _Z * math.sqrt(variance(values) / len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def _differences(ours: Values, baseline: Values) -> list[float]:
    return [fmean(ours[key]) - fmean(baseline[key]) for key in ours if ours[key] and baseline.get(key)]
