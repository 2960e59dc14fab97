"""The endpoint engine against a server over real sockets that loses, stalls, refuses and dies."""

from __future__ import annotations

import asyncio
import base64
import io
import random
import re
import socket
import time

import PIL.Image
import pytest
from image_files import encoded, noise

from spark_rl.config import EngineConfig, load_inference
from spark_rl.images import ImageError, held, reference
from spark_rl.images.drawn import draw, drawing
from spark_rl.infer import ChatModel
from spark_rl.rollout import endpoint_engine
from spark_rl.rollout.endpoint_engine import EndpointEngine
from spark_rl.rollout.engine import Request
from spark_rl.types import IMAGE
from tests.rollout.openai_server import completion, refusal, serving


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(endpoint_engine, "FIRST_PAUSE", 0.01)


def ask(content="Hello", n=1, **changes):
    messages = ({"role": "user", "content": content},)
    return Request(id=content, prompt_ids=(), messages=messages, n=n, max_new_tokens=50, **changes)


def said(content):
    return f"You said {content!r}."


def test_a_thousand_requests_with_faults_come_back_once_each_and_in_order():
    faults = {"reset_rate": 0.03, "stall_rate": 0.02, "stall_seconds": 1.8}
    with serving(**faults) as (address, state):
        engine = EndpointEngine(address, EngineConfig(timeout_seconds=1.5, concurrency=32))
        told = []
        questions = [f"question {i}" for i in range(1000)]
        replies = engine.generate([ask(q) for q in questions], lambda done, total: told.append((done, total)))
        assert [of[0].text for of in replies] == [said(q) for q in questions]
        assert state.num_asked == 1000 + engine.num_retries
        assert 20 <= engine.num_retries <= 100
        assert set(state.answered) == set(questions)
        assert state.answered.total() - 1000 <= engine.num_retries, "only what was lost is asked again"
        assert state.most_at_once <= 32
        assert told == [(i, 1000) for i in range(1, 1001)]


def test_what_a_server_tells_is_kept():
    with serving() as (address, _):
        ((reply,),) = EndpointEngine(address + "/v1/", EngineConfig()).generate([ask("x")])
    assert "".join(reply.tokens).strip() == reply.text == said("x")
    assert reply.logps == [-0.5] * 3
    assert (reply.num_tokens, reply.num_prompt_tokens, reply.finish_reason) == (3, 7, "stop")


def test_sampling_options_go_to_the_server():
    with serving() as (address, state):
        engine = EndpointEngine(address, EngineConfig())
        engine.generate([ask(n=2, temperature=0.7, top_p=0.9, stop=("END",), seed=5), ask(temperature=0.0)])
    sampled, greedy = sorted(state.bodies, key=lambda body: -body["temperature"])
    assert (sampled["n"], sampled["top_p"], sampled["stop"], sampled["seed"]) == (2, 0.9, ["END"], 5)
    assert sampled["max_tokens"] == 50
    assert not {"n", "seed", "stop", "chat_template_kwargs"} & greedy.keys()


def test_what_is_off_is_sent_too_so_that_no_server_fills_it_in_from_the_model():
    with serving() as (address, state):
        EndpointEngine(address, EngineConfig()).generate([ask()])
    (body,) = state.bodies
    off = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert {name: body[name] for name in off} == off


def test_arguments_of_the_chat_template_go_to_the_server():
    with serving() as (address, state):
        settings = load_inference(["model.chat_template_kwargs={enable_thinking: false}"], model={"path": address})
        ChatModel.open(settings).generate([ask("x")])
    assert [body["chat_template_kwargs"] for body in state.bodies] == [{"enable_thinking": False}]


