"""Attention in which many completions share one prompt, for the decoders of transformers.

A decoder layer treats each token by itself everywhere but in attention. So one row of unpadded tokens can hold whole
groups, `[prompt 1, prompt 2, .., completion 1, completion 2, ..]`, every prompt once, as long as attention knows who
belongs to whom. `share(model)` routes a model's attention through this module. A forward that is given an object
`shared_prompts=...` lets that object attend; any other forward is the model's own.

`models/packed_row.py` has that object for whole sequences: the update, and the prompts before generation. `rollout/`
has the one for decoding. No cache is needed, and none is lost under activation checkpointing.

Shape suffixes: H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_PREFIX = "prompt_once_"
_ROUTING = threading.RLock()
_SHAREABLE_LAYERS = {"full_attention", "sliding_attention"}


class CannotShare(RuntimeError):
    """The model's attention is not one that prompts can be shared in."""


class SharedPrompts(Protocol):
    """Who attends in a forward that is given one."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None, score: Score) -> Tensor:
        """Attention of layer number `layer`: query [rows, H, length, D] to [rows, length, H, D]."""
        ...


class Score:
    """How a layer turns products of queries and keys into weights: scale, soft cap, attention sinks, dropout."""

    def __init__(self, scaling: float | None, softcap: float | None, sinks_H: Tensor | None, dropout: float) -> None:
        self.scaling, self.softcap, self.sinks_H, self.dropout = scaling, softcap, sinks_H, dropout

    @property
    def is_plain(self) -> bool:
        """Whether it is what torch's scaled-dot-product attention does."""
        return self.softcap is None and self.sinks_H is None

    def scale(self, head_dim: int) -> float:
        """Factor on the queries."""
        return self.scaling or head_dim**-0.5

    def weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Weights of scaled products [rows, K, queries, keys], the query heads of a key/value head one after the
        other. They are summed in float32, whatever the scores are."""
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores + mask
        if self.sinks_H is None:
            return scores.softmax(-1)
        rows, heads, queries, _ = scores.shape
        sinks = self.sinks_H.to(scores.dtype).repeat_interleave(heads * queries // len(self.sinks_H))
        sinks = sinks.view(1, heads, queries, 1).expand(rows, -1, -1, -1)
        scores = torch.cat([scores, sinks], dim=-1)
        return scores.softmax(-1)[..., :-1]


def can_share(model: Any) -> bool:
    """Whether all that a token leaves to later ones is plain (full or sliding) attention, which can be replaced."""
    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    is_plain = not getattr(model, "_is_stateful", False) and layers <= _SHAREABLE_LAYERS
    return is_plain and bool(getattr(model, "_supports_attention_backend", False))


def share(model: Any) -> None:
    """Route the attention of a model that `can_share` through here, for good; its own forward stays what it was.

    But for flash attention, which transformers looks up by the name in the config: torch's takes its place.
    """
    config = model.config.get_text_config()
    base = config._attn_implementation
    if base.startswith(_PREFIX):
        return
    base = "sdpa" if "flash" in base else base
    name = _PREFIX + base
    AttentionInterface.register(name, partial(_attention, base))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    config._attn_implementation = name


@contextmanager
def sharing(model: Any) -> Iterator[None]:
    """Inside, the attention of a model that `can_share` is routed through here. One thread at a time."""
    with _ROUTING:
        config = model.config.get_text_config()
        base = config._attn_implementation
        if can_share(model):
            share(model)
        try:
            yield
        finally:
            config._attn_implementation = base


def run(decoder: Any, ids: Tensor, positions: Tensor, shared_prompts: SharedPrompts, **kwargs: Any) -> Any:
    """Forward of `ids` [rows, length] in which `shared_prompts` attends."""
    no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)  # 4-D: taken as it is, and read by none
    return decoder(
        input_ids=ids,
        attention_mask=no_mask,
        position_ids=positions,
        use_cache=False,
        shared_prompts=shared_prompts,
        **kwargs,
    )


def _attention(
    base: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_prompts: SharedPrompts | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls in every attention layer."""
    if shared_prompts is None:
        own = sys.modules[type(module).__module__].eager_attention_forward if base == "eager" else None
        stock = own or ALL_ATTENTION_FUNCTIONS[base]
        out: tuple[Tensor, Tensor | None] = stock(module, query, key, value, attention_mask, **kwargs)
        return out
    if kwargs.get("position_bias") is not None:
        raise CannotShare("this model adds a bias to its attention, which is not known here")
    if attention_mask is not None and attention_mask.numel() != 1:
        raise CannotShare("this model's layers make attention masks of their own")
    softcap, sinks = (None if base == "sdpa" else kwargs.get(name) for name in ("softcap", "s_aux"))  # it has neither
    score = Score(kwargs.get("scaling"), softcap, sinks, kwargs.get("dropout") or 0.0)
    window = kwargs.get("sliding_window")
    if window is None and _has_window(module):
        raise CannotShare("this model's layers do not hand on their sliding window")
    if torch.is_autocast_enabled(query.device.type):  # rotated in float32, but multiplied in less: keep no more of them
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return shared_prompts.attend(module.layer_idx, query, key, value, window, score), None


def _has_window(module: Any) -> bool:
    """Whether, by the config, the layer sees a window only."""
    config = module.config
    if not getattr(config, "sliding_window", None) or getattr(config, "use_sliding_window", True) is False:
        return False
    layers = getattr(config, "layer_types", None)
    return not layers or layers[module.layer_idx] == "sliding_attention"
