"""Does self-reward work where answers are missing? Half of the embedded questions lose theirs.

    OMP_NUM_THREADS=1 python benchmarks/self_reward.py [--seeds 3] [section.key=value ...]

The answers of the other half are used in two ways:

    judge, judge+self, judge+early   to label judge items (recorded rollouts of the base, recycled), and for nothing
                                     else: no answer is ever rewarded by a rule. Beside them `self` trains on the
                                     questions without answers, rewarded by the model's own verdicts once the judge
                                     passes the threshold; `early` from the first step on, whatever the judge is worth.
    verified, verified+self          as usual: answers are verified, and recycled into judge items. Beside them `self`
                                     trains on the other half as above.

All have the same number of groups a step, and are measured on held-out answers of all families. Runs are kept in
`runs/self-reward/`; one that is there already is not run again. One JSON line: `ratio` is judge+self over judge, means
over seeds; `agreement` how often a self-rewarded right response got more than a wrong one of its group (a tie is half).
"""

from __future__ import annotations

import argparse
import json
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from quickstart import spark_rl

from spark_rl.config import load_config
from spark_rl.data import load_data
from spark_rl.verify import SELF

ROOT = Path("runs") / "self-reward"
JUDGED = f"{{path: {ROOT / 'judge.jsonl'}, columns: {{prompt: messages, answer: label}}}}"
KEPT, LOST = str(ROOT / "kept.jsonl"), str(ROOT / "lost.jsonl")
SELF_ON = "self_reward.enabled=true"
ARMS = {
    "judge": (f"data.train=[{JUDGED}]",),
    "judge+self": (f"data.train=[{JUDGED},{LOST}]", SELF_ON),
    "judge+early": (f"data.train=[{JUDGED},{LOST}]", SELF_ON, "self_reward.threshold=0", "self_reward.ramp_steps=0"),
    "verified": (f"data.train=[{KEPT}]",),
    "verified+self": (f"data.train=[{KEPT},{LOST}]", SELF_ON),
}
SETTINGS = (
    "preset=spark",
    "rollout.groups_per_step=32",
    "rollout.max_new_tokens=80",
    "train.steps=30",
    "train.learning_rate=3e-4",
    "train.schedule=cosine",
    "data.validation=embedded:validation",
    "validation.items=500",
    "validation.every=5",
)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path | str, many: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in many))


def prepare() -> dict[str, str]:
    """Write the two halves and the judge items; the golds of the half that lost them, by id."""
    ROOT.mkdir(parents=True, exist_ok=True)
    (ROOT / "empty.yaml").write_text("{}")
    (source,) = load_data(
        load_config(None, ["data.train=embedded:train", "data.validation=embedded:validation"])
    ).train.sources
    every = [source.task(i).example for i in range(source.num_rows) if i not in source.left_out]
    write(KEPT, [{"id": e.id, "prompt": e.question, "answer": e.answer, "verifier": e.verifier} for e in every[::2]])
    write(LOST, [{"id": e.id, "prompt": e.question, "verifier": SELF} for e in every[1::2]])
    if not (ROOT / "judge.jsonl").exists():
        recorded = ROOT / "recorded"
        barely = ("preset=grpo", "train.learning_rate=1e-9", "train.steps=8", "rollout.max_new_tokens=80")
        if not (recorded / "summary.json").exists():
            spark_rl("train", ROOT / "empty.yaml", *barely, f"data.train={KEPT}", f"train.output={recorded}")
        write(ROOT / "rollouts.jsonl", list(chain.from_iterable(map(rows, sorted((recorded / "rollouts").iterdir())))))
        spark_rl("recycle", ROOT / "rollouts.jsonl", "--out", ROOT / "recycled.jsonl")
        write(ROOT / "judge.jsonl", [row for row in rows(ROOT / "recycled.jsonl") if row["role"] != "reflection"])
    return {e.id: e.answer for e in every[1::2]}


def run(arm: str, seed: int, overrides: list[str]) -> Path:
    """The directory of a finished run."""
    output = ROOT / "-".join([arm, str(seed), *(each.replace("/", "_") for each in overrides)])
    if not (output / "summary.json").exists():
        resume = ["--resume"] if output.exists() else []
        where = (f"train.seed={seed}", f"train.output={output}")
        spark_rl("train", ROOT / "empty.yaml", *SETTINGS, *ARMS[arm], *where, *overrides, *resume)
    return output


def agreement(output: Path, golds: dict[str, str]) -> float | None:
    """Of all pairs of a right and a wrong judged response to one question, the share that the rewards order rightly."""
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
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    golds = prepare()
    line: dict[str, Any] = {}
    for arm in arguments.arms:
        outputs = [run(arm, seed, arguments.overrides) for seed in range(arguments.seeds)]
        after = [json.loads((output / "summary.json").read_text())["after"] for output in outputs]
        line[arm] = {
            "answers": [round(each["answer_accuracy"], 3) for each in after],
            "judge": [round(each["pointwise_balanced_accuracy"], 3) for each in after],
        }
        if any(rates := [agreement(output, golds) for output in outputs]):
            line[arm]["agreement"] = rates
    means = {arm: fmean(values["answers"]) for arm, values in line.items()}
    ratio = round(means["judge+self"] / means["judge"], 3) if {"judge", "judge+self"} <= means.keys() else None
    name = {"name": "self-reward/lost-answers", "ratio": ratio, "target": 1, "holds": ratio is None or ratio >= 1}
    print(json.dumps({**name, **line}))


if __name__ == "__main__":
    main()
