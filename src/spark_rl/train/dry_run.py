"""What a run would do and need, without loading weights: config, a step's arithmetic, tokens, memory, prompts.

The model is built on torch's meta device, which counts parameters and allocates nothing. Lengths of questions are
measured on a sample; those of recycled prompts are bounds, since the responses they will show do not exist yet.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from spark_rl.config import Config, ModelConfig
from spark_rl.data import Data, load_data
from spark_rl.prompts import ChatRenderer
from spark_rl.recycle import recycle
from spark_rl.train import estimate, machine
from spark_rl.train.estimate import Implementation, Memory, ModelShape, readable
from spark_rl.train.forward import cheapest
from spark_rl.train.model import load_tokenizer, max_prompt_tokens, mixed_precision, resolve_path
from spark_rl.train.records import bytes_needed
from spark_rl.train.selection import Selection
from spark_rl.types import Group, Role, Rollout, Task
from spark_rl.verify import box

_SAMPLE = 200
"""Questions that are tokenised."""
_SHORT = 16
"""Tokens of a short rollout, such as a verdict without reasoning."""


@dataclass(frozen=True, slots=True)
class RoleTokens:
    """One role's part of a step."""

    groups: int
    num_generations: int
    max_new_tokens: int
    prompt_mean: float
    prompt_longest: int

    @property
    def rows(self) -> int:
        return self.groups * self.num_generations

    @property
    def prompt_tokens(self) -> int:
        return round(self.groups * self.prompt_mean)

    @property
    def rollout_tokens(self) -> int:
        """At most."""
        return self.rows * self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Plan:
    """All figures of a run and the prompts they were measured on."""

    config: Config
    num_questions: int
    sampled: int
    too_long: int
    """Sampled questions that exceed `limit`."""
    limit: int
    """Longest prompt, tokens."""
    roles: dict[Role, RoleTokens]
    shape: ModelShape
    architecture: str
    memory: Memory
    disk: int
    """Bytes of checkpoints and `final/`."""
    device: str
    available: int
    """Bytes that one process has."""
    advice: str | None
    """What to change if it does not fit."""
    prompts: dict[Role, list[Task]]
    renderer: ChatRenderer


def describe(config: Config, data: Data | None = None) -> str:
    """Everything a user should check before a run, as text.

    Args:
        data: what `load_data(config)` gives, if it was called before.

    Raises:
        ValueError: what the run would raise for its data, tokenizer or model.
    """
    plan = make_plan(config, data)
    parts = ["# Config", config.dump(), "# One step", _arithmetic(config, plan.num_questions)]
    parts += [_tokens_text(plan), _memory_text(plan), _disk_text(plan)]
    for role, examples in plan.prompts.items():
        for task in examples[:2]:
            parts += [f"# {role} prompt ({task.template or 'as in the data'}), label {task.label}"]
            parts += [plan.renderer.text(task.messages)]
    return "\n".join(parts)


