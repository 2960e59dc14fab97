"""Log-probabilities of completions with gradients, each group's prompt computed once.

A judge's prompt is long and its verdict short, and a group has many completions of one prompt: computing the prompt
once per group instead of once per completion is where a recycled step is won. Two implementations give the same
numbers and gradients (up to float rounding):

- `shared`: one row of all tokens, every prompt once and nothing padded; only attention knows of groups
  (`models/packed_row.py`). What the prompts of a whole step begin with (`Prefix`) is computed once for all of its
  rows: first without a graph, for the keys and values that rows attend to, and gather gradients for; then once more
  with the tokens of the last row, where these gradients join its own. So each forward has one backward pass.
- `plain`: the prompt repeated for every completion. The slow twin: tests and the self-check compare with it, and
  architectures whose prompt cannot be shared (linear attention) use it.

Both live in one `nn.Module.forward`, so that DDP, FSDP and compile see one call. Wrap this module, not the model in
it: it calls the decoder and the output head separately, and under `fully_shard` the root must be this module.

Shape suffixes: B groups, R completions of all groups (neighbours share a group), P padded prompt length, T padded
completion length, N completion tokens that are not padding, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spark_rl.models import fused
from spark_rl.models.load import unwrap
from spark_rl.models.packed_row import PackedRow, Prefix, States, prefix_states
from spark_rl.models.prompt_once import can_share, run, share
from spark_rl.models.vision import PromptImages, read_back
from spark_rl.rollout.transformers_engine import evaluating

Implementation = Literal["shared", "plain"]

_CHUNK_ELEMENTS = 2**26
"""Logits held at once where `logits_chunk` does not say otherwise: 256 MB in float32."""
_UNKNOWN_TRANSFORMS = ("logits_scaling", "output_multiplier")
"""Config fields by which models scale their logits, each in its way (Granite divides, HyperCLOVA X multiplies)."""


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
    images: PromptImages | None = None
    """Of the prompts."""
    prefix: Prefix | None = None
    """What all prompts begin with, if that is computed once."""
    ends_prefix: bool = False
    """No later batch attends to the prefix: its gradient goes backward with this one's."""

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
    images: PromptImages | None = None,
    prefix: Prefix | None = None,
    ends_prefix: bool = True,
) -> GroupBatch:
    """Pad groups of `(prompt ids, completions' ids)`: at least one prompt token, which is none of the prefix, and one
    (maybe empty) completion."""
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
        images=images,
        prefix=prefix,
        ends_prefix=ends_prefix,
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
        self.logits_chunk = logits_chunk
        is_shareable = can_share(unwrap(model))
        if implementation == "shared" and not is_shareable:
            raise ValueError("implementation 'shared' needs a model with plain attention layers only; use 'plain'")
        self.implementation: Implementation = "shared" if is_shareable and implementation != "plain" else "plain"
        if self.implementation == "shared":
            share(unwrap(model))
        fused.fuse(model)

    @property
    def shares_prefixes(self) -> bool:
        """Whether what prompts begin with may be computed apart from them. Dropout would make each time another."""
        return self.implementation == "shared" and not any(map(_drops, self.model.modules()))

    def forward(
        self,
        batch: GroupBatch | Sequence[Sequence[int]],
        temperature_R: Tensor | float = 1.0,
        with_entropy: bool = False,
    ) -> TokenLogProbs | list[States]:
        """Log-softmax(logits / temperature) of every completion token, float32. A temperature of 0 counts as 1.

        Or, of the token ids of prefixes, their keys and values.
        """
        decoder = _Decoder(self.model)
        if not isinstance(batch, GroupBatch):
            kept = {} if decoder.own_head else {"logits_to_keep": 1}
            return prefix_states(decoder.body, batch, **kept)
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

    @torch.no_grad()
    def self_check(self, batch: GroupBatch, tolerance: float | None = None) -> str | None:
        """Compare with the model's own logits in a plain forward. A sentence if they differ, else None.

        `tolerance` is in nats; the default follows the compute dtype. Evaluation mode, so that dropout is off.
        """
        if tolerance is None:
            parameter = next(self.model.parameters())
            is_exact = parameter.dtype == torch.float32 and not torch.is_autocast_enabled(parameter.device.type)
            tolerance = 1e-3 if is_exact else 0.5
        name = self.implementation
        with evaluating(self.model):
            try:
                if batch.prefix is not None and name == "shared":
                    (batch.prefix.states,) = self([batch.prefix.ids])
                logps_RT = self(batch).logps_RT
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, AttributeError, TypeError, LookupError, ValueError) as error:
                return f"the {name!r} forward fails on this model ({type(error).__name__}: {error})"
            plain_RT = _scatter(_logps_of_model(self.model, batch), batch)
        worst = (logps_RT - plain_RT).abs().max().item()
        if worst <= tolerance:
            return None
        return f"log-probabilities of the {name!r} forward are up to {worst:.2g} nats off the model's own"

    def _features(self, decoder: _Decoder, batch: GroupBatch) -> Tensor:
        """What the logits of the completion tokens are computed from: [N, D], or [N, V] if they are these already."""
        if self.implementation == "shared":
            return _shared(decoder, batch)
        return _plain(decoder, batch).flatten(0, 1)[batch.token_N]

    def _score(
        self, decoder: _Decoder, features_ND: Tensor, ids_N: Tensor, temperature_N: Tensor | None, with_entropy: bool
    ) -> tuple[Tensor, ...]:
        """Log-probabilities [N] and, if asked for, entropies [N]; logits are never held for more than a chunk."""

        def score(features: Tensor, ids: Tensor, temperature: Tensor | None) -> tuple[Tensor, ...]:
            logits = decoder.logits(features)
            if temperature is not None:
                logits = logits.float() / temperature[:, None]
            logps, entropy = fused.log_softmax_at(logits, ids, with_entropy)
            return (logps,) if entropy is None else (logps, entropy)

        size = self.logits_chunk or max(1, _CHUNK_ELEMENTS // decoder.vocab_size)
        if len(ids_N) <= size:
            return score(features_ND, ids_N, temperature_N)
        temperatures = [None] * len(ids_N) if temperature_N is None else temperature_N.split(size)
        chunks = zip(features_ND.split(size), ids_N.split(size), temperatures, strict=False)
        scores = [checkpoint(score, *chunk, use_reentrant=False) for chunk in chunks]
        return tuple(torch.cat(parts) for parts in zip(*scores, strict=True))


class _Decoder:
    """The one place that looks into the model: its decoder and its head."""

    def __init__(self, model: nn.Module) -> None:
        self.lm: Any = unwrap(model)
        self.head: nn.Module = self.lm.get_output_embeddings()
        config = self.lm.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale: float | None = getattr(config, "logit_scale", None)
        self.own_head = all(getattr(config, name, None) is None for name in _UNKNOWN_TRANSFORMS)
        self.body = self.lm.base_model if self.own_head else self.lm

    def features(self, out: Any) -> Tensor:
        """Features [rows, length, D] of the body's output, or logits [rows, length, V] (see `logits`)."""
        features: Tensor = out.last_hidden_state if self.own_head else out.logits
        return features

    def logits(self, features: Tensor) -> Tensor:
        """Scaled as Cohere's are and capped as Gemma's, where the config says so."""
        if not self.own_head:
            return features
        logits: Tensor = self.head(features)
        if self.scale is not None:
            logits = logits * self.scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


def _drops(module: nn.Module) -> bool:
    """Whether it has dropout: as torch's layer, or as a number that it hands on to attention."""
    return bool(getattr(module, "attention_dropout", 0) or (isinstance(module, nn.Dropout) and module.p))


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _scatter(value_N: Tensor, batch: GroupBatch) -> Tensor:
    zeros = value_N.new_zeros(batch.completion_ids_RT.numel())
    return zeros.index_put((batch.token_N,), value_N).view_as(batch.completion_ids_RT)


def _plain_inputs(model: Any, batch: GroupBatch) -> dict[str, Tensor]:
    """Ids, mask and positions [R, P + T - 1]: a completion's last token predicts nothing, so it stays out."""
    own = read_back(model, batch.completion_ids_RT[:, :-1])
    ids = torch.cat([batch.prompt_ids_BP[batch.group_R], own], dim=1)
    mask = torch.cat([batch.prompt_mask_BP[batch.group_R], batch.completion_mask_RT[:, :-1]], dim=1)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": _positions(mask)}
    if batch.images:
        inputs |= batch.images.left_padded(batch.group_R.tolist(), own.shape[1], ids.device)
    return inputs


def _plain(decoder: _Decoder, batch: GroupBatch) -> Tensor:
    """Features [R, T, D] with the prompt repeated for every completion."""
    inputs: dict[str, Any] = _plain_inputs(decoder.lm, batch)
    if batch.images:
        inputs |= batch.images.features(decoder.lm.base_model, batch.group_R.tolist())
    out = decoder.body(use_cache=False, **inputs)
    return decoder.features(out)[:, batch.prompt_ids_BP.shape[1] - 1 :]


def _shared(decoder: _Decoder, batch: GroupBatch) -> Tensor:
    """Features [N, D] from one row of all prompts and completions."""
    device, prefix = batch.token_N.device, batch.prefix
    before = prefix.length if prefix else 0
    holds_prefix = prefix is not None and (not prefix.states or (batch.ends_prefix and torch.is_grad_enabled()))
    lengths = [length - before for length in batch.prompt_lengths]
    row = PackedRow(lengths, batch.completion_lengths, device, False, batch.images, prefix, holds_prefix)
    first = batch.prompt_ids_BP[0, -batch.prompt_lengths[0] :][: before if holds_prefix else 0]
    prompts = batch.prompt_ids_BP[batch.prompt_mask_BP.cumsum(-1) > before]
    completions = batch.completion_ids_RT[:, :-1][batch.completion_mask_RT[:, 1:].bool()]
    ids = torch.cat([first, prompts, read_back(decoder.lm, completions)])
    features = batch.images.features(decoder.lm.base_model) if batch.images else {}
    if not decoder.own_head:  # so that there are no logits of prompts
        return run(decoder.body, ids[None], row.positions, row, logits_to_keep=row.source_M, **features).logits[0]
    out = run(decoder.body, ids[None], row.positions, row, **features)
    return decoder.features(out)[0].index_select(0, row.source_M)


def _logps_of_model(model: nn.Module, batch: GroupBatch) -> Tensor:
    """Log-probabilities [N] by the plain forward and the model's own logits: what the other paths must equal.

    Images go in as a user of transformers gives them, and where they stand is left to the model.
    """
    lm = unwrap(model)
    inputs: dict[str, Any] = _plain_inputs(lm, batch)
    if batch.images:
        inputs |= batch.images.stock(lm, inputs["input_ids"], batch.group_R.tolist())
        if batch.images.positions is not None:
            del inputs["position_ids"]
    length = batch.completion_ids_RT.shape[1]
    with fused.stock():
        out = lm(use_cache=False, logits_to_keep=length, **inputs)
    logits_NV = out.logits[:, -length:].flatten(0, 1)[batch.token_N].float()
    return logits_NV.log_softmax(-1).gather(-1, batch.completion_ids_RT.flatten()[batch.token_N, None])[:, 0]
