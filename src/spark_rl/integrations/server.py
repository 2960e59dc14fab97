"""A judge as a reward model over HTTP, for trainers that are not Python or not on this machine.

    POST /score       {"question", "response"} -> {"verdict", "probability"}
    POST /compare     {"question", "a", "b"} -> {"preferred", "probability", "consistent"}
                      either also {"items": [...]} -> {"items": [...]}; a question may be a list of content parts
                      as OpenAI's protocol has them, with images in data URLs, or have them beside it in "images"
    POST /get_reward  as OpenRLHF asks its remote reward model, which sends no images
    GET  /health      {"ready", "model", "queue"}; needs no token
    GET  /metrics     for Prometheus

Errors are `{"detail": one sentence}`: 401 token, 408 body too slow, 413 too large, 422 malformed, 500 the judge failed,
503 busy or stopping (Retry-After), 504 judged too slowly. Needs the extra `serve`.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from typing import Annotated, Any, NamedTuple

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationInfo,
    field_validator,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spark_rl import __version__
from spark_rl.config.inference import ServeConfig
from spark_rl.data.row_images import from_parts, listed, placed_in_question
from spark_rl.images import ImageError, held
from spark_rl.infer import Judge
from spark_rl.integrations.batching import Batcher, Busy, Item, Judgement, JudgingFailed, Pair, Single, Stopped
from spark_rl.integrations.bodies import STOPPING, BoundedBody, JsonRoute, too_large
from spark_rl.integrations.metrics import CONTENT_TYPE, Metrics
from spark_rl.integrations.turns import question_of, response_of

_ROUTES = ("/score", "/compare", "/get_reward", "/health", "/metrics")


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a surrogate pair; send valid Unicode") from None
    return text


class Asked(NamedTuple):
    """A question as it was sent."""

    text: str
    """With `IMAGE` for each image."""
    images: tuple[str, ...]
    """Their data URLs, not looked at yet."""


def _asked(content: Any) -> Asked:
    if not isinstance(content, str | list):
        raise ValueError("it must be a string, or a list of content parts")
    try:
        text, images = from_parts(content)
    except ValueError as error:
        raise ValueError(f"it {error}") from None
    if not all(isinstance(image, str) for image in images):
        raise ValueError("it has an image part without {'image_url': {'url': 'data:image/png;base64,...'}}; add that")
    return Asked(_encodable(text), tuple(images))


def _beside(images: Any) -> list[str]:
    urls = listed(images)
    if not all(isinstance(url, str) for url in urls):
        raise ValueError("it must be a data URL (data:image/png;base64,...), or a list of them")
    return urls


Text = Annotated[str, AfterValidator(_encodable)]
Question = Annotated[Asked, PlainValidator(_asked, json_schema_input_type=str | list[dict[str, Any]])]


def _placed(question: Asked, images: Sequence[str]) -> Asked:
    return Asked(placed_in_question(question.text, len(images)), tuple(images))


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Item(_Body):
    question: Question
    images: Annotated[
        list[str],
        PlainValidator(_beside, json_schema_input_type=str | list[str]),
        Field(validation_alias=AliasChoices("images", "image")),
    ] = []
    """Of a question without image parts, which has `<image>` for each, or they come first."""

    @field_validator("images")
    @classmethod
    def _have_places(cls, images: list[str], known: ValidationInfo) -> list[str]:
        if images and (question := known.data.get("question")):
            if question.images:
                raise ValueError("the question has image parts already; leave one or the other out")
            _placed(question, images)
        return images

    @property
    def asked(self) -> Asked:
        """The question, with the images beside it in their places."""
        return _placed(self.question, self.images) if self.images else self.question


class ScoreItem(_Item):
    """Is the final answer of this response right?"""

    response: Text


class CompareItem(_Item):
    """Which of the two has the right final answer?"""

    a: Text
    b: Text


class ScoreItems(_Body):
    """Several at once."""

    items: list[ScoreItem]


class CompareItems(_Body):
    """Several at once."""

    items: list[CompareItem]


class RewardRequest(BaseModel):
    """OpenRLHF's: prompts, and the same with their responses. Labels and what later versions add are not read."""

    query: list[Text]
    prompts: list[Text]


