"""Any server that speaks OpenAI's chat protocol, as an engine: many requests at once, each asked until it is answered.

What can be lost on the way (a connection, a time-out, a busy server) is sent again after growing pauses; what cannot
help to be sent again ends the call. Options that a server does not know (log-probabilities, `n`, seeds) are left out
from then on. What servers say when they refuse is read in `endpoint_errors.py`.

Some servers draw all samples of a request with its one seed, so that all are the same: votes would be unanimous. Equal
samples that chance hardly explains are asked for once more, each in a request with a seed of its own. What these hold
tells how likely it was that the samples were equal by chance: if it was not, all are asked for so from then on.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import math
import os
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import openai

from spark_rl.config import EngineConfig
from spark_rl.images import open_image, shrunk
from spark_rl.rollout.endpoint_errors import Failure
from spark_rl.rollout.engine import Completion, Request
from spark_rl.types import IMAGE, Image, in_parts

T = TypeVar("T")
Progress = Callable[[float, int], None]
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a request is sent again: doubled each time, and up to half more or less by chance. Never less than the
server asks for."""
LONGEST_WAIT = 600.0
"""Seconds; a server that asks for more has no quota left today."""
_CHANCE = 1e-3
"""Samples whose log-probabilities make it at least so likely that all are the same raise no doubt; a server repeats if
its replies to single requests make it less likely."""
_DOUBTS = 64
"""Requests whose equal samples are asked for again, in vain, before this is given up: the model is that sure."""
_REMEMBERED = 32
"""Images that are kept as they are sent, a few megabytes each."""

logger = logging.getLogger(__name__)


