"""Why a server gave no reply, and what can be read in its sentence.

Servers word their refusals as they like. Known here are those of vLLM, SGLang, llama.cpp, OpenAI, Groq, DeepSeek, xAI,
Mistral, Anthropic and OpenRouter, as their sources have them or their users report them. Where a sentence cannot be
read, nothing is guessed: it ends the call.
"""

from __future__ import annotations

import re
from collections.abc import Container

import openai

BUSY = (408, 409, 425, 429)
NAMED = ("logprobs", "top_k", "min_p", "repetition_penalty", "top_p")
"""Options that a server may not know, wherever their names stand."""
QUOTED = ("seed", "n", "max_tokens", "temperature")
"""Those whose names other sentences have, too: they count in quotes."""
OPTIONS = NAMED + QUOTED

_CONTEXT = re.compile(r"context (?:length|window|size)\D{0,20}(\d+)|\d+ \+ \d+ > (\d+)", re.I)
_PROMPT = re.compile(
    r"(\d+) (?:in the messages|in your prompt|of text input|input tokens|prompt tokens|tokens from the input)"
    r"|(?:prompt contains|messages resulted in) (\d+)|(\d+) \+ \d+ > \d+",
    re.I,
)
_PROMPT_ALONE = re.compile(
    r"\b(?:prompt|input|messages)(?: tokens?| length| count)*(?: \([\w ]+\)| (?:of )?\d+)?"
    r" (?:(?:is |are )?too long|(?:is|are) longer than"
    r"|exceeds? the (?:context|[\w ]*(?:length|tokens)|(?:configured )?limit of \d+\b))"
    r"|exceeds the available context size|maximum prompt length|too large for model with"
    r"|max_(?:completion_)?tokens must be at least 1, got",  # of what the prompt left
    re.I,
)
_NOT_COUNTED = re.compile(r"contains at least \d|upper bound for \d|You passed \d+ input|greater than max_model_len")
"""vLLM reads a prompt up to the first token that is too many for the limit; what it then tells is no count."""
_CAP = re.compile(
    r"max_(?:completion_)?tokens\b.*?(?:less than or equal to|at most|<=|>|\[\d+,|output tokens \()\s*`?(\d+)", re.I
)


class Failure(Exception):
    """A request without a reply.

    Args:
        said: why, in the words of the server, or of the lost connection.
        status: of HTTP; 0 where none was told.
        param: the option that the server says is at fault.
        body: all that the server sent.
        retry_after: seconds that the server wants to be left alone.
    """

    def __init__(
        self, said: object, status: int = 0, param: object = None, body: object = "", retry_after: float = 0.0
    ) -> None:
        self.said, self.status, self.retry_after = " ".join(str(said).split()), status, retry_after
        self.param, self.body = str(param), str(body)
        super().__init__(self.told)

    @classmethod
    def of(cls, error: openai.APIError) -> Failure:
        if not isinstance(error, openai.APIStatusError):  # a lost connection, or a time-out
            return cls(_cause(error))
        body = _without_echo(error.body)
        told = body if isinstance(body, dict) else {}
        said = told.get("message") or told.get("detail") or error.message
        retry_after = _seconds(error.response.headers.get("retry-after"))
        return cls(said, error.status_code, error.param, body, retry_after)

    @classmethod
    def of_empty(cls, answer: object) -> Failure:
        """Of an answer without choices. The code of its error, if it has one, is the status."""
        error = getattr(answer, "error", None)
        error = error if isinstance(error, dict) else {"message": error}
        code = str(error.get("code"))
        status = int(code) if re.fullmatch(r"[45]\d\d", code) else 0
        return cls(error.get("message") or "its answer holds no reply", status, error.get("param"), error)

    @property
    def told(self) -> str:
        said = self.said[:200].rstrip(".")
        return f"it says {self.status}: {said}" if self.status else said

    @property
    def passes(self) -> bool:
        """It may help to send the request again."""
        return not self.status or self.status in BUSY or self.status >= 500

    def fitting(self, limit: int | None) -> int | None:
        """The limit of a reply, tokens, to ask with next: 0 if the prompt alone fills the context, None for as much as
        is left. `limit` itself, the one that was sent, if this is about something else or cannot be read."""
        if self.status not in (400, 413, 422):
            return limit
        if _NOT_COUNTED.search(self.said):
            return None if limit else 0
        context, prompt = _number(_CONTEXT, self.said), _number(_PROMPT, self.said)
        if context and prompt:
            room = max(0, context - prompt)
            if room and (limit is None or room > limit):
                return limit
            return min(room, limit - 1) if limit else 0  # SGLang leaves one token of the context unused
        if _PROMPT_ALONE.search(self.said):
            return 0
        cap = _number(_CAP, self.said)
        return cap if cap and limit and cap < limit else limit

    def unknown_option(self, sent: Container[str]) -> str | None:
        """The option, of those sent, that the server does not take. Of several it is the first of `OPTIONS`, the least
        needed: some servers take either of two."""
        if self.status not in (400, 403, 422):  # 403: OpenAI, of models whose log-probabilities it keeps
            return None
        if self.param in OPTIONS and self.param in sent:
            return self.param
        said = self.body.split("did you mean")[0]
        marks = {**{name: rf"\b{name}\b" for name in NAMED}, **{name: rf"['\"`]{name}['\"`]" for name in QUOTED}}
        return next((name for name, mark in marks.items() if name in sent and re.search(mark, said)), None)


def _without_echo(body: object) -> object:
    """A body without what was sent, which pydantic repeats as `input`: that names every option."""
    if isinstance(body, dict):
        return {key: _without_echo(value) for key, value in body.items() if key != "input"}
    return [_without_echo(each) for each in body] if isinstance(body, list) else body


def _number(pattern: re.Pattern[str], said: str) -> int | None:
    found = pattern.search(said)
    return int(found[found.lastindex]) if found and found.lastindex else None


def _seconds(header: str | None) -> float:
    """Of a Retry-After header; dates are not read."""
    return float(header) if header and re.fullmatch(r"\d+(\.\d+)?", header) else 0.0


def _cause(error: BaseException) -> str:
    """Why, in the words of the lowest layer that has some."""
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return str(error).strip() or type(error).__name__
