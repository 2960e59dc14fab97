"""`results.json` as a page to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]


def markdown(results: Result) -> str:
    """The report: strategies, reflection, judge, probes, comparison; each only where it was measured."""
    models = results["models_measured"]
    lines = [f"# Evaluation on `{results['suite']}`", ""]
    lines += [f"- {label}: `{path}`" for label, path in results["models"].items()]
    lines += [f"- rows of `{source}` left out: {count}" for source, count in results.get("skipped", {}).items()]
    lines += [f"- {note}" for note in results.get("notes", [])]
    lines += ["", "Intervals are 95 %. Tokens are those read (each prompt once) and written, a question.", ""]
    lines += _comparison(results["comparison"]) if results["comparison"] else []
    for label, measured in models.items():
        lines += [f"## {label}", ""]
        lines += _strategies(measured["strategies"]) if measured["strategies"] else []
        lines += _reflection(measured["strategies"].get("reflect"))
        lines += _judge(measured)
        lines += _best_of(measured["best_of"]) if "best_of" in measured else []
        lines += _probes(measured["probes"]) if "probes" in measured else []
        lines += _sources(measured) if measured["by_source"] else []
    return "\n".join(lines).rstrip() + "\n"


def _comparison(comparison: Result) -> Iterator[str]:
    yield from ["## model - baseline", ""]
    if cells := comparison["cells"]:
        yield from _table(["", "accuracy"], [[name, _rate(cell)] for name, cell in cells.items()])
    rows = [[name, _points(each), _p(each["p_value"])] for name, each in comparison["differences"].items()]
    if rows:
        yield from _table(["strategy", "difference, same questions", "p"], rows)
    rewards = {name: each["reward"] for name, each in comparison["differences"].items() if _is_other(each)}
    if rows := [[name, _reward(each, "+"), _p(each["p_value"])] for name, each in rewards.items()]:
        yield from _table(["strategy", "difference of mean rewards", "p"], rows)


def _strategies(strategies: Result) -> Iterator[str]:
    rows = []
    shows_reward = any(each["reward"]["value"] != each["accuracy"]["value"] for each in strategies.values())
    for name, each in strategies.items():
        equal = each.get("majority_at_equal_tokens")
        versus = f"{_points(equal['difference'])} to majority@{equal['k']}" if equal else ""
        figures = [_rate(each["accuracy"])] + [_reward(each["reward"])] * shows_reward
        rows.append([name, *figures, f"{each['tokens']:.0f}", f"{each['generated_tokens']:.0f}", versus])
    head = ["strategy", "accuracy"] + ["mean reward"] * shows_reward
    yield from _table([*head, "tokens", "of them written", "against the vote at equal tokens"], rows)
    for name, each in strategies.items():
        if each["ungraded"]:
            yield from [f"Answers of {name} that could not be graded, and are left out: {each['ungraded']}.", ""]
        if each["verifier_failed"]:
            yield from [f"Answers of {name} that made the verifier fail, and are wrong: {each['verifier_failed']}.", ""]


def _reflection(reflect: Result | None) -> Iterator[str]:
    if reflect is None:
        return
    flips = reflect["flips"]
    yield (
        f"Reflection revised {flips['revised']} of {flips['n']} answers: {flips['wrong_to_right']} from wrong to "
        f"right, {flips['right_to_wrong']} from right to wrong. "
        f"Measured gain {_points(reflect['measured_gain'])} points; "
        "the verifier's gain (precision of its \"right\" minus the solver's accuracy) "
        f"{_signed(reflect['predicted_gain'])}."
    )
    yield ""


def _judge(measured: Result) -> Iterator[str]:
    rows = []
    for part, title in (("pointwise", "others' responses"), ("own", "own responses")):
        if each := measured.get(part):
            rows.append(
                [
                    title,
                    str(each["n"]),
                    _rate(each["accuracy"]),
                    _share(each["balanced_accuracy"]),
                    " / ".join(_share(each[name]) for name in ("precision", "recall", "f1")),
                    _share(each["yes_rate"]),
                    f"{_number(each['ece'])} / {_number(each['brier'])}",
                    _share(each["parse_rate"]),
                ]
            )
    if rows:
        head = ["judges one", "n", "accuracy", "balanced", "precision / recall / F1", "says right", "ECE / Brier"]
        yield from _table([*head, "parsed"], rows)
    if pairs := measured.get("pairwise"):
        by_source = pairs["by_source"] if len(pairs["by_source"]) > 1 else {}
        rows = [
            [
                name,
                str(e["n"]),
                _rate(e["accuracy"]),
                _share(e["right_in_both_orders"]),
                _share(e["order_consistency"]),
                _share(e["parse_rate"]),
            ]
            for name, e in {"all": pairs, **by_source}.items()
        ]
        if by_source:
            rows.append(["mean over the sources", "", _share(pairs["mean_over_sources"]), "", "", ""])
        head = ["judges pairs", "n", "accuracy", "right in both orders", "same in both orders", "parsed"]
        yield from _table(head, rows)


def _probes(probes: Result) -> Iterator[str]:
    every = {"all": probes, **probes["by_kind"]}
    rows = [
        [kind, *(_rate(each[name]) if name in each else "" for name in ("false_accept", "true_accept"))]
        for kind, each in every.items()
    ]
    yield from _table(["probe", "false accept", "true accept"], rows)


def _best_of(best_of: Result) -> Iterator[str]:
    rows = [[name, str(each["n"]), _share(each["score"])] for name, each in best_of["by_subset"].items()]
    yield from _table(["chooses the right response", "n", "score"], [*rows, ["mean", "", _share(best_of["mean"])]])


def _sources(measured: Result) -> Iterator[str]:
    by_source = measured["by_source"]
    shows_reward = any(map(_is_other, by_source.values()))
    rows = [
        [source, str(each["n"]), _rate(each)] + [_reward(each["reward"])] * shows_reward
        for source, each in by_source.items()
    ]
    if greedy := measured["strategies"].get("greedy"):
        mean = [_share(greedy["mean_over_sources"])] + [_number(greedy["mean_reward_over_sources"])] * shows_reward
        rows.append(["mean over the sources of the suite", "", *mean])
    yield from _table(["source (greedy)", "n", "accuracy"] + ["mean reward"] * shows_reward, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _rate(interval: Result) -> str:
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    return "" if value is None else f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _is_other(each: Result) -> bool:
    """Whether the mean reward beside a share of right ones is not that share once more."""
    return bool(each["reward"]["value"] != each["value"])


def _reward(interval: Result, sign: str = "") -> str:
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    if value is None or low is None:
        return "" if value is None else f"{value:{sign}.3f}"
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def _points(interval: Result) -> str:
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    return "" if value is None else f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _share(value: Any) -> str:
    value = value["value"] if isinstance(value, Mapping) else value
    return "" if value is None else f"{100 * value:.1f} %"


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:+.1f} points"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if value >= 1e-4 else "< 0.0001"
