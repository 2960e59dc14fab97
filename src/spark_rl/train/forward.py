"""Log-probabilities of completions with gradients, each group's prompt computed once.

A judge's prompt is long and its verdict short, and a group has many completions of one prompt: computing the prompt
once per group instead of once per completion is where a recycled step is won. Three implementations give the same
numbers and gradients (up to float rounding):

- `cache`: the prompts run with a key/value cache and gradients on; the cache is repeated for each group's completions,
  and these run on it. Never under activation checkpointing: transformers then drops the cache with only a warning, and
  completions would train without their prompt.
- `packed`: one row `[prompt, c1 .. cG]` per group, positions restarting after the prompt for each completion, and a
  mask under which a completion sees the prompt and itself.
- `plain`: the prompt repeated for every completion. The slow twin: tests and the self-check compare with it, and
  architectures whose prompt cannot be shared (linear attention) use it.

All three live in one `nn.Module.forward`, so that DDP, FSDP and compile see one call. Wrap this module, not the model
in it: it calls the decoder and the output head separately, and under `fully_shard` the root must be this module.

Shape suffixes: B groups, R completions of all groups (neighbours share a group), P padded prompt length, T padded
completion length, L packed length, N completion tokens that are not padding, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spark_rl.rollout.transformers_engine import evaluating, grouped_attention, is_repeatable

Implementation = Literal["cache", "packed", "plain"]

_CHUNK_ELEMENTS = 2**26
"""Logits held at once where `logits_chunk` does not say otherwise: 256 MB in float32."""
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Config fields of models that do more to their logits than the output head does (Gemma 2, Granite, Cohere)."""
_SHAREABLE_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(slots=True)
class GroupBatch:
    """Padded prompts and completions of ragged groups. Made by `collate`."""

    prompt_ids_BP: Tensor
    """Left-padded."""
    prompt_mask_BP: Tensor
    completion_ids_RT: Tensor
    """Right-padded."""
    completion_mask_RT: Tensor
    group_R: Tensor
    """The group of each completion."""
    token_N: Tensor
    """Where the real tokens are in a flattened [R, T]."""
    prompt_lengths: list[int]
    completion_lengths: list[list[int]]
    """For each group, the lengths of its completions."""

    def to(self, device: torch.device | str) -> GroupBatch:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values.update({name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)})
        return GroupBatch(**values)


class TokenLogProbs(NamedTuple):
    """What `GroupLogProbs` returns; zeros where masked."""

    logps_RT: Tensor
    entropy_RT: Tensor | None
    """Entropy of the distribution each token was drawn from (attached to the graph), nats; None if not asked for."""


def collate(
    groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    pad_id: int = 0,
    device: torch.device | str | None = None,
) -> GroupBatch:
    """Pad groups of `(prompt ids, completions' ids)`: at least one prompt token and one (maybe empty) completion."""
    if not groups or any(not prompt or not completions for prompt, completions in groups):
        raise ValueError("every group needs at least one prompt token and one completion")
    prompts = [list(prompt) for prompt, _ in groups]
    completions = [list(ids) for _, group in groups for ids in group]
    width, length = max(map(len, prompts)), max(1, *map(len, completions))
    return GroupBatch(
        prompt_ids_BP=torch.tensor([[pad_id] * (width - len(ids)) + ids for ids in prompts]),
        prompt_mask_BP=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
        completion_ids_RT=torch.tensor([ids + [pad_id] * (length - len(ids)) for ids in completions]),
        completion_mask_RT=torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in completions]),
        group_R=torch.tensor([b for b, (_, group) in enumerate(groups) for _ in group]),
        token_N=torch.tensor([r * length + t for r, ids in enumerate(completions) for t in range(len(ids))]).long(),
        prompt_lengths=[len(ids) for ids in prompts],
        completion_lengths=[[len(ids) for ids in group] for _, group in groups],
    ).to(device or "cpu")


