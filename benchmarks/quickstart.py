"""SPARK beside GRPO on the embedded base: the same number of rollouts, several seeds, the embedded test split.

    python benchmarks/quickstart.py [--vision] [--seeds 3] [--presets spark grpo] [--strategies greedy,reflect]

Trains each preset with each seed, evaluates the base and every model with `spark-rl eval --suite embedded:test`, and
prints one JSON line a figure and a table of means (lowest to highest seed). Runs and evaluations are kept in
`runs/compare/`; what is finished there is not done again.

`--vision` does the same with the vision base and its questions, and adds each trained model with all pictures white.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from spark_rl.embedded.pictures import KINDS
from spark_rl.models.folder import resolve_path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "runs" / "compare"
Figure = Callable[[dict[str, Any]], float | None]


FIGURES: dict[str, Figure] = {
    "judges one, balanced": lambda m: m["pointwise"]["balanced_accuracy"],
    "judges which of two, both orders averaged": lambda m: m["pairwise"]["accuracy"]["value"],
    "the same, right in both orders": lambda m: m["pairwise"]["right_in_both_orders"],
    "same in both orders": lambda m: m["pairwise"]["order_consistency"]["value"],
    "judges itself, balanced": lambda m: m["own"]["balanced_accuracy"],
    "probes: false accept": lambda m: m["probes"]["false_accept"]["value"],
    "probes: true accept": lambda m: m["probes"]["true_accept"]["value"],
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What is trained and measured."""

    model: str
    recipe: str
    suite: str
    sources: dict[str, str]
    """What is reported by source: its name here, and that of the source."""

    @property
    def base(self) -> Path:
        return Path(resolve_path(self.model)) / "model.safetensors"


TEXT = Setting(
    "embedded",
    "quickstart",
    "embedded:test",
    {
        "mixed signs (never trained)": "mixed",
        "product minus (never trained)": "product-minus",
        "facts (not to be forgotten)": "retention",
    },
)
VISION = Setting(
    "embedded-vision", "quickstart-vision", "embedded:vision-test", {f"answers: {kind}": kind for kind in KINDS}
)


def spark_rl(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "spark_rl.cli", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def trained(setting: Setting, preset: str, seed: int) -> Path:
    """The run's folder, trained if it is not there."""
    output = OUT / setting.recipe / f"{preset}-{seed}"
    done = output / "summary.json"
    if done.exists() and done.stat().st_mtime < setting.base.stat().st_mtime:
        raise SystemExit(f"{output} was made with an older base; remove it")
    if not done.exists():
        settings = [f"preset={preset}", f"train.seed={seed}", f"train.output={output}"]
        resume = ["--resume"] if output.exists() else []
        spark_rl("train", ROOT / "recipes" / f"{setting.recipe}.yaml", *settings, *resume)
    return output


def evaluated(setting: Setting, run: Path | None, strategies: str, *options: str) -> dict[str, Any]:
    """What the report says of a run's model, or of the base."""
    name = "-".join([run.name if run else "base", strategies, *options])
    out = OUT / setting.recipe / "eval" / name
    made_of = run / "final" / "model.safetensors" if run else setting.base
    if out.exists() and out.stat().st_mtime < made_of.stat().st_mtime:
        shutil.rmtree(out)
    if not (out / "results.json").exists():
        model = run / "final" if run else setting.model
        spark_rl("eval", model, "--suite", setting.suite, "--strategies", strategies, "--out", out, *options)
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
    parser.add_argument("--vision", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--presets", nargs="+", default=["spark", "grpo"])
    parser.add_argument("--strategies", default="greedy,reflect")
    arguments = parser.parse_args()
    setting, strategies = VISION if arguments.vision else TEXT, arguments.strategies
    columns = {"base": [evaluated(setting, None, strategies)]}
    for preset in arguments.presets:
        runs = [trained(setting, preset, seed) for seed in range(arguments.seeds)]
        columns[preset] = [evaluated(setting, run, strategies) for run in runs]
        if arguments.vision:
            columns[f"{preset}, blind"] = [evaluated(setting, run, strategies, "--blind") for run in runs]
    figures = dict(FIGURES)
    for name, source in setting.sources.items():
        figures[name] = lambda m, source=source: m["by_source"][source]["value"]
    for name in columns["base"][0]["strategies"]:
        figures[f"{name}: accuracy"] = lambda m, name=name: m["strategies"][name]["accuracy"]["value"]
        figures[f"{name}: tokens"] = lambda m, name=name: m["strategies"][name]["tokens"]
        figures[f"{name}: against the vote"] = lambda m, name=name: against_the_vote(m["strategies"][name])
    table = Table("", *columns, title=f"{setting.suite}, {arguments.seeds} seed(s)")
    for name, figure in figures.items():
        values = {column: [figure(m) for m in measured] for column, measured in columns.items()}
        print(json.dumps({"name": f"{setting.recipe}/{name}", **values}))
        table.add_row(name, *(shown(known, "tokens" in name) for known in values.values()))
    seconds = {column: fmean(m["seconds"] for m in measured) for column, measured in columns.items()}
    table.add_row("wall time of the evaluation", *(f"{value:.0f} s" for value in seconds.values()))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
