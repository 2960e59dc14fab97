"""The engine against `generate` and a fresh forward of the same model: tokens, log-probabilities, sampling, stops."""

from __future__ import annotations

import copy
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from spark_rl.models import prefixes
from spark_rl.rollout.captured_rows import Capture, CapturedRows
from spark_rl.rollout.engine import Request, uniforms
from spark_rl.rollout.running_rows import PromptOnceRows
from spark_rl.rollout.transformers_engine import TransformersEngine
from spark_rl.train.forward import GroupLogProbs, collate

CONFIGS = {
    "Qwen2": {},
    "Qwen3": {},
    "Llama": {},
    "Phi3": {},
    "Mistral": {"sliding_window": 8},
    "Gemma3": {"sliding_window": 8},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
    "Gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8, "attn_implementation": "eager"},
    "GptOss": {
        "sliding_window": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "attn_implementation": "eager",
    },
}
FAMILIES = list(CONFIGS)


@pytest.fixture(params=["as they are", "as for a CUDA graph"])
def steps(request, monkeypatch):
    """How steps of decoding are run. Without a GPU nothing is recorded, but all that recording asks for is done."""
    if request.param == "as for a CUDA graph":
        monkeypatch.setattr(
            TransformersEngine, "_rows", lambda engine, cap: CapturedRows(engine.model, cap, Capture(engine.model))
        )


def random_prompts(lengths, seed=0):
    rng = random.Random(seed)
    return [tuple(rng.randrange(2, 64) for _ in range(n)) for n in lengths]


def tokens_of(groups):
    return [[completion.token_ids for completion in group] for group in groups]


def plain_logps(model, prompt, ids, temperature=1.0):
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return (logits / (temperature or 1.0)).log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


