"""SPARK beside GRPO on the embedded base: the same number of rollouts, several seeds, the embedded test split.

    python benchmarks/quickstart.py [--seeds 3] [--presets spark grpo] [--strategies greedy,reflect]

Trains each preset with each seed, evaluates the base and every model with `spark-rl eval --suite embedded:test`, and
prints one JSON line a figure and a table of means (lowest to highest seed). Runs and evaluations are kept in
`runs/compare/`; what is finished there is not done again.
"""

from __future__ import annotations

import argparse
import json
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
    "answers": lambda m: m["strategies"]["greedy"]["accuracy"]["value"],
    "answers, reflecting": lambda m: m["strategies"]["reflect"]["accuracy"]["value"],
    "judges one, balanced": lambda m: m["pointwise"]["balanced_accuracy"],
    "judges which of two": lambda m: m["pairwise"]["accuracy"]["value"],
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
    if not (out / "results.json").exists():
        spark_rl("eval", model, "--suite", "embedded:test", "--strategies", strategies, "--out", out)
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return {**results["models_measured"]["model"], "seconds": results["wall_seconds"]}


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
    for strategy in sorted(set(strategies.split(",")) - {"greedy", "reflect"}):
        figures.setdefault(strategy, lambda m, strategy=strategy: m["strategies"][strategy]["accuracy"]["value"])
    table = Table("", *columns, title=f"embedded:test, {arguments.seeds} seed(s)")
    for name, figure in figures.items():
        values = {column: [round(figure(m) or 0.0, 4) for m in measured] for column, measured in columns.items()}
        print(json.dumps({"name": f"quickstart/{name}", **values}))
        table.add_row(name, *(f"{fmean(v):.1%} ({min(v):.1%} to {max(v):.1%})" for v in values.values()))
    seconds = {column: fmean(m["seconds"] for m in measured) for column, measured in columns.items()}
    table.add_row("wall time of the evaluation", *(f"{value:.0f} s" for value in seconds.values()))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
