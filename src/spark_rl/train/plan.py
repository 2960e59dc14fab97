"""The figures of a run, without loading weights: tokens of a step, memory, disk, and prompts as the model sees them.

The model is built on torch's meta device, which counts parameters and allocates nothing. Lengths of questions are
measured on a sample; those of recycled prompts are bounds, since the responses they will show do not exist yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import mean
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig

from spark_rl.config import Config, ModelConfig
from spark_rl.data import Data, load_data
from spark_rl.models.folder import source
from spark_rl.models.load import load_tokenizer, loader_of
from spark_rl.models.processor import ImageProcessor, load_image_processor
from spark_rl.models.prompt_once import can_share
from spark_rl.models.vision import freeze_vision, num_patches, vision_modules
from spark_rl.prompts import ChatRenderer, Prompts
from spark_rl.recycle import recycle
from spark_rl.rollout.transformers_engine import cache_tokens
from spark_rl.train import estimate, machine
from spark_rl.train.batches import fill_tokens
from spark_rl.train.estimate import Implementation, Memory, ModelShape, VisionShape
from spark_rl.train.model import max_prompt_tokens, mixed_precision
from spark_rl.train.preflight import check_prompts, trained_prompts
from spark_rl.train.selection import Selection
from spark_rl.types import Group, Role, Rollout, Task
from spark_rl.verify import SELF

_SAMPLE = 200
"""Questions that are tokenised."""
_SHORT = 16
"""Tokens of a short rollout, such as a verdict without reasoning."""


@dataclass(frozen=True, slots=True)
class RoleTokens:
    """One role's part of a step."""

    groups: int
    """In a step that the pool can fill."""
    most_groups: int
    """In any step: what the pool cannot fill, in the first step all, goes to what the data hold."""
    num_generations: int
    max_new_tokens: int
    prompt_mean: float
    prompt_longest: int
    example_tokens: int = 0
    """Of the worked examples before each of its prompts; part of their lengths."""
    patches_mean: float = 0.0
    """Patches of a prompt's images, which the vision tower sees."""

    @property
    def prompt_tokens(self) -> int:
        """In a step that the pool can fill."""
        return round(self.groups * self.prompt_mean)

    @property
    def rollout_tokens(self) -> int:
        """The same, at most."""
        return self.groups * self.num_generations * self.max_new_tokens


@dataclass(frozen=True, slots=True)
class StepTokens:
    """At most in one step, whatever it is made of and however often it is refilled; prompts at their mean length."""

    generation_calls: int
    rollouts: int
    prompt_tokens: int
    rollout_tokens: int


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
    step: StepTokens
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
    """Of what RL asks."""
    first_renderer: ChatRenderer
    """Of what a warm start asks, with its worked examples, or else the same."""
    warm_roles: dict[Role, RoleTokens]
    """As `roles`, of a step of a warm start that is rolled out; else empty."""
    warm_step: StepTokens | None


