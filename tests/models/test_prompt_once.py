"""Sharing leaves a model's own forward alone. What it computes itself is compared with it in `tests/train/test_forward`
and `tests/rollout/test_transformers_engine`, for all families."""

from __future__ import annotations

import pytest
import torch

from spark_rl.models.packed_row import PackedRow
from spark_rl.models.prompt_once import can_share, share, sharing


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_sharing_model_still_has_its_own_forward(attention, tiny_model):
    model = tiny_model("Qwen3", attn_implementation=attention)
    ids, mask = torch.arange(2, 22).view(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[0, :3] = 0
    expected = model(ids, attention_mask=mask).logits
    with sharing(model):
        assert torch.equal(model(ids, attention_mask=mask).logits, expected)
    assert model.config._attn_implementation == attention
    share(model), share(model)
    assert torch.equal(model(ids, attention_mask=mask).logits, expected)


def test_a_saved_model_knows_nothing_of_it(tiny_model, tmp_path):
    model = tiny_model("Qwen3")
    share(model)
    model.save_pretrained(tmp_path)
    assert "prompt_once" not in (tmp_path / "config.json").read_text()


def test_linear_attention_cannot_share(tiny_model):
    assert can_share(tiny_model("Llama"))
    mixed = {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False}
    assert not can_share(tiny_model("Lfm2", **mixed))


def test_where_tokens_stand_in_a_row():
    """Prompts of 2 and 1 tokens; completions of 3 and 1, and of 2: their last tokens stay out."""
    row = PackedRow([2, 1], [[3, 1], [2]], "cpu")
    assert row.positions.tolist() == [[0, 1, 0, 2, 3, 1]]
    assert row.last_B.tolist() == [1, 2]
    assert row.source_M.tolist() == [1, 3, 4, 1, 2, 5]
    sees = row._completions_see(None)
    assert sees.int().tolist()[0] == [[1, 1, 1, 0], [1, 1, 1, 1]] and sees.int().tolist()[2][0] == [1, 0, 1, 0]
    assert row._completions_see(2).int().tolist()[0] == [[0, 1, 1, 0], [0, 0, 1, 1]]
