"""Prompt-once forwards against the plain one: log-probabilities, entropy, gradients, with and without checkpointing."""

from __future__ import annotations

import random

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from spark_rl.models import fused, packed_row
from spark_rl.models.packed_row import Prefix
from spark_rl.train import forward as forward_module
from spark_rl.train.forward import GroupLogProbs, collate

FAMILIES = {
    "Qwen2": {},
    "Qwen3": {},
    "Llama": {},
    "Mistral": {"sliding_window": 6},
    "Phi3": {},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
    "Gemma3": {"sliding_window": 6},
    "GptOss": {"sliding_window": 6, "num_local_experts": 4, "num_experts_per_tok": 2, "attn_implementation": "eager"},
    "Gemma2": {
        "sliding_window": 6,
        "attn_implementation": "eager",
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8,
    },
    "Cohere": {"logit_scale": 0.5},
    "Granite": {"logits_scaling": 4.0},
}


@pytest.fixture
def batch():
    """Ragged groups (1 to 4 completions) of ragged prompts (1 to 12 tokens) and completions (0 to 9 tokens)."""
    rng = random.Random(0)

    def ids(n):
        return [rng.randrange(2, 64) for _ in range(n)]

    groups = [(1, [3, 9]), (12, [5]), (7, [0, 4, 1]), (10, [9, 2, 6, 8])]
    return collate([(ids(prompt), [ids(n) for n in lengths]) for prompt, lengths in groups])


def run(model, batch, implementation, temperature=1.0, chunk=None):
    """Log-probabilities, entropies and the gradient of a weighted sum of both."""
    model.zero_grad()
    out = GroupLogProbs(model, implementation, chunk)(batch, temperature, with_entropy=True)
    weights = torch.randn(2, *out.logps_RT.shape, generator=torch.Generator().manual_seed(1))
    ((out.logps_RT * weights[0]).sum() + (out.entropy_RT * weights[1]).sum()).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return out.logps_RT.detach(), out.entropy_RT.detach(), gradient


