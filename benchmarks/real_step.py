"""A GRPO step of a real model, SmolLM2-135M-Instruct, beside TRL's. Not part of `make bench`: TRL takes minutes a step.

    make bench-real REAL="--threads 1 --store"

16 questions (sums and differences of reasoning-gym) with two worked examples as turns before each (`--examples`), 8
rollouts of up to 32 tokens, float32, AdamW, `dapo`, no KL, no reference model. Both sides ask the same rows and get
recorded rewards, one list a row, in which every group has rights and wrongs: ours leaves out groups without signal, so
rewards that the model earns would flatter it. A step is all of it, from the questions to the changed weights; ours
takes turns with TRL's, several before and after each of them. `-natural` is ours with rewards of the `math` verifier
instead, and says which share of the groups has signal (`mixed`).

Before that the work is seen to be the same: equal prompts, and loss and gradient of recorded rollouts to 1e-4.

TRL gets the settings that are fastest for it. They are those of the stored result, or searched for (`--search`): rows
of a micro-batch, rows that are generated at once, and the cache they are generated with. If fewer rows are generated at
once than a step has (`steps_per_generation`), TRL divides the loss by an estimate of the step's tokens, which is
another loss but the same work.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from harness import embedded, gradient, line, seconds, show, trl_trainer, trl_update
from run import STORED, read, settle

from spark_rl.config import load_config
from spark_rl.rollout.scoring import Scorer
from spark_rl.train.advantages import advantages
from spark_rl.train.loop import Trainer
from spark_rl.types import Group

MODEL = os.environ.get("SPARK_RL_REAL_MODEL", "models/smollm2")
QUESTIONS, GROUP, NEW = 16, 8, 32
BATCHES, AT_ONCE, CACHES = (1, 2, 4, 8), (8, 128), (None, "static", "continuous")
"""What is tried of TRL's settings."""
PAGES = {"page_size": 32, "num_blocks": 2048, "max_batch_tokens": 2048}
"""Room for a step's rows in continuous batching, which else takes half of the memory and the time to fill it."""
TARGET = 15.0
CONFIG = """
preset: grpo
model: {dtype: float32}
data: {bad_rows: refuse}
rollout: {num_generations: 8, max_new_tokens: 32}
train: {learning_rate: 1.0e-9, schedule: constant, steps: 1000}
health: {stop_after: 0}
"""
"""The learning rate is one that changes nothing, so that all steps are of the same model."""


# ------------------------------------------------------------------------------------------------ rows and rewards


def turns(entry: dict[str, Any], *, solved: bool) -> list[dict[str, str]]:
    """A reasoning-gym entry as the user's turn, and if it is a worked example, the reply."""
    instruction = r"Reason step by step, then put your final answer in \boxed{}."
    question = {"role": "user", "content": f"{entry['question']}\n\n{instruction}"}
    sum_ = f"{entry['metadata']['expression']} = {entry['answer']}"
    reply = {"role": "assistant", "content": rf"{sum_}. The answer is \boxed{{{entry['answer']}}}."}
    return [question, reply] if solved else [question]


def rows(num: int, num_examples: int = 2) -> list[dict[str, Any]]:
    """Sums and differences of two numbers after worked examples, their answers, and the rewards of their rollouts: the
    first few are right, at least one, and never all."""
    from reasoning_gym import create_dataset

    shape = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    solved = create_dataset("chain_sum", seed=1, size=num_examples, **shape)
    examples = [turn for entry in solved for turn in turns(entry, solved=True)]
    draw = random.Random(0)
    made = []
    for number, entry in enumerate(create_dataset("chain_sum", seed=0, size=num, **shape)):
        right = draw.randint(1, GROUP - 1)
        made.append(
            {
                "id": str(number),
                "prompt": examples + turns(entry, solved=False),
                "answer": entry["answer"],
                "rewards": [1.0] * right + [0.0] * (GROUP - right),
            }
        )
    return made


class Recorded:
    """Scores rollouts by what is recorded for their question, and keeps the groups."""

    def __init__(self, asked: Sequence[dict[str, Any]]) -> None:
        self.rewards = {row["id"]: row["rewards"] for row in asked}
        self.groups: list[Group] = []

    def score(self, groups: Sequence[Group], engine: Any = None) -> None:
        for group in groups:
            for rollout, reward in zip(group.rollouts, self.rewards[group.task.example.id], strict=True):
                rollout.reward, rollout.reason = reward, "correct" if reward else "wrong"
        self.groups = list(groups)


# ------------------------------------------------------------------------------------------------ our side


