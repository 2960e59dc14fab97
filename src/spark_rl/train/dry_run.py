"""What a run would do, without a model: resolved config, a step's arithmetic, two prompts of each role."""

from __future__ import annotations

import itertools

from spark_rl.config import Config
from spark_rl.data import load_tasks
from spark_rl.prompts import ChatRenderer
from spark_rl.recycle import recycle
from spark_rl.train.model import load_tokenizer
from spark_rl.types import Group, Role, Rollout, Task
from spark_rl.verify import box


def describe(config: Config) -> str:
    """Everything a user should check before a run, as text.

    Raises:
        ValueError: what the run would raise for its data or tokenizer.
    """
    tasks = load_tasks(config.data.train, config.data)
    load_tasks([*config.data.validation, *config.data.monitor], config.data)
    renderer = ChatRenderer(load_tokenizer(config.model), config.model.chat_template_kwargs)
    parts = ["# Config", config.dump(), "# One step", _arithmetic(config, len(tasks))]
    for role, examples in _prompts(config, tasks).items():
        for task in examples[:2]:
            parts += [f"# {role} prompt ({task.template or 'as in the data'}), label {task.label}"]
            parts += [renderer.text(task.messages)]
    return "\n".join(parts)


def _arithmetic(config: Config, num_questions: int) -> str:
    lines = []
    for role, groups in config.slots().items():
        n, limit = config.num_generations(role), config.max_new_tokens(role)
        lines.append(f"{role:<11}{groups:>5} groups x {n} rollouts = {groups * n:>5}, of at most {limit} tokens each")
    rollouts = sum(groups * config.num_generations(role) for role, groups in config.slots().items())
    asked = config.slots()[Role.ANSWER] * config.train.steps
    lines += [
        f"together   {config.rollout.groups_per_step:>5} groups, {rollouts} rollouts, one generation call and "
        f"{config.train.epochs_per_step} optimizer step(s)",
        f"{config.train.steps} steps ask at least {asked} questions: {asked / num_questions:.2f} passes over the "
        f"{num_questions} of the data (what the pool cannot fill goes to further questions)",
    ]
    if config.recycle.schedule == "alternating":
        lines += ["alternating: these shares hold over time; a step has questions only, or recycled prompts only"]
    return "\n".join(lines) + "\n"


def _prompts(config: Config, tasks: list[Task]) -> dict[Role, list[Task]]:
    """Questions, and what recycling makes of them when one rollout is right and another question's answer is wrong."""
    groups = []
    for task, other in itertools.pairwise(tasks[:50]):
        if task.label == other.label:
            continue
        rollouts = [
            Rollout(f"{task.id}:{i}", [], [], f"(reasoning)\n{box(answer)}", "stop", reward, answer, "")
            for i, (answer, reward) in enumerate([(task.label, 1.0), (other.label, 0.0)])
        ]
        groups.append(Group(task, [], rollouts))
    made = recycle(groups, config.recycle, seed=config.train.seed, step=1)
    recycled = [task for bundle in made.bundles for task in bundle]
    return {
        role: [task for task in [*tasks[:2], *recycled] if task.role is role]
        for role in Role
        if config.roles[role].share > 0
    }
