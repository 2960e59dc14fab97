"""A step whose prompts begin with the same worked examples, against the step without them. One JSON line a model.

    OMP_NUM_THREADS=1 python benchmarks/bench_prefix.py [--model FOLDER]

A step is generation and update of 16 groups of 8 rollouts of 32 tokens, after questions of 40 tokens; the examples are
400 tokens before each. `ratio` is what the step costs with them to what it costs without; `unshared` the same where
each prompt is computed whole. Sides take turns. Beside the embedded model runs the one in FOLDER, or in the variable
`SPARK_RL_REAL_MODEL`, if there is one. Its target is 1.3; the embedded one's is 2, whose layers are so narrow that
attention to 400 further tokens is as much work as all the rest.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from harness import NoText, embedded, interleaved, line, show

from spark_rl.config import config_from
from spark_rl.models import prefixes
from spark_rl.rollout.engine import Completion, Request
from spark_rl.rollout.transformers_engine import TransformersEngine
from spark_rl.train.update import Updater
from spark_rl.types import Example, Group, Role, Rollout, Task

GROUPS, ROLLOUTS, QUESTION, EXAMPLES, NEW = 16, 8, 40, 400, 32
EXAMPLE = Example("q", [{"role": "user", "content": "?"}], "?", "1", "exact", "bench")


class Endless(NoText):
    eos_token_id = None


@contextmanager
def unshared() -> Iterator[None]:
    """Inside no prefix saves enough."""
    fixed = prefixes._FIXED
    prefixes._FIXED = 10**9
    try:
        yield
    finally:
        prefixes._FIXED = fixed


class Step:
    """Steps of one model on random tokens."""

    def __init__(self, model: Any) -> None:
        model.generation_config.eos_token_id = None
        config = config_from({"train": {"learning_rate": 1e-9}, "preset": "grpo"})
        self.engine = TransformersEngine(model, Endless())
        self.updater = Updater(model, config, Accelerator(cpu=True), 0, print)
        generator = torch.Generator().manual_seed(1)
        size = (EXAMPLES + GROUPS * QUESTION,)
        ids = torch.randint(3, model.config.vocab_size, size, generator=generator).tolist()
        self.examples, own = tuple(ids[:EXAMPLES]), ids[EXAMPLES:]
        self.questions = [tuple(own[i : i + QUESTION]) for i in range(0, len(own), QUESTION)]

    def run(self, examples: tuple[int, ...] = ()) -> None:
        requests = [Request(str(i), examples + q, ROLLOUTS, NEW, seed=i) for i, q in enumerate(self.questions)]
        completions = self.engine.generate(requests)
        self.updater.update([group(r, made) for r, made in zip(requests, completions, strict=True)])

    def run_unshared(self) -> None:
        with unshared():
            self.run(self.examples)


def group(request: Request, completions: list[Completion]) -> Group:
    """Graded half right, half wrong, so that all of it is trained on."""
    rollouts = [
        Rollout(f"{request.id}:{i}", c.token_ids, c.logps, c.text, c.finish_reason, reward=float(i % 2), extracted=None)
        for i, c in enumerate(completions)
    ]
    task = Task(request.id, Role.ANSWER, EXAMPLE.prompt, EXAMPLE.answer, EXAMPLE.verifier, EXAMPLE)
    return Group(task, list(request.prompt_ids), rollouts)


def run_model(name: str, path: str, target: float, rounds: int) -> None:
    model, _ = embedded(path)
    step = Step(model)
    bare, shared, whole = interleaved(step.run, lambda: step.run(step.examples), step.run_unshared, rounds=rounds)
    show(
        line(
            f"prefix/{name}",
            [s / b for s, b in zip(shared, bare, strict=True)],
            at_most=target,
            unshared=round(statistics.median(w / b for w, b in zip(whole, bare, strict=True)), 2),
            bare_s=round(statistics.median(bare), 3),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default=os.environ.get("SPARK_RL_REAL_MODEL"), help="folder of a real model")
    arguments = parser.parse_args()
    run_model("embedded", "embedded", 2.0, arguments.rounds)
    if arguments.model:
        run_model("real", arguments.model, 1.3, arguments.rounds)


if __name__ == "__main__":
    main()
