"""Small operations with their backward passes written out: fewer passes over memory than autograd needs.

A decoder's matrices run near the machine's rate; what is left of an update is mostly what stands between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(torch.autograd.Function):
    """x / rms(x) x weight, over the last dimension (2019, arXiv 1910.07467), for float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        normed, scale, weight = ctx.saved_tensors
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = torch.linalg.vecdot(grad.flatten(0, -2), normed.flatten(0, -2), dim=0)
        grad = grad * weight
        along = torch.linalg.vecdot(grad, normed, dim=-1)[..., None] / -normed.shape[-1]
        return grad.addcmul_(normed, along).mul_(scale), of_weight, None


_STOCK: ContextVar[bool] = ContextVar("stock", default=False)
_LOWEST = -80.0
"""exp of less is as good as zero, but takes a CPU up to 15 times as long: it is no normal float32."""


class LogSoftmaxAt(torch.autograd.Function):
    """Log-softmax of logits [N, V] at `ids` [N], and if asked for the entropy [N] of the distributions, nats."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        shifted = logits - logits.amax(-1, keepdim=True)
        at_ids = shifted.gather(-1, ids[:, None])
        exp = shifted.clamp_(min=_LOWEST).exp()
        total = exp.sum(-1, keepdim=True)
        log_total = total.log()
        logp = at_ids - log_total
        entropy = log_total - torch.linalg.vecdot(exp, shifted)[:, None] / total if with_entropy else None
        ctx.save_for_backward(exp, total, ids, *([shifted - log_total, entropy] if with_entropy else []))
        return logp[:, 0], None if entropy is None else entropy[:, 0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_entropy: Tensor | None) -> tuple[Tensor, None, None]:
        exp, total, ids, *rest = ctx.saved_tensors
        if rest:
            logp, entropy = rest
            assert grad_entropy is not None
            of_logits = (logp + entropy).mul_(grad_entropy[:, None]).add_(grad[:, None]).mul_(exp).div_(-total)
        else:
            of_logits = exp * (-grad[:, None] / total)
        return of_logits.scatter_add_(-1, ids[:, None], grad[:, None]), None, None


class LogSoftmaxAtOnGPU(torch.autograd.Function):
    """The same from logits of any precision. There it is passes over memory that count, and `exp` does not."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        logp_NV = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        logp = logp_NV.gather(-1, ids[:, None])
        entropy = -torch.linalg.vecdot(logp_NV.exp(), logp_NV)[:, None] if with_entropy else None
        ctx.save_for_backward(logp_NV, logp, ids, *([entropy] if with_entropy else []))
        ctx.dtype = logits.dtype
        return logp[:, 0], None if entropy is None else entropy[:, 0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_entropy: Tensor | None) -> tuple[Tensor, None, None]:
        logp_NV, logp, ids, *rest = ctx.saved_tensors
        at_ids = grad[:, None] * (1 - logp.exp())
        of_logits = torch.empty_like(logp_NV, dtype=ctx.dtype)
        if rest:
            assert grad_entropy is not None
            along, (entropy,) = grad_entropy[:, None], rest
            torch.mul(logp_NV.exp(), -(grad[:, None] + along * (logp_NV + entropy)), out=of_logits)
            at_ids = at_ids - logp.exp() * along * (logp + entropy)
        else:
            torch.exp(logp_NV, out=of_logits)
            of_logits *= -grad[:, None]
        return of_logits.scatter_(-1, ids[:, None], at_ids.to(ctx.dtype)), None, None