def assert_same(left, right):
    for a, b in zip(left[:2], right[:2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert (left[2] - right[2]).norm() <= 1e-5 * right[2].norm()


def by_hand(model, batch, temperature):
    """Log-probabilities one unpadded row at a time."""
    expected = torch.zeros(batch.completion_ids_RT.shape)
    for r, b in enumerate(batch.group_R.tolist()):
        prompt = batch.prompt_ids_BP[b][batch.prompt_mask_BP[b].bool()]
        ids = batch.completion_ids_RT[r][batch.completion_mask_RT[r].bool()]
        with torch.no_grad():
            logits = model(torch.cat([prompt, ids])[None]).logits[0, len(prompt) - 1 : -1 if len(ids) else None]
        logps = (logits / temperature[r]).log_softmax(-1)
        expected[r, : len(ids)] = logps[: len(ids)].gather(-1, ids[:, None])[:, 0]
    return expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("implementation", ["plain", "shared"])
def test_logps_equal_single_rows(family, implementation, batch, tiny_model):
    model = tiny_model(family, **FAMILIES[family])
    temperature = torch.linspace(0.5, 2.0, len(batch.group_R))
    logps = GroupLogProbs(model, implementation)(batch, temperature).logps_RT
    torch.testing.assert_close(logps, by_hand(model, batch, temperature), atol=2e-5, rtol=1e-5)
    assert logps.dtype == torch.float32
    assert (logps[batch.completion_mask_RT == 0] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_equals_plain(family, batch, tiny_model):
    model = tiny_model(family, **FAMILIES[family]).train()
    assert_same(run(model, batch, "shared", 0.7), run(model, batch, "plain", 0.7))


def run_in_parts(model, parts, implementation, length, wrap=lambda module: module):
    """`run`, of batches one after the other, whose prompts all begin with the same `length` tokens."""
    model.zero_grad()
    module, prefix = wrap(GroupLogProbs(model, implementation)), None
    if implementation == "shared":
        prefix = Prefix(parts[0][0][0][:length])
        with torch.no_grad():
            (states,) = module([prefix.ids])
        prefix.states = {layer: tuple(x.requires_grad_() for x in pair) for layer, pair in states.items()}
    logps, entropies, generator = [], [], torch.Generator().manual_seed(1)
    for i, groups in enumerate(parts):
        batch = collate(groups, prefix=prefix, ends_prefix=i == len(parts) - 1)
        out = module(batch, torch.linspace(0.5, 2.0, len(batch.group_R)), with_entropy=True)
        weights = torch.randn(2, *out.logps_RT.shape, generator=generator)
        ((out.logps_RT * weights[0]).sum() + (out.entropy_RT * weights[1]).sum()).backward()
        logps.append(out.logps_RT.detach().flatten()), entropies.append(out.entropy_RT.detach().flatten())
    gradients = (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters())
    return torch.cat(logps), torch.cat(entropies), torch.cat([grad.flatten() for grad in gradients])


@pytest.fixture
def parts():
    """Batches of groups whose prompts begin with the same 10 tokens: with one batch, or with several."""
    rng = random.Random(0)

    def ids(n):
        return [rng.randrange(2, 64) for _ in range(n)]

    prefix = ids(10)
    lengths = [[(1, [3, 9]), (9, [5])], [(7, [0, 4, 1])], [(2, [2, 2]), (4, [8, 1])]]
    return [[(prefix + ids(own), [ids(n) for n in group]) for own, group in batch] for batch in lengths]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_computed_once_has_the_plain_gradient(family, parts, tiny_model):
    """Given by the first of three batches on, and held by the last; and by the only one. Windows end within it."""
    model = tiny_model(family, **FAMILIES[family]).train()
    for some in (parts, parts[:1]):
        assert_same(run_in_parts(model, some, "shared", 10), run_in_parts(model, some, "plain", 10))


@pytest.mark.parametrize("family", ["Qwen3", "Mistral"])
def test_so_it_has_under_activation_checkpointing(family, parts, tiny_model):
    model = tiny_model(family, **FAMILIES[family]).train()
    expected = run_in_parts(model, parts, "plain", 10)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(run_in_parts(model, parts, "shared", 10), expected)


@pytest.fixture
def one_rank():
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped")
def test_so_it_has_with_shards(parts, tiny_model, one_rank):
    """They wrap what goes into a forward, and its layers."""
    model = tiny_model("Qwen3").train()
    expected = run_in_parts(model, parts, "plain", 10)

    def shard(module):
        mesh = init_device_mesh("cpu", (1,))
        for part in (*module.model.model.layers, module):
            fully_shard(part, mesh=mesh)
        return module

    assert_same(run_in_parts(model, parts, "shared", 10, shard), expected)


def test_attention_in_blocks_is_that_of_one(parts, tiny_model, monkeypatch):
    model = tiny_model("Mistral", **FAMILIES["Mistral"]).train()
    expected = run_in_parts(model, parts, "shared", 10)
    monkeypatch.setattr(fused, "_BLOCK_ON_CPU", 300)
    assert_same(run_in_parts(model, parts, "shared", 10), expected)


def test_dropout_shares_no_prefix(tiny_model):
    assert GroupLogProbs(tiny_model("Llama")).shares_prefixes
    assert not GroupLogProbs(tiny_model("Llama", attention_dropout=0.1)).shares_prefixes
    assert not GroupLogProbs(tiny_model("Llama"), "plain").shares_prefixes


@pytest.mark.parametrize("family", ["Qwen3", "Mistral"])
def test_shared_equals_plain_under_activation_checkpointing(family, batch, tiny_model):
    model = tiny_model(family, **FAMILIES[family]).train()
    expected = run(model, batch, "plain")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(run(model, batch, "shared"), expected)


def test_groups_of_one_size_equal_ragged_ones(batch, tiny_model):
    """Their copies of the prompt are summed by another way."""
    model = tiny_model("Qwen3").train()
    batch = collate([([5, 6, 7], [[8, 9], [10]]), ([11], [[12, 13, 14], [15, 16]])])
    assert_same(run(model, batch, "shared"), run(model, batch, "plain"))


@pytest.mark.parametrize("implementation", ["plain", "shared"])
def test_chunked_equals_unchunked(implementation, batch, tiny_model):
    model = tiny_model("Qwen3").train()
    temperature = torch.linspace(0.5, 2.0, len(batch.group_R))
    expected = run(model, batch, implementation, temperature)
    for chunk in (1, 7, 46):
        assert_same(run(model, batch, implementation, temperature, chunk), expected)
    assert_same(run(model, batch, implementation, 1.0, 7), run(model, batch, implementation, 1.0))


def test_chunks_bound_the_logits(batch, tiny_model, monkeypatch):
    sizes = []
    logits = forward_module._Decoder.logits
    monkeypatch.setattr(forward_module._Decoder, "logits", lambda self, x: (sizes.append(len(x)), logits(self, x))[1])
    GroupLogProbs(tiny_model("Qwen3"), "shared", 7)(batch)
    assert max(sizes) <= 7 and sum(sizes) == len(batch.token_N) == int(batch.completion_mask_RT.sum())


def test_temperature_zero_counts_as_one(batch, tiny_model):
    forward = GroupLogProbs(tiny_model("Qwen3"))
    zeros = torch.zeros(len(batch.group_R))
    assert torch.equal(forward(batch, zeros).logps_RT, forward(batch).logps_RT)
    assert torch.equal(forward(batch, 0.0).logps_RT, forward(batch).logps_RT)


def test_self_check_passes_where_it_should_and_speaks_where_not(batch, tiny_model, monkeypatch):
    for implementation in ("plain", "shared"):
        model = tiny_model("Qwen3").train()
        assert GroupLogProbs(model, implementation).self_check(batch) is None
        assert model.training
    see = packed_row.PackedRow._completions_see
    monkeypatch.setattr(packed_row.PackedRow, "_completions_see", lambda *args: torch.ones_like(see(*args)))
    assert "nats off" in GroupLogProbs(tiny_model("Qwen3")).self_check(batch)


def test_self_check_holds_no_logits_of_prompts(batch, tiny_model):
    model, rows = tiny_model("Qwen3"), []
    model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:-1].numel()))
    assert GroupLogProbs(model).self_check(batch) is None
    assert max(rows) == batch.completion_ids_RT.numel()


