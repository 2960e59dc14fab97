"""Groups with advantages to micro-batches: what trains, how much each token weighs, what runs together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from spark_rl.config import Config
from spark_rl.models.packed_row import Prefix
from spark_rl.models.prefixes import prompt_classes
from spark_rl.models.vision import Vision
from spark_rl.train.forward import GroupBatch, collate
from spark_rl.train.loss import rollout_scale
from spark_rl.types import Group, Image

_PADDING = 2
"""How many times the tokens of a batch attention may have, padding included."""
_ENOUGH_ON_CPU = 1024
"""Tokens from which on a CPU gains nothing by more. A product of n tokens with a weight takes 2 n operations for each
number of the weight that is read, so at a thousand it waits for its weights no longer, whatever their size."""


@dataclass(frozen=True, slots=True)
class TrainGroup:
    """The trainable rollouts of one group."""

    prompt_ids: list[int]
    completions: list[list[int]]
    advantages: list[float]
    scales: list[float]
    """Weight of each completion's tokens in the step's loss."""
    temperature: float
    images: tuple[Image, ...] = ()
    """Those of the prompt."""
    prefix: int = 0
    """How many of the prompt's tokens are computed once for all groups that begin with them."""

    @property
    def prefix_ids(self) -> list[int]:
        return self.prompt_ids[: self.prefix]

    @property
    def num_own(self) -> int:
        """Tokens of the prompt after the prefix."""
        return len(self.prompt_ids) - self.prefix

    @property
    def num_tokens(self) -> int:
        """Those after the prefix."""
        return self.num_own + sum(map(len, self.completions))

    @property
    def width(self) -> int:
        return max(map(len, self.completions))


@dataclass(slots=True)
class MicroBatch:
    """One forward and backward pass."""

    batch: GroupBatch
    advantage_R: Tensor
    scale_R: Tensor
    temperature_R: Tensor | float


@dataclass(frozen=True, slots=True)
class Denominators:
    """What the whole step's loss is divided by; see `rollout_scale`."""

    num_rollouts: int
    num_tokens: int


def keeps(group: Group, config: Config) -> bool:
    """Whether a group can change the gradient: it has signal that counts, or the KL penalty applies to it."""
    has_signal = group.has_signal and group.weight * config.roles[group.task.role].weight > 0
    return has_signal or (config.loss.kl_coef > 0 and bool(group.rewards))


def denominators(groups: Sequence[Group], config: Config) -> Denominators:
    """Over the groups of all ranks."""
    counted = [g for g in groups if config.loss.count_dropped or keeps(g, config)]
    rollouts = [r for g in counted for r in g.rollouts if r.reward is not None]
    return Denominators(len(rollouts), sum(len(r.token_ids) for r in rollouts))


def train_groups(
    groups: Sequence[Group], advantages: Sequence[Sequence[float | None]], total: Denominators, config: Config
) -> list[TrainGroup]:
    """What of these groups is trained on; ungraded rollouts and groups without signal stay out."""
    result = []
    for group, group_advantages in zip(groups, advantages, strict=True):
        if not keeps(group, config):
            continue
        graded = [(r, a) for r, a in zip(group.rollouts, group_advantages, strict=True) if a is not None]
        limit = config.max_new_tokens(group.task.role)
        scales = [
            rollout_scale(
                config.loss.aggregation,
                len(r.token_ids),
                limit,
                num_rollouts=total.num_rollouts,
                num_tokens=total.num_tokens,
            )
            for r, _ in graded
        ]
        result.append(
            TrainGroup(
                prompt_ids=group.prompt_ids,
                completions=[r.token_ids for r, _ in graded],
                advantages=[a for _, a in graded],
                scales=scales,
                temperature=config.temperature(group.task.role),
                images=group.task.example.images,
            )
        )
    return result


def with_prefixes(groups: Sequence[TrainGroup], vision: Vision | None = None) -> list[TrainGroup]:
    """The groups, with what those begin with that have it in common."""
    prompts = [group.prompt_ids for group in groups]
    length_of: dict[int, int] = {}
    for length, members in prompt_classes(prompts, vision.before_images(prompts) if vision else None):
        length_of |= dict.fromkeys(members, length)
    return [replace(group, prefix=length_of[i]) for i, group in enumerate(groups)]