@pytest.mark.parametrize("way", ["refused", "passed over"])
def test_samples_are_asked_for_one_by_one_where_n_is_not_known(way):
    def answer(body):
        if way == "refused" and body.get("n", 1) > 1:
            return 400, refusal("n > 1 is not supported", "n"), {}
        return 200, completion({**body, "n": 1}), {}

    with serving(answer=answer) as (address, state):
        replies = EndpointEngine(address, EngineConfig()).generate([ask("x", n=3, seed=10)] * 4)
    assert [[c.text for c in of] for of in replies] == [[said("x")] * 3] * 4
    single = [body["seed"] for body in state.bodies if body.get("n", 1) == 1]
    assert sorted(single) == sorted([10, 11, 12] * 4)


def drawn(body, words=6):
    """A reply that depends on the prompt and the seed."""
    rng = random.Random(f"{body['messages'][-1]['content']} {body.get('seed')}")
    return " ".join(str(rng.randrange(100)) for _ in range(words))


def sampling(copies, text=drawn, logprob=None):
    """An answering server that samples: `copies` of one reply, or each sample with a seed of its own."""

    def answer(body):
        made = completion({**body, "logprobs": logprob is not None})
        for choice in made["choices"]:
            seed = body["seed"] + (0 if copies else choice["index"])
            choice["message"]["content"] = text({**body, "seed": seed})
            for token in choice["logprobs"]["content"] if logprob is not None else ():
                token["logprob"] = logprob
        return 200, made, {}

    return answer


def texts(replies):
    return [[each.text for each in of] for of in replies]


def num_singles(state):
    return sum(body.get("n", 1) == 1 for body in state.bodies)


@pytest.mark.parametrize("logprob", [None, -2.0])
def test_a_server_that_copies_a_sample_is_asked_for_each_with_a_seed_of_its_own(logprob, caplog):
    requests = [ask(f"question {i}", n=8, temperature=1.0, seed=100 * i) for i in range(6)]
    with serving(answer=sampling(copies=True, logprob=logprob)) as (address, state):
        engine = EndpointEngine(address, EngineConfig(concurrency=4))
        replies = texts(engine.generate(requests))
        asked = len(state.bodies)
        assert texts(engine.generate(requests)) == replies
        assert len(state.bodies) - asked == num_singles(state) / 2 == 6 * 8, "it is known by then"
    for i, of in enumerate(replies):
        assert of == [drawn({"messages": [{"content": f"question {i}"}], "seed": 100 * i + k}) for k in range(8)]
    assert [record.getMessage().partition(" gives")[2][:39] for record in caplog.records] == [
        " all samples of a request the same repl"
    ]


def test_a_server_that_samples_is_never_asked_twice(caplog):
    requests = [ask(f"question {i}", n=4, temperature=1.0, seed=10 * i) for i in range(20)]
    with serving(answer=sampling(copies=False)) as (address, state):
        replies = EndpointEngine(address, EngineConfig()).generate(requests)
        assert len(state.bodies) == 20 and not caplog.records
    assert all(len(set(of)) > 1 for of in texts(replies))


@pytest.mark.parametrize(("logprob", "doubted"), [(None, True), (-2.0, True), (-0.01, False)])
def test_replies_that_are_the_same_with_any_seed_are_taken_as_they_are(logprob, doubted, caplog, monkeypatch):
    """A verdict of a model that is sure: asked for again only where its probability is not told, or does not fit."""
    monkeypatch.setattr(endpoint_engine, "_DOUBTS", 3)
    requests = [ask(f"question {i}", n=4, temperature=1.0, seed=10 * i) for i in range(5)]
    answer = sampling(copies=False, text=lambda body: r"It is \boxed{Yes}.", logprob=logprob)
    with serving(answer=answer) as (address, state):
        replies = EndpointEngine(address, EngineConfig(concurrency=1)).generate(requests)
        assert num_singles(state) == (4 * 3 if doubted else 0), "in vain it is asked so often"
    assert texts(replies) == [[r"It is \boxed{Yes}."] * 4] * len(requests) and not caplog.records


