"""A small server of OpenAI's chat protocol, over real sockets, with faults to order."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, Any], dict[str, str]]


def reply(body: dict[str, Any]) -> str:
    """What is answered: it depends on the prompt alone."""
    return f"You said {body['messages'][-1]['content']!r}."


def completion(body: dict[str, Any]) -> dict[str, Any]:
    text, told = reply(body), None
    if body.get("logprobs"):
        tokens = [f"{word} " for word in text.split(" ")]
        told = {"content": [{"token": t, "logprob": -0.5, "bytes": None, "top_logprobs": []} for t in tokens]}
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": told}
        for i in reversed(range(body.get("n", 1)))
    ]
    usage = {"prompt_tokens": 7, "completion_tokens": 3 * len(choices), "total_tokens": 7 + 3 * len(choices)}
    about = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
    return {**about, "choices": choices, "usage": usage}


def refusal(message: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": param, "code": 400}}


@dataclass
class State:
    """How the server behaves, and what it has seen."""

    models: list[str] = field(default_factory=lambda: ["tiny"])
    before_models: list[Answer] = field(default_factory=list)
    """What it answers, one after the other, before it lists its models."""
    answer: Callable[[dict[str, Any]], Answer] = lambda body: (200, completion(body), {})
    reset_rate: float = 0.0
    stall_rate: float = 0.0
    stall_seconds: float = 0.0
    dies_after: int | None = None
    """Chat requests, after which every connection is reset."""
    key: str | None = None
    num_asked: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    rng: random.Random = field(default_factory=lambda: random.Random(0))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    state: State

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients leave


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    at_once = 0

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        state = self.server.state
        if state.key and self.headers.get("Authorization") != f"Bearer {state.key}":
            return self._send(401, refusal("no such key"), {})
        if state.before_models:
            return self._send(*state.before_models.pop(0))
        self._send(200, {"object": "list", "data": [{"id": m, "object": "model"} for m in state.models]}, {})

    def do_POST(self) -> None:
        state = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.num_asked += 1
            state.bodies.append(body)
            fate = state.rng.random()
            dead = state.dies_after is not None and state.num_asked > state.dies_after
            Handler.at_once += 1
            state.most_at_once = max(state.most_at_once, Handler.at_once)
        try:
            if dead or fate < state.reset_rate:
                return self._reset()
            if fate < state.reset_rate + state.stall_rate:
                time.sleep(state.stall_seconds)
                return self._reset()
            status, answer, headers = state.answer(body)
            with state.lock:
                if status == 200:
                    state.answered[str(body["messages"][-1]["content"])] += 1
        finally:
            with state.lock:
                Handler.at_once -= 1
        self._send(status, answer, headers)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _send(self, status: int, answer: dict[str, Any], headers: dict[str, str]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(**options: Any) -> Iterator[tuple[str, State]]:
    """(address, state) of a server that is up."""
    server = Server(("127.0.0.1", 0), Handler)
    server.state = State(**options)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.state
    finally:
        server.shutdown()
        server.server_close()