class Ours:
    """Our trainer, stepped and timed with recorded rewards or with those of the verifier."""

    def __init__(self, arguments: argparse.Namespace, asked: Sequence[dict[str, Any]], folder: Path) -> None:
        data, recipe = folder / "rows.jsonl", folder / "config.yaml"
        data.write_text("".join(json.dumps(row) + "\n" for row in asked))
        recipe.write_text(CONFIG)
        settings = {
            "model.path": arguments.model,
            "data.train": data,
            "rollout.groups_per_step": arguments.questions,
            "train.threads": arguments.threads,
            "train.output": folder / "run",
        }
        self.trainer = Trainer(load_config(recipe, [f"{name}={value}" for name, value in settings.items()]))
        self.recorded, self.verified = Recorded(asked), self.trainer.scorer

    def step(self, scorer: Scorer) -> dict[str, float]:
        """The step's metrics, and the seconds of all of it."""
        self.trainer.scorer = scorer
        started = time.perf_counter()
        metrics = self.trainer.step()
        return {**metrics, "seconds": time.perf_counter() - started}


def median(steps: Sequence[dict[str, float]], name: str) -> float:
    return statistics.median(step[name] for step in steps)


# ------------------------------------------------------------------------------------------------ TRL's side


@dataclass(frozen=True)
class Choice:
    """Settings of TRL that change its speed."""

    batch: int = 8
    """Rows of a micro-batch (`per_device_train_batch_size`)."""
    generated: int = QUESTIONS * GROUP
    """Rows generated at once (`per_device_train_batch_size * steps_per_generation`)."""
    cache: str | None = None
    """`cache_implementation`, or `continuous` for `use_transformers_continuous_batching`."""

    def settings(self, num_rows: int) -> dict[str, Any]:
        """TRL's names of them, for steps of `num_rows` rollouts."""
        continuous = self.cache == "continuous"
        return {
            "steps_per_generation": min(self.generated, num_rows) // self.batch,
            "cache_implementation": None if continuous else self.cache,
            "use_transformers_continuous_batching": continuous,
            "transformers_continuous_batching_config": PAGES if continuous else None,
            "adam_beta2": 0.95,
        }


def reward(rewards: Sequence[Sequence[float]], **_: Any) -> list[float]:
    """Rollouts of a row follow each other."""
    return [recorded[i % GROUP] for i, recorded in enumerate(rewards)]


def trl_side(
    arguments: argparse.Namespace, asked: Sequence[dict[str, Any]], choice: Choice, callbacks: Sequence[Any] = ()
) -> Any:
    return trl_trainer(
        *embedded(arguments.model),
        asked,
        reward,
        groups=arguments.questions,
        batch=choice.batch,
        max_new_tokens=NEW,
        steps=arguments.rounds,
        callbacks=callbacks,
        **choice.settings(arguments.questions * GROUP),
    )


