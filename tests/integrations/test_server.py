"""The served judge, over real sockets: a uvicorn server in a thread, whose engine follows a script."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import BAD, encoded, noise, png
from infer.scripted import Script, ScriptedEngine, says, scripted
from vision import picture, save_vision_model

from spark_rl.config import load_inference
from spark_rl.config.inference import ServeConfig
from spark_rl.images import held, open_image
from spark_rl.infer import Judge
from spark_rl.integrations import batching, server
from spark_rl.integrations.batching import Batcher, Busy, JudgingFailed, Single, Stopped
from spark_rl.integrations.server import Server, bind, create_app
from spark_rl.types import IMAGE

ONE = {"question": "3+4?", "response": "value 0.75"}
TWO = {"question": "3+4?", "a": "value 0.75", "b": "other"}


def believe(prompt: str, number: int, request: Any) -> str | tuple[str, float]:
    """Judges a response that says `value 0.75` right, or preferable, with this probability."""
    stated = re.search(r"value (\S+)", prompt)
    if stated is None:
        return "I cannot tell."
    p = float(stated[1])
    yes, no = ("Yes", "No") if "Response B" not in prompt else ("A", "B")
    if "Response B" in prompt and stated.start() > prompt.index("Response B"):
        yes, no = no, yes
    return says(yes, p) if p > 0.5 else says(no, 1 - p)


@dataclass
class Held:
    """`believe`, but each generation waits until it may."""

    may: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)

    def __call__(self, prompt: str, number: int, request: Any) -> str | tuple[str, float]:
        self.started.set()
        assert self.may.wait(60)
        return believe(prompt, number, request)


@dataclass
class Running:
    client: httpx.Client
    app: Any
    engine: ScriptedEngine
    server: Server

    @property
    def batcher(self) -> Batcher:
        return self.app.state.batcher

    def metric(self, name: str) -> float:
        line = re.search(rf"^spark_rl_{re.escape(name)} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        return float(line[1]) if line else 0.0

    def in_background(self, path: str, body: Any) -> tuple[threading.Thread, list[httpx.Response]]:
        """A request of its own connection, and where its reply will be."""
        replies: list[httpx.Response] = []
        url = self.client.base_url.join(path)
        thread = threading.Thread(target=lambda: replies.append(httpx.post(url, json=body, timeout=60)))
        thread.start()
        return thread, replies


@contextmanager
def running(
    script: Script = believe, *, token: str | None = None, judge: Judge | None = None, **settings: Any
) -> Iterator[Running]:
    model, engine = scripted(script)
    app = create_app(judge or Judge(model), ServeConfig(**settings), token=token)
    listener = bind("127.0.0.1", 0)
    server = Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, args=([listener],))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.start()
    wait_for(lambda: server.started)
    try:
        with httpx.Client(base_url=url, timeout=60) as client:
            yield Running(client, app, engine, server)
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(max_items=8, max_chars=1000, max_body_bytes=20_000) as served:
        yield served


def test_one_item_and_several(served):
    right = {"verdict": "right", "probability": 0.75}
    wrong = {**ONE, "response": "value 0.1"}
    unclear = {**ONE, "response": "hm"}
    assert served.client.post("/score", json=ONE).json() == right
    items = served.client.post("/score", json={"items": [ONE, wrong, unclear, ONE]}).json()["items"]
    nothing = {"verdict": None, "probability": None}
    assert items == [right, {"verdict": "wrong", "probability": 0.1}, nothing, right]
    assert served.client.post("/score", json={"items": []}).json() == {"items": []}


def test_comparisons(served):
    a = {"preferred": "a", "probability": 0.75, "consistent": True}
    b = {"preferred": "b", "probability": 0.25, "consistent": True}
    assert served.client.post("/compare", json=TWO).json() == a
    turned = {**TWO, "a": TWO["b"], "b": TWO["a"]}
    assert served.client.post("/compare", json={"items": [turned, TWO]}).json() == {"items": [b, a]}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/score", "{", ["not valid JSON", "character"]),
        ("/score", "[]", ["JSON object"]),
        ("/score", '"question"', ["JSON object"]),
        ("/score", '{"question": "q"}', ["'response' is missing"]),
        ("/score", '{"question": 3, "response": ""}', ["'question'", "string"]),
        ("/score", '{"question": "q", "response": "r", "gold": "7"}', ["'gold' is not known"]),
        ("/score", '{"question": "q", "response": "\\ud800"}', ["'response'", "surrogate"]),
        ("/score", '{"items": {}}', ["'items'", "list"]),
        ("/score", '{"items": [{"question": "q", "response": "r"}, {"question": "q"}]}', ["'items.1.response'"]),
        ("/compare", '{"question": "q", "a": "r"}', ["'b' is missing"]),
        ("/compare", '{"items": [{"question": "q", "a": null, "b": "r"}]}', ["'items.0.a'"]),
        (
            "/score",
            '{"question": [{"type": "video"}], "response": "r"}',
            ["'question'", "{'type': 'image'}", "'video'"],
        ),
        ("/score", '{"question": [{"type": "image"}], "response": "r"}', ["'question'", "'data:image/png;base64,...'"]),
        (
            "/compare",
            '{"question": [{"type": "text", "text": "\\ud800"}], "a": "", "b": ""}',
            ["'question'", "surrogate"],
        ),
        ("/score", '{"question": "q", "response": "r", "images": [3]}', ["'images' is wrong: it must be a data URL"]),
        (
            "/score",
            '{"question": "<image> or <image>?", "response": "r", "images": ["data:"]}',
            ["'images' is wrong: the number of images is 1, and that of <image> in 'question' is 2; write it once"],
        ),
        (
            "/compare",
            '{"items": [{"question": [{"type": "image", "image": "data:"}], "images": "data:", "a": "", "b": ""}]}',
            ["'items.0.images'", "image parts already"],
        ),
        ("/get_reward", '{"query": ["q r"]}', ["'prompts' is missing"]),
        ("/get_reward", '{"query": ["q r"], "prompts": []}', ["1 texts", "0"]),
        ("/get_reward", '{"query": ["q r"], "prompts": ["p"]}', ["'query' 0", "begin with its prompt"]),
    ],
)
def test_a_malformed_body_is_told_its_field(served, path, body, words):
    reply = served.client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 422
    assert all(word in reply.json()["detail"] for word in words), reply.json()
    assert "\n" not in reply.json()["detail"]


@pytest.mark.parametrize("path", ["/score", "/compare", "/get_reward"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 19_000, "not valid JSON (nested too deeply)"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, "not valid JSON (nested too deeply)"),
        (b'{"question": "\xff", "response": ""}', "not valid JSON (byte 15 is not UTF-8)"),
        ('{"question": "q"}'.encode("utf-16"), "not valid JSON (byte 1 is not UTF-8)"),
        (b'\xef\xbb\xbf{"question": "q"}', "not valid JSON"),
        (b'{"question": ' + b"9" * 5000 + b"}", "not valid JSON (a number has more than 4300 digits)"),
        (b'{"\\ud800": "q"}', ""),
        (b'{"question": NaN, "query": Infinity}', ""),
        (b'{"question": 1e999, "query": -1e999, "a": 1' + b"0" * 400 + b"}", ""),
        (b"null", "must be a JSON object"),
        (b"", "must be a JSON object"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_body_that_cannot_be_parsed_is_told_so(served, path, body, words):
    reply = served.client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 422, reply.text
    assert words in reply.json()["detail"] and "\n" not in reply.json()["detail"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ";", None])
def test_another_content_type_is_told_the_right_one(served, kind):
    headers = {"Content-Type": kind} if kind else {}
    reply = served.client.post("/score", content=b'{"question": "q", "response": "r"}', headers=headers)
    assert reply.status_code == 422 and "Content-Type: application/json" in reply.json()["detail"]


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """What may be sent to any route: nearly what it takes, spoilt somewhere; or bytes."""
    text = st.text(st.characters(), max_size=5) | st.sampled_from(
        ["\\ud800", "\ud800", "<image>", IMAGE, "data:", "\0"]
    )
    json = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=5,
    )
    part = st.fixed_dictionaries({}, optional={"type": st.sampled_from(["text", "image", "image_url"]) | text}) | json
    keys = ["question", "response", "a", "b", "images", "image", "items", "query", "prompts", "labels"]
    value = json | st.lists(part | st.fixed_dictionaries({}, optional={k: text for k in keys[:6]}), max_size=3)
    good = st.fixed_dictionaries(dict.fromkeys(["question", "response"], text), optional={"images": value, "x": json})
    good |= st.fixed_dictionaries(dict.fromkeys(["question", "a", "b"], text), optional={"image": text})
    good |= st.fixed_dictionaries({"query": st.just(["", "a"]), "prompts": st.lists(st.just(""))}, optional={"x": json})
    body = draw(
        good | st.lists(good).map(lambda items: {"items": items}) | st.dictionaries(st.sampled_from(keys), value)
    )
    raw = dumps(body).encode() if draw(st.booleans()) else repr(body).encode(errors="surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(raw)))
        spoilt = draw(st.binary(max_size=4) | st.sampled_from([b"[", b'{"a":', b"9", b"\xed\xa0\x80", b"\\ud800"]))
        raw = raw[:at] + spoilt * draw(st.sampled_from([1, 1, 400, 2500])) + raw[at:]
    return raw


@pytest.fixture(scope="module")
def ask_app() -> Iterator[Callable[[dict[str, Any], bytes], list[Any]]]:
    """Asks the app itself, past uvicorn, which would refuse some requests of its own: the messages of its answer."""
    model, _ = scripted(believe)
    app = create_app(Judge(model), ServeConfig(max_items=8, max_chars=1000, max_body_bytes=20_000))

    async def ask(scope: dict[str, Any], body: bytes) -> list[Any]:
        sent: list[Any] = []
        messages = iter([{"type": "http.request", "body": body[:100], "more_body": True}])
        last = iter([{"type": "http.request", "body": body[100:]}])

        async def receive() -> Any:
            return next(messages, None) or next(last, None) or await asyncio.sleep(60)

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        return sent

    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        yield lambda scope, body: runner.run(ask(scope, body))
        runner.run(lifespan.__aexit__(None, None, None))


_TYPES = st.sampled_from(["application/json", "application/json; charset=utf-16", "application/x+json", "text/plain"])


@settings(max_examples=20_000 if os.environ.get("SPARK_RL_SOAK") else 150)
@given(
    path=st.sampled_from(
        [*["/score", "/compare", "/get_reward"] * 4, "/health", "/metrics", "/docs", "/score/", "/\xff"]
    ),
    method=st.sampled_from(["POST"] * 12 + ["GET", "PUT", "OPTIONS", "HEAD"]),
    body=bodies(),
    kind=st.just("application/json") | _TYPES | st.binary(max_size=6),
)
def test_no_request_gives_a_500(ask_app, path, method, body, kind):
    value = kind if isinstance(kind, bytes) else kind.encode()
    headers = [(b"content-type", value), (b"content-length", value if len(value) < 4 else b"%d" % len(body))]
    scope = {"type": "http", "method": method, "path": path, "raw_path": b"/", "query_string": b"", "root_path": ""}
    scope |= {"headers": headers, "http_version": "1.1", "scheme": "http", "server": ("x", 1), "client": ("x", 2)}
    start, *rest = ask_app(scope, body)
    assert start["status"] < 500, (path, method, body, rest)


def test_sizes_are_limited(served):
    def refusal(path: str = "/score", **request: Any) -> str:
        reply = served.client.post(path, **request)
        assert reply.status_code == 413
        return reply.json()["detail"]

    assert "serve.max_items" in refusal(json={"items": [ONE] * 9})
    assert "'response' of item 0 has 1,001 characters" in refusal(json={**ONE, "response": "x" * 1001})
    assert "'query' 1" in refusal("/get_reward", json={"query": ["ab", "a" * 1001], "prompts": ["a", "a"]})
    assert "serve.max_body_bytes" in refusal(content=b"x" * 20_001)
    pieces = (b"x" * 5000 for _ in range(5))
    assert "serve.max_body_bytes" in refusal(content=pieces, headers={"Content-Type": "application/json"})


def test_a_body_is_refused_by_its_announced_size_before_it_is_sent(served):
    with socket.create_connection((served.client.base_url.host, served.client.base_url.port), 5) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000000\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_token_is_asked_for_everywhere_but_at_health():
    with running(token="sésame") as served:
        url = served.client.base_url
        assert served.client.get("/health").json() == {"ready": True, "model": "scripted", "queue": 0}
        for path in ("/metrics", "/docs", "/score", "/nowhere"):
            assert served.client.get(path).status_code == 401
        for value in ("Bearer sesame", "Bearer", "Basic ???", "sésame"):
            headers = {"Authorization": value.encode()}
            assert served.client.post("/score", json=ONE, headers=headers).status_code == 401
        for given in ({"headers": {"Authorization": "Bearer sésame".encode()}}, {"auth": ("", "sésame")}):
            assert httpx.post(url.join("/score"), json=ONE, **given).status_code == 200
        assert len(served.engine.prompts) == 2


def test_what_waits_together_is_judged_together_and_equal_items_once():
    held = Held()
    with running(held, max_batch=16) as served:
        first = served.in_background("/score", ONE)
        assert held.started.wait(60)
        rest = [served.in_background("/score", {**ONE, "response": f"value 0.{i}"}) for i in (6, 7, 8)]
        rest.append(served.in_background("/compare", TWO))
        rest.append(served.in_background("/score", {"items": [{**ONE, "response": "value 0.6"}] * 20}))
        wait_for(lambda: served.batcher.num_waiting == 24)
        held.may.set()
        for thread, replies in [first, *rest]:
            thread.join(60)
            assert replies[0].status_code == 200
        assert sum(len(call) for call in served.engine.calls) <= 1 + (3 + 2) + 1
        assert served.metric('batch_items_bucket{le="+Inf"}') == 3
        assert served.metric("items_judged_total") == served.metric("batch_items_sum") == 25


def test_a_full_queue_answers_at_once_that_it_is_full():
    held = Held()
    with running(held, max_queue=3, max_items=3, max_batch=1) as served:
        first = served.in_background("/score", ONE)
        assert held.started.wait(60)
        second = served.in_background("/score", {"items": [ONE] * 2})
        wait_for(lambda: served.batcher.num_waiting == 2)
        reply = served.client.post("/score", json={"items": [ONE] * 2})
        assert reply.status_code == 503
        assert int(reply.headers["Retry-After"]) >= 1 and "waiting" in reply.json()["detail"]
        held.may.set()
        for thread, replies in (first, second):
            thread.join(60)
            assert replies[0].status_code == 200


def test_who_waits_too_long_is_told_and_not_judged(caplog):
    held = Held()
    with running(held, timeout_seconds=0.5, max_batch=1) as served:
        threads = [served.in_background("/score", ONE) for _ in range(3)]
        for thread, replies in threads:
            thread.join(60)
            assert replies[0].status_code == 504 and "serve.timeout_seconds" in replies[0].json()["detail"]
        wait_for(lambda: served.batcher.num_waiting == 0)
        held.may.set()
        assert served.client.post("/score", json={**ONE, "response": "value 0.6"}).json()["probability"] == 0.6
        assert len(served.engine.prompts) == 2
    assert caplog.text == ""


def test_who_has_left_is_not_judged():
    held = Held()
    with running(held, max_batch=1) as served:
        first = served.in_background("/score", ONE)
        assert held.started.wait(60)
        with pytest.raises(httpx.ReadTimeout):
            served.client.post("/score", json={**ONE, "response": "value 0.9"}, timeout=httpx.Timeout(60, read=0.2))
        wait_for(lambda: served.metric('requests_total{route="/score",status="499"}') == 1)
        held.may.set()
        first[0].join(60)
        wait_for(lambda: served.batcher.num_waiting == 0)
        assert not any("0.9" in prompt for prompt in served.engine.prompts)


def test_an_item_that_cannot_be_judged_fails_alone(caplog):
    held = Held()

    def fails(prompt: str, number: int, request: Any) -> str | tuple[str, float]:
        if "poison" in prompt:
            raise RuntimeError("cannot be told to clients")
        return held(prompt, number, request)

    with running(fails) as served:
        first = served.in_background("/score", ONE)
        assert held.started.wait(60)
        rest = [
            served.in_background("/score", {**ONE, "response": f"{word} value 0.6"}) for word in ("a", "poison", "b")
        ]
        wait_for(lambda: served.batcher.num_waiting == 3)
        held.may.set()
        for thread, _ in (first, *rest):
            thread.join(60)
        assert [replies[0].status_code for _, replies in (first, *rest)] == [200, 200, 500, 200]
        assert [rest[i][1][0].json()["probability"] for i in (0, 2)] == [0.6, 0.6]
        reply = served.client.post("/score", json={**ONE, "response": "poison"})
        assert reply.status_code == 500
        assert reply.json()["detail"] == "the judge failed (RuntimeError); the server's log says more"
        assert served.client.post("/score", json=ONE).json()["probability"] == 0.75
        assert served.client.get("/health").json()["ready"] is True
    assert "cannot be told to clients" in caplog.text


def test_a_model_server_that_is_gone_is_asked_once_for_a_batch():
    asked = []

    def gone(items: list[Single]) -> list[Any]:
        asked.append(len(items))
        raise ConnectionError("asked 5 times already")

    entries = [batching._Entry(Single("q", str(i))) for i in range(3)]
    Batcher._answer(entries, gone)
    assert asked == [3]
    assert all(isinstance(entry.future.exception(), JudgingFailed) for entry in entries)


def test_stopping_finishes_the_batch_under_way_and_turns_away_what_waits():
    held = Held()
    with running(held, max_batch=1) as served:
        first = served.in_background("/score", ONE)
        assert held.started.wait(60)
        second = served.in_background("/score", {**ONE, "response": "value 0.6"})
        wait_for(lambda: served.batcher.num_waiting == 1)
        served.server.should_exit = True
        second[0].join(60)
        assert second[1][0].status_code == 503 and "stopping" in second[1][0].json()["detail"]
        held.may.set()
        first[0].join(60)
        assert first[1][0].json()["probability"] == 0.75
        assert not served.batcher.ready


HALF = b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"


@contextmanager
def half_sent(url: httpx.URL, count: int = 1) -> Iterator[list[socket.socket]]:
    """Connections that have sent half of a request."""
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection((url.host, url.port), 10)) for _ in range(count)]
        for connection in opened:
            connection.sendall(HALF)
        yield opened


def reply_on(connection: socket.socket) -> bytes:
    """All that is answered until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(4096), b""))


