"""Completions that are being generated: one token more for every row at a time, and rows that have ended leave.

`PromptOnceRows` holds the keys and values of every prompt once, whatever the number of its rows, and those of the
tokens of each row. A new token's products with its prompt are one matrix product for all rows of the prompt, so a
prompt is read once a step, not once a row. So it is with the prefix that all prompts begin with, if they do.
`CachedRows` is for models whose prompts cannot be shared (linear attention, convolutions): each row runs its own copy
of the prompt on the cache of transformers.

Shape suffixes: L tokens of the prefix, B prompts (without it), R running rows (neighbours share a prompt), G most rows
of a prompt, P longest prompt, U own tokens so far, H query heads, K key/value heads, F = H / K, D head size, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from spark_rl.models.load import unwrap
from spark_rl.models.packed_row import PackedRow, Prefix
from spark_rl.models.prompt_once import Score, run
from spark_rl.models.vision import PromptImages, read_back

_FIRST_ROOM = 64
"""Tokens of a row that room is made for at first; it doubles when it is full."""


class Rows(Protocol):
    """What the engine drives."""

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        prompt_of_row: Sequence[int],
        limit_of_row: Sequence[int],
        images: PromptImages | None,
        prefix: Prefix | None,
    ) -> Tensor:
        """Run the prompts, with their images, and start rows on them, each of at most so many tokens: one that goes on
        for the sake of others stays at its last position, since there may be none beyond. All prompts begin with the
        `prefix`, if there is one. Returns the first logits [R, V]."""
        ...

    def step(self, ids_R: Tensor) -> Tensor:
        """Append one token to every row. Returns the next logits [R, V]."""
        ...

    def select(self, keep: Tensor) -> None:
        """Keep these rows only: a rising index."""
        ...


class PromptOnceRows:
    """Rows on shared prompts; the object that attends in the model's forward (see `models/prompt_once.py`)."""

    def __init__(self, model: Any, limit: int) -> None:
        """`limit`: most tokens of a row."""
        self.model, self.limit = model, limit

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        prompt_of_row: Sequence[int],
        limit_of_row: Sequence[int],
        images: PromptImages | None,
        prefix: Prefix | None,
    ) -> Tensor:
        device = next(self.model.parameters()).device
        self._prefix_length = prefix.length if prefix else 0
        self._prefix = prefix.states if prefix else {}
        own = [ids[self._prefix_length :] for ids in prompts]
        row = PackedRow([len(ids) for ids in own], [()] * len(own), device, keep=True, images=images, prefix=prefix)
        ids = torch.tensor([i for ids in own for i in ids], device=device)
        features = images.features(unwrap(self.model).base_model) if images else {}
        out = run(self.model, ids[None], row.positions, row, logits_to_keep=row.last_B, **features)
        kept = row.kept_states()
        self.prompt_R = torch.tensor(prompt_of_row, device=device)
        self.length_B, self.used = row.prompt_B, 0
        self.position_R = row.next_B[self.prompt_R]
        self.last_R = _last(self.position_R, limit_of_row)
        self._prompts = {layer: [states.contiguous() for states in of_layer] for layer, of_layer in kept.items()}
        self._own: dict[int, list[Tensor]] = {}
        self.room = 0
        self._arrange()
        logits_RV: Tensor = out.logits[0][self.prompt_R]
        return logits_RV

    def step(self, ids_R: Tensor) -> Tensor:
        self._make_room()
        self.used += 1
        logits_RV = self._run(ids_R)
        self.position_R = (self.position_R + 1).minimum(self.last_R)
        return logits_RV

    def _run(self, ids_R: Tensor) -> Tensor:
        """The model's forward of one token a row: logits [R, V]."""
        self._masks: dict[int | None, Tensor] = {}
        out = run(self.model, read_back(self.model, ids_R)[:, None], self.position_R[:, None], self)
        logits_RV: Tensor = out.logits[:, -1]
        return logits_RV

    def select(self, keep: Tensor) -> None:
        prompt_R = self.prompt_R[keep]
        alive_B, self.prompt_R = prompt_R.unique_consecutive(return_inverse=True)
        self.position_R, self.last_R = self.position_R[keep], self.last_R[keep]
        for layer, own in self._own.items():
            self._own[layer] = [states.index_select(0, keep) for states in own]
        if len(alive_B) < len(self.length_B):
            self.length_B = self.length_B[alive_B]
            width = int(self.length_B.max())
            for layer, prompts in self._prompts.items():
                self._prompts[layer] = [states[:, :, :width].index_select(0, alive_B) for states in prompts]
        self._arrange()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None, score: Score) -> Tensor:
        rows, heads, _, dim = key.shape
        own_keys, own_values = self._with(layer, key, value)
        keys, values = self._prompts[layer]
        query_RKFD = query.reshape(rows, heads, -1, dim) * score.scale(dim)
        products = [self._of_prompts(query_RKFD, keys.mT), query_RKFD @ own_keys.mT]
        if self._prefix:
            before_keys, before_values = self._prefix[layer]
            products.insert(0, _of_few(query_RKFD, before_keys.mT))
        weights = score.weights(torch.cat(products, dim=-1), self._mask(window, query.dtype))
        *of_prefix, of_prompt, of_own = weights.split([product.shape[-1] for product in products], dim=-1)
        out_RKFD = self._of_prompts(of_prompt, values) + of_own @ own_values
        if of_prefix:
            out_RKFD += _of_few(of_prefix[0], before_values)
        return out_RKFD.reshape(rows, 1, query.shape[1], -1)

    def _of_prompts(self, left_RKFX: Tensor, right_BKXY: Tensor) -> Tensor:
        """Matrix products of each row's left side with its prompt's right side: [R, K, F, Y]."""
        left = left_RKFX if self._row_of_cell is None else left_RKFX.index_select(0, self._row_of_cell)
        out = _of_few(left, right_BKXY)
        return out if self._cell_of_row is None else out.index_select(0, self._cell_of_row)

    def _arrange(self) -> None:
        """Find the cell of every row among [B, G]; nothing is to be moved where every prompt has as many rows."""
        count_B = torch.bincount(self.prompt_R, minlength=len(self.length_B))
        most = int(count_B.max())
        self._row_of_cell = self._cell_of_row = None
        if most * len(count_B) == len(self.prompt_R):
            return
        first_B = count_B.cumsum(0) - count_B
        number_R = torch.arange(len(self.prompt_R), device=count_B.device)
        self._cell_of_row = self.prompt_R * most + number_R - first_B[self.prompt_R]
        self._row_of_cell = number_R.new_zeros(most * len(count_B)).index_copy_(0, self._cell_of_row, number_R)

    def _make_room(self) -> None:
        """See to it that the rows' own keys and values have a place for a further token."""
        if self.used < self.room:
            return
        before, self.room = self.room, min(max(_FIRST_ROOM, 2 * self.room), self.limit)
        for layer, prompts in self._prompts.items():
            own = [x.new_zeros(len(self.prompt_R), x.shape[1], self.room, x.shape[3]) for x in prompts]
            for wide, x in zip(own, self._own.get(layer, ()), strict=False):
                wide[:, :, :before] = x
            self._own[layer] = own

    def _with(self, layer: int, *states: Tensor) -> list[Tensor]:
        """The rows' own keys and values [R, K, U, D] with those of a further token."""
        for buffer, x in zip(self._own[layer], states, strict=True):
            buffer[:, :, self.used - 1] = x[:, :, 0]
        return [buffer[:, :, : self.used] for buffer in self._own[layer]]

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to the scores of [R, 1, 1, L + P + U]: minus infinity for padding and outside of the window."""
        if window not in self._masks:
            hidden_RS = self._hidden(window)
            mask_RS = torch.zeros(hidden_RS.shape, dtype=dtype, device=hidden_RS.device)
            self._masks[window] = mask_RS.masked_fill_(hidden_RS, -torch.inf)[:, None, None]
        return self._masks[window]

    def _hidden(self, window: int | None) -> Tensor:
        """What the rows' last tokens do not see: bool [R, L + P + U]."""
        width, (places, used) = self._prompts[0][0].shape[2], self._extent()
        column_S = torch.arange(-self._prefix_length, width + places, device=self.position_R.device)
        length_R1 = self.length_B[self.prompt_R][:, None]
        hidden_RS = (column_S >= length_R1) & (column_S < width)
        if isinstance(used, Tensor):  # not all places hold a token
            hidden_RS |= column_S >= width + used
        if window is not None:
            position_RS = torch.where(column_S < width, column_S, column_S - width + length_R1)
            hidden_RS |= length_R1 + used - 1 - position_RS >= window
        return hidden_RS

    def _extent(self) -> tuple[int, int | Tensor]:
        """To how many places of own tokens rows attend, and how many of these hold one."""
        return self.used, self.used


