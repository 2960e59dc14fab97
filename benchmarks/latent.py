"""What is latent in a base: pass@1, pass@8 and pass@64 of every role, and how right it is when it works things out.

    python benchmarks/latent.py [--model embedded] [--items 100]

Prints one JSON line a role. `worked_rate` is the share of rollouts that write a number before their verdict or answer,
`worked_accuracy` the mean reward of those (for judges and reflection: on wrong and on right responses apart).
"""

from __future__ import annotations

import argparse
import json
from math import comb
from pathlib import Path
from statistics import fmean

from spark_rl.config import load_config
from spark_rl.data import load_data
from spark_rl.models.load import load_model, load_tokenizer
from spark_rl.prompts import ChatRenderer
from spark_rl.rollout.generate import roll_out
from spark_rl.rollout.scoring import RuleScorer
from spark_rl.rollout.transformers_engine import TransformersEngine
from spark_rl.train.validation import validation_items
from spark_rl.types import Group, Role, Rollout
from spark_rl.verify import ANSWER_TAG, VerifierPool


def pass_at(k: int, rewards: list[float]) -> float:
    """Unbiased estimate of pass@k from n >= k samples (Chen et al., 2107.03374)."""
    n, right = len(rewards), sum(reward >= 1 for reward in rewards)
    return 1 - comb(n - right, k) / comb(n, k)


def works(rollout: Rollout) -> bool:
    return any(c.isdigit() for c in rollout.text.split(ANSWER_TAG)[0])


def report(role: Role, groups: list[Group]) -> dict[str, object]:
    rollouts = [(g.task, r) for g in groups for r in g.rollouts]
    row: dict[str, object] = {"name": f"latent/{role}", "items": len(groups)}
    for k in (1, 8, 64):
        row[f"pass@{k}"] = round(fmean(pass_at(k, g.rewards) for g in groups), 3)
    row["worked_rate"] = round(fmean(works(r) for _, r in rollouts), 3)
    kinds = {t.label for t, _ in rollouts} if role.is_judge else {""}
    for kind in sorted(kinds):
        worked = [r.reward or 0.0 for t, r in rollouts if works(r) and kind in ("", t.label)]
        row[f"worked_accuracy{kind and '_' + kind}"] = round(fmean(worked), 3) if worked else None
    if role is Role.ANSWER:
        for source in sorted({t.example.source for t, _ in rollouts}):
            worked = [r.reward or 0.0 for t, r in rollouts if works(r) and t.example.source == source]
            row[f"worked_{source}"] = round(fmean(worked), 3) if worked else None
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--samples", type=int, default=64)
    arguments = parser.parse_args()
    recipe = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
    config = load_config(recipe, [f"model.path={arguments.model}", f"validation.items={arguments.items}"])
    tokenizer = load_tokenizer(config.model)
    renderer, engine = ChatRenderer(tokenizer), TransformersEngine(load_model(config.model), tokenizer)
    with VerifierPool() as pool:
        scorer = RuleScorer(pool)

        def sample(tasks: list, n: int) -> list[Group]:
            limit = config.rollout.max_new_tokens
            groups = roll_out(tasks, engine, renderer, config, lambda task: (n, limit, 1.0), seed=0, step=0)
            scorer.score(groups)
            return groups

        questions = load_data(config).validation[: 2 * arguments.items]
        items = validation_items(sample(questions, 8), config)
        for role in Role:
            print(json.dumps(report(role, sample([t for t in items if t.role is role], arguments.samples))), flush=True)


if __name__ == "__main__":
    main()
