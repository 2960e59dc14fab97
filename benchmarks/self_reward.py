"""Does self-reward help where answers are missing? Four of the embedded families keep their answers; the three on
which answers stay worst lose them.

    OMP_NUM_THREADS=1 python benchmarks/self_reward.py [--seeds 2] [--arms verified self early] [section.key=value ...]

Arms, all with the same number of groups a step: `verified` trains on the families with answers alone, `self` adds the
others with the model's own verdicts as reward once the judge passes the threshold, `early` from the first step on
whatever the judge is worth, `all` with their answers (the ceiling). The judge is measured on held-out questions of the
families with answers only. Held-out answer accuracy on the families without answers is what self-reward is for.

Runs are kept in `runs/self-reward/`; one that is there already is not run again. One JSON line: `ratio` is that
accuracy with self-reward over that without, means over seeds; `agreement` is the rank accuracy of the rewards that the
model gave itself, read off its rollouts: how often a right response got more than a wrong one of its group.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from spark_rl.config import load_config
from spark_rl.data import load_data
from spark_rl.types import Example
from spark_rl.verify import SELF

ROOT = Path("runs") / "self-reward"
KEPT = {"sum", "difference", "largest", "smallest"}
"""The families that keep their answers."""
ON = ("self_reward.enabled=true", "validation.every=5")
ARMS = {
    "verified": ("data.train=[{kept}]", "validation.every=5"),
    "self": ("data.train=[{kept},{lost}]", *ON),
    "early": ("data.train=[{kept},{lost}]", *ON, "self_reward.threshold=0", "self_reward.ramp_steps=0"),
    "all": ("data.train=[{kept},{golden}]", "validation.every=5"),
}
SETTINGS = (
    "preset=spark",
    "rollout.groups_per_step=32",
    "rollout.max_new_tokens=80",
    "train.steps=40",
    "train.learning_rate=2e-4",
    "train.schedule=constant",
    "validation.items=100",
)


def write(name: str, examples: list[Example], verifier: str) -> Path:
    rows = [
        {"id": e.id, "prompt": e.question, "source": e.source, "verifier": verifier}
        | ({} if verifier == SELF else {"answer": e.answer})
        for e in examples
    ]
    path = ROOT / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(arm: str, seed: int, files: dict[str, Path], overrides: list[str]) -> Path:
    """The directory of a finished run."""
    output = ROOT / f"{arm}-{seed}"
    if not (output / "summary.json").exists():
        settings = [*SETTINGS, *(each.format(**files) for each in ARMS[arm])]
        settings += [f"data.validation={files['held_out']}", f"data.monitor={files['held_out_lost']}"]
        settings += [f"train.seed={seed}", f"train.output={output}"]
        empty = ROOT / "empty.yaml"
        empty.write_text("{}")
        command = [sys.executable, "-m", "spark_rl.cli", "train", str(empty), *settings, *overrides]
        subprocess.run([*command, *(["--resume"] if output.exists() else [])], check=True)
    return output


def accuracies(output: Path) -> dict[str, float]:
    """After the run: held-out answers of the families that lost and that kept their answers, and the judge."""
    after = json.loads((output / "summary.json").read_text())["after"]
    sources = after["by_source"]["answer"]
    return {
        "lost": fmean(value for name, value in sources.items() if name not in KEPT),
        "kept": fmean(value for name, value in sources.items() if name in KEPT),
        "judge": after["pointwise_balanced_accuracy"],
    }


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def agreement(output: Path, golds: dict[str, str]) -> float | None:
    """Of all pairs of a right and a wrong judged response to one question, the share that the rewards order rightly.

    A tie counts one half. None without such pairs.
    """
    pairs = []
    for group in chain.from_iterable(map(rows, sorted((output / "rollouts").iterdir()))):
        if group["verifier"] == SELF:
            judged = [r for r in group["rollouts"] if r["reason"] == "judged"]
            right = [r["reward"] for r in judged if r["extracted"] == golds[group["question_id"]]]
            wrong = [r["reward"] for r in judged if r["extracted"] != golds[group["question_id"]]]
            pairs += [(a > b) + (a == b) / 2 for a in right for b in wrong]
    return round(fmean(pairs), 3) if pairs else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--arms", nargs="+", default=["verified", "self", "early"], choices=list(ARMS))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    ROOT.mkdir(parents=True, exist_ok=True)
    embedded = load_config(None, ["data.train=embedded:train", "data.validation=embedded:validation"])
    data = load_data(embedded)
    (source,) = data.train.sources
    train = [source.task(i).example for i in range(source.num_rows) if i not in source.left_out]
    held_out = [task.example for task in data.validation]
    lost = [e for e in train if e.source not in KEPT]
    files = {
        "kept": write("kept", [e for e in train if e.source in KEPT], "numeric"),
        "lost": write("lost", lost, SELF),
        "golden": write("golden", lost, "numeric"),
        "held_out": write("held-out", [e for e in held_out if e.source in KEPT], "numeric"),
        "held_out_lost": write("held-out-lost", [e for e in held_out if e.source not in KEPT], "numeric"),
    }
    golds = {e.id: e.answer for e in lost}
    found: dict[str, dict[str, list[float]]] = {}
    line: dict[str, Any] = {}
    for seed in range(arguments.seeds):
        for arm in arguments.arms:
            output = run(arm, seed, files, arguments.overrides)
            for name, value in accuracies(output).items():
                found.setdefault(arm, {}).setdefault(name, []).append(round(value, 3))
            if (rate := agreement(output, golds)) is not None:
                line.setdefault(f"agreement_{arm}", []).append(rate)
    means = {arm: fmean(values["lost"]) for arm, values in found.items()}
    ratio = round(means["self"] / means["verified"], 3) if {"self", "verified"} <= means.keys() else None
    holds = ratio is None or ratio >= 1
    print(
        json.dumps({"name": "self-reward/lost-answers", "ratio": ratio, "target": 1, "holds": holds, **found, **line})
    )


if __name__ == "__main__":
    main()