def test_a_body_that_comes_too_slowly_is_not_waited_for():
    with running(body_seconds=1) as served, half_sent(served.client.base_url) as (slow,):
        for _ in range(3):
            time.sleep(0.05)
            slow.sendall(b" ")
        reply = reply_on(slow)
        assert reply.startswith(b"HTTP/1.1 408") and b"serve.body_seconds" in reply
        assert served.client.post("/score", json=ONE).status_code == 200


def test_a_client_that_leaves_within_its_body_is_counted_as_that():
    with running() as served:
        with half_sent(served.client.base_url):
            pass
        wait_for(lambda: served.metric('requests_total{route="/score",status="499"}') == 1)
        assert served.batcher.num_waiting == 0


STUCK = """
import os, sys, threading
from infer.scripted import scripted
from spark_rl.config.inference import ServeConfig
from spark_rl.infer import Judge
from spark_rl.integrations.server import bind, create_app, serve

def stuck(prompt, number, request):
    print("judging", flush=True)
    threading.Event().wait()

listener = bind("127.0.0.1", 0)
listener.listen(9)
print(listener.getsockname()[1], flush=True)
serve(create_app(Judge(scripted(stuck)[0]), ServeConfig()), listener, 1)
sys.exit("the batch was waited for")
"""


def test_a_process_that_is_told_to_stop_waits_for_no_body_and_for_a_batch_only_so_long():
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command, pipe = [sys.executable, "-c", STUCK], subprocess.PIPE
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=pipe, stderr=pipe, text=True
    ) as process:
        url, replies = httpx.URL(f"http://127.0.0.1:{process.stdout.readline().strip()}"), []
        judged = threading.Thread(target=lambda: replies.append(httpx.post(url.join("/score"), json=ONE, timeout=60)))
        judged.start()
        assert process.stdout.readline() == "judging\n"
        with half_sent(url, 5) as connections:
            httpx.get(url.join("/health"))
            process.send_signal(signal.SIGTERM)
            assert all(reply_on(connection).startswith(b"HTTP/1.1 503") for connection in connections)
            assert process.poll() is None, "a batch is under way"
        judged.join(60)
        assert replies[0].status_code == 503 and "stopping" in replies[0].json()["detail"]
        assert process.wait(60) == 0
        (said,) = process.stderr.read().splitlines()
        assert "timeout graceful shutdown exceeded" in said


