"""SPARK beside GRPO on the embedded base: the same number of rollouts, several seeds, the embedded test split.

    python benchmarks/quickstart.py [--seeds 3] [--presets spark grpo] [--strategies greedy,reflect]

Trains each preset with each seed, evaluates the base and every model with `spark-rl eval --suite embedded:test`, and
prints one JSON line a figure and a table of means (lowest to highest seed). Runs and evaluations are kept in
`runs/compare/`; what is finished there is not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
OUT = ROOT / "runs" / "compare"
BASE = ROOT / "src" / "spark_rl" / "embedded" / "base" / "model.safetensors"
FIGURES: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "judges one, balanced": lambda m: m["pointwise"]["balanced_accuracy"],
    "judges which of two, both orders averaged": lambda m: m["pairwise"]["accuracy"]["value"],
    "the same, right in both orders": lambda m: m["pairwise"]["right_in_both_orders"],
    "same in both orders": lambda m: m["pairwise"]["order_consistency"]["value"],
    "judges itself, balanced": lambda m: m["own"]["balanced_accuracy"],
    "probes: false accept": lambda m: m["probes"]["false_accept"]["value"],
    "probes: true accept": lambda m: m["probes"]["true_accept"]["value"],
    "mixed signs (never trained)": lambda m: m["by_source"]["mixed"]["value"],
    "product minus (never trained)": lambda m: m["by_source"]["product-minus"]["value"],
    "facts (not to be forgotten)": lambda m: m["by_source"]["retention"]["value"],
}


def spark_rl(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "spark_rl.cli", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def trained(preset: str, seed: int) -> Path:
    """The run's folder, trained if it is not there."""
    output = OUT / f"{preset}-{seed}"
    done = output / "summary.json"
    if done.exists() and done.stat().st_mtime < BASE.stat().st_mtime:
        raise SystemExit(f"{output} was made with an older base; remove it")
    if not done.exists():
        settings = [f"preset={preset}", f"train.seed={seed}", f"train.output={output}"]
        resume = ["--resume"] if output.exists() else []
        spark_rl("train", ROOT / "recipes" / "quickstart.yaml", *settings, *resume)
    return output


def evaluated(model: str | Path, name: str, strategies: str) -> dict[str, Any]:
    """What the report says of the model."""
    out = OUT / "eval" / f"{name}-{strategies}"
    made_of = BASE if model == "embedded" else Path(model, "model.safetensors")
    if out.exists() and out.stat().st_mtime < made_of.stat().st_mtime:
        shutil.rmtree(out)
    if not (out / "results.json").exists():
        spark_rl("eval", model, "--suite", "embedded:test", "--strategies", strategies, "--out", out)
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return {**results["models_measured"]["model"], "seconds": results["wall_seconds"]}


def against_the_vote(strategy: dict[str, Any]) -> float | None:
    """Minus the majority vote that costs the same tokens."""
    equal = strategy.get("majority_at_equal_tokens")
    return equal["difference"]["value"] if equal else None


def shown(values: list[float | None], are_tokens: bool) -> str:
    """Mean (lowest to highest)."""
    known = [value for value in values if value is not None]
    form = "{:.0f}" if are_tokens else "{:.1%}"
    mean, low, high = (form.format(f(known)) for f in (fmean, min, max)) if known else ("n/a", "", "")
    return f"{mean} ({low} to {high})" if len(known) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--presets", nargs="+", default=["spark", "grpo"])
    parser.add_argument("--strategies", default="greedy,reflect")
    arguments = parser.parse_args()
    strategies = arguments.strategies
    columns = {"base": [evaluated("embedded", "base", strategies)]}
    for preset in arguments.presets:
        runs = [trained(preset, seed) for seed in range(arguments.seeds)]
        columns[preset] = [evaluated(run / "final", run.name, strategies) for run in runs]
    figures = dict(FIGURES)
    for name in columns["base"][0]["strategies"]:
        figures[f"{name}: accuracy"] = lambda m, name=name: m["strategies"][name]["accuracy"]["value"]
        figures[f"{name}: tokens"] = lambda m, name=name: m["strategies"][name]["tokens"]
        figures[f"{name}: against the vote"] = lambda m, name=name: against_the_vote(m["strategies"][name])
    table = Table("", *columns, title=f"embedded:test, {arguments.seeds} seed(s)")
    for name, figure in figures.items():
        values = {column: [figure(m) for m in measured] for column, measured in columns.items()}
        print(json.dumps({"name": f"quickstart/{name}", **values}))
        table.add_row(name, *(shown(known, "tokens" in name) for known in values.values()))
    seconds = {column: fmean(m["seconds"] for m in measured) for column, measured in columns.items()}
    table.add_row("wall time of the evaluation", *(f"{value:.0f} s" for value in seconds.values()))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