def test_self_check_catches_a_logit_transform_it_does_not_know(batch, tiny_model, monkeypatch):
    model = tiny_model("Granite", **FAMILIES["Granite"])
    assert GroupLogProbs(model, "shared").self_check(batch) is None
    monkeypatch.setattr(forward_module, "_UNKNOWN_TRANSFORMS", ())
    assert "nats off" in GroupLogProbs(model, "shared").self_check(batch)


def test_linear_attention_goes_plain(batch, tiny_model):
    model = tiny_model("Lfm2", layer_types=["conv", "full_attention"], conv_L_cache=3, block_auto_adjust_ff_dim=False)
    forward = GroupLogProbs(model)
    assert forward.implementation == "plain" and forward.self_check(batch) is None
    with pytest.raises(ValueError, match="use 'plain'"):
        GroupLogProbs(model, "shared")


def test_collate_refuses_what_has_no_next_token():
    with pytest.raises(ValueError, match="prompt token"):
        collate([([], [[1]])])
    with pytest.raises(ValueError, match="completion"):
        collate([([1], [])])


def test_empty_completions_keep_the_graph(tiny_model):
    model = tiny_model("Qwen3").train()
    for implementation in ("plain", "shared"):
        out = GroupLogProbs(model, implementation)(collate([([5, 6], [[]])]))
        assert out.logps_RT.shape == (1, 1)
        out.logps_RT.sum().backward()
