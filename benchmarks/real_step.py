"""A GRPO step of a real model, SmolLM2-135M-Instruct, beside TRL's. Not part of `make bench`: TRL takes minutes a step.

    make bench-real REAL="--threads 1 --store"

16 questions (sums and differences) with two worked examples as turns before each, 8 rollouts of up to 32 tokens,
float32, AdamW, `dapo`, no KL, no reference model. Both sides ask the same rows and get recorded rewards, one list a
row, in which every group has rights and wrongs: ours leaves out groups without signal, so rewards that the model earns
would flatter it. A step is all of it, from the questions to the changed weights; ours takes turns with TRL's, several
before and after each of them. `real/natural` is the same with rewards that the `math` verifier gives, on other
questions of the kind, and says which share of the groups has signal.

Before that the work is seen to be the same: equal prompts, and loss and gradient of recorded rollouts to 1e-4.

TRL gets the settings that are fastest for it. They are those of the stored result, or searched for (`--search`): rows
of a micro-batch, rows that are generated at once, and the cache they are generated with. Rows generated at once that
are not all of a step's (`steps_per_generation`) make TRL divide the loss by an estimate of the step's tokens, which is
another loss but the same work. `without_prompt_logits` is what its update would take of its time if it left out the
logits of the prompts, as it does on a GPU with Triton; no setting makes it do so on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from harness import embedded, gradient, line, seconds, show, trl_trainer, trl_update
from run import STORED, read, settle

from spark_rl.config import load_config
from spark_rl.train.advantages import advantages
from spark_rl.train.loop import Trainer
from spark_rl.types import Group

MODEL = os.environ.get("SPARK_RL_REAL_MODEL", "models/smollm2")
QUESTIONS, GROUP, NEW = 16, 8, 32
BATCHES, AT_ONCE, CACHES = (1, 2, 4, 8, 16), (8, 32, 128), (None, "static", "continuous")
"""What is tried of TRL's settings."""
TARGET = 15.0
CONFIG = """
preset: grpo
model: {dtype: float32}
data: {bad_rows: refuse}
rollout: {num_generations: 8, max_new_tokens: 32}
train: {learning_rate: 1.0e-9, schedule: constant, steps: 1000}
"""
"""The learning rate is one that changes nothing, so that all steps are of the same model."""


# ------------------------------------------------------------------------------------------------ rows and rewards


def asked(question: str) -> dict[str, str]:
    instruction = r"Reason step by step, then put your final answer in \boxed{}."
    return {"role": "user", "content": f"{question}\n\n{instruction}"}


def answered(reply: str) -> dict[str, str]:
    return {"role": "assistant", "content": reply}


EXAMPLES = (
    asked("What is 17 + 25 - 8?"),
    answered(r"17 + 25 = 42. 42 - 8 = 34. The answer is \boxed{34}."),
    asked("What is 46 - 19 + 5?"),
    answered(r"46 - 19 = 27. 27 + 5 = 32. The answer is \boxed{32}."),
)


