"""What only a GPU shows: decoding from CUDA graphs, the kernels of attention there, and a run in bfloat16."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig
from vision import image_file, save_vision_model

from spark_rl.config import ModelConfig, load_config
from spark_rl.models.load import load_model, load_tokenizer
from spark_rl.models.processor import load_image_processor
from spark_rl.prompts import ChatRenderer
from spark_rl.rollout.engine import Request
from spark_rl.rollout.running_rows import PromptOnceRows
from spark_rl.rollout.transformers_engine import TransformersEngine
from spark_rl.train.forward import GroupLogProbs, collate
from spark_rl.train.loop import Trainer
from spark_rl.types import IMAGE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA")

FAMILIES = {"Qwen2": {}, "Qwen3": {}, "Llama": {}, "Mistral": {"sliding_window": 8}, "Gemma3": {"sliding_window": 8}}
RECIPES = Path(__file__).parent.parent / "recipes"


def prompts(lengths: list[int]) -> list[tuple[int, ...]]:
    rng = random.Random(0)
    return [tuple(rng.randrange(2, 64) for _ in range(n)) for n in lengths]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_from_graphs_are_those_of_generate(family, tiny_model, tiny_tokenizer):
    model = tiny_model(family, **FAMILIES[family]).cuda()
    asked = prompts([3, 11, 7, 20, 1])
    requests = [Request(str(i), ids, i % 3 + 1, 100, temperature=0) for i, ids in enumerate(asked)]
    engine = TransformersEngine(model, tiny_tokenizer)
    groups = engine.generate(requests)
    assert engine._capture.works and engine._capture.recorded > 1
    config = GenerationConfig(max_new_tokens=100, eos_token_id=1, pad_token_id=0, do_sample=False)
    for ids, group in zip(asked, groups, strict=True):
        out = model.generate(torch.tensor([ids]).cuda(), generation_config=config)[0, len(ids) :].tolist()
        for completion in group:
            assert completion.token_ids == out[: len(completion.token_ids)]
            assert completion.token_ids[-1] == 1 or len(completion.token_ids) == 100


@pytest.mark.parametrize("family", ["Qwen3", "Mistral"])
def test_sampled_tokens_from_graphs_are_those_of_single_steps(family, tiny_model, tiny_tokenizer, monkeypatch):
    model = tiny_model(family, **FAMILIES[family]).cuda()
    requests = [Request(str(i), ids, 16, 150, seed=i) for i, ids in enumerate(prompts([3, 11, 7, 20, 1]))]
    engine = TransformersEngine(model, tiny_tokenizer)
    played = [[c.token_ids for c in group] for group in engine.generate(requests)]
    assert engine._capture.recorded > 3
    assert len({len(ids) for group in played for ids in group}) > 8
    monkeypatch.setattr(TransformersEngine, "_rows", lambda engine, limit: PromptOnceRows(engine.model, limit))
    stepped = [[c.token_ids for c in group] for group in engine.generate(requests)]
    assert played == stepped


def test_a_step_that_waits_is_not_recorded(tiny_model, tiny_tokenizer, caplog):
    model = tiny_model().cuda()
    model.model.norm.register_forward_pre_hook(lambda module, args: args[0].sum().item() and None)
    requests = [Request("a", prompts([5])[0], 4, 20, temperature=0)]
    engine = TransformersEngine(model, tiny_tokenizer)
    groups = engine.generate(requests)
    assert not engine._capture.works and "without a CUDA graph" in caplog.text
    assert torch.rand(3, device="cuda").sum() > 0
    model.model.norm._forward_pre_hooks.clear()
    assert [c.token_ids for c in groups[0]] == [
        c.token_ids for c in TransformersEngine(model, tiny_tokenizer).generate(requests)[0]
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_the_plain_ones_on_a_cpu(family, tiny_model):
    asked = prompts([3, 11, 30])
    batch = collate([(ids, prompts([5, 9, 17, 1])) for ids in asked])
    models = [tiny_model(family, **FAMILIES[family]) for _ in range(2)]
    models[0].cuda()
    logps = []
    for model, implementation in zip(models, ("shared", "plain"), strict=True):
        logps_RT = GroupLogProbs(model, implementation)(batch.to(next(model.parameters()).device)).logps_RT
        logps_RT.sin().sum().backward()
        logps.append(logps_RT.detach().cpu())
    torch.testing.assert_close(*logps, atol=1e-5, rtol=1e-5)
    largest = max(p.grad.abs().max() for p in models[1].parameters())
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        apart = (ours.grad.cpu() - theirs.grad).abs().max() / largest
        assert apart < 1e-5, name


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_images_give_the_tokens_they_give_on_a_cpu(family, tmp_path):
    config = ModelConfig(path=str(save_vision_model(family, tmp_path)))
    model, tokenizer = load_model(config).eval(), load_tokenizer(config)
    with torch.no_grad():  # so that no greedy path goes through an image token
        model.get_output_embeddings().weight[model.config.image_token_id] = 0
    images = load_image_processor(config, tokenizer)
    renderer = ChatRenderer(tokenizer, images=images)
    shown = [(), (image_file(tmp_path, 1, 48, 40),), (image_file(tmp_path, 1, 48, 40), image_file(tmp_path, 2, 24, 16))]
    texts = ["2+2?", f"{IMAGE}How many?", f"{IMAGE} or {IMAGE}?"]
    requests = [
        Request(str(i), tuple(renderer.encode([{"role": "user", "content": text}], of)), 3, 8, temperature=0, images=of)
        for i, (text, of) in enumerate(zip(texts, shown, strict=True))
    ]
    tokens = []
    for device in ("cpu", "cuda"):
        engine = TransformersEngine(model.to(device), tokenizer, images=images)
        tokens.append([[c.token_ids for c in group] for group in engine.generate(requests)])
    assert tokens[0] == tokens[1] and engine._capture.recorded


@pytest.mark.parametrize("recipe", ["quickstart", "quickstart-vision"])
def test_a_run_learns_in_bfloat16(recipe, tmp_path):
    few = ["data.validation=[]", "data.monitor=[]", "train.steps=6", f"train.output={tmp_path / 'run'}"]
    trainer = Trainer(load_config(RECIPES / f"{recipe}.yaml", few))
    assert trainer.accelerator.device.type == "cuda" and trainer.accelerator.mixed_precision == "bf16"
    trainer.run()
    assert trainer.engine._capture.works
