"""SPARK beside GRPO on the embedded base: the same number of rollouts, the same held-out items, several seeds.

    python benchmarks/quickstart.py [--seeds 3] [--presets spark grpo] [section.key=value ...]

Prints a table of means (and the range over seeds) and one JSON line a held-out metric. Runs are kept in
`runs/compare/`; one that is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from spark_rl.train.validation import HEADLINE

ROOT = Path(__file__).parents[1]
BASE = ROOT / "src" / "spark_rl" / "embedded" / "base" / "model.safetensors"


def run(preset: str, seed: int, overrides: list[str]) -> dict:
    """The summary of one run."""
    output = ROOT / "runs" / "compare" / f"{preset}-{seed}"
    done = output / "summary.json"
    if done.exists() and done.stat().st_mtime < BASE.stat().st_mtime:
        raise SystemExit(f"{output} was made with an older base; remove it")
    if overrides or not done.exists():
        settings = [f"preset={preset}", f"train.seed={seed}", f"train.output={output}", *overrides]
        command = [sys.executable, "-m", "spark_rl.cli", "train", str(ROOT / "recipes" / "quickstart.yaml"), *settings]
        subprocess.run([*command, *(["--resume"] if output.exists() else [])], check=True)
    return json.loads((output / "summary.json").read_text())


def flat(metrics: dict) -> dict[str, float]:
    """Headline metrics, and answer accuracy by source."""
    by_source = {f"answer/{name}": value for name, value in metrics["by_source"]["answer"].items()}
    return {**{name: metrics[name] for name in HEADLINE.values()}, **by_source}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--presets", nargs="+", default=["spark", "grpo"])
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    results = {
        preset: [run(preset, seed, arguments.overrides) for seed in range(arguments.seeds)]
        for preset in arguments.presets
    }
    table = Table(title=f"held-out accuracy, greedy, {arguments.seeds} seed(s)")
    for column in ("", "base", *results):
        table.add_column(column, justify="left" if not column else "right")
    before = flat(next(iter(results.values()))[0]["before"])
    for name, base in before.items():
        cells, row = [], {"name": f"quickstart/{name}", "base": round(base, 3)}
        for preset, summaries in results.items():
            values = [flat(summary["after"])[name] for summary in summaries]
            cells.append(f"{fmean(values):.1%} ({min(values):.1%} to {max(values):.1%})")
            row[preset] = [round(value, 3) for value in values]
        table.add_row(name, f"{base:.1%}", *cells)
        print(json.dumps(row))
    seconds = [f"{fmean(s['wall_seconds'] for s in summaries):.0f} s" for summaries in results.values()]
    table.add_row("wall time", "", *seconds)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
