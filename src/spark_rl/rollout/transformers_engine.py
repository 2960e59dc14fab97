"""Generation with a plain Hugging Face model, each prompt computed once for all its samples.

Requests are sorted by prompt length and cut into chunks that fit a token budget. A chunk's prompts are left-padded and
run once; their key/value cache is then repeated, `n` rows for a request, into buffers with room for the completions,
and tokens are sampled until every row has ended. Ended rows are dropped from the buffers once there are enough of them
to pay for the copy.

Two things keep this right where a shorter loop is silently wrong: every continuation gets BOTH the full attention mask
and explicit positions, and cache layers that are not plain attention (linear attention, convolutions) are recognised
by their type, in which case each row runs its own copy of the prompt.

Shape suffixes: B requests of a chunk, R rows (samples), P padded prompt length, N longest completion, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from spark_rl.rollout.engine import Completion, Request, uniforms

_DROP_AT = 0.75
"""Ended rows are dropped when at most this share of the rows is still running."""
_CHECK_EVERY = 8
"""Steps between two looks at which rows have ended on an accelerator, where looking means waiting for it."""


def cache_tokens(device_type: str) -> int:
    """The default of `max_batch_tokens`. A cache that outgrows a CPU's own caches costs more than a further chunk."""
    return 16_384 if device_type == "cpu" else 131_072


class TransformersEngine:
    """Samples from `model` in this process. See `spark_rl.rollout.engine.Engine`."""

    def __init__(self, model: Any, tokenizer: Any, *, max_batch_tokens: int | None = None) -> None:
        """`max_batch_tokens` bounds rows x (prompt + completion) of a chunk, hence the memory of its cache; the default
        is that of `cache_tokens`."""
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch_tokens = max_batch_tokens

    def generate(
        self, requests: Sequence[Request], progress: Callable[[int, int], None] | None = None
    ) -> list[list[Completion]]:
        results: dict[int, list[Completion]] = {}
        total, done = sum(r.n for r in requests), 0
        budget = self.max_batch_tokens or cache_tokens(_device(self.model).type)
        with evaluating(self.model), grouped_attention(self.model), torch.inference_mode():
            for chunk in _chunks(requests, budget):
                rows = [(requests[i], sample) for i, sample in chunk]
                completions = self._run(rows, partial(_report, progress, done, total))
                for (i, _), completion in zip(chunk, completions, strict=True):
                    results.setdefault(i, []).append(completion)
                done += len(rows)
                _report(progress, done, total, 0)
        return [results[i] for i in range(len(requests))]

    def _run(self, rows: list[tuple[Request, int]], report: Callable[[int], None]) -> list[Completion]:
        """Sample the rows of one chunk; rows of the same request are neighbours."""
        model, device = self.model, _device(self.model)
        cap = max(request.max_new_tokens for request, _ in rows)
        sampler = _Sampler(rows, cap, device)
        stops = _StopStrings(rows, self.tokenizer)
        eos_E = torch.tensor(self._eos_ids(), device=device, dtype=torch.long)
        length_R = torch.tensor([request.max_new_tokens for request, _ in rows], device=device)
        token_RN = torch.zeros(len(rows), cap, dtype=torch.long, device=device)
        logp_RN = torch.zeros(len(rows), cap, dtype=torch.float32, device=device)

        row_R = torch.arange(len(rows), device=device)
        check_every = 1 if device.type == "cpu" or stops else _CHECK_EVERY
        logits_RV, state = _prefill(model, [request for request, _ in rows], cap, self._pad_id(), device)
        for t in range(cap):
            ids_R, logp_RN[row_R, t] = sampler.draw(logits_RV, row_R, t)
            token_RN[row_R, t] = ids_R
            ended_R = (ids_R[:, None] == eos_E).any(-1)
            if stops:
                ended_R |= stops.hit(token_RN, row_R, t)
            length_R[row_R] = torch.where(ended_R, length_R[row_R].clamp(max=t + 1), length_R[row_R])
            if t + 1 == cap:
                break
            if (t + 1) % check_every == 0:
                running_R = length_R[row_R] > t + 1
                num_running = int(running_R.sum())
                report(len(rows) - num_running)
                if num_running == 0:
                    break
                if num_running <= _DROP_AT * len(row_R):
                    keep = running_R.nonzero()[:, 0]
                    row_R, ids_R = row_R[keep], ids_R[keep]
                    state.select(keep)
            logits_RV = state.step(model, ids_R)
        return self._completions(rows, token_RN, logp_RN, length_R, set(eos_E.tolist()))

    def _completions(
        self, rows: list[tuple[Request, int]], token_RN: Tensor, logp_RN: Tensor, length_R: Tensor, eos: set[int]
    ) -> list[Completion]:
        tokens, logps, completions = token_RN.tolist(), logp_RN.tolist(), []
        for (request, _), ids, row_logps, length in zip(rows, tokens, logps, length_R.tolist(), strict=True):
            ids, row_logps = ids[:length], row_logps[:length]
            ended = ids[-1] in eos
            text = self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
            if cuts := [cut for stop in request.stop if (cut := text.find(stop)) >= 0]:
                text, ended = text[: min(cuts)], True
            completions.append(Completion(ids, row_logps, text, "stop" if ended else "length"))
        return completions

    def _eos_ids(self) -> list[int]:
        config = getattr(self.model, "generation_config", None)
        ids = getattr(config, "eos_token_id", None)
        several = ids if isinstance(ids, list | tuple) else [ids]
        return sorted({i for i in (*several, self.tokenizer.eos_token_id) if i is not None})

    def _pad_id(self) -> int:
        return self.tokenizer.pad_token_id or 0


