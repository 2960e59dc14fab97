"""Small examples, rollouts and groups. Rewards are honest unless a test says otherwise."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from warm import kill

from spark_rl.config import Config, config_from, load_config
from spark_rl.data import question_task
from spark_rl.prompts import Prompts
from spark_rl.types import Example, Group, Role, Rollout, Task
from spark_rl.verify import box, extract_answer, grade


def make_config(**sections: Any) -> Config:
    """A config of a few changed values: `make_config(loss={"kl_coef": 0.1})`."""
    return config_from(sections)


SMALL_RUN = [
    "preset=spark",
    "rollout.groups_per_step=12",
    "rollout.num_generations=4",
    "rollout.max_new_tokens=16",
    "train.learning_rate=1e-3",
    "train.threads=1",
    "train.steps=3",
    "data.train={path: embedded:train, size: 200}",
]
"""Overrides that make a run of the embedded base last a second or two."""


def small_run(output: Path, *overrides: str) -> Config:
    """`SMALL_RUN` with further overrides, which win."""
    return load_config(None, [*SMALL_RUN, f"train.output={output}", *overrides])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines(rows: Sequence[Any]) -> str:
    """Rows as JSONL; a text stands as it is."""
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def kill_once_it_writes(command: Sequence[str], out: Path) -> None:
    """Run a command, and kill it at a random moment soon after `out` holds something."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not (out.exists() and out.stat().st_size) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(random.random() * 0.4)
        kill(process)


def make_example(number: int = 2, **changes: Any) -> Example:
    """ "What is `number` plus one?", numerically verified."""
    question = f"What is {number} plus one?"
    values: dict[str, Any] = {
        "id": f"q{number}",
        "prompt": Prompts().question(question),
        "question": question,
        "answer": str(number + 1),
        "verifier": "numeric",
        "source": "successor",
    }
    return Example(**values | changes)


def make_rollout(text: str, reward: float | None, id: str = "r", **changes: Any) -> Rollout:
    """A rollout of one token a character."""
    values: dict[str, Any] = {
        "id": id,
        "token_ids": list(range(len(text))),
        "logps": [-1.0] * len(text),
        "text": text,
        "finish_reason": "stop",
        "reward": reward,
        "extracted": extract_answer(text),
    }
    return Rollout(**values | changes)


def make_group(task: Task, texts: Sequence[str], rewards: Sequence[float | None] | None = None) -> Group:
    """A group with these responses, graded by the task's verifier or given these rewards."""
    given = [honest_reward(task, text) for text in texts] if rewards is None else rewards
    pairs = zip(texts, given, strict=True)
    rollouts = [make_rollout(text, reward, f"{task.id}:{i}") for i, (text, reward) in enumerate(pairs)]
    return Group(task=task, prompt_ids=[1, 2, 3], rollouts=rollouts)


def honest_reward(task: Task, text: str) -> float | None:
    answer = extract_answer(text)
    return 0.0 if answer is None else grade(answer, task.label, task.verifier, task.example.metadata).reward


def question_group(number: int, answers: Sequence[int | None]) -> Group:
    """Responses to "what is `number` plus one?" that come to these answers; None gives no answer."""
    texts = [
        f"Attempt {i}: I am not sure." if answer is None else f"Attempt {i}: it must be so.\n{box(str(answer))}"
        for i, answer in enumerate(answers)
    ]
    return make_group(question_task(make_example(number)), texts)


def reward_group(rewards: Sequence[float | None], role: Role = Role.ANSWER, lengths: Sequence[int] = ()) -> Group:
    """A group of a role with these rewards, and completions of these lengths (1 each by default)."""
    example = make_example()
    task = Task("t", role, example.prompt, example.answer, example.verifier, example)
    sizes = lengths or [1] * len(rewards)
    rollouts = [
        make_rollout("", reward, f"t:{i}", token_ids=[i % 7] * n, logps=[-1.0] * n)
        for i, (reward, n) in enumerate(zip(rewards, sizes, strict=True))
    ]
    return Group(task=task, prompt_ids=[1, 2, 3], rollouts=rollouts)
