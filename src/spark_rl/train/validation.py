"""Held-out evaluation of all roles on the same items before, during and after training.

The judge and reflection items are made once, by recycling the starting model's own sampled rollouts on the held-out
questions (each label balanced within its question, both orders of a pair, reflection on wrong answers only), and are
then kept. They do not depend on the run's seed or on how it recycles, so that runs from one model with the same rollout
settings can be compared. Decoding is greedy.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter

from spark_rl.config import Config, RecycleConfig
from spark_rl.recycle import recycle
from spark_rl.train.metrics import Metrics, balanced_accuracy
from spark_rl.types import Group, Role, Task

HEADLINE = {
    Role.ANSWER: "answer_accuracy",
    Role.POINTWISE: "pointwise_balanced_accuracy",
    Role.PAIRWISE: "pairwise_accuracy",
    Role.REFLECTION: "reflection_accuracy",
}
"""The metric by which a role is judged on held-out items."""
ITEMS = TypeAdapter(list[Task])
"""Reads and writes items as JSON."""


def validation_items(groups: Sequence[Group], config: Config) -> list[Task]:
    """The questions of these sampled groups, and the judge and reflection items recycled from them."""
    settings = RecycleConfig(
        keep_right_share=0.0, max_depth=1, right_at=config.recycle.right_at, wrong_at=config.recycle.wrong_at
    )
    made = recycle(groups, settings, seed=0, step=0)
    limit = config.validation.items
    items = [group.task for group in groups][:limit]
    for role in Role:
        tasks = [bundle for bundle in made.bundles if bundle[0].role is role]
        whole: list[Task] = []
        for bundle in tasks:
            if len(whole) + len(bundle) <= limit:
                whole += bundle
        items += whole
    return items


def validation_metrics(groups: Sequence[Group], headline: set[str]) -> tuple[Metrics, dict[str, Metrics]]:
    """The metrics of graded greedy groups, and accuracies by role and source.

    Args:
        groups: one rollout each.
        headline: ids of the tasks that count in the first result; the others are only reported by source.
    """
    counted = [(g.task, g.rewards[0]) for g in groups if g.rewards and g.task.id in headline]
    metrics: Metrics = {}
    for role, name in HEADLINE.items():
        of_role = [(task.label if role.is_judge else "", reward) for task, reward in counted if task.role is role]
        if of_role:
            metrics[name] = balanced_accuracy(of_role)
            metrics[f"n_{role}"] = len(of_role)
    by_source: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for group in groups:
        if group.rewards:
            label = group.task.label if group.task.role.is_judge else ""
            sources = by_source.setdefault(group.task.role, {})
            sources.setdefault(group.task.example.source, []).append((label, group.rewards[0]))
    accuracies = {
        role: {source: balanced_accuracy(rows) for source, rows in sources.items()}
        for role, sources in by_source.items()
    }
    return metrics, accuracies


def score_of(metrics: Metrics, best: str) -> float:
    """The number that decides which checkpoint is the best; see `validation.best`."""
    if best != "mean":
        return metrics.get(best, float("-inf"))
    values = [value for name, value in metrics.items() if name.endswith("accuracy")]
    return sum(values) / len(values) if values else float("-inf")