class EndpointEngine:
    """A server as an `Engine`. Prompts go to it as messages; it renders them with the model's own chat template.

    Args:
        address: of the server, with or without `/v1`.
        max_pixels: larger images are made smaller before they are sent.
        chat_template_kwargs: for the server's chat template.

    Raises:
        ValueError: there is no such server, it wants another key, or it serves several models and none is named.
        ConnectionError: there is one, but it is in trouble, `engine.retries` times.
    """

    def __init__(
        self,
        address: str,
        settings: EngineConfig,
        max_pixels: int = 1_048_576,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        address = address.rstrip("/")
        self.address = address if re.search(r"/v\d+\w*$", address) else f"{address}/v1"
        self.settings = settings
        self.num_retries = 0
        """Requests that were sent again, so far."""
        self._left_out: set[str] = set()
        self._doubts = _DOUBTS
        """How often equal samples of a request are still doubted: never again once the samples of one differ."""
        self._chance = 1.0
        """Of all equal samples so far, if none of them were copies; no evidence any more once the samples of one
        request differ."""
        self._template_kwargs = dict(chat_template_kwargs or {})
        self._data_url = lru_cache(_REMEMBERED)(partial(_data_url, max_pixels=max_pixels))
        self.model = _carry_out(self._served_model())

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
            async with self._client() as client, asyncio.TaskGroup() as group:
                tasks = [group.create_task(answered(request)) for request in requests]
        except* Failure as failures:
            raise self._ended(failures.exceptions[0], done, total) from None
        return [task.result() for task in tasks]

    async def _completions(
        self, client: openai.AsyncOpenAI, gate: asyncio.Semaphore, request: Request
    ) -> list[Completion]:
        """All `n` of a request: at once where the server can, else one by one."""
        if request.n == 1:
            return await self._ask(client, gate, request)
        if "n" not in self._left_out:
            completions = await self._ask(client, gate, request)
            if len(completions) < request.n:
                self._left_out.add("n")  # it was refused, or passed over
            elif not self._doubts_samples(completions, request):
                return completions
            else:
                self._doubts -= 1
                singles = await self._one_by_one(client, gate, request)
                most = max(Counter(each.text for each in singles).values())
                self._chance *= (most / request.n) ** request.n
                if self._chance < _CHANCE:
                    self._repeats()
                return singles
        return await self._one_by_one(client, gate, request)

    async def _one_by_one(
        self, client: openai.AsyncOpenAI, gate: asyncio.Semaphore, request: Request
    ) -> list[Completion]:
        single = [replace(request, n=1, seed=request.seed + i) for i in range(request.n)]
        return [each[0] for each in await asyncio.gather(*(self._ask(client, gate, one) for one in single))]

    def _doubts_samples(self, completions: Sequence[Completion], request: Request) -> bool:
        """Whether the samples may be copies of one: they are equal, and are not known or likely to be so by chance."""
        if request.temperature == 0 or completions[0].finish_reason == "no_room":
            return False
        if len({each.text for each in completions}) > 1:
            self._doubts, self._chance = 0, math.inf
            return False
        if "n" in self._left_out:  # by what came of another request meanwhile
            return True
        logps = completions[0].logps
        return self._doubts > 0 and not (logps and sum(logps) * (len(completions) - 1) > math.log(_CHANCE))

    def _repeats(self) -> None:
        """All samples that are to come are asked for one by one."""
        if "n" not in self._left_out:
            said = "%s gives all samples of a request the same reply: each is asked for by itself from now on"
            logger.warning(said, self.address)
        self._left_out.add("n")

    async def _ask(self, client: openai.AsyncOpenAI, gate: asyncio.Semaphore, request: Request) -> list[Completion]:
        """One call of the server, with what it takes of options and limit. While it waits to be sent again, nothing
        takes its place: a server in trouble is not asked for more."""
        limit: int | None = request.max_new_tokens
        async with gate:
            if request.images:  # which takes a while, in which others are answered
                messages = await asyncio.to_thread(self._messages, request)
            else:
                messages = self._messages(request)
            while True:
                options = self._options(request, limit)
                try:
                    return await self._insist(partial(_reply, client, self.model, messages, options))
                except Failure as failure:
                    fitting = failure.fitting(limit)
                    if fitting == 0:
                        return [Completion([], [], "", "no_room") for _ in range(request.n)]
                    if fitting != limit:
                        limit = fitting
                    elif (option := failure.unknown_option(options)) is None:
                        raise
                    elif option == "n":
                        return []
                    else:
                        self._leave_out(option)

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` gets: again, after a pause, where a connection was lost or the server is busy."""
        attempts = 0
        while True:
            try:
                return await ask()
            except Failure as failure:
                gives_up = attempts >= self.settings.retries or failure.retry_after > LONGEST_WAIT
                if gives_up or not failure.passes:
                    raise
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempts) * (0.5 + random.random())
                pause = max(pause, failure.retry_after)
            attempts, self.num_retries = attempts + 1, self.num_retries + 1
            await asyncio.sleep(pause)

    def _options(self, request: Request, limit: int | None) -> dict[str, Any]:
        """All that shapes a reply, also where it is off: vLLM fills in what is missing from the model's
        `generation_config.json`."""
        options = {
            "max_completion_tokens" if "max_tokens" in self._left_out else "max_tokens": limit,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "n": request.n if request.n > 1 else None,
            "logprobs": True,
            "seed": request.seed % 2**31 if request.temperature > 0 else None,
            "stop": list(request.stop) or None,
            "chat_template_kwargs": self._template_kwargs or None,
        }
        return {name: value for name, value in options.items() if value is not None and name not in self._left_out}

    def _leave_out(self, option: str) -> None:
        if option == "temperature" and option not in self._left_out:
            said = "%s takes no temperature: replies are sampled at its own, also those that were to be greedy"
            logger.warning(said, self.address)
        self._left_out.add(option)

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

    def _client(self) -> openai.AsyncOpenAI:
        key = os.environ.get(self.settings.api_key_env) or "none"
        timeout = self.settings.timeout_seconds
        return openai.AsyncOpenAI(base_url=self.address, api_key=key, timeout=timeout, max_retries=0)

    async def _served_model(self) -> str:
        async with self._client() as client:
            try:
                served = await self._insist(partial(_listed, client))
            except openai.APIConnectionError as error:
                raise ValueError(
                    f"no server answers at {self.address} ({Failure.of(error).told}); start it, or correct the address"
                ) from None
            except Failure as failure:
                raise self._ended(failure) from None
        named = self.settings.served_model
        if named is None and len(served) != 1:
            listed = f"serves {', '.join(served[:5])}{', ...' * (len(served) > 5)}" if served else "lists no model"
            raise ValueError(f"{self.address} {listed}; name one with engine.served_model")
        if named is not None and served and named not in served:
            raise ValueError(f"engine.served_model is {named!r}, but {self.address} serves {', '.join(served[:5])}")
        return named or served[0]

    def _ended(self, failure: BaseException, done: int = 0, total: int = 0) -> Exception:
        """The one sentence that ends a call, or the start where there are no replies to count."""
        assert isinstance(failure, Failure)
        if failure.status in (401, 403):
            return ValueError(
                f"{self.address} wants another key ({failure.told}); put it into the environment "
                f"variable {self.settings.api_key_env}, or name another with engine.api_key_env"
            )
        if not failure.passes:
            return ValueError(f"{self.address} refuses a request ({failure.told}); change that")
        so_far = f", {done} of {total} replies of this batch had come" if total else ""
        rest = f"it wants to be left alone for {failure.retry_after:.0f} s"
        tried = rest if failure.retry_after > LONGEST_WAIT else f"asked {self.settings.retries + 1} times"
        return ConnectionError(
            f"{self.address} does not answer{' any more' if total else ''} ({failure.told}; {tried}){so_far}; call "
            "again when it is back"
        )


async def _listed(client: openai.AsyncOpenAI) -> list[str]:
    """The models that a server names, if it does.

    Raises:
        Failure: it answers, but not that.
    """
    try:
        return [model.id async for model in client.models.list()]
    except openai.NotFoundError:
        return []
    except openai.APIStatusError as error:
        raise Failure.of(error) from None


async def _reply(client: openai.AsyncOpenAI, model: str, messages: Any, options: Mapping[str, Any]) -> list[Completion]:
    try:
        answer = await client.chat.completions.create(model=model, messages=messages, extra_body=options)
    except openai.APIError as error:
        raise Failure.of(error) from None
    if not getattr(answer, "choices", None):
        raise Failure.of_empty(answer)
    return _read(answer)


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
