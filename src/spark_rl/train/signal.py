"""Whether a run had anything to learn from, and whether it learned: said in plain sentences at its end. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from spark_rl.train.metrics import COLLAPSED, Explain, Metrics, is_alarmed, look_at_them, side, why_no_signal
from spark_rl.train.validation import HEADLINE, rewards_beside
from spark_rl.types import Role, Task

WEAK_RATE = 0.05
"""Share of mixed groups below which a role is said to have hardly any signal."""
_MEANS = ("accuracy", "reward", "parse_rate", "truncated_rate", "ungraded_rate", "zero_variance_rate")


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


def signal_sentences(steps: Sequence[Metrics], slots: Mapping[Role, int], explain: Explain = look_at_them) -> list[str]:
    """A sentence on every role of the run that had no learning signal, hardly any, or none any more."""
    last = steps[-max(3, len(steps) // 4) :]
    report, late = signal_report(steps), signal_report(last)
    found = []
    for role in Role:
        if slots[role] == 0:
            continue
        if role not in report:
            made = sum(step.get(f"recycle/made_{role}", 0) for step in steps)
            reason = (
                f"although {made:.0f} prompts were made: see pool/ and recycle/ in metrics.jsonl for where they went"
                if made
                else "since recycling made no prompt of it: that takes questions of which some rollouts are right and "
                "some wrong"
            )
            found.append(f"{role}: never trained, {reason}")
            continue
        values = report[role]
        if values["mixed_rate"] < WEAK_RATE:
            share = f"{values['mixed_rate']:.1%} of {values['groups']:.0f} groups had rewards that differ"
            degree = "no learning signal" if values["mixed_rate"] == 0 else "hardly any learning signal"
            found.append(f"{role}: {degree} ({share}), {_why(role, values, steps, explain)}")
        elif role in late and late[role]["mixed_rate"] == 0:
            ended = f"none of its last {late[role]['groups']:.0f} groups had rewards that differ"
            found.append(f"{role}: the learning signal has ended ({ended}), {_why(role, late[role], last, explain)}")
    return found


def _why(role: Role, rates: Metrics, steps: Sequence[Metrics], explain: Explain) -> str:
    """The cause of no signal in these steps: where most of them raised an alarm, none that a rate could tell."""
    present = [is_alarmed(step) for step in steps if f"{role}/groups" in step]
    return COLLAPSED if 2 * sum(present) > len(present) else why_no_signal(rates, role, explain)


def same_to_all(items: Sequence[Task], role: Role) -> float:
    """What the best one answer or verdict to all items of a role would score; judges are scored label by label."""
    golds = Counter(side(task) or task.label for task in items if task.role is role)
    return 1 / len(golds) if role.is_judge else max(golds.values()) / golds.total()


def change_sentences(before: Mapping[str, Any], after: Mapping[str, Any], items: Sequence[Task]) -> list[str]:
    """A sentence on every headline metric: its change, and whether that is more than the noise of its items and than
    saying the same to every item.

    The noise is twice the standard error of the difference of two independent shares (each with one more right and
    one more wrong item, so that it is not 0 at the ends), of as many items as there are questions: those of one
    question are right together. That is wide for the same items asked twice: what is called a change here is one.
    """
    found = []
    for role, key in HEADLINE.items():
        if key not in before or key not in after:
            continue
        n, questions = after[f"n_{role}"], len({task.example.id for task in items if task.role is role})
        smoothed = [(share * n + 1) / (n + 2) for share in (before[key], after[key])]
        noise = 2 * math.sqrt(sum(p * (1 - p) / questions for p in smoothed))
        change = after[key] - before[key]
        kind = "better" if change > noise else "worse" if change < -noise else "no change beyond chance"
        if kind == "better" and after[key] < (guess := same_to_all(items, role)) + noise:
            kind += f", but saying the same to every item would get {guess:.1%}"
        found.append(
            f"{key.replace('_', ' ')}: {before[key]:.1%} to {after[key]:.1%} on {n} items, "
            f"{kind} (noise {100 * noise:.1f} points)"
        )
    return found + _reward_sentences(before, after)


def _reward_sentences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The same of mean rewards, where they are not shares of right ones; the noise is twice the standard error of the
    difference of two independent means."""
    found = []
    for role, key in rewards_beside(before, after).items():
        noise = 2 * math.sqrt(sum(when[f"{key}_std"] ** 2 / max(1, when[f"n_{role}"] - 1) for when in (before, after)))
        change = after[key] - before[key]
        kind = "better" if change > noise else "worse" if change < -noise else "no change beyond chance"
        found.append(
            f"{role} mean reward: {before[key]:.4g} to {after[key]:.4g} on {after[f'n_{role}']} items, "
            f"{kind} (noise {noise:.2g})"
        )
    return found
