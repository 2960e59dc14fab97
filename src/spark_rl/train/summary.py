"""What a run has come to, as `summary.json` has it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spark_rl.config import Config
from spark_rl.train.health import health_sentences
from spark_rl.train.metrics import Explain, Metrics
from spark_rl.train.signal import change_sentences, signal_report, signal_sentences
from spark_rl.train.warm_start import warm_start_report
from spark_rl.types import Task


def outcome(
    config: Config,
    steps: Sequence[Metrics],
    items: Sequence[Task],
    explain: Explain,
    *,
    before: Mapping[str, Any],
    after_warm_start: Mapping[str, Any] | None,
    after: Mapping[str, Any],
) -> dict[str, Any]:
    """The held-out metrics, what the warm start learnt, the learning signal of RL by role, and `findings`: all that in
    plain sentences.

    Args:
        steps: the rows of `metrics.jsonl`.
        items: the held-out ones.
        explain: says why replies of a role cannot be read.
    """
    num_warm = config.warm_start.steps
    warm, rl = steps[:num_warm], steps[num_warm:]
    changes = change_sentences(before, after, items)
    if after_warm_start:
        of_warm_start = change_sentences(before, after_warm_start, items)
        unknown_before = {name: value for name, value in after_warm_start.items() if name not in before}
        since = change_sentences(unknown_before, after, items)
        changes = [f"warm start alone, {sentence}" for sentence in of_warm_start] + changes
        changes += [f"since the warm start, {sentence}" for sentence in since]
    signals = signal_sentences(rl, config.slots(), explain)
    return {
        "before": before,
        **({"after_warm_start": after_warm_start} if after_warm_start else {}),
        "after": after,
        **({"warm_start": warm_start_report(warm)} if warm else {}),
        "signal": signal_report(rl),
        "findings": [*health_sentences(steps), *signals, *changes],
    }