def test_the_queue_of_a_closed_batcher_takes_nothing():
    model, _ = scripted(believe)
    batcher = Batcher(Judge(model), ServeConfig(max_queue=2, max_items=2), lambda size: None)
    with pytest.raises(Busy), batcher.room(3):
        pass
    with batcher.room(1):
        (judgement,) = batcher.submit([Single("q", "value 0.6")])
    assert judgement.result(10).probability == pytest.approx(0.6)
    batcher.close()
    with pytest.raises(Stopped), batcher.room(1):
        pass
    wait_for(lambda: not batcher.ready)


# ------------------------------------------------------------------------------------------------ images


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(address: str) -> dict[str, Any]:
    """As OpenAI's clients send an image."""
    return {"type": "image_url", "image_url": {"url": address, "detail": "low"}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_images_are_shown_in_their_places_and_nothing_is_written(tmp_path, monkeypatch):
    """A marker that somebody types stands for no image, nor does one in a response."""
    monkeypatch.setenv("SPARK_RL_CACHE", str(tmp_path / "cache"))
    picture = url(encoded(noise(seed=2), "JPEG"), "image/jpeg")
    question = [text(f"{IMAGE} or "), part(url(png(0))), text(" is <image> what "), part(picture), text("?")]
    with running() as served:
        body = {"question": question, "response": f"value 0.75 {IMAGE}"}
        assert served.client.post("/score", json={"items": [body, ONE]}).json()["items"][0]["verdict"] == "right"
        assert served.client.post("/compare", json={**TWO, "question": question}).json()["preferred"] == "a"
    shown, plain, *compared = (request for call in served.engine.calls for request in call)
    assert plain.images == ()
    for request in (shown, *compared):
        said = request.messages[-1]["content"]
        assert said.count(IMAGE) == 2 and f"\ufffd or {IMAGE} is <image> what {IMAGE}?" in said
        first, second = map(open_image, request.images)
        assert first.tobytes() == noise(seed=0).tobytes()
        assert second.tobytes() == open_image(held(picture)).tobytes() != first.tobytes()
    assert not (tmp_path / "cache").exists()


def test_images_may_stand_beside_a_question():
    """As in a row: for its markers, or first."""
    one, other = url(png(0)), url(png(1))
    bodies = [
        {**ONE, "question": "Is <image> like <image>?", "images": [one, other]},
        {**ONE, "question": "Which?", "images": one},
        {**ONE, "question": "Who?", "image": one},
        {**ONE, "question": "What is <image>?", "images": []},
    ]
    with running() as served:
        assert served.client.post("/score", json={"items": bodies}).status_code == 200
        assert served.client.post("/compare", json={**TWO, "images": [one]}).json()["preferred"] == "a"
        refused = served.client.post("/score", json={**ONE, "images": ["/etc/passwd"]})
    assert refused.status_code == 422 and refused.json()["detail"].startswith("'images' of item 0: an image must be")
    (two, which, who, none), compared = served.engine.calls[0], served.engine.calls[1]
    assert f"Is {IMAGE} like {IMAGE}?" in two.messages[-1]["content"]
    assert [image.path for image in two.images] == [one, other]
    for request in (which, who, *compared):
        assert [image.path for image in request.images] == [one]
        assert request.messages[-1]["content"].count(IMAGE) == 1
    assert f"{IMAGE}\nWhich?" in which.messages[-1]["content"]
    assert none.images == () and "What is <image>?" in none.messages[-1]["content"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:1/a.png", "must be a data URL (data:image/png;base64,...), not 'http://127.0.0.1:1/a.png'"),
        ("/etc/passwd", "must be a data URL (data:image/png;base64,...), not '/etc/passwd'"),
        ('drawn:{"size":[8,8],"marks":[]}', "must be a data URL"),
        ("data:image/png,abc", "is not of the form data:image/png;base64,..."),
        ("data:image/png;base64,####", "holds no base64"),
        *((url(data), words) for data, words in BAD.values()),
    ],
    ids=["address", "path", "drawing", "no base64", "bad base64", *BAD],
)
def test_what_is_no_image_to_be_shown_is_one_sentence(served, tmp_path, address, words):
    """Headers that claim more pixels than may be are refused unread."""
    items = [ONE, {**ONE, "question": [part(address)]}]
    reply = served.client.post("/score", json={"items": items})
    assert reply.status_code == 422
    assert reply.json()["detail"].startswith("'question' of item 1: ") and words in reply.json()["detail"]
    assert "\n" not in reply.json()["detail"]