@pytest.mark.parametrize(("copies", "num_found"), [(False, 0), (True, 1)])
def test_equal_samples_of_a_model_that_is_nearly_sure_do_not_make_a_server_repeat(copies, num_found, caplog):
    """One reply in ten is another. All eight of a request are often equal by chance; again and again they are not."""

    def text(body):
        return "B" if body["seed"] % 10 == 9 else "A"

    requests = [ask("?", n=8, temperature=1.0, seed=10 * i + 2 * (i > 0)) for i in range(20)]
    with serving(answer=sampling(copies=copies, text=text)) as (address, state):
        engine = EndpointEngine(address, EngineConfig(concurrency=1))
        if not copies:  # the first request is unanimous, and asked for again with another seed it is not
            sample = state.answer
            state.answer = lambda body: sample({**body, "seed": body["seed"] + 2 * (body.get("n", 1) == 1)})
        replies = texts(engine.generate(requests))
    assert len([record for record in caplog.records if " gives all samples" in record.getMessage()]) == num_found
    assert num_singles(state) == (20 * 8 if copies else 8) and "B" in replies[0 if not copies else 1]


def test_greedy_samples_are_the_same():
    with serving(answer=lambda body: (200, completion({**body, "logprobs": False}), {})) as (address, state):
        EndpointEngine(address, EngineConfig()).generate([ask(n=4, temperature=0.0)])
        assert len(state.bodies) == 1


def test_a_busy_server_is_given_the_time_it_asks_for():
    started, asked = time.monotonic(), []

    def answer(body):
        asked.append(time.monotonic() - started)
        return (200, completion(body), {}) if len(asked) > 1 else (429, refusal("busy"), {"Retry-After": "1"})

    with serving(answer=answer) as (address, _):
        EndpointEngine(address, EngineConfig()).generate([ask()])
    assert len(asked) == 2
    assert asked[1] - asked[0] >= 1, "however short our own pause"


def test_a_server_whose_quota_is_spent_ends_the_call_at_once():
    with (
        serving(answer=lambda body: (429, refusal("daily limit"), {"Retry-After": "86400"})) as (address, state),
        pytest.raises(ConnectionError, match="daily limit; it wants to be left alone for 86400 s"),
    ):
        EndpointEngine(address, EngineConfig()).generate([ask()])
    assert state.num_asked == 1


def empty(choices, **error):
    """As OpenRouter answers when a provider behind it fails: status 200, no choices."""
    return 200, {"id": None, "choices": choices, "usage": None, **({"error": error} if error else {})}, {}


@pytest.mark.parametrize("nothing", [empty(None, code=429, message="Provider returned error"), empty([])])
def test_an_answer_without_a_reply_is_asked_for_again(nothing):
    faults = [nothing] * 3
    with serving(answer=lambda body: faults.pop() if faults else (200, completion(body), {})) as (address, state):
        engine = EndpointEngine(address, EngineConfig())
        ((reply,),) = engine.generate([ask("x")])
    assert reply.text == said("x")
    assert state.num_asked == 4 and engine.num_retries == 3


@pytest.mark.parametrize(
    ("nothing", "kind", "words", "asked"),
    [
        (
            empty(None, code=429, message="Too many requests"),
            ConnectionError,
            "says 429: Too many requests; asked 3",
            3,
        ),
        (empty(None, code="502", message="Bad gateway"), ConnectionError, "says 502: Bad gateway; asked 3 times", 3),
        (
            empty(None, code="overloaded", message="Not now."),
            ConnectionError,
            "more (Not now; asked 3 times), 0 of 1",
            3,
        ),
        (empty([]), ConnectionError, "(its answer holds no reply; asked 3 times)", 3),
        (empty(None, code=402, message="No credits"), ValueError, "refuses a request (it says 402: No credits)", 1),
        (empty(None, code=401, message="No such user"), ValueError, "wants another key (it says 401: No such user)", 1),
    ],
)
def test_answers_without_a_reply_end_the_call_like_their_status_would(nothing, kind, words, asked):
    with serving(answer=lambda body: nothing) as (address, state):
        engine = EndpointEngine(address, EngineConfig(retries=2))
        with pytest.raises(kind) as failed:
            engine.generate([ask("x")])
    assert words in str(failed.value)
    assert state.num_asked == asked


