"""Whether a run had anything to learn from, and whether it learned: said in plain sentences at its end. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spark_rl.train.metrics import Metrics, why_no_signal
from spark_rl.train.validation import HEADLINE
from spark_rl.types import Role

WEAK_RATE = 0.05
"""Share of mixed groups below which a role is said to have hardly any signal."""
_MEANS = ("accuracy", "parse_rate", "truncated_rate", "ungraded_rate", "zero_variance_rate")


def signal_report(steps: Sequence[Metrics]) -> dict[str, Metrics]:
    """By role, over all steps of a run: `groups`, `mixed_rate` (share of groups whose rewards differ, which alone
    teach anything) and the means of its rates, weighted by groups."""
    report: dict[str, Metrics] = {}
    for role in Role:
        present = [step for step in steps if f"{role}/groups" in step]
        groups = sum(step[f"{role}/groups"] for step in present)
        if groups:
            means = {
                name: sum(step[f"{role}/groups"] * step.get(f"{role}/{name}", 0.0) for step in present) / groups
                for name in _MEANS
            }
            report[role] = {"groups": groups, "mixed_rate": 1 - means.pop("zero_variance_rate"), **means}
    return report


def signal_sentences(report: Mapping[str, Metrics], slots: Mapping[Role, int]) -> list[str]:
    """A sentence on every role of the run that had no learning signal, or hardly any."""
    found = []
    for role in Role:
        if slots[role] == 0:
            continue
        if role not in report:
            found.append(f"{role}: never trained, since no question had both right and wrong rollouts to recycle")
            continue
        values = report[role]
        if values["mixed_rate"] < WEAK_RATE:
            share = f"{values['mixed_rate']:.1%} of {values['groups']:.0f} groups had rewards that differ"
            degree = "no learning signal" if values["mixed_rate"] == 0 else "hardly any learning signal"
            found.append(f"{role}: {degree} ({share}), {why_no_signal(values)}")
    return found


def change_sentences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A sentence on every headline metric: its change, and whether that is more than the noise of its items.

    The noise is twice the standard error of the difference of two independent shares, which is wide for the same
    items asked twice: what is called a change here is one.
    """
    found = []
    for role, key in HEADLINE.items():
        if key not in before or key not in after:
            continue
        n = after[f"n_{role}"]
        noise = 2 * math.sqrt(sum(p * (1 - p) / n for p in (before[key], after[key])))
        change = after[key] - before[key]
        kind = "better" if change > noise else "worse" if change < -noise else "no change beyond chance"
        found.append(
            f"{key.replace('_', ' ')}: {before[key]:.1%} to {after[key]:.1%} on {n} items, "
            f"{kind} (noise {100 * noise:.1f} points)"
        )
    return found
