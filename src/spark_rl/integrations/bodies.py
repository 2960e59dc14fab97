"""Bodies of requests: read within limits of size and time, and parsed with a sentence for everything that is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from spark_rl.config.inference import ServeConfig

_CLOSING = {"Connection": "close"}
"""The rest of a body that was refused would be read as the next request."""
STOPPING = "the server is stopping; send it again when it is back"


def too_large(settings: ServeConfig) -> str:
    limit = f"{settings.max_body_bytes:,} bytes (serve.max_body_bytes)"
    return f"the body has more than {limit}; send less at once"


class BoundedBody:
    """What a request's `receive` gives, until its body is complete within limits.

    Args:
        stopping: set when the server stops: then nobody waits for the rest of a body.
    """

    def __init__(self, receive: Receive, settings: ServeConfig, stopping: asyncio.Event) -> None:
        self._receive, self._settings, self._stopping = receive, settings, stopping
        self._deadline = asyncio.get_running_loop().time() + settings.body_seconds
        self._num_bytes = 0
        self._complete = False

    async def __call__(self) -> Message:
        """The next message.

        Raises:
            HTTPException: 408 too slow, 413 too large, 499 the client left, 503 the server stops.
        """
        if self._complete:
            return await self._receive()
        message = await self._within_limits()
        if message["type"] == "http.disconnect":
            raise HTTPException(499, "the client has closed the connection")
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._settings.max_body_bytes:
            raise HTTPException(413, too_large(self._settings), _CLOSING)
        self._complete = not message.get("more_body", False)
        return message

    async def _within_limits(self) -> Message:
        part, stop = asyncio.ensure_future(self._receive()), asyncio.ensure_future(self._stopping.wait())
        left = self._deadline - asyncio.get_running_loop().time()
        try:
            await asyncio.wait({part, stop}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if part.done():
                return part.result()
            if stop.done():
                raise HTTPException(503, STOPPING, {"Retry-After": "5", **_CLOSING})
            limit = f"{self._settings.body_seconds:g} seconds (serve.body_seconds)"
            raise HTTPException(408, f"the body was not there within {limit}; send it at once", _CLOSING)
        finally:
            part.cancel()
            stop.cancel()


class _JsonRequest(Request):
    async def json(self) -> Any:
        """The body's value; an `HTTPException` says what of it is no JSON beside its syntax."""
        body = await self.body()
        try:
            return json.loads(body.decode())
        except json.JSONDecodeError:
            raise  # FastAPI's own, which says where
        except UnicodeDecodeError as error:
            reason = f"byte {error.start + 1} is not UTF-8"
        except RecursionError:
            reason = "nested too deeply"
        except ValueError:  # Python's own limit
            reason = "a number has more than 4300 digits"
        raise HTTPException(422, f"the body is not valid JSON ({reason}); mend it")


class JsonRoute(APIRoute):
    """A route that answers 422 to every body that is no JSON; FastAPI's answers 400 to some."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle
