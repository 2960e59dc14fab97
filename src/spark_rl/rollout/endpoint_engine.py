"""Any server that speaks OpenAI's chat protocol, as an engine: many requests at once, each asked until it is answered.

What can be lost on the way (a connection, a time-out, a busy server) is sent again after growing pauses; what cannot
help to be sent again ends the call. Options that a server does not know (log-probabilities, `n`, seeds) are left out
from then on.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import re
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import openai

from spark_rl.config import EngineConfig
from spark_rl.images import open_image, shrunk
from spark_rl.rollout.engine import Completion, Request
from spark_rl.types import IMAGE, Image, in_parts

T = TypeVar("T")
Progress = Callable[[int, int], None]
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a request is sent again: doubled each time, and up to half more or less by chance."""
_REMEMBERED = 32
"""Images that are kept as they are sent, a few megabytes each."""
_BUSY = (408, 409, 425, 429)
_OPTIONS = ("logprobs", "seed", "n", "max_tokens")
"""What a server may not know: `n` is then asked for one by one, and `max_tokens` under its newer name."""
_OVERFLOW = re.compile(r"(?:context|maximum).{0,30}(?:length|len|window|size|tokens)", re.I)
_CONTEXT = re.compile(r"(?:context (?:length|window|size)|max_model_len)\D{0,20}(\d+)", re.I)
_PROMPT = re.compile(r"(\d+) (?:in the messages|input tokens|prompt tokens)|prompt contains (?:at least )?(\d+)", re.I)


class EndpointEngine:
    """A server as an `Engine`. Prompts go to it as messages; it renders them with the model's own chat template.

    Args:
        address: of the server, with or without `/v1`.
        max_pixels: larger images are made smaller before they are sent.

    Raises:
        ValueError: there is no such server, it wants another key, or it serves several models and none is named.
    """

    def __init__(self, address: str, settings: EngineConfig, max_pixels: int = 1_048_576) -> None:
        address = address.rstrip("/")
        self.address = address if re.search(r"/v\d+\w*$", address) else f"{address}/v1"
        self.settings = settings
        self.num_retries = 0
        """Requests that were sent again, so far."""
        self._left_out: set[str] = set()
        self._data_url = lru_cache(_REMEMBERED)(partial(_data_url, max_pixels=max_pixels))
        self.model = self._served_model()

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[list[Completion]]:
        """As `Engine.generate`. A prompt that fills the model's context gets empty replies, finish reason `no_room`.

        Raises:
            ConnectionError: the server does not answer any more, `engine.retries` times.
            ValueError: it refuses a request for good.
        """
        return _carry_out(self._generate(requests, progress or (lambda done, total: None)))

    async def _generate(self, requests: Sequence[Request], progress: Progress) -> list[list[Completion]]:
        gate, done, total = asyncio.Semaphore(self.settings.concurrency), 0, sum(request.n for request in requests)

        async def answered(request: Request) -> list[Completion]:
            nonlocal done
            completions = await self._completions(client, gate, request)
            done += len(completions)
            progress(done, total)
            return completions

        try:
            async with self._client(openai.AsyncOpenAI) as client, asyncio.TaskGroup() as group:
                tasks = [group.create_task(answered(request)) for request in requests]
        except* openai.APIConnectionError as lost:
            raise self._lost(lost.exceptions[0], done, total) from None
        except* openai.APIStatusError as refused:
            raise self._refused(refused.exceptions[0], done, total) from None
        return [task.result() for task in tasks]

    async def _completions(
        self, client: openai.AsyncOpenAI, gate: asyncio.Semaphore, request: Request
    ) -> list[Completion]:
        """All `n` of a request: at once where the server can, else one by one."""
        if request.n == 1 or "n" not in self._left_out:
            completions = await self._ask(client, gate, request)
            if len(completions) == request.n:
                return completions
            self._left_out.add("n")  # it was refused, or passed over
        single = [replace(request, n=1, seed=request.seed + i) for i in range(request.n)]
        return [each[0] for each in await asyncio.gather(*(self._ask(client, gate, one) for one in single))]

    async def _ask(self, client: openai.AsyncOpenAI, gate: asyncio.Semaphore, request: Request) -> list[Completion]:
        """One call of the server, again until it is answered. While it waits to be sent again, nothing takes its place:
        a server in trouble is not asked for more."""
        attempts = 0
        async with gate:
            if request.images:  # which takes a while, in which others are answered
                messages = await asyncio.to_thread(self._messages, request)
            else:
                messages = self._messages(request)
            while True:
                pause, options = FIRST_PAUSE * 2**attempts, self._options(request, messages)
                try:
                    return _read(await client.chat.completions.create(**options))
                except openai.APIConnectionError:  # a time-out, too
                    if attempts >= self.settings.retries:
                        raise
                except openai.APIStatusError as error:
                    if error.status_code in _BUSY or error.status_code >= 500:
                        if attempts >= self.settings.retries:
                            raise
                        pause = max(pause, _seconds(error.response.headers.get("retry-after")))
                    elif (room := _room(error)) is not None:
                        if not 0 < room < request.max_new_tokens:
                            return [Completion([], [], "", "no_room") for _ in range(request.n)]
                        request = replace(request, max_new_tokens=room)
                        continue
                    elif (option := _unknown_option(error)) in options:
                        if option == "n":
                            return []
                        self._left_out.add(option)
                        continue
                    else:
                        raise
                attempts, self.num_retries = attempts + 1, self.num_retries + 1
                await asyncio.sleep(min(LONGEST_PAUSE, pause) * (0.5 + random.random()))

    def _options(self, request: Request, messages: list[dict[str, Any]]) -> dict[str, Any]:
        optional = {
            "n": request.n if request.n > 1 else None,
            "logprobs": True,
            "seed": request.seed % 2**31 if request.temperature > 0 else None,
            "top_p": request.top_p if request.top_p < 1 else None,
            "stop": list(request.stop) or None,
        }
        return {
            "model": self.model,
            "messages": messages,
            "temperature": request.temperature,
            "max_completion_tokens" if "max_tokens" in self._left_out else "max_tokens": request.max_new_tokens,
            **{name: value for name, value in optional.items() if value is not None and name not in self._left_out},
        }

    def _messages(self, request: Request) -> list[dict[str, Any]]:
        """As a server takes them: images as parts of a content, in data URLs."""
        images = iter(request.images)

        def part(part: dict[str, Any]) -> dict[str, Any]:
            if part["type"] == "text":
                return part
            return {"type": "image_url", "image_url": {"url": self._data_url(next(images))}}

        def content(text: str) -> str | list[dict[str, Any]]:
            return list(map(part, in_parts(text))) if IMAGE in text else text

        return [{**m, "content": content(m["content"])} for m in request.messages]

    def _client(self, kind: Callable[..., T]) -> T:
        key = os.environ.get(self.settings.api_key_env) or "none"
        return kind(base_url=self.address, api_key=key, timeout=self.settings.timeout_seconds, max_retries=0)

    def _served_model(self) -> str:
        try:
            served = [model.id for model in self._client(openai.OpenAI).models.list()]
        except openai.NotFoundError:
            served = []  # not every server lists them
        except openai.APIConnectionError as error:
            raise ValueError(
                f"no server answers at {self.address} ({_cause(error)}); start it, or correct the address"
            ) from None
        except openai.APIStatusError as error:
            raise self._refused(error, 0, 0) from None
        named = self.settings.served_model
        if named is None and len(served) != 1:
            listed = f"serves {', '.join(served[:5])}{', ...' * (len(served) > 5)}" if served else "lists no model"
            raise ValueError(f"{self.address} {listed}; name one with engine.served_model")
        if named is not None and served and named not in served:
            raise ValueError(f"engine.served_model is {named!r}, but {self.address} serves {', '.join(served[:5])}")
        return named or served[0]

    def _lost(self, error: BaseException, done: int, total: int) -> ConnectionError:
        return ConnectionError(
            f"{self.address} does not answer any more ({_cause(error)}; asked {self.settings.retries + 1} times), "
            f"{done} of {total} replies of this batch had come; call again when it is back"
        )

    def _refused(self, error: BaseException, done: int, total: int) -> Exception:
        assert isinstance(error, openai.APIStatusError)
        said = _said(error)[:200]
        if error.status_code in (401, 403):
            return ValueError(
                f"{self.address} wants another key (it says {error.status_code}: {said}); put it into the environment "
                f"variable {self.settings.api_key_env}, or name another with engine.api_key_env"
            )
        if error.status_code in _BUSY or error.status_code >= 500:
            return self._lost(error, done, total)
        return ValueError(f"{self.address} refuses a request (it says {error.status_code}: {said}); change that")


def _data_url(image: Image, max_pixels: int) -> str:
    buffer = io.BytesIO()
    shrunk(open_image(image), max_pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _carry_out(work: Coroutine[Any, Any, T]) -> T:
    """Run it in an event loop of its own, in another thread if this one has a loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _one_error(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_one_error, work).result()


def _one_error(work: Coroutine[Any, Any, T]) -> T:
    """Of errors that came together, the first one."""
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _read(answer: Any) -> list[Completion]:
    """The completions of an answer, in the order of their indices."""
    choices = sorted(answer.choices, key=lambda choice: choice.index)
    usage = answer.usage
    written = usage.completion_tokens if usage else 0
    completions = []
    for i, choice in enumerate(choices):
        told = (choice.logprobs and choice.logprobs.content) or []
        share = written // len(choices) + (i < written % len(choices))  # servers count all choices together
        completions.append(
            Completion(
                token_ids=[],
                logps=[token.logprob for token in told],
                text=_text(choice.message),
                finish_reason="length" if choice.finish_reason == "length" else "stop",
                tokens=[token.token for token in told],
                num_tokens=len(told) or share,
                num_prompt_tokens=usage.prompt_tokens if usage else 0,
            )
        )
    return completions


def _text(message: Any) -> str:
    """What was written; reasoning that the server has split off stands before it in its tags again."""
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    return (f"<think>{reasoning}</think>" if reasoning else "") + (message.content or "")


def _room(error: openai.APIStatusError) -> int | None:
    """What a prompt leaves of the context, tokens, 0 where the server does not say; None if that is not the error."""
    said = _said(error)
    if error.status_code not in (400, 413, 422) or not _OVERFLOW.search(said):
        return None
    context, prompt = _CONTEXT.search(said), _PROMPT.search(said)
    if not context or not prompt:
        return 0
    return max(0, int(context[1]) - int(prompt[1] or prompt[2]))


def _unknown_option(error: openai.APIStatusError) -> str:
    """The option that a server does not know, if that is what it says, else nothing."""
    if error.status_code not in (400, 422):
        return ""
    if error.param in _OPTIONS:
        return str(error.param)
    return next((name for name in _OPTIONS if re.search(rf"['\"`]{name}['\"`]", _said(error))), "")


def _said(error: openai.APIStatusError) -> str:
    body = error.body
    said = body.get("message") or body.get("detail") if isinstance(body, dict) else None
    return " ".join(str(said or error.message).split())


def _seconds(header: str | None) -> float:
    """Of a Retry-After header; dates are not read."""
    return float(header) if header and re.fullmatch(r"\d+(\.\d+)?", header) else 0.0


def _cause(error: BaseException) -> str:
    """Why, in the words of the lowest layer that has some."""
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