def ends_early(model, prompts, new):
    """Make a token that greedy decoding reaches midway in some rows, not all, the end token. Returns it."""
    config = GenerationConfig(max_new_tokens=new, eos_token_id=None, pad_token_id=0, do_sample=False)
    outs = [model.generate(torch.tensor([p]), generation_config=config)[0, len(p) :].tolist() for p in prompts]
    firsts = Counter(token for out in outs for token in set(out[1:-1]) - {out[0]})
    token = next(t for t, count in firsts.most_common() if 0 < count < len(prompts))
    model.generation_config.eos_token_id = token
    return token


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate(family, steps, tiny_model, tiny_tokenizer):
    model = tiny_model(family, **CONFIGS[family])
    prompts, new = random_prompts([3, 11, 7, 20, 1]), 14
    eos = ends_early(model, prompts, new)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    config = GenerationConfig(
        max_new_tokens=new, eos_token_id=[eos, tiny_tokenizer.eos_token_id], pad_token_id=0, do_sample=False
    )
    expected = model.generate(ids, attention_mask=(ids != 0).long(), generation_config=config)[:, width:].tolist()
    requests = [Request(str(i), p, i % 3 + 1, new, temperature=0) for i, p in enumerate(prompts)]
    groups = TransformersEngine(model, tiny_tokenizer).generate(requests)
    assert [len(group) for group in groups] == [request.n for request in requests]
    reasons = set()
    for group, row in zip(groups, expected, strict=True):
        for completion in group:
            assert completion.token_ids == row[: len(completion.token_ids)]
            ended = completion.token_ids[-1] in (eos, tiny_tokenizer.eos_token_id)
            assert ended or len(completion.token_ids) == new
            assert completion.finish_reason == ("stop" if ended else "length")
            reasons.add(completion.finish_reason)
    assert reasons == {"stop", "length"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Llama", "Mistral"])
def test_logps_equal_a_fresh_forward(family, attention, tiny_model, tiny_tokenizer):
    model = tiny_model(family, attn_implementation=attention, **CONFIGS[family])
    temperatures = [1.0, 0.5, 0.0, 1.7]
    requests = [
        Request(str(i), p, 3, 5 + i, temperature=temperatures[i], top_p=0.9 if i == 1 else 1.0, seed=i)
        for i, p in enumerate(random_prompts([4, 13, 2, 9]))
    ]
    for request, group in zip(requests, TransformersEngine(model, tiny_tokenizer).generate(requests), strict=True):
        for c in group:
            expected = plain_logps(model, request.prompt_ids, c.token_ids, request.temperature)
            torch.testing.assert_close(torch.tensor(c.logps), expected, atol=1e-5, rtol=0)
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("family", ["Qwen3", "Mistral"])
def test_rows_that_end_at_different_times_leave_the_others_right(family, steps, tiny_model, tiny_tokenizer):
    """Long completions too: their room grows."""
    model = tiny_model(family, **CONFIGS[family])
    requests = [Request(str(i), p, 6, 150, temperature=3.0, seed=i) for i, p in enumerate(random_prompts([4, 13, 2]))]
    groups = TransformersEngine(model, tiny_tokenizer).generate(requests)
    lengths = {len(c.token_ids) for group in groups for c in group}
    assert len(lengths) > 6 and max(lengths) > 64
    for request, group in zip(requests, groups, strict=True):
        for c in group:
            expected = plain_logps(model, request.prompt_ids, c.token_ids, request.temperature)
            torch.testing.assert_close(torch.tensor(c.logps), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("shares", [True, False])
def test_a_row_at_its_limit_goes_no_further_than_the_model_has_positions(shares, steps, tiny_tokenizer):
    """While others in its batch have room for more."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    model = GPT2LMHeadModel(config).eval()
    asked = [(60, 4), *[(3 + i, 40) for i in range(5)]]
    requests = [
        Request(str(i), p, 1, asked[i][1], temperature=1.0, seed=i)
        for i, p in enumerate(random_prompts([length for length, _ in asked]))
    ]
    engine = TransformersEngine(model, tiny_tokenizer, shares=shares)
    alone = [engine.generate([request])[0] for request in requests]
    assert tokens_of(engine.generate(requests)) == tokens_of(alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_prefixes_change_no_token(family, steps, every_prefix, tiny_model, tiny_tokenizer, monkeypatch):
    """Two classes after one header, a prompt of neither, greedy rows and sampled ones, in one chunk a class and in
    several; the windows are shorter than the prefixes."""
    model = tiny_model(family, **CONFIGS[family])
    header, first, second, *own = random_prompts([3, 9, 17, 1, 6, 4, 2, 2, 1, 5])
    prompts = [*(header + first + ids for ids in own[:4]), *(header + second + ids for ids in own[4:6]), own[6]]
    prompts = [prompts[i] for i in (4, 0, 6, 1, 2, 5, 3)]
    requests = [Request(str(i), p, i % 3 + 1, 9 + i, (0.0, 1.3)[i % 2], seed=i) for i, p in enumerate(prompts)]
    assert [each.length for each in prefixes.prompt_classes(prompts)] == [20, 12, 0]
    engine = TransformersEngine(model, tiny_tokenizer)
    made = [engine.generate(requests)]
    engine.max_batch_tokens = 60
    made.append(engine.generate(requests))
    assert engine.shares
    monkeypatch.setattr(prefixes, "_FIXED", 10**6)
    expected = TransformersEngine(model, tiny_tokenizer).generate(requests)
    for groups in made:
        assert tokens_of(groups) == tokens_of(expected)
        for group, as_before in zip(groups, expected, strict=True):
            for ours, theirs in zip(group, as_before, strict=True):
                assert ours.logps == pytest.approx(theirs.logps, abs=1e-5)


def test_a_prefix_is_run_once_a_call(tiny_model, tiny_tokenizer, monkeypatch):
    """However many chunks its prompts are cut into; a chunk's budget counts it once."""
    model, lengths = tiny_model("Qwen3"), []
    (examples,) = random_prompts([150])
    requests = [Request(str(i), (*examples, *p), 2, 3, seed=i) for i, p in enumerate(random_prompts([4] * 6))]
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    TransformersEngine(model, tiny_tokenizer, max_batch_tokens=150 + 2 * (4 + 2 * 3)).generate(requests)
    assert lengths == [(1, 150), *[(1, 2 * 4), (2 * 2, 1), (2 * 2, 1)] * 3]


@pytest.mark.parametrize("waits", [False, True])
def test_two_steps_are_rehearsed_before_one_is_recorded(waits, tiny_model, tiny_tokenizer, monkeypatch):
    """The second one watched: a model that waits for the GPU is never recorded, and gives the same tokens."""
    model, mode, recorded = tiny_model("Qwen3"), ["default"], []
    requests = [Request(str(i), p, 3, 20, seed=i) for i, p in enumerate(random_prompts([4, 9]))]
    expected = TransformersEngine(model, tiny_tokenizer).generate(requests)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[0])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda new: mode.__setitem__(0, new))

    def wait(module, arguments):
        if waits and mode[0] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    model.model.norm.register_forward_pre_hook(wait)
    engine = TransformersEngine(model, tiny_tokenizer)
    engine._capture = Capture(model)
    engine._capture.works = True
    monkeypatch.setattr(Capture, "record", lambda capture, run: recorded.append(run) or run if capture.works else None)
    assert tokens_of(engine.generate(requests)) == tokens_of(expected)
    assert mode == ["default"] and engine._capture.rehearsals == 2
    assert engine._capture.works is not waits and bool(recorded) is not waits