def rows(num: int, seed: int) -> list[dict[str, Any]]:
    """Questions after the worked examples, their answers, and the rewards of their rollouts: the first few are right,
    at least one, and never all."""
    draw = random.Random(seed)
    made = []
    for number in range(num):
        a, b, c = draw.randint(20, 60), draw.randint(10, 60), draw.randint(2, 19)
        right = draw.randint(1, GROUP - 1)
        made.append(
            {
                "id": f"{seed}-{number}",
                "prompt": [*EXAMPLES, asked(f"What is {a} + {b} - {c}?")],
                "answer": str(a + b - c),
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
    """One of our trainers, stepped and timed."""

    def __init__(
        self, arguments: argparse.Namespace, asked: Sequence[dict[str, Any]], folder: Path, recorded: bool = True
    ) -> None:
        folder.mkdir()
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
        self.scorer = Recorded(asked)
        if recorded:
            self.trainer.scorer = self.scorer
        self.steps: list[dict[str, float]] = []

    def step(self) -> None:
        started = time.perf_counter()
        metrics = self.trainer.step()
        self.steps.append({**metrics, "seconds": time.perf_counter() - started})

    def median(self, name: str) -> float:
        return statistics.median(step[name] for step in self.steps)

    @property
    def seconds(self) -> list[float]:
        return [step["seconds"] for step in self.steps]


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

    def settings(self) -> dict[str, Any]:
        continuous = self.cache == "continuous"
        return {
            "steps_per_generation": self.generated // self.batch,
            "cache_implementation": None if continuous else self.cache,
            "use_transformers_continuous_batching": continuous,
            "adam_beta2": 0.95,
        }


def reward(rewards: Sequence[Sequence[float]], **_: Any) -> list[float]:
    """Rollouts of a row follow each other."""
    return [recorded[i % GROUP] for i, recorded in enumerate(rewards)]


def trl_side(
    model: str, asked: Sequence[dict[str, Any]], choice: Choice, steps: int = 1, callbacks: Sequence[Any] = ()
) -> Any:
    return trl_trainer(
        *embedded(model),
        asked,
        reward,
        groups=len(asked),
        batch=choice.batch,
        max_new_tokens=NEW,
        steps=steps,
        callbacks=callbacks,
        **choice.settings(),
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
    groups = [replace(group, rollouts=group.rollouts[:: GROUP - 1]) for group in ours.scorer.groups[:2]]
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


def search(model: str, asked: Sequence[dict[str, Any]]) -> tuple[Choice, dict[str, dict[str, float]]]:
    """TRL's fastest settings, and the seconds a row that each took which was tried: micro-batches in the update, rows
    at once and caches in generation."""
    trl = trl_side(model, asked, Choice())
    trl.model.train()
    ids, _, _ = trl._tokenize_prompts([row["prompt"] for row in asked for _ in range(GROUP)])
    noise = torch.Generator().manual_seed(0)
    groups = [
        {"prompt": prompt, "completions": torch.randint(9, 600, (GROUP, NEW), generator=noise).tolist()}
        for prompt in (ids[0], ids[-1])
    ]

    def update(batch: int) -> float:
        return seconds(lambda: trl_update(trl, groups, batch)) / (2 * GROUP)

    def generate(cache: str | None, at_once: int) -> float:
        side = trl if cache is None else trl_side(model, asked, Choice(cache=cache))
        return seconds(lambda: side._generate_single_turn(ids[:at_once], None, {}, GROUP)) / at_once

    trl_update(trl, groups[:1], GROUP)  # to warm up
    updates = {batch: update(batch) for batch in BATCHES}
    generations = {(n, cache): generate(cache, n) for cache in CACHES for n in AT_ONCE if n <= len(ids)}
    tried = {
        "update": {str(batch): round(took, 3) for batch, took in updates.items()},
        "generation": {f"{n}, {cache or 'default'}": round(took, 3) for (n, cache), took in generations.items()},
    }
    show({"tried": "seconds a row", **tried})
    return Choice(min(updates, key=updates.__getitem__), *min(generations, key=generations.__getitem__)), tried


# ------------------------------------------------------------------------------------------------ all of it


def result_name(threads: int) -> str:
    return f"real/step-{threads}-thread{'s' * (threads > 1)}"


def compare(name: str, theirs: Sequence[float], ours: Sequence[float], **extra: Any) -> dict[str, Any]:
    """How many times TRL's median step is ours; the spread is over all pairs of steps."""
    middle = {"median_s": round(statistics.median(ours), 2), "baseline_s": round(statistics.median(theirs), 2)}
    pairs = [b / o for b in theirs for o in ours]
    ratio = middle["baseline_s"] / middle["median_s"]
    return line(name, pairs, ratio=ratio, **middle, steps=[len(ours), len(theirs)], **extra)


def measure(arguments: argparse.Namespace, folder: Path, stack: ExitStack) -> list[dict[str, Any]]:
    asked, name = rows(arguments.questions, seed=0), result_name(arguments.threads)
    kept = read(STORED).get(name, {})
    choice, tried = Choice(**kept["trl"]) if kept else None, kept.get("tried")
    if choice is None or arguments.search:
        choice, tried = search(arguments.model, asked)

    recorded = Ours(arguments, asked, folder / "recorded")
    other = rows(4 * arguments.questions, seed=1)
    natural = Ours(arguments, other, folder / "natural", recorded=False)
    for side in (recorded, natural):
        stack.enter_context(side.trainer.verifiers)
        side.step()  # to warm up
    apart = same_work(recorded, trl_side(arguments.model, asked, replace(choice, batch=8)))
    for side in (recorded, natural):
        side.steps.clear()

    def take_turn() -> None:
        for side in (recorded, natural):
            for _ in range(arguments.steps):
                side.step()

    turns = turns_with(take_turn)
    trl_side(arguments.model, asked, choice, arguments.rounds, [turns]).train()
    stages = {stage: round(recorded.median(f"time/{stage}"), 2) for stage in ("generate", "update")}
    mixed = 1 - statistics.mean(step["answer/zero_variance_rate"] for step in natural.steps)
    right = statistics.mean(step["answer/accuracy"] for step in natural.steps)
    settings = {"trl": asdict(choice), "tried": tried}
    return [
        compare(name, turns.seconds, recorded.seconds, at_least=TARGET, **stages, **apart, **settings),
        compare(f"{name}-natural", turns.seconds, natural.seconds, mixed=round(mixed, 3), right=round(right, 3)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, help="a folder; by default that of `recipes/smollm2`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="fewer only to see that it works")
    parser.add_argument("--rounds", type=int, default=1, help="steps of TRL")
    parser.add_argument("--steps", type=int, default=3, help="steps of ours before and after each of them")
    parser.add_argument("--search", action="store_true", help="find TRL's fastest settings anew")
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        results = measure(arguments, Path(name), stack)
    for result in results:
        show(result)
    settle({result["name"]: result for result in results}, arguments.store)


if __name__ == "__main__":
    main()
