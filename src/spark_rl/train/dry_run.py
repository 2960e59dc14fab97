"""What a run would do and need, for `--dry-run`: the figures of `plan` and the config, as text or as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from spark_rl.config import Config
from spark_rl.data import Data
from spark_rl.train import machine
from spark_rl.train.estimate import readable
from spark_rl.train.model import mixed_precision
from spark_rl.train.plan import Plan, make_plan
from spark_rl.types import Role


def describe(config: Config, data: Data | None = None) -> str:
    """Everything a user should check before a run, as text; arguments and errors are those of `make_plan`."""
    plan = make_plan(config, data)
    parts = ["# Config", plan.config.dump(), "# One step", _arithmetic(plan)]
    parts += [_tokens_text(plan), _memory_text(plan), _disk_text(plan)]
    for role, tasks in plan.prompts.items():
        parts += _examples_text(plan, role)
        for task in tasks[:2]:
            parts += [f"# {role} prompt ({task.template or 'as in the data'}), label {task.label}"]
            parts += [plan.renderer.text(task.messages)]
    return "\n".join(parts)


def _examples_text(plan: Plan, role: Role) -> list[str]:
    """The worked examples of a role, once, as text."""
    turns = plan.first_renderer.prompts.examples.get(role, ())
    if not turns:
        return []
    tokens = (plan.warm_roles or plan.roles)[role].example_tokens
    which = "prompt of the warm start" if plan.warm_roles else "prompt"
    counted = f"{len(turns) // 2} worked, {tokens} tokens; they stand before each {which}"
    return [f"# {role} examples ({counted})", *(f"[{turn['role']}] {turn['content']}" for turn in turns), ""]


def figures(config: Config, data: Data | None = None) -> dict[str, Any]:
    """The figures of `describe` as one JSON object; bytes and tokens."""
    plan = make_plan(config, data)
    step, steps = plan.step, config.train.steps
    return {
        "config": plan.config.model_dump(mode="json"),
        "questions": {
            "num": plan.num_questions,
            "sampled": plan.sampled,
            "too_long": plan.too_long,
            "max_prompt_tokens": plan.limit,
        },
        "roles": {
            role: asdict(r) | {"prompt_tokens": r.prompt_tokens, "rollout_tokens": r.rollout_tokens}
            for role, r in plan.roles.items()
        },
        "step": asdict(step),
        "warm_step": asdict(plan.warm_step) if plan.warm_step else None,
        "run": {
            "steps": steps,
            "warm_start_steps": config.warm_start.steps,
            "rollouts": steps * step.rollouts,
            "prompt_tokens": steps * step.prompt_tokens,
            "rollout_tokens": steps * step.rollout_tokens,
        },
        "model": {"architecture": plan.architecture, **asdict(plan.shape)},
        "memory": {
            **asdict(plan.memory),
            "peak": plan.memory.peak,
            "available": plan.available,
            "device": plan.device,
            "processes": machine.num_processes(),
            "advice": plan.advice,
        },
        "disk": {"needed": plan.disk, "free": machine.free_disk_bytes(config.train.output)},
    }


def _arithmetic(plan: Plan) -> str:
    config, lines = plan.config, []
    for role, groups in config.slots().items():
        n, limit = config.num_generations(role), config.max_new_tokens(role)
        lines.append(f"{role:<11}{groups:>5} groups x {n} rollouts = {groups * n:>5}, of at most {limit} tokens each")
    rollouts = sum(groups * config.num_generations(role) for role, groups in config.slots().items())
    asked = config.slots()[Role.ANSWER] * config.train.steps
    calls = "one generation call"
    if config.rollout.refill_rounds:
        calls = f"up to {plan.step.generation_calls} generation calls (rollout.refill_rounds)"
    lines += [
        f"together   {config.rollout.groups_per_step:>5} groups, {rollouts} rollouts, {calls} and "
        f"{config.train.epochs_per_step} optimizer step(s)",
        f"{config.train.steps} steps ask at least {asked} questions: {asked / plan.num_questions:.2f} passes over the "
        f"{plan.num_questions} of the data (what the pool cannot fill goes to further questions)",
    ]
    if config.warm_start.steps:
        lines += [_warm_start(config)]
    if config.self_reward.enabled:
        lines += [_judgements(config)]
    if config.recycle.schedule == "alternating":
        lines += ["alternating: these shares hold over time; a step has questions only, or recycled prompts only"]
    return "\n".join(lines) + "\n"


def _warm_start(config: Config) -> str:
    """What comes before."""
    warm, groups = config.warm_start, config.rollout.groups_per_step
    kinds = [f"{groups} rows with responses"] if warm.data else []
    if warm.from_rollouts:
        kinds.append("the right rollouts of such a step, made with the worked examples below, which RL does without")
    return f"before them {warm.steps} supervised steps (warm_start), each on {' and on '.join(kinds)}"


def _judgements(config: Config) -> str:
    """What self-reward adds, if every question of a step had to be judged and all of its rollouts differed."""
    settings, n = config.self_reward, config.num_generations(Role.ANSWER)
    a_group = settings.samples * (n if settings.kind == "pointwise" else n * (n - 1))
    limit = settings.max_new_tokens or config.max_new_tokens(Role(settings.kind))
    return (
        f"self_reward: once it is on, up to {config.slots()[Role.ANSWER] * a_group} judgements a step, of at most "
        f"{limit} tokens each, in a generation call of their own (not counted below)"
    )


def _tokens_text(plan: Plan) -> str:
    step, steps = plan.step, plan.config.train.steps
    counted = ", worked examples included" if plan.renderer.prompts.examples else ""
    lines = [
        f"# Tokens ({plan.sampled} questions measured; recycled prompts with responses of the longest allowed length"
        f"{counted})"
    ]
    lines += [f"{'':<11}{'prompt mean':>12}{'longest':>9}{'prompts/step':>14}{'rollouts/step, at most':>24}"]
    for role, r in plan.roles.items():
        lines += [
            f"{role:<11}{r.prompt_mean:>12.0f}{r.prompt_longest:>9,}{r.prompt_tokens:>14,}{r.rollout_tokens:>24,}"
        ]
    if patches := sum(r.groups * r.patches_mean for r in plan.roles.values()):
        lines += [f"images: {patches:,.0f} patches a step go through the vision tower, once a group"]
    elif plan.renderer.images is not None:
        lines += ["images: none"]
    if warm := plan.warm_step:
        lines += [
            f"a step of the warm start, worked examples included, at most: {warm.rollouts:,} rollouts, "
            f"{warm.rollout_tokens:,} rollout tokens, and {warm.prompt_tokens:,} prompt tokens at the mean length"
        ]
    lines += [
        f"a step, at most: {step.rollouts:,} rollouts, {step.rollout_tokens:,} rollout tokens, and "
        f"{step.prompt_tokens:,} prompt tokens at the mean length (the first step asks questions only)",
        f"{steps} steps, at most: {steps * step.rollout_tokens:,} rollout tokens, and {steps * step.prompt_tokens:,} "
        "prompt tokens",
        f"questions longer than {plan.limit:,} tokens, which are skipped: {plan.too_long} of {plan.sampled}",
    ]
    return "\n".join(lines) + "\n"


def _memory_text(plan: Plan) -> str:
    config, memory, world = plan.config, plan.memory, machine.num_processes()
    dtype = "bfloat16" if mixed_precision(config.model) == "bf16" else "float32"
    together = f"each of {world} processes" if world > 1 else "one process"
    frozen = f", 4 each of {plan.shape.num_frozen:,} frozen ones" if plan.shape.num_frozen else ""
    copies = "" if plan.shape.shares else "; each rollout has its own copy of the prompt, which this model cannot share"
    tower = ", those of the vision tower" if plan.shape.vision and not plan.shape.vision.is_frozen else ""
    rows = [
        ("weights, AdamW", memory.weights, f"12 bytes a parameter{frozen}"),
        ("reference", memory.reference, "4 bytes a parameter, for loss.kl_coef above 0"),
        ("runtime", memory.runtime, "libraries"),
        ("generation", memory.generation, f"cache (rollout.max_batch_tokens) and logits{copies}"),
        ("update", memory.update, f"gradients, activations (train.micro_batch_tokens in {dtype}){tower}, and logits"),
        ("optimizer", memory.optimizer, "gradients and temporaries"),
    ]
    lines = [
        f"# Memory of {together} ({plan.architecture}, {plan.shape.num_params:,} parameters; estimated, rollouts at "
        "their limits)"
    ]
    lines += [f"{name:<16}{readable(size):>12}  {what}" for name, size, what in rows if size]
    verdict = f"does not fit; {plan.advice}" if plan.advice else "fits"
    lines += [
        f"{'peak':<16}{readable(memory.peak):>12}  with the largest of the last three, of "
        f"{readable(plan.available)} on this machine ({plan.device}): {verdict}"
    ]
    return "\n".join(lines) + "\n"


def _disk_text(plan: Plan) -> str:
    needed, free = plan.disk, machine.free_disk_bytes(plan.config.train.output)
    verdict = "fits" if needed <= free else "does not fit; lower checkpoint.keep or set train.output to another disk"
    return f"# Disk\ncheckpoints and final/ take {readable(needed)} of {readable(free)} free: {verdict}\n"