def test_the_limit_of_a_body_holds_for_images_and_that_of_a_text_does_not(served):
    """`max_body_bytes` is 20,000 here, `max_chars` 1,000."""
    for side, status in ((60, 200), (90, 413)):
        body = {**ONE, "question": [part(url(encoded(noise(side, side))))]}
        assert served.client.post("/score", json=body).status_code == status
    reply = served.client.post("/score", json={**ONE, "question": [text("x" * 600), text("x" * 401)]})
    assert "'question' of item 0 has 1,001 characters" in reply.json()["detail"]


def test_an_image_that_many_items_show_is_read_once(monkeypatch):
    read = []
    monkeypatch.setattr(server, "held", lambda address: read.append(address) or held(address))
    items = [{"question": [part(url(png()))], "response": f"value 0.{i}"} for i in range(6, 9)]
    with running() as served:
        assert len(served.client.post("/score", json={"items": items}).json()["items"]) == 3
    assert read == [url(png())]


def test_what_waits_to_be_decoded_waits_in_the_queue(monkeypatch):
    """Else a client could have any number of images decoded for requests that are then refused."""
    may, begun, read = threading.Event(), threading.Event(), []

    def slow(address: str) -> Any:
        read.append(address)
        begun.set()
        assert may.wait(60)
        return held(address)

    monkeypatch.setattr(server, "held", slow)
    bodies = [{**ONE, "question": [part(url(png(seed)))]} for seed in range(4)]
    with running(max_queue=3, max_items=3) as served:
        first = served.in_background("/score", bodies[0])
        assert begun.wait(60)
        second = served.in_background("/score", {"items": bodies[1:3]})
        wait_for(lambda: served.batcher.num_waiting == 3)
        assert served.client.post("/score", json=bodies[3]).status_code == 503
        assert served.client.post("/score", json=ONE).status_code == 503
        may.set()
        for thread, replies in (first, second):
            thread.join(60)
            assert replies[0].status_code == 200
        assert served.client.post("/score", json=bodies[3]).status_code == 200
    assert len(read) == 4


