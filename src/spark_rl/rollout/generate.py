"""Tasks to groups: render the prompts, ask the engine once, wrap what comes back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from spark_rl.config import Config
from spark_rl.prompts import ChatRenderer
from spark_rl.rollout.engine import Engine, Request
from spark_rl.types import Group, Rollout, Task

Sampling = Callable[[Task], tuple[int, int, float]]
"""How many rollouts of a task, how many tokens at most, at what temperature."""


def training_sampling(config: Config) -> Sampling:
    """Sampling as the roles' settings say."""
    return lambda t: (config.num_generations(t.role), config.max_new_tokens(t.role), config.temperature(t.role))


def greedy_sampling(config: Config) -> Sampling:
    """One greedy rollout a task."""
    return lambda t: (1, config.max_new_tokens(t.role), 0.0)


def roll_out(
    tasks: Sequence[Task],
    engine: Engine,
    renderer: ChatRenderer,
    config: Config,
    sampling: Sampling,
    *,
    seed: int,
    step: int,
    progress: Callable[[float, int], None] | None = None,
) -> list[Group]:
    """Generate all tasks' rollouts in one engine call, their noise addressed by (seed, step, task id, sample)."""
    requests = []
    for task in tasks:
        n, max_new_tokens, temperature = sampling(task)
        requests.append(
            Request(
                id=task.id,
                prompt_ids=tuple(renderer.encode_task(task)),
                images=task.example.images,
                n=n,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=config.rollout.top_p if temperature else 1.0,
                stop=tuple(config.rollout.stop),
                seed=_address(seed, step, task.id),
            )
        )
    return [
        Group(
            task=task,
            prompt_ids=list(request.prompt_ids),
            rollouts=[
                Rollout(f"{step}:{task.id}:{i}", c.token_ids, c.logps, renderer.opening + c.text, c.finish_reason)
                for i, c in enumerate(completions)
            ],
        )
        for task, request, completions in zip(tasks, requests, engine.generate(requests, progress), strict=True)
    ]


def _address(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1
