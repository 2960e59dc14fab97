"""The arithmetic of memory against known models, the batches that the update makes, and what autograd really keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import lines, small_run
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForImageTextToText
from vision import FAMILIES, image_file, save_vision_model

from spark_rl.models.vision import Vision, freeze_vision, vision_modules
from spark_rl.train.batches import TrainGroup, micro_batches
from spark_rl.train.estimate import (
    LOGITS_CHUNK,
    Memory,
    ModelShape,
    activation_bytes,
    generation_bytes,
    kv_bytes,
    largest_model,
    logits_bytes,
    micro_batch,
    optimizer_bytes,
    readable,
    split_micro_batch,
    update_bytes,
    vision_bytes,
)
from spark_rl.train.forward import GroupLogProbs, collate
from spark_rl.train.plan import make_plan
from spark_rl.types import Role

QWEN3_06B = ModelShape(
    num_params=596_049_920, layers=28, hidden=1024, intermediate=3072, heads=16, kv_heads=8, head_dim=128, vocab=151_936
)
GIB = 2**30


def test_cache_of_a_known_model():
    assert kv_bytes(QWEN3_06B, 1, dtype_bytes=2) == 114_688  # 112 KiB a token, as its card's users know it
    assert generation_bytes(QWEN3_06B, 1000, 10, 2) == 114_688_000 + 10 * 151_936 * 10


def test_a_parameter_costs_16_bytes():
    load = micro_batch("plain", 1, 1, 1, 1)
    bigger = ModelShape(QWEN3_06B.num_params + 1, 28, 1024, 3072, 16, 8, 128, 151_936)
    moments_and_weights = 12
    assert moments_and_weights + update_bytes(bigger, load, 4) - update_bytes(QWEN3_06B, load, 4) == 16
    assert optimizer_bytes(bigger, on_accelerator=True) - optimizer_bytes(QWEN3_06B, on_accelerator=True) == 8


def test_the_peak_is_the_largest_phase_over_what_is_always_there():
    memory = Memory(weights=100, reference=10, generation=5, update=7, optimizer=6, runtime=1)
    assert memory.peak == 100 + 10 + 1 + 7


def test_logits_are_held_by_the_chunk():
    assert logits_bytes(QWEN3_06B, 10) == 16 * 10 * 151_936
    assert logits_bytes(QWEN3_06B, 10**6) == 16 * LOGITS_CHUNK


def test_checkpointing_keeps_a_fraction():
    load = micro_batch("shared", 4, 8, 200, 200)
    whole, little = (activation_bytes(QWEN3_06B, load, 2, checkpointing=c) for c in (False, True))
    assert 10 < whole / little < 28


def test_half_precision_saves_less_than_half():
    load = micro_batch("shared", 4, 8, 200, 200)
    assert 1 < activation_bytes(QWEN3_06B, load, 4) / activation_bytes(QWEN3_06B, load, 2) < 2


@given(
    groups=st.integers(1, 12),
    rollouts=st.integers(2, 8),
    prompt=st.integers(1, 50),
    new=st.integers(1, 50),
    max_tokens=st.integers(60, 2000),
    fill=st.integers(60, 2000),
)
def test_micro_batches_are_cut_as_the_update_cuts_them(groups, rollouts, prompt, new, max_tokens, fill):
    group = TrainGroup([1] * prompt, [[2] * new] * rollouts, [0.0] * rollouts, [1.0] * rollouts, 1.0)
    batches = micro_batches([group] * groups, max_tokens, min(fill, max_tokens))
    largest = max(batches, key=lambda parts: sum(len(part.completions) for part in parts))
    num_groups, rows = split_micro_batch(max_tokens, min(fill, max_tokens), groups, rollouts, prompt, new)
    if prompt + rollouts * new <= max_tokens:
        assert (len(largest), len(largest[0].completions)) == (num_groups, rows)
    else:  # what is left of a split group may travel with its other part
        assert num_groups == 1 and rows <= sum(len(part.completions) for part in largest) <= 2 * rows


def kept_bytes(model: Any, implementation: Any, batch: Any) -> int:
    """Distinct storage that autograd keeps for the backward pass, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logps = GroupLogProbs(model, implementation)(batch).logps_RT
    total = sum(kept.values())
    logps.sum().backward()
    return total