class GroupLogProbs(nn.Module):
    """Log-probabilities of a batch's completions under `model`, a causal language model of transformers."""

    def __init__(
        self,
        model: nn.Module,
        implementation: Literal["auto"] | Implementation = "auto",
        logits_chunk: int | None = None,
    ) -> None:
        """`logits_chunk`: most tokens whose logits are held at once; the default is what fits in 256 MB."""
        super().__init__()
        self.model = model
        self.implementation = implementation
        self.logits_chunk = logits_chunk

    def forward(
        self, batch: GroupBatch, temperature_R: Tensor | float = 1.0, with_entropy: bool = False
    ) -> TokenLogProbs:
        """Log-softmax(logits / temperature) of every completion token, float32. A temperature of 0 counts as 1."""
        decoder = _Decoder(self.model)
        features_ND = self._features(decoder, batch)
        temperature_N = None
        if isinstance(temperature_R, Tensor) or temperature_R not in (0, 1):
            length = batch.completion_ids_RT.shape[1]
            temperature_R = torch.as_tensor(temperature_R, device=features_ND.device, dtype=torch.float32)
            temperature_R = torch.where(temperature_R == 0, 1.0, temperature_R)
            temperature_N = temperature_R.expand(len(batch.group_R))[batch.token_N // length]
        ids_N = batch.completion_ids_RT.flatten()[batch.token_N]
        values = self._score(decoder, features_ND, ids_N, temperature_N, with_entropy)
        logps_RT, *entropy = (_scatter(value_N, batch) for value_N in values)
        return TokenLogProbs(logps_RT, entropy[0] if entropy else None)

    def resolve(self, batch: GroupBatch) -> Implementation:
        """The implementation that this batch will run with."""
        decoder = _Decoder(self.model)
        if self.implementation == "cache" and decoder.is_checkpointing:
            raise ValueError("implementation 'cache' loses the prompt under activation checkpointing; use 'packed'")
        if self.implementation != "auto":
            return self.implementation
        return cheapest(batch.prompt_lengths, batch.completion_lengths, decoder.pair_cost, decoder.supported)

    def candidates(self) -> list[Implementation]:
        """The implementations that batches may run with."""
        return _Decoder(self.model).supported if self.implementation == "auto" else [self.implementation]

    @torch.no_grad()
    def self_check(self, batch: GroupBatch, tolerance: float | None = None) -> str | None:
        """Compare with the model's own logits in a plain forward. A sentence if they differ, else None.

        `tolerance` is in nats; the default follows the compute dtype. Evaluation mode, so that dropout is off.
        """
        if tolerance is None:
            parameter = next(self.model.parameters())
            is_exact = parameter.dtype == torch.float32 and not torch.is_autocast_enabled(parameter.device.type)
            tolerance = 1e-3 if is_exact else 0.5
        name = self.resolve(batch)
        with evaluating(self.model):
            try:
                logps_RT = GroupLogProbs(self.model, name, self.logits_chunk)(batch).logps_RT
            except (RuntimeError, AttributeError, TypeError, KeyError, ValueError) as error:
                return f"the {name!r} forward fails on this model ({type(error).__name__}: {error})"
            plain_RT = _scatter(_logps_of_model(self.model, batch), batch)
        worst = (logps_RT - plain_RT).abs().max().item()
        if worst <= tolerance:
            return None
        return f"log-probabilities of the {name!r} forward are up to {worst:.2g} nats off the model's own"

    def _features(self, decoder: _Decoder, batch: GroupBatch) -> Tensor:
        """What the logits of the completion tokens are computed from: [N, D], or [N, V] if they are these already."""
        implementation = self.resolve(batch)
        if implementation == "packed":
            return _packed(decoder, batch)
        run = _cached if implementation == "cache" else _plain
        return run(decoder, batch).flatten(0, 1)[batch.token_N]

    def _score(
        self, decoder: _Decoder, features_ND: Tensor, ids_N: Tensor, temperature_N: Tensor | None, with_entropy: bool
    ) -> tuple[Tensor, ...]:
        """Log-probabilities [N] and, if asked for, entropies [N]; logits are never held for more than a chunk."""

        def score(features: Tensor, ids: Tensor, temperature: Tensor | None) -> tuple[Tensor, ...]:
            logits = decoder.logits(features).float()
            if temperature is not None:
                logits = logits / temperature[:, None]
            logp_V = logits.log_softmax(-1)
            logps = logp_V.gather(-1, ids[:, None])[:, 0]
            return (logps, -(logp_V.exp() * logp_V).sum(-1)) if with_entropy else (logps,)

        size = self.logits_chunk or max(1, _CHUNK_ELEMENTS // decoder.vocab_size)
        if len(ids_N) <= size:
            return score(features_ND, ids_N, temperature_N)
        temperatures = [None] * len(ids_N) if temperature_N is None else temperature_N.split(size)
        chunks = zip(features_ND.split(size), ids_N.split(size), temperatures, strict=False)
        scores = [checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks]
        return tuple(torch.cat(parts) for parts in zip(*scores, strict=True))


def cheapest(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[Sequence[int]],
    pair_cost: float = 0.0,
    supported: Collection[Implementation] = ("plain", "packed", "cache"),
) -> Implementation:
    """The implementation among `supported` that is expected to be fastest for groups of these lengths.

    Costs are counted in tokens through the decoder's linear layers. A (query, key) pair of attention adds `pair_cost`
    of a token. `cache` pays for a second pass: about 64 tokens of overhead, and a tenth for repeating the cache.
    """
    groups = [[max(0, n - 1) for n in group] for group in completion_lengths]
    width, length = max(prompt_lengths), max(n for group in groups for n in group)
    num_rows = sum(map(len, groups))
    packed_width = max(prompt + sum(group) for prompt, group in zip(prompt_lengths, groups, strict=True))
    whole = width + length
    prompts = len(groups) * width * (1 + width * pair_cost)
    costs: dict[Implementation, float] = {
        "plain": num_rows * whole * (1 + whole * pair_cost),
        "packed": len(groups) * packed_width * (1 + packed_width * pair_cost),
        "cache": 64 + 1.1 * (prompts + num_rows * length * (1 + whole * pair_cost)),
    }
    return min(supported, key=lambda name: costs[name])


class _Decoder:
    """The one place that looks into the model: its decoder, its head, and what they support."""

    def __init__(self, model: nn.Module) -> None:
        self.lm: Any = unwrap(model)
        self.head: nn.Module = self.lm.get_output_embeddings()
        config = self.lm.config.get_text_config()
        self.config = config
        self.vocab_size: int = config.vocab_size
        self.layer_types: set[str] = set(getattr(config, "layer_types", None) or ())
        self.own_head = all(getattr(config, name, None) is None for name in _LOGIT_TRANSFORMS)

    @property
    def is_checkpointing(self) -> bool:
        """Whether activation checkpointing will run, by transformers' flag or by torch's wrapper."""
        return self.lm.training and any(
            getattr(module, "gradient_checkpointing", False) or type(module).__name__ == "CheckpointWrapper"
            for module in self.lm.modules()
        )

    @property
    def supported(self) -> list[Implementation]:
        """What `auto` may choose from. Sharded parameters rule out `cache`: its passes are collectives, and ranks whose
        batches differ may not agree on two of them."""
        names: list[Implementation] = ["plain"]
        if self.is_shareable and self.config._attn_implementation in ("sdpa", "eager"):
            names.append("packed")
        is_sharded = any(hasattr(parameter, "full_tensor") for parameter in self.lm.parameters())
        if self.is_shareable and not self.is_checkpointing and not is_sharded:
            names.append("cache")
        return names

    @property
    def pair_cost(self) -> float:
        """Time of one (query, key) pair over that of a token in a layer's linear maps.

        Counted in multiplications, and half as much again: attention runs further from the peak (measured on a CPU).
        """
        hidden = self.config.hidden_size
        return 3 / (4 * hidden + 3 * getattr(self.config, "intermediate_size", 4 * hidden))

    @property
    def is_shareable(self) -> bool:
        """Whether all state that a token leaves to later ones is plain (full or sliding) attention."""
        return not getattr(self.lm, "_is_stateful", False) and self.layer_types <= _SHAREABLE_LAYERS

    def run(self, ids: Tensor, mask: Any, positions: Tensor, cache: Any = None, use_cache: bool = False) -> Any:
        """Features [rows, length, D] (see `logits`) and the cache."""
        model = self.lm.base_model if self.own_head else self.lm
        out = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=use_cache
        )
        features = out.last_hidden_state if self.own_head else out.logits
        return features, getattr(out, "past_key_values", None)

    def logits(self, features: Tensor) -> Tensor:
        return self.head(features) if self.own_head else features

    def mask(self, visible_BLL: Tensor, positions_BL: Tensor) -> Any:
        """A 4-D mask from who may see whom, narrowed to the sliding window in the layers that have one."""
        attention = self.config._attn_implementation
        if not self.is_shareable:
            raise ValueError("implementation 'packed' needs a model with attention layers only; use 'plain'")
        if attention not in ("sdpa", "eager"):
            raise ValueError(f"implementation 'packed' needs attn_implementation 'sdpa' or 'eager', not {attention!r}")
        window = getattr(self.config, "sliding_window", None)
        near_BLL = positions_BL[:, :, None] - positions_BL[:, None, :] < (window or torch.inf)
        masks = {"full_attention": visible_BLL, "sliding_attention": visible_BLL & near_BLL}
        names = self.layer_types or {"sliding_attention" if window else "full_attention"}
        masks = {name: self._for_attention(masks[name][:, None]) for name in names}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _for_attention(self, mask: Tensor) -> Tensor:
        if self.config._attn_implementation == "sdpa":
            return mask
        dtype = self.head.weight.dtype if isinstance(self.head.weight, Tensor) else torch.float32
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def unwrap(model: Any) -> Any:
    """The transformers model inside PEFT and data-parallel wrappers."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif hasattr(model, "module"):
            model = model.module
        else:
            return model


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _scatter(value_N: Tensor, batch: GroupBatch) -> Tensor:
    zeros = value_N.new_zeros(batch.completion_ids_RT.numel())
    return zeros.index_put((batch.token_N,), value_N).view_as(batch.completion_ids_RT)


def _plain_inputs(batch: GroupBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions [R, P + T - 1]: a completion's last token predicts nothing, so it stays out."""
    ids = torch.cat([batch.prompt_ids_BP[batch.group_R], batch.completion_ids_RT[:, :-1]], dim=1)
    mask = torch.cat([batch.prompt_mask_BP[batch.group_R], batch.completion_mask_RT[:, :-1]], dim=1)
    return ids, mask, _positions(mask)


def _plain(decoder: _Decoder, batch: GroupBatch) -> Tensor:
    """Features [R, T, D] with the prompt repeated for every completion."""
    features, _ = decoder.run(*_plain_inputs(batch))
    return features[:, batch.prompt_ids_BP.shape[1] - 1 :]


def _cached(decoder: _Decoder, batch: GroupBatch) -> Tensor:
    """Features [R, T, D] with the completions run on the repeated cache of the prompts."""
    mask_BP, group_R = batch.prompt_mask_BP, batch.group_R
    features_BPD, cache = decoder.run(batch.prompt_ids_BP, mask_BP, _positions(mask_BP), use_cache=True)
    first_RD = features_BPD[:, -1][group_R]
    length = batch.completion_ids_RT.shape[1]
    if length == 1:
        return first_RD[:, None]
    if not is_repeatable(cache):
        raise RuntimeError("this model's key/value cache cannot be shared between completions; use 'plain'")
    if cache.get_seq_length() != mask_BP.shape[1]:
        raise RuntimeError("the model dropped its key/value cache (activation checkpointing?); use 'packed'")
    cache.reorder_cache(group_R)
    mask = torch.cat([mask_BP[group_R], batch.completion_mask_RT[:, :-1]], dim=1)
    start_R = mask_BP.sum(-1)[group_R]
    positions = start_R[:, None] + torch.arange(length - 1, device=mask.device)
    with grouped_attention(decoder.lm):
        features, _ = decoder.run(batch.completion_ids_RT[:, :-1], mask, positions, cache=cache, use_cache=True)
    return torch.cat([first_RD[:, None], features], dim=1)


def _packed(decoder: _Decoder, batch: GroupBatch) -> Tensor:
    """Features [N, D] from one row `[prompt, c1 .. cG]` a group."""
    layout = _pack(batch)
    device = batch.prompt_ids_BP.device
    slot_BL, segment_BL, position_BL, source_N = (torch.from_numpy(part).to(device) for part in layout)
    ids_BL = torch.cat([batch.prompt_ids_BP.flatten(), batch.completion_ids_RT.flatten()])[slot_BL]
    order_L = torch.arange(ids_BL.shape[1], device=device)
    seen_BLL = (segment_BL[:, None, :] == 0) | (segment_BL[:, None, :] == segment_BL[:, :, None])
    visible_BLL = seen_BLL & (order_L[:, None] >= order_L)
    features_BLD, _ = decoder.run(ids_BL, decoder.mask(visible_BLL, position_BL), position_BL)
    return features_BLD.flatten(0, 1)[source_N]


def _pack(batch: GroupBatch) -> tuple[np.ndarray, ...]:
    """Where each slot of the packed rows comes from, and where each completion token is predicted.

    Returns slot_BL (index into the flattened prompts, then completions), segment_BL (0 prompt, i-th completion, -1
    padding), position_BL, and source_N (index into the flattened [B, L]).
    """
    num_groups, width = batch.prompt_ids_BP.shape
    length = batch.completion_ids_RT.shape[1]
    kept = [[max(0, n - 1) for n in group] for group in batch.completion_lengths]
    packed = max(prompt + sum(group) for prompt, group in zip(batch.prompt_lengths, kept, strict=True))
    slot, position = np.zeros((2, num_groups, packed), dtype=np.int64)
    segment = np.full((num_groups, packed), -1)
    sources, row = [], 0
    for b, prompt in enumerate(batch.prompt_lengths):
        slot[b, :prompt] = np.arange(prompt) + (b + 1) * width - prompt
        position[b, :prompt], segment[b, :prompt] = np.arange(prompt), 0
        end = prompt
        for i, (n, inside) in enumerate(zip(batch.completion_lengths[b], kept[b], strict=True)):
            span = slice(end, end + inside)
            slot[b, span] = np.arange(inside) + num_groups * width + row * length
            position[b, span], segment[b, span] = np.arange(inside) + prompt, i + 1
            source = np.arange(end - 1, end + inside)[:n] + b * packed
            source[:1] = b * packed + prompt - 1
            sources.append(source)
            end, row = end + inside, row + 1
    return slot, segment, position, np.concatenate(sources)


def _logps_of_model(model: nn.Module, batch: GroupBatch) -> Tensor:
    """Log-probabilities [N] by the plain forward and the model's own logits: what the other paths must equal."""
    ids, mask, positions = _plain_inputs(batch)
    out = unwrap(model)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    logits_NV = out.logits[:, batch.prompt_ids_BP.shape[1] - 1 :].flatten(0, 1)[batch.token_N].float()
    return logits_NV.log_softmax(-1).gather(-1, batch.completion_ids_RT.flatten()[batch.token_N, None])[:, 0]
