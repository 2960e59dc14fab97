"""The score of RewardBench 2 (Malik et al. 2025, arXiv:2506.01937), after allenai/reward-bench `rewardbench/utils.py`
(`process_single_model`) and `scripts/run_v2.py`. Pure.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

TIES = "Ties"


@dataclass(frozen=True, slots=True)
class Scored:
    """An item and what the judge gave its responses."""

    id: str
    """In Ties `tied:i` or `ref:i`, perhaps after the subset and a slash."""
    subset: str
    scores: Sequence[float]
    """The right responses first."""
    num_right: int


def reward_bench_2(items: Sequence[Scored]) -> dict[str, Any]:
    """The score of each subset, and their mean."""
    subsets: dict[str, list[Scored]] = defaultdict(list)
    for item in items:
        subsets[item.subset].append(item)
    scores = {
        name: {"score": _ties(of) if name == TIES else fmean(map(_chosen, of)), "n": len(of)}
        for name, of in subsets.items()
    }
    return {"n": len(items), "mean": fmean(each["score"] for each in scores.values()), "by_subset": scores}


def _chosen(item: Scored) -> float:
    """Whether the right response has the highest score; a tie of n counts 1/n."""
    best = max(item.scores)
    return item.scores[: item.num_right].count(best) / item.scores.count(best)


@dataclass(frozen=True, slots=True)
class _Margins:
    within: float
    """Of the best right response to the worst right one."""
    above: float
    """Of the worst right response to the best wrong one."""


def _ties(items: Sequence[Scored]) -> float:
    """0.3 accuracy on tied prompts and 0.3 on reference prompts, where all right responses are above all wrong ones;
    0.2 and 0.2 that right responses differ less from each other than from wrong ones, in the prompt itself and also in
    its reference; 0.01 by how much."""
    kinds: dict[str, dict[str, _Margins]] = {"tied": {}, "ref": {}}
    for item in items:
        kind, _, number = item.id.rpartition("/")[2].partition(":")
        right, wrong = item.scores[: item.num_right], item.scores[item.num_right :]
        kinds[kind][number] = _Margins(max(right) - min(right), min(right) - max(wrong))
    tied, ref = kinds["tied"], kinds["ref"]
    both = [(tied[number], min(tied[number].above, ref[number].above)) for number in tied if number in ref]
    return (
        0.3 * _mean([margins.above > 0 for margins in tied.values()])
        + 0.3 * _mean([margins.above > 0 for margins in ref.values()])
        + 0.2 * _mean([margins.above > margins.within for margins, _ in both])
        + 0.2 * _mean([above > margins.within for margins, above in both])
        + 0.01 * _mean([_size(above, margins.within) for margins, above in both])
    )


def _size(above: float, within: float) -> float:
    """From -1 to 1: how the margins compare; 0 where both are none."""
    if within == 0:
        return 0.0 if above == 0 else math.copysign(1.0, above)
    return math.tanh(above / within - 1)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def scored(row: Mapping[str, Any]) -> Scored:
    """Of a row of `samples.jsonl`. What the judge said nothing parsable of has the lowest score."""
    scores = [0.0 if score is None else score for score in row["scores"]]
    return Scored(row["id"], row["subset"], scores, row["num_right"])