@pytest.mark.parametrize(
    ("family", "implementation"),
    [("Qwen3", "plain"), ("Qwen3", "shared"), ("Llama", "plain"), ("Llama", "shared"), ("Lfm2", "plain")],
)
@pytest.mark.parametrize(("prompt", "new"), [(40, 24), (120, 8), (16, 60)])
def test_activations_are_what_autograd_keeps(
    tiny_model: Callable[..., Any], family: str, implementation: Any, prompt: int, new: int
) -> None:
    groups, rollouts, hidden, layers = 4, 6, 128, 4
    mixed = {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False}
    sizes = {"hidden_size": hidden, "intermediate_size": 384, "num_hidden_layers": layers, "head_dim": 32}
    model = tiny_model(family, **sizes, **(mixed if family == "Lfm2" else {})).train()
    batch = collate([([1] * prompt, [[2] * new] * rollouts)] * groups)
    shape = ModelShape(0, layers, hidden, 384, 4, 2, 32, 64)
    load = micro_batch(implementation, groups, rollouts, prompt, new)
    logits = 4 * load.completion_tokens * shape.vocab  # of the four kept in `logits_bytes` the forward keeps one
    ratio = (activation_bytes(shape, load, 4) + logits) / kept_bytes(model, implementation, batch)
    assert 0.95 <= ratio <= 1.3, ratio


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vision_tower_adds_what_autograd_keeps_of_it(family: str, tmp_path: Path) -> None:
    folder = save_vision_model(family, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings["vision_config"] |= {"depth": 8, "num_hidden_layers": 8}
    (folder / "config.json").write_text(json.dumps(settings))
    images = [image_file(tmp_path, seed, 48, 40) for seed in range(4)]
    rows = [{"prompt": f"<image> {i}?", "answer": "Yes", "images": [image.path]} for i, image in enumerate(images)]
    (tmp_path / "rows.jsonl").write_text(lines(rows))
    once = [f"model.path={folder}", f"data.train={tmp_path / 'rows.jsonl'}"]
    plan, frozen = (
        make_plan(small_run(tmp_path / "run", *once, f"model.freeze_vision={on}")) for on in ("false", "true")
    )
    tower, tasks = plan.shape.vision, plan.prompts[Role.ANSWER]
    assert tower is not None and tower.layers == 8 and not tower.is_frozen

    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).train()
    prompts = [plan.renderer.encode(task.messages, task.example.images) for task in tasks]
    shown = Vision(model, plan.renderer.images).read(prompts, [task.example.images for task in tasks])  # type: ignore
    batch = collate([(ids, [[9] * 4] * 3) for ids in prompts], images=shown)
    patches: list[int] = []
    stacks = [m for part in vision_modules(model) for m in part.modules() if isinstance(m, torch.nn.ModuleList)]
    max(stacks, key=len)[0].register_forward_pre_hook(
        lambda _, args, kwargs: patches.append([*args, *kwargs.values()][0].numel() // tower.hidden), with_kwargs=True
    )
    kept = kept_bytes(model, "shared", batch)
    freeze_vision(model)
    kept_frozen = kept_bytes(model, "shared", batch)

    load = micro_batch("shared", len(tasks), 3, 1, 1, round(plan.roles[Role.ANSWER].patches_mean))
    assert patches[0] == pytest.approx(load.patches, rel=0.1)  # a class token may come with each crop
    assert 0.8 <= vision_bytes(plan.shape, load.patches, 4, keeps_all=True) / (kept - kept_frozen) <= 1.3
    assert frozen.shape.num_trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert frozen.shape.num_params == plan.shape.num_params == plan.shape.num_trained
    assert plan.memory.weights - frozen.memory.weights == 8 * frozen.shape.num_frozen
    less = update_bytes(plan.shape, load, 4) - update_bytes(frozen.shape, load, 4)
    assert less >= 4 * frozen.shape.num_frozen  # and activations, where they are not the smaller part
    assert generation_bytes(plan.shape, 1, 1, 4, 10**6) == vision_bytes(plan.shape, 10**6, 4, keeps_all=False)


@pytest.mark.parametrize("on_accelerator", [False, True])
def test_the_largest_model_fits_and_grows_with_the_memory(on_accelerator):
    sizes = [largest_model(memory * GIB, 4, on_accelerator) for memory in (0, 4, 8, 16, 24, 80)]
    assert sizes[0] == 0 and sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
    assert all(16 * size <= memory * GIB for size, memory in zip(sizes, (0, 4, 8, 16, 24, 80), strict=True))
    assert sizes[-1] > 3e9


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (3 * GIB, "3.0 GiB"), (5 * 2**40, "5.0 TiB")]
)
def test_readable(num_bytes, text):
    assert readable(num_bytes) == text
