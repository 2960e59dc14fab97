"""How good a judge is, from its verdicts. Pure. A verdict that could not be parsed is a wrong one, and counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, harmonic_mean
from typing import Any

from spark_rl.evaluate.statistics import mean_interval

Metrics = dict[str, Any]
BINS = 10
"""Of the reliability table, of equal width."""


@dataclass(frozen=True, slots=True)
class PointwiseJudgement:
    """On one response."""

    label: bool
    """Whether it is right."""
    verdict: bool | None
    probability: float | None
    """That it is right."""
    group: str
    """Judgements on responses to one question are not independent; they share this."""


@dataclass(frozen=True, slots=True)
class PairwiseJudgement:
    """On a right and a wrong response, shown in both orders."""

    prefers_right: bool | None
    """None: undecided, or unparsed."""
    probability: float | None
    """Of the right one, the mean of both orders."""
    consistent: bool | None
    """Whether both orders prefer the same one; None unless both were parsed."""
    group: str


def pointwise_metrics(judgements: Sequence[PointwiseJudgement]) -> Metrics:
    """Accuracy (with its interval), balanced accuracy, precision, recall and F1 of "right", the share of "right",
    calibration error and Brier score of the probabilities, the reliability table, and the share of parsed verdicts.

    None where the figure is not defined: a share of nothing.
    """
    parsed = [each for each in judgements if each.verdict is not None]
    accepted = [each.label for each in parsed if each.verdict]
    recall = _share(each.verdict is True for each in judgements if each.label)
    rejected = _share(each.verdict is False for each in judgements if not each.label)
    precision = _share(accepted)
    known = [(each.probability, each.label) for each in judgements if each.probability is not None]
    table = _reliability(known)
    return {
        "n": len(judgements),
        "accuracy": _clustered((each.group, each.verdict is each.label) for each in judgements),
        "balanced_accuracy": None if recall is None or rejected is None else (recall + rejected) / 2,
        "precision": precision,
        "recall": recall,
        "f1": None if precision is None or recall is None else harmonic_mean((precision, recall)),
        "yes_rate": _share(bool(each.verdict) for each in parsed),
        "ece": sum(row["n"] * abs(row["said"] - row["was"]) for row in table) / len(known) if known else None,
        "brier": fmean((p - label) ** 2 for p, label in known) if known else None,
        "reliability": table,
        "parse_rate": _share(each.verdict is not None for each in judgements),
    }


def pairwise_metrics(judgements: Sequence[PairwiseJudgement]) -> Metrics:
    """Accuracy of the preferences (one of which an order has no verdict is wrong) and how many are the same in both
    orders, with intervals; the share of those right in both; the share of parsed ones."""
    return {
        "n": len(judgements),
        "accuracy": _clustered(
            (each.group, each.prefers_right is True and each.consistent is not None) for each in judgements
        ),
        "order_consistency": _clustered(
            (each.group, each.consistent) for each in judgements if each.consistent is not None
        ),
        "right_in_both_orders": _share(each.prefers_right is True and each.consistent is True for each in judgements),
        "parse_rate": _share(each.consistent is not None for each in judgements),
    }


def verifier_gain(precision: float, solver_accuracy: float) -> float:
    """What rejecting by this judge and trying again can be expected to gain (arXiv 2512.02304)."""
    return precision - solver_accuracy


def _reliability(known: Sequence[tuple[float, bool]]) -> list[Metrics]:
    """By probability said: how many, the mean that was said, the share that was right."""
    bins: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for probability, label in known:
        bins[min(BINS - 1, int(probability * BINS))].append((probability, label))
    return [
        {
            "from": i / BINS,
            "to": (i + 1) / BINS,
            "n": len(bins[i]),
            "said": fmean(p for p, _ in bins[i]),
            "was": fmean(label for _, label in bins[i]),
        }
        for i in sorted(bins)
    ]


def _clustered(values: Iterable[tuple[str, bool]]) -> Metrics:
    by_group: dict[str, list[float]] = defaultdict(list)
    for group, value in values:
        by_group[group].append(float(value))
    return asdict(mean_interval(by_group))


def _share(values: Iterable[bool]) -> float | None:
    known = list(values)
    return fmean(known) if known else None