def test_a_bad_image_gives_its_room_back(served):
    bad = {**ONE, "question": [part(url(b""))]}
    assert served.client.post("/score", json=bad).status_code == 422
    assert served.batcher.num_waiting == 0


def test_a_judge_that_takes_no_images_says_so():
    judge = Judge.open("embedded", "engine.max_new_tokens=8")
    with running(judge=judge) as served:
        reply = served.client.post("/score", json={**ONE, "question": [part(url(png()))]})
        assert reply.status_code == 422
        assert reply.json()["detail"] == "the judge takes no images; send text alone, or serve a vision-language model"
        assert served.client.post("/score", json={**ONE, "question": [text("3+4?")]}).status_code == 200


def test_a_vision_language_judge_sees_them(tmp_path):
    judge = Judge.open(str(save_vision_model("qwen2_5_vl", tmp_path)), "engine.max_new_tokens=8")
    seen = []
    monitor = judge.model.engine.generate
    judge.model.engine.generate = lambda requests, progress=None: seen.append(monitor(requests, progress)) or seen[-1]
    with running(judge=judge) as served:
        for seed in (1, 1, 2):
            body = {**ONE, "question": [part(url(encoded(picture(seed)))), text("How many?")]}
            assert served.client.post("/score", json=body).status_code == 200
    first, again, other = (completion.token_ids for ((completion,),) in seen)
    assert first == again != other