def test_tokens_do_not_depend_on_the_batch(tiny_model, tiny_tokenizer):
    model = tiny_model("Qwen3")
    requests = [
        Request(str(i), p, i % 3 + 1, 6 + i, temperature=1.2, seed=100 + i)
        for i, p in enumerate(random_prompts([4, 13, 2, 9, 9]))
    ]

    def tokens(requests, **options):
        groups = TransformersEngine(model, tiny_tokenizer, **options).generate(requests)
        return {r.id: [c.token_ids for c in group] for r, group in zip(requests, groups, strict=True)}

    together = tokens(requests)
    assert tokens(requests[::-1]) == together
    assert tokens(requests, max_batch_tokens=40) == together
    assert {k: v for r in requests for k, v in tokens([r]).items()} == together
    assert tokens([replace(requests[2], n=2)])["2"] == together["2"][:2]
    assert tokens([replace(r, seed=7) for r in requests]) != together
    assert together["2"][0] != together["2"][1]


def test_sampling_follows_the_softmax(tiny_model, tiny_tokenizer):
    model, (prompt,) = tiny_model("Qwen3"), random_prompts([6])
    n, temperature = 6000, 1.3
    request = Request("a", prompt, n, 1, temperature=temperature, seed=3)
    (group,) = TransformersEngine(model, tiny_tokenizer).generate([request])
    with torch.no_grad():
        probs = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in group]), minlength=len(probs))
    common = probs * n > 5
    expected = torch.cat([probs[common], probs[~common].sum()[None]]) * n
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    chi_square, freedom = ((observed - expected) ** 2 / expected.clamp(min=1)).sum().item(), int(common.sum())
    assert freedom > 5
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_top_p_keeps_only_the_nucleus(tiny_model, tiny_tokenizer):
    model, (prompt,) = tiny_model("Qwen3"), random_prompts([6])
    with torch.no_grad():
        probs, order = model(torch.tensor([prompt])).logits[0, -1].softmax(-1).sort(descending=True)
    size = int((probs.cumsum(-1) < 0.8).sum()) + 1
    engine = TransformersEngine(model, tiny_tokenizer)
    narrow, wide = engine.generate(
        [Request("narrow", prompt, 2000, 1, top_p=0.8), Request("wide", prompt, 2000, 1, top_p=1.0)]
    )
    assert {c.token_ids[0] for c in narrow} == set(order[:size].tolist())
    assert len({c.token_ids[0] for c in wide}) > size


def test_stop_strings(tiny_model, tiny_tokenizer):
    model = tiny_model("Qwen3")
    engine = TransformersEngine(model, tiny_tokenizer)
    free = Request("free", random_prompts([5])[0], 2, 20, seed=11)
    (group,) = engine.generate([free])
    text, ids = group[1].text, group[1].token_ids
    stop = text[7:10]
    at = text.find(stop)
    needed = next(n for n in range(len(ids)) if stop in tiny_tokenizer.decode(ids[:n], skip_special_tokens=True))
    stopped, again = engine.generate([replace(free, id="s", stop=("never said", stop)), free])
    assert stopped[1].token_ids == ids[:needed]
    assert len(stop) == 3 and needed < len(ids)
    assert stopped[1].text == text[:at]
    assert stopped[1].finish_reason == "stop"
    assert stopped[1].logps == pytest.approx(group[1].logps[:needed], abs=1e-5)
    assert again[1].token_ids == ids


def test_special_tokens_are_sampled_but_not_decoded(tiny_model, tiny_tokenizer):
    model = tiny_model("Qwen3")
    requests = [Request(str(i), p, 8, 60, temperature=2.0, seed=i) for i, p in enumerate(random_prompts([5, 3]))]
    ended = [c for group in TransformersEngine(model, tiny_tokenizer).generate(requests) for c in group]
    ended = [c for c in ended if c.finish_reason == "stop"]
    assert ended
    for completion in ended:
        assert completion.token_ids.index(1) == len(completion.token_ids) - 1
        assert "<" not in completion.text


def test_a_cache_that_cannot_be_repeated_runs_every_prompt(tiny_model, tiny_tokenizer):
    model = tiny_model(
        "Lfm2", layer_types=["conv", "full_attention"], conv_L_cache=3, block_auto_adjust_ff_dim=False, use_cache=True
    )
    (prompt,) = random_prompts([9])
    requests = [Request("a", prompt, 3, 8, seed=1), Request("b", prompt, 1, 8, temperature=0)]
    for group in TransformersEngine(model, tiny_tokenizer).generate(requests):
        for c in group:
            expected = plain_logps(model, prompt, c.token_ids)
            torch.testing.assert_close(torch.tensor(c.logps), expected, atol=1e-4, rtol=0)