def turns_with(take_turn: Callable[[], None]) -> Any:
    """A callback of TRL's that times its steps, and gives the other sides a turn before and after each."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            take_turn()

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.perf_counter() - self.started)
            take_turn()

    return Turns()


# ------------------------------------------------------------------------------------------------ the same work


def same_work(ours: Ours, trl: Any) -> dict[str, float]:
    """How far apart loss, gradient and its norm are on recorded rollouts: a right and a wrong one of two groups.

    Raises:
        AssertionError: the prompts differ, or one of the others by more than 1e-4.
    """
    trainer = ours.trainer
    groups = [replace(group, rollouts=group.rollouts[:: GROUP - 1]) for group in ours.recorded.groups[:2]]
    theirs, _, _ = trl._tokenize_prompts([[dict(m) for m in group.task.messages] for group in groups])
    assert [list(ids) for ids in theirs] == [group.prompt_ids for group in groups], "the prompts differ"

    records = [
        {"prompt": g.prompt_ids, "completions": [r.token_ids for r in g.rollouts], "advantages": of_group}
        for g, of_group in zip(groups, advantages(groups, trainer.config), strict=True)
    ]
    trl.model.train()
    loss = trl_update(trl, records, batch=2)
    norm = torch.nn.utils.get_total_norm([p.grad for p in trl.model.parameters() if p.grad is not None]).item()
    direction = gradient(trl.model, 10_000)
    trl.model.zero_grad()

    seen: list[torch.Tensor] = []
    optimizer = trainer.updater.optimizer.optimizer
    hook = optimizer.register_step_pre_hook(lambda *_: seen.append(gradient(trainer.model, 10_000)))
    metrics = trainer.updater.update(groups)
    hook.remove()
    apart = {
        "loss_apart": abs(metrics["loss"] - loss),
        "gradient_apart": (seen[0] - direction).norm().item(),
        "norm_apart": abs(metrics["grad_norm"] / norm - 1),
    }
    assert max(apart.values()) < 1e-4, f"the two sides do not compute the same: {apart}"
    return apart


# ------------------------------------------------------------------------------------------------ TRL's best settings


def search(
    arguments: argparse.Namespace, asked: Sequence[dict[str, Any]]
) -> tuple[Choice, dict[str, dict[str, float]]]:
    """TRL's fastest settings, and the seconds a row that each took which was tried: micro-batches in the update, rows
    at once and caches in generation."""
    trl = trl_side(arguments, asked, Choice())
    trl.model.train()
    step_rows = [row["prompt"] for row in asked[: arguments.questions] for _ in range(GROUP)]
    ids, _, _ = trl._tokenize_prompts(step_rows)
    noise = torch.Generator().manual_seed(0)
    group = {"prompt": ids[0], "completions": torch.randint(9, 600, (GROUP, NEW), generator=noise).tolist()}

    def update(batch: int) -> float:
        return seconds(lambda: trl_update(trl, [group], batch)) / GROUP

    def generate(cache: str | None, at_once: int) -> float:
        side = trl if cache is None else trl_side(arguments, asked, Choice(cache=cache))
        return seconds(lambda: side._generate_single_turn(ids[:at_once], None, {}, GROUP)) / at_once

    trl_update(trl, [group], GROUP)  # to warm up
    updates = {batch: update(batch) for batch in BATCHES}
    generations = {(n, cache): generate(cache, n) for cache in CACHES for n in AT_ONCE if n <= len(ids)}
    tried = {
        "update": {str(batch): round(took, 3) for batch, took in updates.items()},
        "generation": {f"{n}, {cache or 'default'}": round(took, 3) for (n, cache), took in generations.items()},
    }
    show({"tried": "seconds a row", **tried})
    return Choice(min(updates, key=updates.__getitem__), *min(generations, key=generations.__getitem__)), tried


# ------------------------------------------------------------------------------------------------ all of it


def result_name(arguments: argparse.Namespace) -> str:
    return f"real/step-{arguments.examples}-examples-{arguments.threads}-thread{'s' * (arguments.threads > 1)}"


def compare(name: str, theirs: Sequence[float], ours: Sequence[float], **extra: Any) -> dict[str, Any]:
    """How many times TRL's median step is ours; the spread is over all pairs of steps."""
    middle = {"median_s": round(statistics.median(ours), 2), "baseline_s": round(statistics.median(theirs), 2)}
    pairs = [b / o for b in theirs for o in ours]
    ratio = middle["baseline_s"] / middle["median_s"]
    return line(name, pairs, ratio=ratio, **middle, steps=[len(ours), len(theirs)], **extra)


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    asked, name = rows(4 * arguments.questions, arguments.examples), result_name(arguments)
    kept = read(STORED).get(name)
    if kept is None or arguments.search:
        choice, tried = search(arguments, asked)
    else:
        choice, tried = Choice(**kept["trl"]), kept["tried"]

    ours = Ours(arguments, asked, folder)
    recorded: list[dict[str, float]] = []
    natural: list[dict[str, float]] = []

    def take_turn() -> None:
        for _ in range(arguments.steps):
            recorded.append(ours.step(ours.recorded))
            natural.append(ours.step(ours.verified))

    turns = turns_with(take_turn)
    with ours.trainer.verifiers:
        ours.step(ours.recorded)  # to warm up
        apart = same_work(ours, trl_side(arguments, asked, Choice()))
        gc.collect()  # trainers of TRL's hold themselves, and gigabytes
        trl_side(arguments, asked, choice, [turns]).train()
    stages = {stage: round(median(recorded, f"time/{stage}"), 2) for stage in ("generate", "update")}
    sizes = {
        "prompt_tokens": len(ours.recorded.groups[0].prompt_ids),
        "rollout_tokens": median(recorded, "rollout_tokens"),
    }
    shares = {
        "mixed": round(1 - statistics.mean(step["answer/zero_variance_rate"] for step in natural), 3),
        "right": round(statistics.mean(step["answer/accuracy"] for step in natural), 3),
    }
    times = [[step["seconds"] for step in steps] for steps in (recorded, natural)]
    settings = {"trl": asdict(choice), "tried": tried}
    return [
        compare(name, turns.seconds, times[0], at_least=TARGET, **stages, **sizes, **apart, **settings),
        compare(f"{name}-natural", turns.seconds, times[1], **shares),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="a folder; by default that of `recipes/smollm2`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--examples", type=int, default=2, help="worked examples before each question")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="fewer only to see that it works")
    parser.add_argument("--rounds", type=int, default=1, help="steps of TRL")
    parser.add_argument("--steps", type=int, default=3, help="steps of ours before and after each of them")
    parser.add_argument("--search", action="store_true", help="find TRL's fastest settings anew")
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        results = measure(arguments, Path(name))
    for result in results:
        show(result)
    settle({result["name"]: result for result in results}, arguments.store)


if __name__ == "__main__":
    main()