def _report(progress: Callable[[int, int], None] | None, before: int, total: int, ended: int) -> None:
    if progress:
        progress(before + ended, total)


def _chunks(requests: Sequence[Request], budget: int) -> Iterator[list[tuple[int, int]]]:
    """Cut the samples, as (request number, sample number), into chunks of similar prompts within the token budget.

    A request with more samples than fit is cut too, which costs its prompt once more and changes no token.
    """
    chunk: list[tuple[int, int]] = []
    width = cap = 0
    for i in sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids), reverse=True):
        request = requests[i]
        for sample in range(request.n):
            wider = max(width, len(request.prompt_ids)), max(cap, request.max_new_tokens)
            if chunk and (len(chunk) + 1) * sum(wider) > budget:
                yield chunk
                chunk, wider = [], (len(request.prompt_ids), request.max_new_tokens)
            width, cap = wider
            chunk.append((i, sample))
    if chunk:
        yield chunk


@dataclass(slots=True)
class _State:
    """The rows still running: their cache, mask and next positions."""

    cache: Any
    mask_RL: Tensor
    """Mask over the prompt and all positions to come; the first `length` columns are in use."""
    position_R: Tensor
    length: int

    def step(self, model: Any, ids_R: Tensor) -> Tensor:
        """Append one token to every row. Returns the next logits [R, V]."""
        self.length += 1
        out = model(
            input_ids=ids_R[:, None],
            attention_mask=self.mask_RL[:, : self.length],
            position_ids=self.position_R[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position_R = self.position_R + 1
        return out.logits[:, -1]

    def select(self, keep: Tensor) -> None:
        """Keep these rows only."""
        self.cache.reorder_cache(keep)
        self.mask_RL, self.position_R = self.mask_RL[keep], self.position_R[keep]


def _prefill(model: Any, requests: list[Request], cap: int, pad_id: int, device: torch.device) -> tuple[Tensor, _State]:
    """Run every distinct prompt once and repeat the result for its rows. Returns the first logits [R, V]."""
    unique = list({id(request): request for request in requests}.values())
    index = {id(request): b for b, request in enumerate(unique)}
    expand_R = torch.tensor([index[id(request)] for request in requests], device=device)
    shared = _run_prompts(model, unique, cap, pad_id, device)
    if is_repeatable(shared[1].cache):
        logits_BV, state = shared
        state.mask_RL, state.position_R = state.mask_RL[expand_R], state.position_R[expand_R]
        for i, layer in enumerate(state.cache.layers):
            if type(layer) is DynamicLayer:
                state.cache.layers[i] = _RoomyLayer(layer, expand_R, cap)
            else:
                layer.reorder_cache(expand_R)
        return logits_BV[expand_R], state
    return _run_prompts(model, requests, cap, pad_id, device)


def _run_prompts(
    model: Any, requests: list[Request], cap: int, pad_id: int, device: torch.device
) -> tuple[Tensor, _State]:
    """Run the left-padded prompts. Returns the logits after them [B, V] and the state to go on from."""
    width = max(len(request.prompt_ids) for request in requests)
    ids = np.full((len(requests), width), pad_id)
    mask = np.zeros((len(requests), width + cap), dtype=np.int64)
    for b, request in enumerate(requests):
        start = width - len(request.prompt_ids)
        ids[b, start:] = request.prompt_ids
        mask[b, start:] = 1
    mask_BL = torch.from_numpy(mask).to(device)
    position_BP = (mask_BL[:, :width].cumsum(-1) - 1).clamp(min=0)
    out = model(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=mask_BL[:, :width],
        position_ids=position_BP,
        use_cache=True,
        logits_to_keep=1,
    )
    cache = getattr(out, "past_key_values", None)
    if cache is None:
        raise ValueError(f"{type(model).__name__} returns no key/value cache; choose another rollout engine for it")
    return out.logits[:, -1], _State(cache, mask_BL, position_BP[:, -1] + 1, width)


def is_repeatable(cache: Any) -> bool:
    """Whether every layer of the cache is plain (full or sliding) attention."""
    layers = getattr(cache, "layers", None) or []
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


class _RoomyLayer(DynamicLayer):
    """A cache layer written in place into buffers with room for `extra` more positions.

    The stock layer concatenates, i.e. copies the whole cache at every token.
    """

    def __init__(self, layer: DynamicLayer, index_R: Tensor, extra: int) -> None:
        super().__init__()
        assert layer.keys is not None and layer.values is not None
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self._used = layer.keys.shape[-2]
        self._buffers = [self._grown(states, index_R, extra) for states in (layer.keys, layer.values)]
        self._show()

    def _grown(self, states: Tensor, index_R: Tensor, extra: int) -> Tensor:
        _, heads, used, dim = states.shape
        buffer = states.new_empty(len(index_R), heads, used + extra, dim)
        buffer[:, :, :used] = states[index_R]
        return buffer

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = [buffer[:, :, : self._used] for buffer in self._buffers]
        self.keys, self.values = keys, values
        return keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        end = self._used + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._used : end] = states
        self._used = end
        return self._show()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows `beam_idx`, a rising index, moving them to the front of the buffers."""
        num = len(beam_idx)
        for i, buffer in enumerate(self._buffers):
            buffer[:num, :, : self._used] = buffer[:, :, : self._used][beam_idx]
            self._buffers[i] = buffer[:num]
        self._show()


def _grouped_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Scaled-dot-product attention without copies of the keys and values for the query heads that share them.

    Query heads of one key/value head become further query positions. Stock attention repeats the whole cache instead
    whenever there is a mask, at every token.
    """
    groups = query.shape[1] // key.shape[1]
    if groups == 1 or attention_mask is None or attention_mask.shape[1] != 1 or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    rows, heads, length, dim = query.shape
    if length > 1:
        attention_mask = attention_mask.repeat(1, 1, groups, 1)
    out = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(rows, heads // groups, groups * length, dim),
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=kwargs.get("dropout", 0.0),
        scale=kwargs.get("scaling"),
    )
    return out.view(rows, heads, length, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register("spark_grouped", _grouped_attention)
AttentionMaskInterface.register("spark_grouped", sdpa_mask)


@contextmanager
def grouped_attention(model: Any) -> Iterator[None]:
    """Inside, a model that runs on sdpa attention repeats no keys and values; others are left as they are."""
    config = model.config
    if config._attn_implementation != "sdpa":
        yield
        return
    config._attn_implementation = "spark_grouped"
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


class _Sampler:
    """Draws tokens for rows with their own temperature, top_p and noise, all in tensors."""

    def __init__(self, rows: list[tuple[Request, int]], cap: int, device: torch.device) -> None:
        temperature_R = torch.tensor([request.temperature for request, _ in rows], device=device)
        self.greedy_R = temperature_R == 0
        self.temperature_R = torch.where(self.greedy_R, 1.0, temperature_R)
        self.top_p_R = torch.tensor([request.top_p for request, _ in rows], device=device)
        self.any_greedy = any(request.temperature == 0 for request, _ in rows)
        self.all_greedy = all(request.temperature == 0 for request, _ in rows)
        self.any_top_p = any(request.top_p < 1 for request, _ in rows)
        self.any_scaled = any(request.temperature not in (0, 1) for request, _ in rows)
        self.real = torch.float32 if device.type == "mps" else torch.float64
        noise = np.zeros((len(rows), 1 if self.all_greedy else cap))
        if not self.all_greedy:
            for r, (request, sample) in enumerate(rows):
                noise[r, : request.max_new_tokens] = uniforms(request.seed, sample, request.max_new_tokens)
        self.noise_RN = torch.from_numpy(noise).to(self.real).to(device)

    def draw(self, logits_RV: Tensor, row_R: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Tokens [R] for position `t` of these rows, and their log-probabilities [R]."""
        logits_RV = logits_RV.float()
        if self.any_scaled:
            logits_RV = logits_RV / self.temperature_R[row_R, None]
        logp_RV = logits_RV.log_softmax(-1)
        if self.all_greedy:
            ids_R = logp_RV.argmax(-1)
        else:
            prob_RV = logp_RV.exp()
            if self.any_top_p:
                prob_RV = _nucleus(prob_RV, self.top_p_R[row_R])
            ids_R = _inverse_cdf(prob_RV.cumsum(-1, dtype=self.real), self.noise_RN[row_R, t])
            if self.any_greedy:
                ids_R = torch.where(self.greedy_R[row_R], logp_RV.argmax(-1), ids_R)
        return ids_R, logp_RV.gather(-1, ids_R[:, None])[:, 0]


def _inverse_cdf(cdf_RV: Tensor, noise_R: Tensor) -> Tensor:
    """The first token whose cumulative (unnormalised) probability exceeds noise x total."""
    target_R = noise_R * cdf_RV[:, -1]
    return torch.searchsorted(cdf_RV, target_R[:, None], right=True)[:, 0].clamp(max=cdf_RV.shape[-1] - 1)


def _nucleus(prob_RV: Tensor, top_p_R: Tensor) -> Tensor:
    """Zero all but the most likely tokens: the fewest whose mass reaches `top_p`. Not renormalised."""
    sorted_RV, order_RV = prob_RV.sort(-1, descending=True)
    before_RV = sorted_RV.cumsum(-1) - sorted_RV
    outside_RV = (before_RV >= top_p_R[:, None]) & (top_p_R[:, None] < 1)
    return torch.zeros_like(prob_RV).scatter(-1, order_RV, sorted_RV.masked_fill(outside_RV, 0.0))


class _StopStrings:
    """Looks for stop strings in the last few tokens of the rows that have any."""

    def __init__(self, rows: list[tuple[Request, int]], tokenizer: Any) -> None:
        self.stops = [request.stop for request, _ in rows]
        self.tokenizer = tokenizer
        self.window = 8 + max((len(stop.encode()) for stops in self.stops for stop in stops), default=0)

    def __bool__(self) -> bool:
        return any(self.stops)

    def hit(self, token_RN: Tensor, row_R: Tensor, t: int) -> Tensor:
        """Whether a stop string has appeared in each of these rows by position `t`: bool [R]."""
        recent = token_RN[row_R, max(0, t + 1 - self.window) : t + 1].tolist()
        return torch.tensor([self._is_hit(*pair) for pair in zip(row_R.tolist(), recent, strict=True)]).to(row_R.device)

    def _is_hit(self, row: int, ids: list[int]) -> bool:
        if not self.stops[row]:
            return False
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return any(stop in text for stop in self.stops[row])


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode inside, the former mode of every module after."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True