def supervised_groups(groups: Sequence[Group], config: Config) -> list[TrainGroup]:
    """All rollouts of these groups, those of all ranks, as completions to be learnt by `likelihood_loss`. Every token
    of a step weighs the same, but for the weights of the roles; the model is taken as it is, at temperature 1."""
    weights = [config.roles[group.task.role].weight for group in groups]
    sizes = [sum(len(r.token_ids) for r in group.rollouts) for group in groups]
    total = sum(weight * size for weight, size in zip(weights, sizes, strict=True))
    return [
        TrainGroup(
            prompt_ids=group.prompt_ids,
            completions=[r.token_ids for r in group.rollouts],
            advantages=[1.0] * len(group.rollouts),
            scales=[weight / total] * len(group.rollouts),
            temperature=1.0,
            images=group.task.example.images,
        )
        for group, weight in zip(groups, weights, strict=True)
        if weight > 0
    ]


def micro_batches(groups: Sequence[TrainGroup], max_tokens: int, fill: int | None = None) -> list[list[TrainGroup]]:
    """Groups of like shape and with the same prefix together, up to `fill` tokens (by default `max_tokens`), prompts
    counted once. The last batch of a prefix counts this as well, since it computes it, with its gradient.

    A group alone may have `max_tokens`. A larger one is split; its prompt is then computed once for each part.
    Attention pads all completions of a batch to the longest one; what that adds is bounded as well (`_PADDING`).
    """
    parts = [part for group in groups for part in _split(group, max_tokens)]
    parts.sort(key=lambda g: (g.prefix_ids, len(g.prompt_ids), g.width))
    batches: list[list[TrainGroup]] = []
    for prefix_ids, of_prefix in groupby(parts, key=lambda g: g.prefix_ids):
        filled = _filled(list(of_prefix), fill or max_tokens, len(prefix_ids))
        batches += [*filled[1:], filled[0]] if prefix_ids else filled
    return batches


def _filled(parts: Sequence[TrainGroup], tokens: int, taken: int) -> list[list[TrainGroup]]:
    """Batches of up to so many tokens, the first of which has room for `taken` others."""
    batches: list[list[TrainGroup]] = []
    room = 0
    for part in parts:
        if part.num_tokens <= room and _padded([*batches[-1], part]) <= _PADDING * tokens:
            batches[-1].append(part)
        else:
            room = tokens if batches else tokens - taken
            batches.append([part])
        room -= part.num_tokens
    return batches


def prefixes_of(batches: Sequence[Sequence[TrainGroup]]) -> list[Prefix | None]:
    """What the prompts of each micro-batch begin with: the same object where it is the same."""
    known: dict[tuple[int, ...], Prefix] = {}
    return [known.setdefault(ids, Prefix(ids)) if (ids := tuple(parts[0].prefix_ids)) else None for parts in batches]


def _padded(groups: Sequence[TrainGroup]) -> int:
    """Tokens of these groups as attention takes them."""
    rows, width = sum(len(g.completions) for g in groups), max(g.width for g in groups)
    return sum(g.num_own for g in groups) + rows * width


def fill_tokens(max_tokens: int, device_type: str) -> int:
    """Up to how many tokens small groups are put together. More than enough would only hold more activations."""
    return min(max_tokens, _ENOUGH_ON_CPU) if device_type == "cpu" else max_tokens


def to_tensors(
    groups: Sequence[TrainGroup],
    pad_id: int,
    device: torch.device,
    vision: Vision | None = None,
    always_sees: bool = False,
    prefix: Prefix | None = None,
    ends_prefix: bool = True,
) -> MicroBatch:
    """Collate a micro-batch; for `vision` and `always_sees` see `Vision.read`, for the last two `GroupBatch`."""
    shown = [g.images for g in groups]
    images = vision.read([g.prompt_ids for g in groups], shown, always_sees) if vision else None
    temperatures = [g.temperature for g in groups for _ in g.completions]
    is_same = len(set(temperatures)) == 1
    return MicroBatch(
        batch=collate([(g.prompt_ids, g.completions) for g in groups], pad_id, device, images, prefix, ends_prefix),
        advantage_R=torch.tensor([a for g in groups for a in g.advantages], device=device),
        scale_R=torch.tensor([s for g in groups for s in g.scales], device=device),
        temperature_R=temperatures[0] if is_same else torch.tensor(temperatures, device=device),
    )


def _split(group: TrainGroup, max_tokens: int) -> list[TrainGroup]:
    if group.prefix + group.num_tokens <= max_tokens and _padded([group]) <= _PADDING * max_tokens:
        return [group]
    rows = max(1, (max_tokens - len(group.prompt_ids)) // max(1, group.width))
    return [
        replace(
            group,
            completions=group.completions[i : i + rows],
            advantages=group.advantages[i : i + rows],
            scales=group.scales[i : i + rows],
        )
        for i in range(0, len(group.completions), rows)
    ]