def test_modes_and_progress(tiny_model, tiny_tokenizer):
    model = tiny_model("Qwen3").train()
    model.model.layers[0].eval()
    seen = []
    requests = [Request(str(i), p, 2, 4, seed=i) for i, p in enumerate(random_prompts([5, 3, 8]))]
    TransformersEngine(model, tiny_tokenizer, max_batch_tokens=20).generate(requests, lambda *pair: seen.append(pair))
    assert model.training and model.model.layers[1].training and not model.model.layers[0].training
    assert seen == sorted(seen) and seen[-1] == (6, 6)


@pytest.mark.parametrize(
    "change", [{"prompt_ids": ()}, {"n": 0}, {"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"stop": ("",)}]
)
def test_impossible_requests_are_refused(change):
    with pytest.raises(ValueError, match="'a'"):
        replace(Request("a", (1,), 1, 1), **change)


def test_noise_is_addressed():
    assert (uniforms(3, 1, 10)[:4] == uniforms(3, 1, 4)).all()
    assert (uniforms(3, 1, 4) != uniforms(3, 2, 4)).all()
    assert (uniforms(3, 1, 4) != uniforms(4, 1, 4)).all()
    assert uniforms(-1, 0, 2).shape == (2,)


def test_a_model_that_hands_nothing_on_to_its_attention_runs_every_prompt(tiny_model, tiny_tokenizer, monkeypatch):
    requests = [Request("a", p, 3, 8, seed=1) for p in random_prompts([9])]
    model = tiny_model("Qwen3")
    expected = TransformersEngine(model, tiny_tokenizer).generate(requests)
    forward = type(model.model.layers[0].self_attn).forward

    def deaf(self, *args, shared_prompts=None, **kwargs):
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.model.layers[0].self_attn), "forward", deaf)
    (group,) = TransformersEngine(model, tiny_tokenizer).generate(requests)
    assert [c.token_ids for c in group] == [c.token_ids for c in expected[0]]


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("Phimoe", {"sliding_window": 6, "num_local_experts": 2}),  # its window is in the mask alone
        ("DiffLlama", {}),  # two attentions a layer
        ("Doge", {}),  # a mask of each layer's own
    ],
)
def test_models_that_cannot_share_are_found_out(tiny_model, tiny_tokenizer, family, config):
    """Generation and the update fall back to the plain forward, with the model's own log-probabilities."""
    model = tiny_model(family, **config)
    engine = TransformersEngine(model, tiny_tokenizer)
    prompt = tuple(2 + i % 50 for i in range(20))
    ((completion,),) = engine.generate([Request("a", prompt, 1, 4, temperature=1.0, seed=1)])
    assert not engine.shares
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    logps = model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
    expected = logps.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(completion.logps), expected, atol=1e-4, rtol=0)
    module = GroupLogProbs(copy.deepcopy(model), "auto")
    batch = collate([(list(prompt), [completion.token_ids])])
    if module.self_check(batch) is not None:
        module.implementation = "plain"
        assert module.self_check(batch) is None


def test_a_request_may_come_twice(tiny_model, tiny_tokenizer):
    engine = TransformersEngine(tiny_model(), tiny_tokenizer)
    request, other = (Request(str(i), p, 2, 6, seed=1) for i, p in enumerate(random_prompts([7, 7])))
    first, _, again = engine.generate([request, other, request])
    assert [c.token_ids for c in first] == [c.token_ids for c in again]


def test_two_threads_may_generate_at_once(tiny_model, tiny_tokenizer):
    engine = TransformersEngine(tiny_model(), tiny_tokenizer)
    requests = [Request(str(i), p, 2, 30, temperature=2.0, seed=i) for i, p in enumerate(random_prompts([5, 9]))]
    expected = [[c.token_ids for c in completions] for completions in engine.generate(requests)]
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda _: engine.generate(requests), range(8)):
            assert [[c.token_ids for c in completions] for completions in made] == expected
    assert engine.model.config._attn_implementation == "sdpa"


def test_rows_have_room_for_their_limit_only(steps, tiny_model, tiny_tokenizer, monkeypatch):
    rooms: list[int] = []
    run = PromptOnceRows._run

    def watched(self, ids_R):
        rooms.append(self._own[0][0].shape[2])
        return run(self, ids_R)

    monkeypatch.setattr(PromptOnceRows, "_run", watched)
    engine = TransformersEngine(tiny_model(eos_token_id=None), tiny_tokenizer)
    for limit in (4, 70):
        engine.generate([Request("a", random_prompts([5])[0], 2, limit, temperature=0)])
        assert max(rooms) <= limit
        rooms.clear()