def test_a_server_that_dies_ends_the_call_with_one_error():
    with serving(dies_after=30) as (address, state):
        engine = EndpointEngine(address, EngineConfig(retries=2, concurrency=8))
        with pytest.raises(ConnectionError) as failed:
            engine.generate([ask(str(i)) for i in range(500)])
        time.sleep(0.1)
        asked = state.num_asked
        assert asked <= 30 + 3 * 8
        time.sleep(0.2)
        assert state.num_asked == asked, "nothing goes on in the background"
    message = str(failed.value)
    assert re.search(r"does not answer any more \(.*asked 3 times\), \d+ of 500 replies", message), message


def test_a_request_that_can_not_be_answered_is_not_sent_again():
    with serving(answer=lambda body: (400, refusal("images are not for this model"), {})) as (address, state):
        with pytest.raises(ValueError, match=r"refuses a request .*images are not for this model"):
            EndpointEngine(address, EngineConfig(concurrency=1)).generate([ask()])
        assert state.num_asked == 1


def shown(part):
    """The picture of an image part, as a server reads it."""
    assert part.keys() == {"type", "image_url"} and part["image_url"].keys() == {"url"}
    start, _, data = part["image_url"]["url"].partition(",")
    assert start == "data:image/png;base64"
    return PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_images_stand_in_their_places_and_are_the_same_pictures(tmp_path):
    """Of whatever kind: files of several formats, a drawing, and what came as a data URL itself."""
    (tmp_path / "photo.jpg").write_bytes(jpeg := encoded(noise(seed=1), "JPEG"))
    sketch = drawing(16, 12, [("disc", 2, 2, 8, "red")])
    url = "data:image/webp;base64," + base64.b64encode(encoded(noise(seed=3), "WEBP", lossless=True)).decode()
    images = (reference("photo.jpg", tmp_path), reference(sketch, tmp_path), held(url))
    pictures = [PIL.Image.open(io.BytesIO(jpeg)), draw(sketch), noise(seed=3)]
    messages = (
        {"role": "system", "content": "Look well."},
        {"role": "user", "content": f"{IMAGE}{IMAGE} Which is a disc?"},
        {"role": "assistant", "content": "The second."},
        {"role": "user", "content": f"And is {IMAGE}, too? Or {IMAGE}?"},
    )
    request = Request("a", (), messages=messages, n=1, max_new_tokens=5, images=(*images, images[0]))
    with serving() as (address, state):
        EndpointEngine(address, EngineConfig()).generate([request, ask("Hello")])
    asked = {len(body["messages"]): body["messages"] for body in state.bodies}
    assert asked[1] == [{"role": "user", "content": "Hello"}], "a text stays a text"
    system, first, reply, second = asked[4]
    assert [system, reply] == [messages[0], messages[2]]
    assert [part.get("text") for part in first["content"]] == [None, None, " Which is a disc?"]
    assert [part.get("text") for part in second["content"]] == ["And is ", None, ", too? Or ", None, "?"]
    seen = [shown(part) for part in first["content"] + second["content"] if part["type"] != "text"]
    assert [each.tobytes() for each in seen] == [each.tobytes() for each in (*pictures, pictures[0])]
    assert [each.size for each in seen] == [(50, 40), (16, 12), (50, 40), (50, 40)]


def test_images_go_along_whenever_a_request_is_sent_again(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(noise()))
    image, faults = reference("a.png", tmp_path), [(503, refusal("later"), {}), (400, refusal("no n", "n"), {})]

    def answer(body):
        return faults.pop() if faults else (200, completion(body), {})

    with serving(answer=answer) as (address, state):
        engine = EndpointEngine(address, EngineConfig(concurrency=1))
        ((*replies,),) = engine.generate([ask(f"{IMAGE} What?", n=2, images=(image,))])
    assert len(replies) == 2 and len(state.bodies) == 4
    for body in state.bodies:
        part, text = body["messages"][0]["content"]
        assert shown(part).tobytes() == noise().tobytes() and text["text"] == " What?"