CHAT = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n"


def test_openrlhf_is_answered_in_its_own_way():
    """What `_fetch_rewards_via_http` sends and reads (OpenRLHF/OpenRLHF, openrlhf/utils/agent.py)."""
    with running(unparsed_reward=0.25) as served:
        queries = [f"{CHAT}It is value 0.9<|im_end|>", f"{CHAT}value 0.2", "3+4? So hm"]
        sent = {"query": queries, "prompts": [CHAT, CHAT, "3+4?"], "labels": ["7", "7", ""]}
        reply = served.client.post("/get_reward", json=sent).json()
        assert reply["rewards"] == reply["scores"] == [0.9, 0.2, 0.25]
        assert reply["extra_logs"] == {"parsed": [1.0, 1.0, 0.0]}
        assert not any("<|im_" in prompt or "Be brief" in prompt for prompt in served.engine.prompts)
        nothing = {"query": [], "prompts": [], "labels": []}
        assert served.client.post("/get_reward", json=nothing).json()["rewards"] == []


def test_a_limit_that_no_request_could_keep_is_refused():
    with pytest.raises(ValueError, match=r"serve\.max_items is 9, .* raise serve\.max_queue"):
        load_inference(["serve.max_items=9", "serve.max_queue=8"])


def test_every_setting_is_documented():
    for name, setting in ServeConfig.model_fields.items():
        assert setting.description, name