def figures(config: Config, data: Data | None = None) -> dict[str, Any]:
    """The figures of `describe` as one JSON object; bytes and tokens."""
    plan = make_plan(config, data)
    roles, steps = plan.roles, config.train.steps
    return {
        "config": config.model_dump(mode="json"),
        "questions": {
            "num": plan.num_questions,
            "sampled": plan.sampled,
            "too_long": plan.too_long,
            "max_prompt_tokens": plan.limit,
        },
        "roles": {
            role: asdict(r) | {"prompt_tokens": r.prompt_tokens, "rollout_tokens": r.rollout_tokens}
            for role, r in roles.items()
        },
        "run": {
            "steps": steps,
            "rollouts": steps * sum(r.rows for r in roles.values()),
            "prompt_tokens": steps * sum(r.prompt_tokens for r in roles.values()),
            "rollout_tokens": steps * sum(r.rollout_tokens for r in roles.values()),
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


def make_plan(config: Config, data: Data | None = None) -> Plan:
    """Measure and count; see `describe`."""
    data = data or load_data(config)
    renderer = ChatRenderer(load_tokenizer(config.model), config.model.chat_template_kwargs)
    model = _empty_model(config.model)
    limit = max_prompt_tokens(config, model)
    Selection(config, data.train, renderer, limit).require_one()
    sample, _ = data.train.draw(min(_SAMPLE, data.train.num_rows))
    lengths = [len(renderer.encode(task.messages)) for task in sample]
    prompts = _prompts(config, sample)
    roles = {role: _role_tokens(config, role, tasks, renderer, limit) for role, tasks in prompts.items()}
    shape = _shape(model)
    device, available = machine.device_memory()
    memory = memory_of(config, shape, roles, device)
    return Plan(
        config=config,
        num_questions=data.train.num_rows,
        sampled=len(sample),
        too_long=sum(length > limit for length in lengths),
        limit=limit,
        roles=roles,
        shape=shape,
        architecture=type(model).__name__,
        memory=memory,
        disk=bytes_needed(model, config),
        device=device,
        available=available,
        advice=_advice(config, shape, roles, device, available),
        prompts=prompts,
        renderer=renderer,
    )


def memory_of(config: Config, shape: ModelShape, roles: Mapping[Role, RoleTokens], device: str) -> Memory:
    """Bytes that one process needs on its device."""
    world, on_cpu = machine.num_processes(), device == "cpu"
    shards = world if machine.is_sharded() else 1
    buckets = estimate.GRADIENT * shape.num_params if world > shards else 0  # DDP's copy of the gradients
    dtype_bytes = 2 if mixed_precision(config.model) == "bf16" else 4
    budget = config.rollout.max_batch_tokens or (16_384 if on_cpu else 131_072)  # as the engine chooses it
    kl = config.loss.kl_coef > 0
    return Memory(
        weights=(estimate.WEIGHT + estimate.MOMENTS) * shape.num_params // shards,
        reference=estimate.WEIGHT * shape.num_params if kl else 0,
        generation=max(_generation(shape, r, budget, world, dtype_bytes) for r in roles.values()),
        update=_update(config, shape, roles, world, dtype_bytes) + buckets,
        optimizer=estimate.optimizer_bytes(shape, on_accelerator=not on_cpu) // shards + buckets,
        runtime=estimate.RUNTIME_CPU if on_cpu else estimate.RUNTIME_GPU,
    )


def _generation(shape: ModelShape, role: RoleTokens, budget: int, world: int, dtype_bytes: int) -> int:
    """The largest chunk of a role's rows."""
    width = round(role.prompt_mean) + role.max_new_tokens
    rows = min(max(1, budget // width), -(-role.rows // world))
    return estimate.generation_bytes(shape, rows * width, rows, dtype_bytes)


def _update(config: Config, shape: ModelShape, roles: Mapping[Role, RoleTokens], world: int, dtype_bytes: int) -> int:
    """The largest micro-batch: of any role, its rollouts at their limit or short (more of them share a prompt)."""
    whole_step = sum(r.prompt_tokens + r.rollout_tokens for r in roles.values()) // world
    max_tokens = min(config.train.micro_batch_tokens, whole_step)
    num_groups = -(-config.rollout.groups_per_step // world)
    sizes = []
    for role in roles.values():
        prompt = round(role.prompt_mean)
        for new in {role.max_new_tokens, min(role.max_new_tokens, _SHORT)}:
            groups, rows = estimate.split_micro_batch(max_tokens, num_groups, role.num_generations, prompt, new)
            load = estimate.micro_batch(
                _implementation(config, shape, groups, rows, prompt, new), groups, rows, prompt, new
            )
            sizes.append(estimate.update_bytes(shape, load, dtype_bytes, config.model.activation_checkpointing))
    return max(sizes)


def _implementation(config: Config, shape: ModelShape, groups: int, rows: int, prompt: int, new: int) -> Implementation:
    """What `GroupLogProbs` would choose for an attention-only model."""
    if config.train.shared_prefix != "auto":
        return config.train.shared_prefix
    supported: list[Implementation] = ["plain", "packed"]
    if not config.model.activation_checkpointing and not machine.is_sharded():
        supported.append("cache")
    pair_cost = 3 / (4 * shape.hidden + 3 * shape.intermediate)
    return cheapest([prompt] * groups, [[new] * rows] * groups, pair_cost, supported)


def _advice(
    config: Config, shape: ModelShape, roles: Mapping[Role, RoleTokens], device: str, available: int
) -> str | None:
    """The setting to change if the run does not fit, or None."""
    memory = memory_of(config, shape, roles, device)
    if memory.peak <= available:
        return None
    left = available - memory.weights - memory.reference - memory.runtime
    if memory.optimizer > left:
        without = "set loss.kl_coef to 0, which needs no reference model, or " if memory.reference else ""
        return f"{without}choose a smaller model.path, or shard it over several devices (accelerate launch --use_fsdp)"
    changes = ["lower rollout.max_batch_tokens"] if memory.generation > left else []
    if memory.update > left:
        tokens = config.train.micro_batch_tokens
        while tokens > _SHORT and memory_of(_with_tokens(config, tokens), shape, roles, device).update > left:
            tokens //= 2
        if tokens > _SHORT:
            changes.append(f"lower train.micro_batch_tokens to {tokens}")
        if not config.model.activation_checkpointing:
            changes.append("set model.activation_checkpointing: true")
    return " or ".join(changes) or "lower rollout.max_new_tokens"


def _with_tokens(config: Config, tokens: int) -> Config:
    train = config.train.model_copy(update={"micro_batch_tokens": tokens})
    return config.model_copy(update={"train": train})


def _empty_model(config: ModelConfig) -> Any:
    """The causal LM on torch's meta device: every module, no weights.

    Raises:
        ValueError: the folder or id holds no config of a causal LM.
    """
    path = resolve_path(config.path)
    try:
        settings = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                settings, dtype=torch.float32, trust_remote_code=config.trust_remote_code
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"model.path: no causal LM could be built from {path!r} ({line})") from None


def _shape(model: Any) -> ModelShape:
    """The sizes that memory depends on; names as in most configs of transformers."""
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    intermediate = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    if experts := getattr(text, "num_experts_per_tok", None):
        intermediate = experts * (getattr(text, "moe_intermediate_size", None) or intermediate)
    return ModelShape(
        num_params=sum(parameter.numel() for parameter in model.parameters()),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=intermediate,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab=text.vocab_size,
    )


def _role_tokens(config: Config, role: Role, tasks: list[Task], renderer: ChatRenderer, limit: int) -> RoleTokens:
    """Lengths of a role's prompts; those longer than `limit` are never asked.

    A recycled prompt is rendered with responses of one line. To these come, at most, the limit of the rollouts that it
    will show, wherever it shows them whole (`recycle.reasoning_view`).
    """
    sources = [Role.ANSWER, *([Role.REFLECTION] if config.recycle.max_depth == 2 else [])]
    shown = max(config.max_new_tokens(source) for source in sources if config.roles[source].share)
    shown = min(shown, config.recycle.max_response_chars)
    lengths = [len(renderer.encode(task.messages)) for task in tasks]
    means = [n + len(t.shown) * shown * config.recycle.reasoning_view for n, t in zip(lengths, tasks, strict=True)]
    longest = [n + len(t.shown) * shown for n, t in zip(lengths, tasks, strict=True)]
    return RoleTokens(
        groups=config.slots()[role],
        num_generations=config.num_generations(role),
        max_new_tokens=config.max_new_tokens(role),
        prompt_mean=round(min(limit, mean(means)) if means else 0, 1),
        prompt_longest=min(limit, max(longest, default=0)),
    )


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


def _tokens_text(plan: Plan) -> str:
    steps, roles = plan.config.train.steps, plan.roles.values()
    lines = [
        f"# Tokens ({plan.sampled} questions measured; recycled prompts with responses of the longest allowed length)"
    ]
    lines += [f"{'':<11}{'prompt mean':>12}{'longest':>9}{'prompts/step':>14}{'rollouts/step, at most':>24}"]
    for role, r in plan.roles.items():
        lines += [
            f"{role:<11}{r.prompt_mean:>12.0f}{r.prompt_longest:>9,}{r.prompt_tokens:>14,}{r.rollout_tokens:>24,}"
        ]
    lines += [
        f"{steps} steps: {steps * sum(r.prompt_tokens for r in roles):,} prompt tokens, at most "
        f"{steps * sum(r.rollout_tokens for r in roles):,} rollout tokens",
        f"questions longer than {plan.limit:,} tokens, which are skipped: {plan.too_long} of {plan.sampled}",
    ]
    return "\n".join(lines) + "\n"


def _memory_text(plan: Plan) -> str:
    config, memory, world = plan.config, plan.memory, machine.num_processes()
    dtype = "bfloat16" if mixed_precision(config.model) == "bf16" else "float32"
    together = f"each of {world} processes" if world > 1 else "one process"
    rows = [
        ("weights, AdamW", memory.weights, "12 bytes a parameter"),
        ("reference", memory.reference, "4 bytes a parameter, for loss.kl_coef above 0"),
        ("runtime", memory.runtime, "libraries"),
        ("generation", memory.generation, "cache (rollout.max_batch_tokens) and logits"),
        ("update", memory.update, f"gradients, activations (train.micro_batch_tokens in {dtype}) and logits"),
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
        role: [task for task in [*tasks, *recycled] if task.role is role]
        for role in Role
        if config.roles[role].share > 0
    }
