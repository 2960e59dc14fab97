"""Generation with a plain Hugging Face model, each prompt computed once for all its samples.

Requests whose prompts have a long beginning in common are taken together, and that is run once for all of them
(`models/prefixes.py`). Sorted by prompt length, they are cut into chunks that fit a token budget. A chunk's prompts are
run once, and tokens are sampled for all rows until every row has ended (`running_rows`). Ended rows are dropped once
there are enough of them to pay for it.

Shape suffixes: R rows (samples) of a chunk, N longest completion, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spark_rl.models.fused import fuse
from spark_rl.models.packed_row import Prefix, prefix_states
from spark_rl.models.prefixes import prompt_classes
from spark_rl.models.processor import ImageProcessor
from spark_rl.models.prompt_once import CannotShare, can_share, sharing
from spark_rl.models.vision import Vision
from spark_rl.rollout.captured_rows import Capture, CapturedRows
from spark_rl.rollout.engine import Completion, Request, uniforms
from spark_rl.rollout.running_rows import CachedRows, PromptOnceRows, Rows

_DROP_AT, _DROP_AT_ON_GPU = 0.75, 0.5
"""Ended rows are dropped when at most this share of the rows is still running. A GPU has to record its steps anew."""
_BLOCK = 1024
"""Tokens of a vocabulary that are looked through together, at most."""
_CHECK_EVERY = 8
"""Steps between two looks at which rows have ended on an accelerator, where looking means waiting for it."""


def cache_tokens(device_type: str) -> int:
    """The default of `max_batch_tokens`. A cache that outgrows a CPU's own caches costs more than a further chunk."""
    return 16_384 if device_type == "cpu" else 131_072


class TransformersEngine:
    """Samples from `model` in this process. See `spark_rl.rollout.engine.Engine`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        images: ImageProcessor | None = None,
        max_batch_tokens: int | None = None,
        shares: bool = True,
    ) -> None:
        """`images` prepares those of a vision-language model. `max_batch_tokens` bounds the tokens of a chunk, hence
        the memory of its keys and values: every prompt once and all rows at their limit. The default is that of
        `cache_tokens`. `shares`: compute each prompt once, if the model's architecture allows it."""
        self.model = model
        self.tokenizer = tokenizer
        self.vision = Vision(model, images) if images else None
        self.max_batch_tokens = max_batch_tokens
        self.shares = shares and can_share(model)
        """Whether prompts are computed once; off for good once the model shows that it cannot."""
        self._capture: Capture | None = None
        fuse(model)

    def generate(
        self, requests: Sequence[Request], progress: Callable[[float, int], None] | None = None
    ) -> list[list[Completion]]:
        with evaluating(self.model), sharing(self.model), torch.inference_mode():
            try:
                return self._generate(requests, progress)
            except CannotShare:
                if not self.shares:
                    raise
                self.shares = False
                return self._generate(requests, progress)

    def _generate(
        self, requests: Sequence[Request], progress: Callable[[float, int], None] | None
    ) -> list[list[Completion]]:
        results: dict[int, list[Completion]] = {}
        total, done = sum(r.n for r in requests), 0
        for prefix, members in self._classes(requests):
            for numbers, rows in self._chunks(requests, members, prefix):
                completions = self._run(rows, numbers, prefix, partial(_report, progress, done, total))
                for i, completion in zip(numbers, completions, strict=True):
                    results.setdefault(i, []).append(completion)
                done += len(rows)
                _report(progress, done, total, 0)
        return [results[i] for i in range(len(requests))]

    def _classes(self, requests: Sequence[Request]) -> Iterator[tuple[Prefix | None, list[int]]]:
        """Requests, by number, whose prompts begin with the same tokens, and what was computed of these."""
        if not self.shares:
            yield None, list(range(len(requests)))
            return
        prompts = [request.prompt_ids for request in requests]
        most = self.vision.before_images(prompts) if self.vision else None
        for length, members in prompt_classes(prompts, most):
            prefix = Prefix(prompts[members[0]][:length]) if length else None
            if prefix:
                (prefix.states,) = prefix_states(self.model, [prefix.ids], logits_to_keep=1)
            yield prefix, members

    def _chunks(
        self, requests: Sequence[Request], members: Sequence[int], prefix: Prefix | None
    ) -> Iterator[tuple[list[int], list[tuple[Request, int]]]]:
        """Chunks of some of the requests: the numbers of rows' requests, and the rows."""
        budget = self.max_batch_tokens or cache_tokens(_device(self.model).type)
        length = prefix.length if prefix else 0
        for chunk in _chunks([requests[i] for i in members], budget, self.shares, length):
            numbers = [members[i] for i, _ in chunk]
            yield numbers, [(requests[i], sample) for i, (_, sample) in zip(numbers, chunk, strict=True)]

    def _run(
        self,
        rows: list[tuple[Request, int]],
        numbers: list[int],
        prefix: Prefix | None,
        report: Callable[[float], None],
    ) -> list[Completion]:
        """Sample the rows of one chunk; rows of the same request, which have the same number, are neighbours."""
        device = _device(self.model)
        limits = [request.max_new_tokens for request, _ in rows]
        cap = max(limits)
        sampler = _Sampler(rows, cap, device)
        stops = _StopStrings(rows, self.tokenizer)
        eos_E = torch.tensor(self.eos_ids(), device=device, dtype=torch.long)
        length_R = torch.tensor(limits, device=device)
        token_RN = torch.zeros(len(rows), cap, dtype=torch.long, device=device)
        logp_RN = torch.zeros(len(rows), cap, dtype=torch.float32, device=device)

        row_R = torch.arange(len(rows), device=device)
        check_every = 1 if device.type == "cpu" or stops else _CHECK_EVERY
        drop_at = _DROP_AT if device.type == "cpu" else _DROP_AT_ON_GPU
        unique = {number: request for number, (request, _) in zip(numbers, rows, strict=True)}
        place = {number: b for b, number in enumerate(unique)}
        prompts = [request.prompt_ids for request in unique.values()]
        images = self.vision.read(prompts, [request.images for request in unique.values()]) if self.vision else None
        running = self._rows(cap)
        logits_RV = running.start(prompts, [place[number] for number in numbers], limits, images, prefix)
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
                report(len(rows) - num_running * (1 - (t + 1) / cap))
                if num_running == 0:
                    break
                if num_running <= drop_at * len(row_R):
                    keep = running_R.nonzero()[:, 0]
                    row_R, ids_R = row_R[keep], ids_R[keep]
                    running.select(keep)
            logits_RV = running.step(ids_R)
        return self._completions(rows, token_RN, logp_RN, length_R, set(eos_E.tolist()))

    def _rows(self, limit: int) -> Rows:
        if not self.shares:
            return CachedRows(self.model, self.tokenizer.pad_token_id or 0)
        self._capture = self._capture or Capture(self.model)
        if self._capture.works:
            return CapturedRows(self.model, limit, self._capture)
        return PromptOnceRows(self.model, limit)

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

    def eos_ids(self) -> list[int]:
        """The tokens that end a turn."""
        return end_tokens(self.model, self.tokenizer)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The ids of the tokens that end a turn, by the model's generation config and by its tokenizer."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = ids if isinstance(ids, list | tuple) else [ids]
    return sorted({i for i in (*several, tokenizer.eos_token_id) if i is not None})