def log_softmax_at(logits: Tensor, ids: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Log-softmax of logits [N, V] at `ids` [N], and if asked for the entropy [N] of the distributions; float32."""
    kind = LogSoftmaxAtOnGPU if logits.is_cuda else LogSoftmaxAt
    logps: tuple[Tensor, Tensor | None] = kind.apply(logits if logits.is_cuda else logits.float(), ids, with_entropy)
    return logps


_BLOCK_ON_CPU, _BLOCK_ON_GPU = 2**19, 2**27
"""Products of queries and keys that are held at once."""


class AttendPart(torch.autograd.Function):
    """Attention to a part of what queries see: [rows, K, Q, D], and the logarithm of what its weights were divided by,
    [rows, K, Q, 1] in float32, by which parts are joined (as in ring attention, arXiv 2310.01889).

    Weights are made a block of queries at a time, and anew in the backward pass. `mask` [rows or 1, 1, Q, S] is added
    to the scores. A query that sees nothing gets zeros, and a logarithm so low that nothing comes of them.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        ctx.scale, ctx.softcap = scale, softcap
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        log_total = query.new_empty(*query.shape[:-1], 1, dtype=torch.float32)
        for part in AttendPart._blocks(query, key):
            scores, _ = AttendPart._scores(query[:, :, part], key, mask, part, scale, softcap)
            top = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
            weights = scores.sub_(top).exp_()
            total = weights.sum(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
            out[:, :, part] = (weights.to(value.dtype) @ value).div_(total)
            log_total[:, :, part] = top.add_(total.log_())
        ctx.save_for_backward(query, key, value, mask, out, log_total)
        return out, log_total

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, out, log_total = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        from_total = grad_total - (grad_out * out).sum(-1, keepdim=True)
        for part in AttendPart._blocks(query, key):
            scores, slope = AttendPart._scores(query[:, :, part], key, mask, part, ctx.scale, ctx.softcap)
            weights, grad = scores.sub_(log_total[:, :, part]).exp_(), grad_out[:, :, part]
            of_value += weights.to(grad.dtype).mT @ grad
            of_scores = (grad @ value.mT).float().add_(from_total[:, :, part]).mul_(weights).mul_(ctx.scale)
            of_scores = (of_scores if slope is None else of_scores.mul_(slope)).to(query.dtype)
            of_query[:, :, part] = of_scores @ key
            of_key += of_scores.mT @ query[:, :, part]
        return of_query, of_key, of_value, None, None, None

    @staticmethod
    def _blocks(query: Tensor, key: Tensor) -> Iterator[slice]:
        a_query = query.shape[0] * query.shape[1] * key.shape[2]
        size = max(1, (_BLOCK_ON_GPU if query.is_cuda else _BLOCK_ON_CPU) // a_query)
        return (slice(start, start + size) for start in range(0, query.shape[2], size))

    @staticmethod
    def _scores(
        query: Tensor, key: Tensor, mask: Tensor | None, part: slice, scale: float, softcap: float | None
    ) -> tuple[Tensor, Tensor | None]:
        """Scores in float32, and the slope of the soft cap if there is one."""
        scores, slope = ((query * scale) @ key.mT).float(), None
        if softcap is not None:
            capped = scores.div_(softcap).tanh_()
            slope, scores = 1 - capped**2, capped * softcap
        return (scores if mask is None else scores.add_(mask[:, :, part])), slope


def fuse(model: nn.Module) -> None:
    """Let the RMSNorm layers of a model use the one above wherever they compute in float32; on a GPU torch's own."""
    known: dict[type, bool] = {}
    for module in model.modules():
        kind = type(module)
        if not _may_be_rms_norm(module) or "forward" in vars(module):
            continue
        if kind not in known:
            known[kind] = _is_rms_norm(module)
        if known[kind]:
            module.forward = _Norm(module)


@contextmanager
def stock() -> Iterator[None]:
    """Inside, fused layers compute as the model's own code does."""
    token = _STOCK.set(True)
    try:
        yield
    finally:
        _STOCK.reset(token)


class _Norm:
    """The forward of one RMSNorm layer."""

    def __init__(self, module: Any) -> None:
        self.module, self.stock = module, type(module).forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight = self.module.weight
        is_ours = x.dtype is weight.dtype and not (_STOCK.get() or args or kwargs)
        if is_ours and x.is_cuda:  # one kernel there
            return nn.functional.rms_norm(x, weight.shape, weight, _eps(self.module))
        if is_ours and x.dtype is torch.float32:
            normed: Tensor = RMSNorm.apply(x, weight, _eps(self.module))
            return normed
        out: Tensor = self.stock(self.module, x, *args, **kwargs)
        return out


def _eps(module: Any) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _may_be_rms_norm(module: nn.Module) -> bool:
    """Whether its name calls it one and it has what one needs: not every layer of a class does (Gemma 4)."""
    weight = getattr(module, "weight", None)
    is_vector = isinstance(weight, Tensor) and weight.dim() == 1
    return type(module).__name__.endswith("RMSNorm") and is_vector and _eps(module) is not None


@torch.no_grad()
def _is_rms_norm(module: Any) -> bool:
    """Whether a layer that may be one computes an RMSNorm with `weight` as it is."""
    weight = module.weight
    x = torch.linspace(-1, 2, 2 * weight.shape[-1], device=weight.device).view(2, -1)
    try:
        expected = module(x)
    except (TypeError, RuntimeError):  # it takes more than one input, or another shape
        return False
    if not isinstance(expected, Tensor):
        return False
    return torch.allclose(expected, RMSNorm.apply(x, weight.float(), _eps(module)).to(expected.dtype), atol=1e-5)