def test_large_images_are_made_smaller_before_they_are_sent(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(noise(60, 40)))
    image = reference("a.png", tmp_path)
    with serving() as (address, state):
        EndpointEngine(address, EngineConfig(), max_pixels=30 * 20).generate([ask(f"{IMAGE} What?", images=(image,))])
    part, _ = state.bodies[0]["messages"][0]["content"]
    assert shown(part).size == (30, 20)


def test_an_image_that_is_gone_is_one_sentence(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(noise()))
    image = reference("a.png", tmp_path)
    (tmp_path / "a.png").unlink()
    with serving() as (address, _), pytest.raises(ImageError, match=r"the image .*a\.png cannot be read"):
        EndpointEngine(address, EngineConfig()).generate([ask(f"{IMAGE} What?", images=(image,)), ask("b")])


def test_no_server_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ValueError, match=f"no server answers at http://127.0.0.1:{port}/v1 .*start it"):
        EndpointEngine(f"http://127.0.0.1:{port}", EngineConfig())


def test_a_server_that_is_busy_at_the_start_is_asked_again():
    busy = [(status, refusal("loading"), {}) for status in (503, 429)]
    with serving(before_models=busy) as (address, _):
        engine = EndpointEngine(address, EngineConfig())
        assert (engine.model, engine.num_retries) == ("tiny", 2)


def test_a_server_that_stays_busy_at_the_start_is_one_sentence():
    with serving(before_models=[(503, refusal("loading"), {})] * 3) as (address, state):
        with pytest.raises(ConnectionError) as failed:
            EndpointEngine(address, EngineConfig(retries=2))
        assert not state.before_models
    assert str(failed.value) == (
        f"{address}/v1 does not answer (it says 503: loading; asked 3 times); call again when it is back"
    )


def test_a_refusal_at_the_start_is_not_asked_again():
    with serving(before_models=[(400, refusal("speak later"), {})] * 2) as (address, state):
        with pytest.raises(ValueError, match=r"refuses a request \(it says 400: speak later\)"):
            EndpointEngine(address, EngineConfig())
        assert len(state.before_models) == 1


def test_a_server_that_lists_no_models_is_given_the_name():
    with serving(before_models=[(404, refusal("no such page"), {})]) as (address, _):
        assert EndpointEngine(address, EngineConfig(served_model="mine")).model == "mine"


def test_the_key_comes_from_the_environment(monkeypatch):
    with serving(key="secret") as (address, _):
        with pytest.raises(ValueError, match=r"engine.api_key_env"):
            EndpointEngine(address, EngineConfig(api_key_env="SPARK_TEST_KEY"))
        monkeypatch.setenv("SPARK_TEST_KEY", "secret")
        assert EndpointEngine(address, EngineConfig(api_key_env="SPARK_TEST_KEY")).model == "tiny"


def test_of_several_models_one_must_be_named():
    with serving(models=["a", "b"]) as (address, _):
        with pytest.raises(ValueError, match=r"serves a, b; name one with engine.served_model"):
            EndpointEngine(address, EngineConfig())
        with pytest.raises(ValueError, match=r"'c'.*serves a, b"):
            EndpointEngine(address, EngineConfig(served_model="c"))
        assert EndpointEngine(address, EngineConfig(served_model="b")).model == "b"


def test_split_off_reasoning_is_put_back():
    def answer(body):
        made = completion(body)
        made["choices"][0]["message"]["reasoning_content"] = "Hm."
        return 200, made, {}

    with serving(answer=answer) as (address, _):
        ((reply,),) = EndpointEngine(address, EngineConfig()).generate([ask("x")])
    assert reply.text == f"<think>Hm.</think>{said('x')}"


def test_it_works_inside_a_running_loop():
    async def inside(engine):
        return engine.generate([ask("x")])

    with serving() as (address, _):
        engine = EndpointEngine(address, EngineConfig())
        assert asyncio.run(inside(engine))[0][0].text == said("x")