def test_200_clients_each_get_their_own_reply_from_a_small_queue():
    """Every item has a probability of its own, so that any mix-up shows. The judge begins once the queue has been full;
    who finds it so tries again. The metrics count exactly what was sent."""
    num_clients, num_requests, max_queue = 200, 4, 64
    held, sent, largest = Held(), Counter[tuple[str, int]](), 0
    encryption = httpx.create_ssl_context()  # takes long to make, and is not used

    async def ask(http: httpx.AsyncClient, path: str, body: Any) -> Any:
        nonlocal largest
        while True:
            reply = await http.post(path, json=body)
            sent[path, reply.status_code] += 1
            if reply.status_code == 200:
                return reply.json()
            assert reply.status_code == 503, reply.text
            largest = max(largest, served.batcher.num_waiting)
            if largest == max_queue:  # less where the first batch was taken after this refusal
                held.may.set()
            await asyncio.sleep(0.2)

    async def client(url: httpx.URL, c: int) -> None:
        async with httpx.AsyncClient(base_url=url, verify=encryption, timeout=120) as http:
            for r in range(num_requests):
                values = [round(0.501 + (c * 12 + r * 3 + i) * 1e-4, 6) for i in range(3)]
                items = [{"question": f"client {c}?", "response": f"value {v}"} for v in values]
                if r % 3 == 0:
                    assert (await ask(http, "/score", items[0]))["probability"] == values[0]
                elif r % 3 == 1:
                    reply = await ask(http, "/score", {"items": items})
                    assert [item["probability"] for item in reply["items"]] == values
                else:
                    reply = await ask(http, "/compare", {"question": f"{c}?", "a": f"value {values[0]}", "b": "x"})
                    assert (reply["probability"], reply["preferred"]) == (values[0], "a")

    async def everyone() -> None:
        nonlocal largest
        clients = asyncio.gather(*(client(served.client.base_url, c) for c in range(num_clients)))
        while not clients.done():
            largest = max(largest, served.batcher.num_waiting)
            await asyncio.sleep(0.002)
        await clients

    with running(held, max_queue=max_queue, max_items=8, max_batch=32) as served:
        asyncio.run(everyone())
        assert largest == max_queue
        assert served.metric("items_judged_total") == num_clients * (1 + 3 + 1 + 1)
        for (path, status), count in sent.items():
            assert served.metric(f'requests_total{{route="{path}",status="{status}"}}') == count
        assert sum(count for (_, status), count in sent.items() if status == 200) == num_clients * num_requests
        assert served.metric("queue_items") == 0