def _report(progress: Callable[[float, int], None] | None, before: int, total: int, ended: float) -> None:
    if progress:
        progress(before + ended, total)


def _chunks(requests: Sequence[Request], budget: int, shares: bool, prefix: int = 0) -> Iterator[list[tuple[int, int]]]:
    """Cut the samples, as (request number, sample number), into chunks of similar prompts within the token budget.

    A request with more samples than fit is cut too, which costs its prompt once more and changes no token. Of all
    prompts the first `prefix` tokens are the same, which a chunk has once.
    """
    budget -= prefix
    chunk: list[tuple[int, int]] = []
    width = cap = prompts = 0
    for i in sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids), reverse=True):
        request = requests[i]
        size, limit = len(request.prompt_ids) - prefix, request.max_new_tokens
        for sample in range(request.n):
            is_new = sample == 0 or not shares or not chunk
            if chunk and (prompts + is_new) * max(width, size) + (len(chunk) + 1) * max(cap, limit) > budget:
                yield chunk
                chunk, width, cap, prompts, is_new = [], 0, 0, 0, True
            width, cap, prompts = max(width, size), max(cap, limit), prompts + is_new
            chunk.append((i, sample))
    if chunk:
        yield chunk


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
        noise_RN = torch.from_numpy(noise).to(self.real)
        self.noise_RN = noise_RN.clamp_(max=1 - torch.finfo(self.real).eps).to(device)  # float32 rounds some to 1

    def draw(self, logits_RV: Tensor, row_R: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Tokens [R] for position `t` of these rows, and their log-probabilities [R]."""
        if self.any_scaled:
            logits_RV = logits_RV.float() / self.temperature_R[row_R, None]
        prob_RV = logits_RV.softmax(-1, dtype=torch.float32)
        if self.all_greedy:
            ids_R = logits_RV.argmax(-1)
        else:
            kept_RV = _nucleus(prob_RV, self.top_p_R[row_R]) if self.any_top_p else prob_RV
            ids_R = _inverse_cdf(kept_RV, self.noise_RN[row_R, t])
            if self.any_greedy:
                ids_R = torch.where(self.greedy_R[row_R], logits_RV.argmax(-1), ids_R)
        return ids_R, prob_RV.gather(-1, ids_R[:, None])[:, 0].log()


def _inverse_cdf(prob_RV: Tensor, noise_R: Tensor) -> Tensor:
    """The first token whose cumulative (unnormalised) probability exceeds noise x total.

    A large vocabulary is looked through in two steps, so that not every token's sum has to be written: for the block
    of tokens, and for the token in it.
    """
    vocab, real = prob_RV.shape[-1], noise_R.dtype
    block_RBW = prob_RV.unflatten(-1, (-1, vocab if vocab <= _BLOCK else math.gcd(vocab, _BLOCK)))
    cdf_RB = block_RBW.sum(-1).cumsum(-1, dtype=real)  # a sum in `real` would make a copy of all in it
    target_R1 = noise_R[:, None] * cdf_RB[:, -1:]
    block_R1 = torch.searchsorted(cdf_RB, target_R1, right=True).clamp(max=cdf_RB.shape[-1] - 1)
    before_R1 = torch.where(block_R1 > 0, cdf_RB.gather(-1, (block_R1 - 1).clamp(min=0)), 0)
    cdf_RW = block_RBW[torch.arange(len(prob_RV), device=prob_RV.device), block_R1[:, 0]].cumsum(-1, dtype=real)
    rest_R1 = torch.minimum(target_R1 - before_R1, cdf_RW[:, -1:].nextafter(cdf_RW.new_zeros(())))
    return (block_R1 * block_RBW.shape[-1] + torch.searchsorted(cdf_RW, rest_R1, right=True))[:, 0]


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