class CachedRows:
    """Rows that each ran their own copy of the prompt.

    Every continuation gets BOTH the full attention mask and explicit positions: without either it is silently wrong.
    """

    def __init__(self, model: Any, pad_id: int) -> None:
        self.model, self.pad_id = model, pad_id

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        prompt_of_row: Sequence[int],
        limit_of_row: Sequence[int],
        images: PromptImages | None,
        prefix: Prefix | None,
    ) -> Tensor:
        device = next(self.model.parameters()).device
        width = max(map(len, prompts))
        padded = [[self.pad_id] * (width - len(prompts[b])) + list(prompts[b]) for b in prompt_of_row]
        masks = [[0] * (width - len(prompts[b])) + [1] * len(prompts[b]) for b in prompt_of_row]
        self.mask_RL = torch.tensor(masks, device=device)
        inputs: dict[str, Any] = {"position_ids": (self.mask_RL.cumsum(-1) - 1).clamp(min=0)}
        if images:
            inputs |= images.left_padded(prompt_of_row, 0, device)
            inputs |= images.features(unwrap(self.model).base_model, prompt_of_row)
        out = self.model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=self.mask_RL,
            use_cache=True,
            logits_to_keep=1,
            **inputs,
        )
        self.cache: Any = getattr(out, "past_key_values", None)
        if self.cache is None:
            name = type(self.model).__name__
            raise ValueError(f"{name} returns no key/value cache; choose another rollout engine for it")
        position_ids = inputs["position_ids"].amax(-1)
        self.position_R = (position_ids.amax(0) if position_ids.dim() == 2 else position_ids) + 1
        self.last_R = _last(self.position_R, limit_of_row)
        logits_RV: Tensor = out.logits[:, -1]
        return logits_RV

    def step(self, ids_R: Tensor) -> Tensor:
        self.mask_RL = torch.cat([self.mask_RL, self.mask_RL.new_ones(len(ids_R), 1)], dim=1)
        out = self.model(
            input_ids=read_back(self.model, ids_R)[:, None],
            attention_mask=self.mask_RL,
            position_ids=self.position_R[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position_R = (self.position_R + 1).minimum(self.last_R)
        logits_RV: Tensor = out.logits[:, -1]
        return logits_RV

    def select(self, keep: Tensor) -> None:
        self.cache.reorder_cache(keep)
        self.mask_RL = self.mask_RL[keep]
        self.position_R, self.last_R = self.position_R[keep], self.last_R[keep]


def _of_few(left_RKFX: Tensor, right_BKXY: Tensor) -> Tensor:
    """Matrix products of rows' left sides with right sides that as many rows share each: [R, K, F, Y]."""
    num, folds = len(right_BKXY), left_RKFX.shape[2]
    left_BKQX = left_RKFX.unflatten(0, (num, -1)).transpose(1, 2).flatten(2, 3)
    return (left_BKQX @ right_BKXY).unflatten(2, (-1, folds)).transpose(1, 2).flatten(0, 1)


def _last(position_R: Tensor, limit_of_row: Sequence[int]) -> Tensor:
    """The position of each row's last token, where its first one has `position_R`."""
    return position_R + torch.tensor(limit_of_row, device=position_R.device) - 1