def _form(body: Any) -> str:
    return "many" if isinstance(body, dict) and "items" in body else "one"


ScoreRequest = Annotated[Annotated[ScoreItem, Tag("one")] | Annotated[ScoreItems, Tag("many")], Discriminator(_form)]
CompareRequest = Annotated[
    Annotated[CompareItem, Tag("one")] | Annotated[CompareItems, Tag("many")], Discriminator(_form)
]


def create_app(judge: Judge, settings: ServeConfig | None = None, *, token: str | None = None) -> FastAPI:
    """The judge's routes; nothing else may use the judge while the app runs.

    Args:
        token: what `Authorization: Bearer` must hold, or the password of `Basic`, for clients that can only be given
            an address (`http://:TOKEN@host:8100/get_reward`); None asks for none.
    """
    settings, metrics, stopping = settings or ServeConfig(), Metrics(), asyncio.Event()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.batcher = Batcher(judge, settings, metrics.batch)
        with ThreadPoolExecutor(1, "images") as app.state.reader:  # one at a time: to decode one may take 1 GB
            yield
        app.state.batcher.close()

    app = FastAPI(title="spark-rl serve", version=__version__, lifespan=lifespan)
    app.state.stopping = stopping
    app.router.route_class = JsonRoute
    app.add_middleware(_Guard, settings=settings, metrics=metrics, token=token, stopping=stopping)
    _explain_errors(app)

    async def judged(request: Request, items: Sequence[ScoreItem | CompareItem]) -> list[Judgement]:
        if len(items) > settings.max_items:
            limit = f"{settings.max_items:,} (serve.max_items)"
            raise HTTPException(413, f"{len(items):,} items are too many; send at most {limit}")
        for i, item in enumerate(items):
            for name, value in item:
                if name != "images":
                    _check_length(f"'{name}' of item {i}", value.text if isinstance(value, Asked) else value, settings)
        return await _answers(request, submit(items), settings)

    async def submit(items: Sequence[ScoreItem | CompareItem]) -> list[Future[Judgement]]:
        batcher, has_images = app.state.batcher, any(item.asked.images for item in items)
        if has_images and not judge.model.takes_images:
            raise HTTPException(422, "the judge takes no images; send text alone, or serve a vision-language model")
        with batcher.room(len(items)):
            if not has_images:
                return batcher.submit(_with_images(items))
            loop = asyncio.get_running_loop()
            return batcher.submit(await loop.run_in_executor(app.state.reader, _with_images, items))

    async def answer(request: Request, body: ScoreItem | CompareItem | ScoreItems | CompareItems) -> dict[str, Any]:
        if isinstance(body, ScoreItems | CompareItems):
            return {"items": [judgement.columns() for judgement in await judged(request, body.items)]}
        return (await judged(request, [body]))[0].columns()

    @app.post("/score")
    async def score(request: Request, body: ScoreRequest) -> dict[str, Any]:
        """Whether a response is right: `verdict` (right, wrong or null) and the `probability` that it is."""
        return await answer(request, body)

    @app.post("/compare")
    async def compare(request: Request, body: CompareRequest) -> dict[str, Any]:
        """Which of two responses is right, asked in both orders; `probability` is that it is `a`."""
        return await answer(request, body)

    @app.post("/get_reward")
    async def get_reward(request: Request, body: RewardRequest) -> dict[str, Any]:
        """OpenRLHF's remote reward model: the probability that each response is right.

        After OpenRLHF/OpenRLHF, `openrlhf/utils/agent.py` (`_fetch_rewards_via_http`) for what is asked and
        `openrlhf/cli/serve_rm.py` for the answer.
        """
        if len(body.query) != len(body.prompts):
            counts = f"'query' has {len(body.query)} texts and 'prompts' {len(body.prompts)}"
            raise HTTPException(422, f"{counts}; send as many of both")
        items = []
        for i, (query, prompt) in enumerate(zip(body.query, body.prompts, strict=True)):
            _check_length(f"'query' {i}", query, settings)
            try:
                item = {"question": question_of(prompt), "response": response_of(query, prompt)}
                items.append(ScoreItem.model_validate(item))
            except ValueError as error:
                raise HTTPException(422, f"'query' {i} {error}") from None
        probabilities = [judgement.columns()["probability"] for judgement in await judged(request, items)]
        rewards = [settings.unparsed_reward if p is None else p for p in probabilities]
        parsed = [float(p is not None) for p in probabilities]
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"parsed": parsed}}

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether requests would be judged."""
        batcher: Batcher = app.state.batcher
        status = {"ready": batcher.ready, "model": judge.model.name, "queue": batcher.num_waiting}
        return JSONResponse(status, 200 if batcher.ready else 503)

    @app.get("/metrics")
    async def show_metrics() -> PlainTextResponse:
        """Counts since the start."""
        return PlainTextResponse(metrics.text({"queue_items": app.state.batcher.num_waiting}), media_type=CONTENT_TYPE)

    return app


def _with_images(items: Sequence[ScoreItem | CompareItem]) -> list[Item]:
    """What is to be judged, its images decoded once to see that they can be.

    Raises:
        HTTPException: an image cannot be used.
    """
    read = cache(held)  # many responses to a question come with the same image
    found: list[Item] = []
    for i, item in enumerate(items):
        text, urls = item.asked
        try:
            images = tuple(map(read, urls))
        except ImageError as error:
            raise HTTPException(422, f"'{'images' if item.images else 'question'}' of item {i}: {error}") from None
        if isinstance(item, ScoreItem):
            found.append(Single(text, item.response, images))
        else:
            found.append(Pair(text, item.a, item.b, images))
    return found


async def _answers(
    request: Request, submitted: Awaitable[list[Future[Judgement]]], settings: ServeConfig
) -> list[Judgement]:
    """The judgements, unless the client leaves or time runs out: then what still waits is not judged."""
    futures: list[Future[Judgement]] = []

    async def answered() -> list[Judgement]:
        futures.extend(await submitted)
        return await asyncio.gather(*map(asyncio.wrap_future, futures))

    judged = asyncio.create_task(answered())
    gone = asyncio.create_task(_disconnected(request))
    ends: set[asyncio.Task[Any]] = {judged, gone}
    try:
        timeout = settings.timeout_seconds
        done, _ = await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if judged in done:
            return judged.result()
        if gone in done:
            raise HTTPException(499, "the client has closed the connection")
        raise HTTPException(504, f"not judged within {timeout:g} seconds (serve.timeout_seconds); send less at once")
    finally:
        for future in futures:
            future.cancel()
        judged.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Guard:
    """Around the app: refuses by token and size before a body is read, and counts every answer."""

    def __init__(
        self, app: ASGIApp, settings: ServeConfig, metrics: Metrics, token: str | None, stopping: asyncio.Event
    ) -> None:
        self._app, self._settings, self._metrics, self._token = app, settings, metrics, token
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, has_begun = time.monotonic(), 500, False

        async def noted(message: Message) -> None:
            nonlocal status, has_begun
            status, has_begun = message.get("status", status), True
            await send(message)

        try:
            body = BoundedBody(receive, self._settings, self._stopping)
            await (self._refusal(scope) or self._app)(scope, body, noted)
        except asyncio.CancelledError:  # uvicorn's doing, when its time for stopping is over
            if not self._stopping.is_set() or has_begun:
                raise
            await JSONResponse({"detail": STOPPING}, 503, {"Retry-After": "5"})(scope, receive, noted)
        finally:
            route = scope["path"] if scope["path"] in _ROUTES else "other"
            self._metrics.request(route, status, time.monotonic() - start)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = dict(scope["headers"])
        if self._token is not None and scope["path"] != "/health":
            given = _token(headers.get(b"authorization", b"").decode(errors="surrogateescape"))
            if not hmac.compare_digest(os.fsencode(given), os.fsencode(self._token)):
                detail = "the token is missing or wrong; send it as 'Authorization: Bearer TOKEN'"
                return JSONResponse({"detail": detail}, 401, {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > self._settings.max_body_bytes):
            return JSONResponse({"detail": too_large(self._settings)}, 413)
        return None


def _token(authorization: str) -> str:
    """What a header of either kind holds; empty where it holds none."""
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    try:
        return base64.b64decode(value).decode().partition(":")[2] if kind.lower() == "basic" else ""
    except ValueError:
        return ""


def _explain_errors(app: FastAPI) -> None:
    """Answer exceptions as one sentence each."""

    def answer(kind: type[Exception], status: int, sentence: Callable[[Any], str], **headers: str) -> None:
        shown = {name.replace("_", "-"): value for name, value in headers.items()}

        async def handler(request: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"detail": sentence(error)}, status, shown)

        app.add_exception_handler(kind, handler)

    answer(Busy, 503, lambda _: "too much is waiting to be judged; send it again later", Retry_After="1")
    answer(Stopped, 503, lambda _: STOPPING, Retry_After="5")
    answer(JudgingFailed, 500, lambda error: f"the judge failed ({error}); the server's log says more")
    answer(RequestValidationError, 422, _malformed)


def _malformed(error: RequestValidationError) -> str:
    """The first thing wrong with a body, by the name of its field, which may be no text that can be sent."""
    return _what_is_wrong(error.errors()[0]).encode(errors="backslashreplace").decode()


def _what_is_wrong(first: dict[str, Any]) -> str:
    if first["type"] == "json_invalid":
        return f"the body is not valid JSON ({first['ctx']['error']} at character {first['loc'][-1]})"
    field = ".".join(str(part) for part in first["loc"] if part not in ("body", "one", "many"))
    if not field:
        return "the body must be a JSON object, sent with 'Content-Type: application/json'"
    wrong = {"missing": "is missing; add it", "extra_forbidden": "is not known; leave it out"}
    return f"'{field}' {wrong.get(first['type'], 'is wrong: ' + first['msg'].removeprefix('Value error, '))}"


def _check_length(what: str, text: str, settings: ServeConfig) -> None:
    if len(text) > settings.max_chars:
        limit = f"{settings.max_chars:,} (serve.max_chars)"
        raise HTTPException(413, f"{what} has {len(text):,} characters; send at most {limit}")


def bind(host: str, port: int, *, public: bool = False) -> socket.socket:
    """Take the port, before a model is loaded for it; 0 takes any. Connections are refused until it is served.

    Args:
        public: whether an address that other machines can reach is meant.

    Raises:
        ValueError: it cannot be had, or can be reached by others though not `public`.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not public and not ipaddress.ip_address(address[0]).is_loopback:
            raise ValueError(
                f"--host {host} can be reached from other machines; put a token into an environment variable and name "
                "it with --token-env"
            )
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ValueError(f"--port {port} of {host} cannot be had ({error.strerror}); choose another") from None
    return listener


def serve(app: FastAPI, listener: socket.socket, stop_seconds: int) -> None:
    """Answer requests until Ctrl-C or SIGTERM: then what waits is answered 503, and a batch under way finished if that
    takes no longer than `stop_seconds`."""
    server = Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=stop_seconds))
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them once more when it is done
        signal.signal(number, signal.SIG_IGN)
    server.run([listener])
    if not app.state.batcher.ends_within(1):  # its thread would die somewhere in the model's code, and maybe abort
        os._exit(0)


class Server(uvicorn.Server):
    """Tells what waits that it is stopping before it waits for what is under way."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state = self.config.app.state  # type: ignore[union-attr]
        state.batcher.close()
        state.stopping.set()
        await super().shutdown(sockets)
