"""One row of unpadded tokens that holds whole groups, each prompt once (see `models/prompt_once.py`).

What all prompts of a row begin with, a `Prefix`, is computed once for many rows. Every token of the row attends to it
in one matrix product a head, and apart from that to its own prompt and completion; the two are joined exactly. So the
prefix's keys and values are copied for no one.

Shape suffixes: L tokens of the prefix, B prompts (without it), R completions of all of them (neighbours share a
prompt), P longest prompt, T longest completion without its last token, S = P + T, N tokens of the row, H query heads,
K key/value heads, F = H / K, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spark_rl.models.fused import AttendPart
from spark_rl.models.prompt_once import CannotShare, Score, run
from spark_rl.models.vision import PromptImages

_ALIGNED = 8
"""Numbers from the start of one row of a mask to the next are a multiple of this: kernels of GPUs would copy others."""
States = dict[int, tuple[Tensor, Tensor]]
"""Keys and values [1, K, L, D] by layer."""


class Prefix:
    """The tokens that all prompts of a row, or of several, begin with.

    No dataclass: sharding wraps the tensors in those, and leaves must stay the same ones.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self.states: States = {}
        """Of these tokens, computed before. Where they are leaves that require gradients, rows gather these in them."""

    @property
    def length(self) -> int:
        return len(self.ids)

    def gathered(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values as a row computes them itself: what others have gathered for them goes backward with them."""
        if layer not in self.states:
            return keys, values
        of_keys, of_values = self.states[layer]
        return _Gathered.apply(keys, of_keys), _Gathered.apply(values, of_values)


def prefix_states(body: Any, prefixes: Sequence[Sequence[int]], **kwargs: Any) -> list[States]:
    """The states of several prefixes, from one forward of `body`.

    Raises:
        CannotShare: the layers do not hand on what attention is to be shared by.
    """
    device = next(body.parameters()).device
    row = PackedRow([len(ids) for ids in prefixes], [()] * len(prefixes), device, keep=True)
    ids = torch.tensor([i for ids in prefixes for i in ids], device=device)
    run(body, ids[None], row.positions, row, **kwargs)
    kept = row.kept_states()
    return [
        {
            layer: (keys[b : b + 1, :, :n].contiguous(), values[b : b + 1, :, :n].contiguous())
            for layer, (keys, values) in kept.items()
        }
        for b, n in enumerate(map(len, prefixes))
    ]


class PackedRow:
    """One row of unpadded tokens: all prompts, then all completions, each of which sees its prompt and itself.

    Attention alone pads: prompts and completions are spread into grids, and what comes out is collected again.

    Args:
        prompt_lengths: tokens of each prompt after the prefix, at least one.
        completion_lengths: for each prompt, the tokens of its completions, maybe none. The last token of a completion
            predicts nothing, so it stays out of the row.
        keep: keep the keys and values of the prompts (see `kept`).
        images: those of the prompts, which say where their tokens stand and how they see each other.
        prefix: what the prompts begin with. Its states are given, unless the row holds its tokens.
        holds_prefix: they are the first ones of the row.
    """

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        completion_lengths: Sequence[Sequence[int]],
        device: torch.device | str,
        keep: bool = False,
        images: PromptImages | None = None,
        prefix: Prefix | None = None,
        holds_prefix: bool = False,
    ) -> None:
        before = prefix.length if prefix else 0
        inside = before if holds_prefix else 0
        sizes = [len(group) for group in completion_lengths]
        prompt_B, length_R = np.array(prompt_lengths), np.array([n for group in completion_lengths for n in group], int)
        own_R, group_R = (length_R - 1).clip(min=0), np.repeat(np.arange(len(prompt_B)), sizes)
        start_B, start_R = np.cumsum(prompt_B) - prompt_B, prompt_B.sum() + np.cumsum(own_R) - own_R
        column_P, column_T = np.arange(prompt_B.max()), np.arange(own_R.max(initial=0))
        real_BP, real_RT = column_P < prompt_B[:, None], column_T < own_R[:, None]
        grid_BP = start_B[:, None] + np.minimum(column_P, prompt_B[:, None] - 1)
        grid_RT = np.where(real_RT, start_R[:, None] + column_T, 0)
        place_N = np.concatenate([np.nonzero(real_BP)[1], (prompt_B[group_R][:, None] + column_T)[real_RT]])
        position_N, next_B = before + np.nonzero(real_BP)[1], before + prompt_B
        if images is not None and images.positions is not None:
            position_N = np.concatenate([position_AP[..., before:] for position_AP in images.positions], axis=-1)
            next_B = np.array([position_AP.max() + 1 for position_AP in images.positions])
        own_N = (next_B[group_R][:, None] + column_T)[real_RT]
        parts = [np.broadcast_to(part, (*position_N.shape[:-1], len(part))) for part in (np.arange(inside), own_N)]
        position_N = np.concatenate([parts[0], position_N, parts[1]], axis=-1)
        source = np.concatenate([grid_BP[group_R, -1:], grid_RT], axis=1)
        source_M = source[np.arange(source.shape[1]) < length_R[:, None]]
        slot_N = np.concatenate([np.flatnonzero(real_BP), real_BP.size + np.flatnonzero(real_RT)])

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        self.prefix, self._before, self._inside = prefix, before, inside
        self.last_B = tensor(inside + grid_BP[:, -1])
        """Where the prompts' last tokens are in the row."""
        self.positions = tensor(position_N[..., None, :])
        """Of all tokens, [1, N] or, with several axes, [A, 1, N]."""
        self.next_B = tensor(next_B)
        """The position of what follows a prompt."""
        self.source_M = tensor(inside + source_M)
        """Where in the row the completions' tokens are predicted, M in all."""
        self.kept: dict[int, tuple[Tensor, Tensor]] | None = {} if keep else None
        """The prompts' keys and values [B, K, P, D], padded on the right, by layer."""
        self.prompt_B, self.group_R = tensor(prompt_B), tensor(group_R)
        self.grid_BP, self.grid_RT, self.slot_N = tensor(grid_BP), tensor(grid_RT), tensor(slot_N)
        """The token in each cell of the grids, in padding any; and the cell of each token, one grid after the other.
        Tokens are counted without those of a prefix."""
        self._place_N = tensor(place_N)
        """How many tokens stand between the prefix and each of them."""
        self._farthest = before + int(place_N.max())
        """Tokens from the first one of the prefix to the one that is farthest from it."""
        self.grid_RS = torch.cat([self.grid_BP[self.group_R], self.grid_RT], dim=1)
        self.per_prompt = sizes[0] if len(set(sizes)) == 1 else None
        """Completions of every prompt, if all have the same number."""
        self._block_BP: Tensor | None = None
        if images is not None and images.blocks is not None:
            blocks = [block_P[before:] for block_P in images.blocks]
            padded = [np.pad(each, (0, len(column_P) - len(each)), constant_values=-1) for each in blocks]
            self._block_BP = tensor(np.stack(padded))
        self._masks: dict[tuple[str, int | None, int, torch.dtype], Tensor] = {}
        self._sees = {
            "prefix": self._prefix_sees,
            "prompts": self._prompts_see,
            "completions": self._completions_see,
            "to prefix": self._see_prefix,
        }

    def kept_states(self) -> States:
        """Those of the prompts, [B, K, P, D], once the row was run.

        Raises:
            CannotShare: there are none.
        """
        if not self.kept:
            raise CannotShare("this model's layers do not hand on what attention is to be shared by")
        return self.kept

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None, score: Score) -> Tensor:
        if self.prefix is None:
            return self._own(layer, query, key, value, window, score)[0]
        if not self._inside:
            keys, values = (states.to(query.dtype) for states in self.prefix.states[layer])
            return self._joined(layer, query, key, value, keys, values, window, score)
        sizes = [self._inside, query.shape[2] - self._inside]
        (first, query), (keys, key), (values, value) = (x.split(sizes, dim=2) for x in (query, key, value))
        is_causal = score.is_plain and (window is None or window >= self._inside)
        mask = None if is_causal else self._mask("prefix", window, query.shape[1] // key.shape[1], query.dtype)
        (out,) = _attend(first, keys, values, mask, score)
        keys, values = self.prefix.gathered(layer, keys, values)
        return torch.cat([out, self._joined(layer, query, key, value, keys, values, window, score)], dim=1)

    def _joined(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        window: int | None,
        score: Score,
    ) -> Tensor:
        """Attention to the prefix, which has these `keys` and `values`, and to prompt and completion, as if to all."""
        own, of_own = self._own(layer, query, key, value, window, score, apart=True)
        mask = None
        if window is not None and window <= self._farthest:
            mask = self._mask("to prefix", window, query.shape[1] // key.shape[1], query.dtype)
        out, of_prefix = _attend(query, keys, values, mask, score, apart=True)
        out = own.lerp(out, (of_prefix - of_own).sigmoid().to(out.dtype))
        if score.sinks_H is None:
            return out
        return out * (torch.logaddexp(of_prefix, of_own) - score.sinks_H[:, None]).sigmoid().to(out.dtype)

    def _own(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        window: int | None,
        score: Score,
        apart: bool = False,
    ) -> tuple[Tensor, ...]:
        """Attention to prompt and completion: what `_attend` returns, of the row."""
        query_N, key_N, value_N = (states[0].transpose(0, 1) for states in (query, key, value))
        query_B, query_R = _Spread.apply(query_N, self, False)
        key_B, key_R = _Spread.apply(key_N, self, True)
        value_B, value_R = _Spread.apply(value_N, self, True)
        if self.kept is not None:
            if layer in self.kept:
                raise CannotShare("a layer of this model attends more than once")
            self.kept[layer] = key_B, value_B
        folds = query.shape[1] // key.shape[1]
        sees_all = window is None or window >= query_B.shape[2]
        is_causal = not apart and score.is_plain and sees_all and self._block_BP is None
        mask = None if is_causal else self._mask("prompts", window, folds, query.dtype)
        grids = [_attend(query_B, key_B, value_B, mask, score, apart)]
        if self.grid_RT.numel():
            mask = self._mask("completions", window, folds, query.dtype)
            grids += [_attend(query_R, key_R, value_R, mask, score, apart)]
        return tuple(_Collect.apply(self, *parts)[None] for parts in zip(*grids, strict=True))

    def _mask(self, which: str, window: int | None, folds: int, dtype: torch.dtype) -> Tensor:
        """Who sees whom, [1, B or R; 1; folds x queries; keys], to be added to scores; made once for like layers."""
        name = which, window, folds, dtype
        if name not in self._masks:
            sees = self._sees[which](window)
            hidden = torch.zeros_like(sees, dtype=dtype).masked_fill_(~sees, -torch.inf)
            width = sees.shape[-1]
            aligned = torch.nn.functional.pad(hidden, (0, -width % _ALIGNED)).repeat(1, folds, 1)
            self._masks[name] = aligned[:, None, :, :width]
        return self._masks[name]

    def _prefix_sees(self, window: int | None) -> Tensor:
        column_L = torch.arange(self._inside, device=self.grid_BP.device)
        distance_LL = column_L[:, None] - column_L
        return ((distance_LL >= 0) & (distance_LL < (window or torch.inf)))[None]

    def _see_prefix(self, window: int | None) -> Tensor:
        """What all tokens of the row see of the prefix."""
        distance_L = torch.arange(self._before, 0, -1, device=self._place_N.device)
        return (self._place_N[:, None] + distance_L < (window or torch.inf))[None]

    def _prompts_see(self, window: int | None) -> Tensor:
        column_P = torch.arange(self.grid_BP.shape[1], device=self.grid_BP.device)
        distance_PP = column_P[:, None] - column_P
        sees_BPP = (distance_PP >= 0)[None]
        if self._block_BP is not None:
            is_same_BPP = self._block_BP[:, :, None] == self._block_BP[:, None]
            sees_BPP = sees_BPP | (is_same_BPP & (self._block_BP >= 0)[:, None])
        return sees_BPP & (distance_PP < (window or torch.inf))

    def _completions_see(self, window: int | None) -> Tensor:
        device, width, length = self.grid_BP.device, self.grid_BP.shape[1], self.grid_RT.shape[1]
        column_P, column_T = torch.arange(width, device=device), torch.arange(length, device=device)
        prompt_R = self.prompt_B[self.group_R]
        of_prompt_RTP = (column_P < prompt_R[:, None, None]).expand(-1, length, -1)
        distance_TT = column_T[:, None] - column_T
        own_TT = distance_TT >= 0
        if window is not None:
            position_RT = prompt_R[:, None] + column_T
            of_prompt_RTP = of_prompt_RTP & (position_RT[..., None] - column_P < window)
            own_TT = own_TT & (distance_TT < window)
        return torch.cat([of_prompt_RTP, own_TT.expand(len(prompt_R), -1, -1)], dim=2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, score: Score, apart: bool = False
) -> tuple[Tensor, ...]:
    """Attention of [rows, heads, length, D] to [rows, length, heads, D]; causal without a mask.

    The query heads of one key/value head become further queries of it, for which `mask` is repeated: masked attention
    would copy keys and values for every query head.

    Args:
        apart: these are not all keys that the queries see. Without a mask they see all of them, and a second result
            [rows, length, heads, 1] says by what this part is joined with others (see `fused.AttendPart`).
    """
    rows, num_heads, length, dim = query.shape
    heads = key.shape[1]
    if apart:
        folded = query.reshape(rows, heads, -1, dim)
        parts = AttendPart.apply(folded, key, value, mask, score.scale(dim), score.softcap)
        return tuple(part.reshape(rows, num_heads, length, -1).transpose(1, 2) for part in parts)
    if mask is None:
        out = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=score.dropout,
            is_causal=True,
            scale=score.scaling,
            enable_gqa=heads < num_heads,
        )
        return (out.transpose(1, 2),)
    folded = query.reshape(rows, heads, -1, dim)
    if score.is_plain:
        out = torch.nn.functional.scaled_dot_product_attention(
            folded, key, value, attn_mask=mask, dropout_p=score.dropout, scale=score.scaling
        )
    else:
        weights = score.weights(folded * score.scale(dim) @ key.transpose(2, 3), mask)
        out = torch.nn.functional.dropout(weights, score.dropout) @ value
    return (out.reshape(rows, num_heads, length, -1).transpose(1, 2),)


class _Gathered(torch.autograd.Function):
    """States of a prefix as they are. On the way back what `leaf` has gathered is added to their gradient."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, leaf: Tensor) -> Tensor:
        ctx.leaf = leaf
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        gathered = ctx.leaf.grad
        return (grad if gathered is None else grad + gathered.to(grad.dtype)), None


class _Spread(torch.autograd.Function):
    """States [N, heads, D] of a row to the prompts' grid [B, heads, P, D] and the completions' [R, heads, T, D], or
    for keys and values [R, heads, S, D], the prompt's before each completion's own.

    The backward pass is written out: every token stands in a single cell but for the copies of prompts, so gradients
    are gathered where autograd would scatter and add them.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, row: PackedRow, with_prompts: bool) -> tuple[Tensor, ...]:
        ctx.row, ctx.with_prompts = row, with_prompts
        grids = row.grid_BP, row.grid_RS if with_prompts else row.grid_RT
        flat = states.flatten(1)
        spread = (flat.index_select(0, grid.flatten()).view(*grid.shape, *states.shape[1:]) for grid in grids)
        return tuple(grid.transpose(1, 2) for grid in spread)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        row, (prompts, completions) = ctx.row, (grad.transpose(1, 2) for grad in grads)
        if ctx.with_prompts:
            copies, completions = completions.split([row.grid_BP.shape[1], row.grid_RT.shape[1]], dim=1)
            if row.per_prompt:
                prompts = prompts + copies.unflatten(0, (-1, row.per_prompt)).sum(1)
            else:
                prompts = prompts.index_add(0, row.group_R, copies)
        return _cells(prompts, completions).index_select(0, row.slot_N), None, None


class _Collect(torch.autograd.Function):
    """The inverse: grids [B, P, heads, D] and [R, T, heads, D] to the row [N, heads, D]."""

    @staticmethod
    def forward(ctx: Any, row: PackedRow, *grids: Tensor) -> Tensor:
        ctx.row, ctx.shapes = row, [grid.shape for grid in grids]
        return _cells(*grids).index_select(0, row.slot_N)

    @staticmethod
    def backward(ctx: Any, states: Tensor) -> tuple[Tensor | None, ...]:
        sizes = [shape[0] * shape[1] for shape in ctx.shapes]
        cells = states.new_zeros(sum(sizes), *states.shape[1:]).index_copy_(0, ctx.row.slot_N, states)
        return None, *(part.view(shape) for part, shape in zip(cells.split(sizes), ctx.shapes, strict=True))


def _cells(*grids: Tensor) -> Tensor:
    return torch.cat([grid.flatten(0, 1) for grid in grids])