def make_plan(config: Config, data: Data | None = None) -> Plan:
    """Measure and count.

    Args:
        data: what `load_data(config)` gives, if it was called before.

    Raises:
        ValueError: what the run would raise for its data, tokenizer or model.
    """
    data = data or load_data(config)
    config = data.settled(config)
    tokenizer = load_tokenizer(config.model)
    images = load_image_processor(config.model, tokenizer)
    first_renderer, renderer = (
        ChatRenderer(tokenizer, config.model.chat_template_kwargs, images, prompts)
        for prompts in (data.prompts, trained_prompts(config, data.prompts))
    )
    check_prompts(config, data, first_renderer)
    model = _empty_model(config.model)
    limit = max_prompt_tokens(config, model)
    Selection(config, data.train, first_renderer, limit).require_one()
    sample, _ = data.train.draw(min(_SAMPLE, data.train.num_rows))
    lengths = [len(renderer.encode_task(task)) for task in sample]
    prompts = _prompts(config, sample, data.prompts)
    drawn = {task.role for task in sample}
    patches = {role: _patches_mean(model, images, tasks) for role, tasks in prompts.items()}

    def measured(renderer: ChatRenderer) -> dict[Role, RoleTokens]:
        each = {role: _role_tokens(config, role, tasks, renderer, limit, drawn) for role, tasks in prompts.items()}
        return {role: replace(tokens, patches_mean=patches[role]) for role, tokens in each.items()}

    roles = measured(renderer)
    warm_roles = measured(first_renderer) if config.warm_start.from_rollouts else {}
    shape = _shape(model)
    device, available = machine.device_memory()
    memory = memory_of(config, shape, roles, device, warm_roles)
    return Plan(
        config=config,
        num_questions=data.train.num_rows,
        sampled=len(sample),
        too_long=sum(length > limit for length in lengths),
        limit=limit,
        roles=roles,
        step=step_tokens(config, roles),
        shape=shape,
        architecture=type(model).__name__,
        memory=memory,
        disk=estimate.bytes_needed(model, config),
        device=device,
        available=available,
        advice=advice(config, shape, roles, device, available, warm_roles),
        prompts=prompts,
        renderer=renderer,
        first_renderer=first_renderer,
        warm_roles=warm_roles,
        warm_step=step_tokens(config, warm_roles, calls=1) if warm_roles else None,
    )


def step_tokens(config: Config, roles: Mapping[Role, RoleTokens], calls: int | None = None) -> StepTokens:
    """The most that one step can ask, in so many generation calls; in as many as RL makes if it is not said."""
    calls = calls or 1 + config.rollout.refill_rounds
    return StepTokens(
        generation_calls=calls,
        rollouts=calls * _most(config, roles, lambda role: role.num_generations),
        prompt_tokens=calls * _most(config, roles, lambda role: role.prompt_mean),
        rollout_tokens=calls * _most(config, roles, lambda role: role.num_generations * role.max_new_tokens),
    )


def _most(config: Config, roles: Mapping[Role, RoleTokens], of_group: Callable[[RoleTokens], float]) -> int:
    """The largest sum over a step's groups: each of its role, or of one that can take any group's place."""
    anywhere = max(of_group(r) for r in roles.values() if r.most_groups == config.rollout.groups_per_step)
    return round(sum(r.groups * max(of_group(r), anywhere) for r in roles.values()))


def memory_of(
    config: Config,
    shape: ModelShape,
    roles: Mapping[Role, RoleTokens],
    device: str,
    warm_roles: Mapping[Role, RoleTokens] = MappingProxyType({}),
) -> Memory:
    """Bytes that one process needs on its device; a warm start's rollouts are generated, and trained on behind the
    prompts of RL."""
    world, on_cpu = machine.num_processes(), device == "cpu"
    buckets = estimate.GRADIENT * shape.num_trained if world > 1 else 0  # DDP's copy of the gradients
    dtype_bytes = 2 if mixed_precision(config.model) == "bf16" else 4
    budget = config.rollout.max_batch_tokens or cache_tokens(device)
    return Memory(
        weights=estimate.weight_bytes(shape),
        reference=estimate.WEIGHT * shape.num_params if config.loss.kl_coef > 0 else 0,
        generation=max(
            _generation(config, shape, r, budget, world, dtype_bytes) for r in (*roles.values(), *warm_roles.values())
        ),
        update=_update(config, shape, roles, device, world, dtype_bytes) + buckets,
        optimizer=estimate.optimizer_bytes(shape, on_accelerator=not on_cpu) + buckets,
        runtime=estimate.RUNTIME_CPU if on_cpu else estimate.RUNTIME_GPU,
    )


def _shares(config: Config, shape: ModelShape) -> bool:
    """Whether a group's prompt is computed once."""
    return shape.shares and config.train.shared_prefix != "plain"


