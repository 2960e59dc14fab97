"""Tensors and generators to files and back, to the last bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from spark_rl.train.checksums import hash_of
from spark_rl.train.state import (
    load_weights,
    model_tensors,
    optimizer_tensors,
    random_state,
    save_weights,
    set_random_state,
    write_tensors,
)

CPU = torch.device("cpu")


def test_tensors_of_every_kind_are_read_back_by_safetensors(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    tensors = {str(kind): (torch.randn(3, 5) * 100).to(kind) for kind in [torch.bool, torch.uint8, torch.int8, *kinds]}
    tensors |= {"none": torch.empty(0, 4), "one": torch.tensor(0.1), "across": torch.randn(4, 6).T[::2]}
    told = write_tensors(tmp_path / "all.safetensors", tensors)
    assert told == hash_of(tmp_path / "all.safetensors")
    read = load_file(tmp_path / "all.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


def trained(model: nn.Module, steps: int = 2) -> torch.optim.Optimizer:
    """The optimizer after a few steps on anything."""
    optimizer = torch.optim.AdamW((p for p in model.parameters()), lr=1e-2)
    for _ in range(steps):
        model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_and_its_optimizer_go_on_as_they_were(
    tmp_path: Path, tiny_model: Callable[..., Any], tied: bool
) -> None:
    """Frozen parameters included, which have no moments, and weights that are one under two names."""
    made = [tiny_model(tie_word_embeddings=tied) for _ in range(2)]
    for model in made:
        model.model.layers[0].requires_grad_(False)
    optimizer = trained(made[0])
    save_weights(tmp_path, made[0], optimizer)
    assert sum("embed" in name or "lm_head" in name for name in load_file(tmp_path / "model.safetensors")) == 2 - tied
    fresh = torch.optim.AdamW(made[1].parameters(), lr=1e-2)
    load_weights(tmp_path, made[1], fresh)
    assert (made[1].lm_head.weight is made[1].model.embed_tokens.weight) == tied
    for _ in range(2):
        one, other = model_tensors(made[0]), model_tensors(made[1])
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        moments, others = optimizer_tensors(made[0], optimizer), optimizer_tensors(made[1], fresh)
        assert moments.keys() == others.keys() and all(torch.equal(moments[k], others[k]) for k in moments)
        assert not any("layers.0." in name for name in moments)
        for model, each in zip(made, (optimizer, fresh), strict=True):
            model(input_ids=torch.tensor([[8, 9]]), labels=torch.tensor([[8, 9]])).loss.backward()
            each.step()


def test_the_weights_of_another_model_are_refused(tmp_path: Path, tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    save_weights(tmp_path, model, torch.optim.AdamW(model.parameters()))
    for other in (tiny_model(num_hidden_layers=1), tiny_model(hidden_size=16)):
        with pytest.raises(ValueError, match=r"model\.safetensors holds the weights of another model"):
            load_weights(tmp_path, other, torch.optim.AdamW(other.parameters()))


def test_all_generators_go_on_as_they_were() -> None:
    def draws() -> tuple[object, ...]:
        return random.random(), random.gauss(0, 1), np.random.normal(), np.random.rand(), torch.rand(3).tolist()

    draws()  # leaves half a pair of Gaussians in each
    saved = json.loads(json.dumps(random_state(CPU)))
    expected = [draws(), draws()]
    set_random_state(saved, CPU)
    assert [draws(), draws()] == expected
