"""From the rows of `samples.jsonl` to `results.json`: pure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from spark_rl.evaluate.judging import (
    PairwiseJudgement,
    PointwiseJudgement,
    pairwise_metrics,
    pointwise_metrics,
    verifier_gain,
)
from spark_rl.evaluate.reward_bench import reward_bench_2, scored
from spark_rl.evaluate.statistics import Values, mean_interval, p_value, paired_difference
from spark_rl.verify import failed

Row = Mapping[str, Any]
Result = dict[str, Any]


def summarise(rows: Sequence[Row]) -> Result:
    """The results of every model, and what compares the model with the baseline."""
    rows = [_counted(row) for row in rows]
    models: Result = {}
    for label in dict.fromkeys(row["model"] for row in rows):
        models[label] = _model([row for row in rows if row["model"] == label])
    return {"models_measured": models, "comparison": _comparison(rows) if "baseline" in models else None}


def _counted(row: Row) -> Row:
    """With the rewards that figures count, of its steps as well, and with `right`, 1 or 0 as the runner has told by the
    reward from which on an answer is right.

    An answer on which the verifier failed is wrong, or a model would gain by answers that nobody can check. None stays
    what cannot be graded whatever the answer is.
    """
    if "steps" in row:
        row = {**row, "steps": [_counted(step) for step in row["steps"]]}
    reward = 0.0 if _failed(row) else row.get("reward")
    return {**row, "reward": reward, "right": None if reward is None else float(row["reason"] == "correct")}


def _failed(row: Row) -> bool:
    return failed(row.get("reason") or "")


def _model(rows: Sequence[Row]) -> Result:
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        parts[row["part"]].append(row)
    by_strategy: dict[str, list[Row]] = defaultdict(list)
    for row in parts["answer"]:
        by_strategy[row["strategy"]].append(row)
    result: Result = {
        "strategies": {name: _strategy(of, by_strategy) for name, of in by_strategy.items()},
        "by_source": _by_source([*by_strategy.get("greedy", []), *parts["further"]]),
    }
    for part in ("pointwise", "own"):
        if parts[part]:
            result[part] = pointwise_metrics(list(map(_point, parts[part])))
    if parts["pairwise"]:
        result["pairwise"] = _pairs(parts["pairwise"])
    if parts["best_of"]:
        result["best_of"] = reward_bench_2([scored(row) for row in parts["best_of"]])
    if parts["probe"]:
        result["probes"] = _probes(parts["probe"])
    return result


def _strategy(rows: Sequence[Row], by_strategy: Mapping[str, Sequence[Row]]) -> Result:
    result: Result = {
        "accuracy": asdict(mean_interval(_by_question(rows))),
        "reward": asdict(mean_interval(_by_question(rows, "reward"))),
        "mean_over_sources": _mean_over_sources(rows, "right"),
        "mean_reward_over_sources": _mean_over_sources(rows, "reward"),
        "seeds": len({row["seed"] for row in rows}),
        "ungraded": sum(row["reward"] is None for row in rows),
        "verifier_failed": sum(map(_failed, rows)),
        "tokens": fmean(_tokens(row) for row in rows),
        "prompt_tokens": fmean(row["prompt_tokens"] for row in rows),
        "generated_tokens": fmean(row["generated_tokens"] for row in rows),
    }
    if rows[0]["strategy"] == "reflect":
        result |= _reflection(rows)
    if (votes := _majority_at(result["tokens"], by_strategy)) and not rows[0]["strategy"].startswith("majority"):
        k, tokens, right = votes
        result["majority_at_equal_tokens"] = {
            "k": k,
            "tokens": tokens,
            "accuracy": asdict(mean_interval(right)),
            "difference": asdict(paired_difference(_by_question(rows), right)),
        }
    return result


def _reflection(rows: Sequence[Row]) -> Result:
    """What the judge and the revisions did to the first answers."""
    firsts = [{"group": row["group"], "right": row["steps"][0]["right"]} for row in rows]
    pairs = [(first["right"], row["right"]) for first, row in zip(firsts, rows, strict=True)]
    judged = [
        (row["steps"][0]["right"], row["steps"][1]["verdict"])
        for row in rows
        if len(row["steps"]) > 1 and row["steps"][1]["kind"] == "judge"
    ]
    called_right = [first for first, verdict in judged if verdict == "right" and first is not None]
    precision = fmean(called_right) if called_right else None
    graded = [first for first, _ in pairs if first is not None]
    solver = fmean(graded) if graded else None
    return {
        "flips": {
            "wrong_to_right": sum(first == 0 and last == 1 for first, last in pairs),
            "right_to_wrong": sum(first == 1 and last == 0 for first, last in pairs),
            "revised": sum(any(step["kind"] == "revise" for step in row["steps"]) for row in rows),
            "n": len(rows),
        },
        "judge_precision": precision,
        "solver_accuracy": solver,
        "predicted_gain": None if precision is None or solver is None else verifier_gain(precision, solver),
        "measured_gain": asdict(paired_difference(_by_question(rows), _by_question(firsts))),
    }


def _majority_at(
    tokens: float, by_strategy: Mapping[str, Sequence[Row]]
) -> tuple[int, float, dict[str, list[float]]] | None:
    """The vote of as many samples as cost at least `tokens` a question, of the largest `majority@k` that was run:
    (samples, tokens, whether it is right by question). None if that is more than there are."""
    runs = {int(name.partition("@")[2]): rows for name, rows in by_strategy.items() if name.startswith("majority@")}
    if not runs:
        return None
    largest = max(runs)
    rows = runs[largest]
    prompt = fmean(row["prompt_tokens"] for row in rows)
    a_sample = fmean(row["generated_tokens"] / max(1, len(row["steps"])) for row in rows)
    k = next((k for k in range(1, largest + 1) if prompt + k * a_sample >= tokens - 1e-9), None)
    if k is None:
        return None
    right: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if (is_right := _vote(row["steps"][:k])) is not None:
            right[row["group"]].append(is_right)
    return k, prompt + k * a_sample, dict(right)


def _vote(steps: Sequence[Row]) -> float | None:
    """Whether the answer that most of these samples give is right, the earliest of equals; None if it was not graded.

    Right answers are one answer however they are spelled; wrong ones are told apart by their spelling, in favour of the
    vote.
    """
    camps: dict[str | float, list[Row]] = defaultdict(list)
    for step in steps:
        if step["answer"] is not None:
            camps[1.0 if step["right"] else step["answer"]].append(step)
    if not camps:
        return 0.0
    is_right: float | None = max(camps.values(), key=len)[0]["right"]
    return is_right


def _mean_over_sources(rows: Sequence[Row], what: str) -> float | None:
    """As averages over published sets are printed: each set counts the same, however large."""
    means = [mean_interval(_by_question(of, what)).value for of in _sources(rows).values()]
    values = [value for value in means if value is not None]
    return fmean(values) if values else None


def _by_source(rows: Sequence[Row]) -> Result:
    """The accuracy on each source, and beside it the mean reward: some published sets are scored by partial credit."""
    return {
        source: {**asdict(mean_interval(_by_question(of))), "reward": asdict(mean_interval(_by_question(of, "reward")))}
        for source, of in _sources(rows).items()
    }


def _sources(rows: Sequence[Row]) -> dict[str, list[Row]]:
    sources: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        sources[row["source"]].append(row)
    return sources


def _pairs(rows: Sequence[Row]) -> Result:
    """Of all pairs, and of those of each source; beside it their mean, as VL-RewardBench has it: a source counts the
    same, however large."""
    sources: dict[str, list[PairwiseJudgement]] = defaultdict(list)
    for row in rows:
        judgement = PairwiseJudgement(row["prefers_right"], row["probability"], row["consistent"], _asked(row))
        sources[row["source"]].append(judgement)
    by_source = {source: pairwise_metrics(of) for source, of in sources.items()}
    return {
        **pairwise_metrics([each for of in sources.values() for each in of]),
        "by_source": by_source,
        "mean_over_sources": fmean(each["accuracy"]["value"] for each in by_source.values()),
    }


def _probes(rows: Sequence[Row]) -> Result:
    def rates(of: Iterable[Row]) -> Result:
        accepts: dict[str, dict[str, list[float]]] = {"right": defaultdict(list), "wrong": defaultdict(list)}
        for row in of:
            accepts[row["label"]][_asked(row)].append(float(row["verdict"] == "right"))
        named = {"false_accept": accepts["wrong"], "true_accept": accepts["right"]}
        return {name: asdict(mean_interval(values)) for name, values in named.items() if values}

    kinds = dict.fromkeys(row["kind"] for row in rows)
    return {**rates(rows), "by_kind": {kind: rates(row for row in rows if row["kind"] == kind) for kind in kinds}}


def _comparison(rows: Sequence[Row]) -> Result:
    """The model minus the baseline, strategy by strategy, on the same questions; and the four cells."""
    answers: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["part"] == "answer":
            answers[row["model"], row["strategy"]].append(row)
    differences = {}
    for model, strategy in answers:
        if model == "model" and ("baseline", strategy) in answers:
            both = answers[model, strategy], answers["baseline", strategy]
            differences[strategy] = _difference(*map(_by_question, both))
            differences[strategy]["reward"] = _difference(*(_by_question(rows, "reward") for rows in both))
    cells = {
        f"{model}, {name}": asdict(mean_interval(_by_question(answers[model, strategy])))
        for model in ("baseline", "model")
        for strategy, name in (("greedy", "without reflection"), ("reflect", "with reflection"))
        if (model, strategy) in answers
    }
    return {"differences": differences, "cells": cells}


def _difference(ours: Values, theirs: Values) -> Result:
    return {**asdict(paired_difference(ours, theirs)), "p_value": p_value(ours, theirs)}


def _by_question(rows: Iterable[Row], what: str = "right") -> dict[str, list[float]]:
    """By question, of which variants are one, whether it is `right` or its `reward`; what could not be graded is left
    out."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row[what] is not None:
            values[row["group"]].append(float(row[what]))
    return dict(values)


def _point(row: Row) -> PointwiseJudgement:
    verdict = None if row["verdict"] is None else row["verdict"] == "right"
    return PointwiseJudgement(row["label"] == "right", verdict, row["probability"], _asked(row))


def _asked(row: Row) -> str:
    """The same words about another picture are another question."""
    return json.dumps([row["question"], row.get("images")])


def _tokens(row: Row) -> int:
    return int(row["prompt_tokens"] + row["generated_tokens"])