def _generation(config: Config, shape: ModelShape, role: RoleTokens, budget: int, world: int, dtype_bytes: int) -> int:
    """The largest chunk of a role's rows, which share their prompts or have a copy each."""
    prompt, new = round(role.prompt_mean), role.max_new_tokens
    sharing = role.num_generations if _shares(config, shape) else 1
    rows = min(
        max(1, int(budget * sharing / (prompt + sharing * new))), -(-role.most_groups // world) * role.num_generations
    )
    patches = -(-rows // role.num_generations) * round(role.patches_mean)
    return estimate.generation_bytes(shape, -(-rows // sharing) * prompt + rows * new, rows, dtype_bytes, patches)


def _update(
    config: Config, shape: ModelShape, roles: Mapping[Role, RoleTokens], device: str, world: int, dtype_bytes: int
) -> int:
    """The largest micro-batch: of any role, its rollouts at their limit or short (more of them share a prompt)."""
    whole_step = _most(config, roles, lambda r: r.prompt_mean + r.num_generations * r.max_new_tokens) // world
    max_tokens = min(config.train.micro_batch_tokens, whole_step)
    fill = fill_tokens(max_tokens, device)
    implementation: Implementation = "shared" if _shares(config, shape) else "plain"
    num_groups = -(-config.rollout.groups_per_step // world)
    sizes = []
    for role in roles.values():
        prompt = round(role.prompt_mean)
        for new in {role.max_new_tokens, min(role.max_new_tokens, _SHORT)}:
            groups, rows = estimate.split_micro_batch(max_tokens, fill, num_groups, role.num_generations, prompt, new)
            load = estimate.micro_batch(implementation, groups, rows, prompt, new, round(role.patches_mean))
            sizes.append(estimate.update_bytes(shape, load, dtype_bytes, config.model.activation_checkpointing))
    return max(sizes)


def advice(
    config: Config,
    shape: ModelShape,
    roles: Mapping[Role, RoleTokens],
    device: str,
    available: int,
    warm_roles: Mapping[Role, RoleTokens] = MappingProxyType({}),
) -> str | None:
    """The setting to change if the run does not fit, or None."""
    memory = memory_of(config, shape, roles, device, warm_roles)
    if memory.peak <= available:
        return None
    left = available - memory.weights - memory.reference - memory.runtime
    if memory.optimizer > left:
        without = "set loss.kl_coef to 0, which needs no reference model, or " if memory.reference else ""
        return f"{without}choose a smaller model.path"
    changes = ["lower rollout.max_batch_tokens"] if memory.generation > left else []
    if memory.update > left:
        tokens = config.train.micro_batch_tokens
        while tokens > _SHORT and memory_of(_with_tokens(config, tokens), shape, roles, device).update > left:
            tokens //= 2
        if tokens > _SHORT:
            changes.append(f"lower train.micro_batch_tokens to {tokens}")
        if not config.model.activation_checkpointing:
            changes.append("set model.activation_checkpointing: true")
        if shape.vision and not shape.vision.is_frozen:
            changes.append("set model.freeze_vision: true")
    return " or ".join(changes) or "lower rollout.max_new_tokens"


def _with_tokens(config: Config, tokens: int) -> Config:
    train = config.train.model_copy(update={"micro_batch_tokens": tokens})
    return config.model_copy(update={"train": train})


def _empty_model(config: ModelConfig) -> Any:
    """The model on torch's meta device: every module, no weights, frozen as it will be.

    Raises:
        ValueError: the folder or id holds no config of a model that can be built.
    """
    path, options = source(config)
    loader, kind = loader_of(config)
    try:
        settings = AutoConfig.from_pretrained(path, **options)
        with torch.device("meta"):
            model = loader.from_config(settings, dtype=torch.float32, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"model.path: no {kind} could be built from {path!r} ({line})") from None
    if config.freeze_vision:
        freeze_vision(model)
    return model


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
        shares=can_share(model),
        num_frozen=sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad),
        vision=_vision_shape(model),
    )


def _vision_shape(model: Any) -> VisionShape | None:
    """Sizes of the longest stack of layers beside the language model; None if there is none."""
    stacks = [m for part in vision_modules(model) for m in part.modules() if isinstance(m, torch.nn.ModuleList)]
    if not stacks:
        return None
    layers = max(stacks, key=len)
    linear = [m for m in layers[0].modules() if isinstance(m, torch.nn.Linear)]
    if not linear:
        return None
    is_frozen = not any(parameter.requires_grad for parameter in layers.parameters())
    return VisionShape(len(layers), linear[0].in_features, sum(m.out_features for m in linear), is_frozen)


def _patches_mean(model: Any, images: ImageProcessor | None, tasks: list[Task]) -> float:
    if images is None or not tasks:
        return 0.0
    return mean(sum(num_patches(model, images.prepare(image)) for image in task.example.images) for task in tasks)


def _role_tokens(
    config: Config, role: Role, tasks: list[Task], renderer: ChatRenderer, limit: int, drawn: set[Role]
) -> RoleTokens:
    """Lengths of a role's prompts; those longer than `limit` are never asked.

    A recycled prompt is rendered with responses of one line. To these come, at most, the limit of the rollouts that it
    will show, wherever it shows them whole (`recycle.reasoning_view`). `drawn` are the roles of what the data hold.
    """
    sources = [Role.ANSWER, *([Role.REFLECTION] if config.recycle.max_depth == 2 else [])]
    shown = max(config.max_new_tokens(source) for source in sources if config.roles[source].share)
    shown = min(shown, config.recycle.max_response_chars)
    lengths = [len(renderer.encode_task(task)) for task in tasks]
    means = [n + len(t.shown) * shown * config.recycle.reasoning_view for n, t in zip(lengths, tasks, strict=True)]
    longest = [n + len(t.shown) * shown for n, t in zip(lengths, tasks, strict=True)]
    anywhere = role in drawn or config.recycle.schedule == "alternating"
    return RoleTokens(
        groups=config.slots()[role],
        most_groups=config.rollout.groups_per_step if anywhere else config.slots()[role],
        num_generations=config.num_generations(role),
        max_new_tokens=config.max_new_tokens(role),
        prompt_mean=round(min(limit, mean(means)) if means else 0, 1),
        prompt_longest=min(limit, max(longest, default=0)),
        example_tokens=renderer.example_tokens(role),
    )


def _prompts(config: Config, tasks: list[Task], prompts: Prompts) -> dict[Role, list[Task]]:
    """The data's own prompts, and what recycling makes of a right and a wrong rollout of each question.

    The wrong answer is another question's, or the right one with a digit more. `balanced`, or a role might get none.
    """
    groups, stated = [], prompts.answer_format
    recycled = [task for task in tasks if task.verifier != SELF]
    for i, task in enumerate(recycled[:50]):
        right = task.label or "?"  # some generated questions have a scorer and no answer
        wrong = recycled[i - 1].label
        wrong = wrong if wrong not in ("", right) else f"{right}0"
        answers = [(right, config.recycle.right_at), (wrong, config.recycle.wrong_at)]
        rollouts = [
            Rollout(f"{task.id}:{k}", [], [], f"(reasoning)\n{stated.write(answer)}", "stop", reward, answer)
            for k, (answer, reward) in enumerate(answers)
        ]
        groups.append(Group(task, [], rollouts))
    settings = config.recycle.model_copy(update={"balanced": True})
    made = recycle(groups, settings, seed=config.train.seed, step=1, prompts=prompts)
    made_of_them = [*tasks, *(task for bundle in made.bundles for task in bundle)]
    wanted = {role for role in Role if config.roles[role].share > 0} | {task.role for task in tasks}
    return {role: [task for task in made_of_them if task.role is role] for role in Role if role in wanted}
