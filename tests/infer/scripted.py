"""An engine that follows a script, as a server that tells texts of tokens but no ids."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from spark_rl.infer import ChatModel
from spark_rl.rollout.engine import Completion, Request
from spark_rl.verify import box, extract_answer

Script = Callable[[str, int, Request], str | tuple[str, float]]
"""Of the prompt's last turn, the number of the sample and the request: the reply, or it and the probability of what
stands in its box. Without one, the engine tells no log-probabilities."""


def pieces(text: str) -> list[str]:
    """Tokens: words and single signs."""
    return re.findall(r"\w+|\W", text)


@dataclass
class ScriptedEngine:
    script: Script
    calls: list[list[Request]] = field(default_factory=list)
    replies: list[list[Completion]] = field(default_factory=list)

    def generate(self, requests: Sequence[Request], progress: Any = None) -> list[list[Completion]]:
        self.calls.append(list(requests))
        replies = [[self._reply(request, i) for i in range(request.n)] for request in requests]
        self.replies += replies
        return replies

    def _reply(self, request: Request, i: int) -> Completion:
        said = self.script(request.messages[-1]["content"], i, request)
        text, probability = (said, None) if isinstance(said, str) else said
        kept = pieces(text)[: request.max_new_tokens]
        finish, content = "stop" if len(kept) == len(pieces(text)) else "length", extract_answer(text)
        logps = [] if probability is None else [math.log(probability) if each == content else 0.0 for each in kept]
        prompt = sum(len(pieces(message["content"])) for message in request.messages)
        num = len(kept)
        return Completion([], logps, "".join(kept), finish, kept, num, prompt)  # type: ignore[arg-type]

    @property
    def prompts(self) -> list[str]:
        """The last turns of all requests, in order."""
        return [request.messages[-1]["content"] for call in self.calls for request in call]

    @property
    def cost(self) -> tuple[int, int]:
        """Tokens read, each prompt once, and written."""
        read = sum(len(pieces(prompt)) for prompt in self.prompts)
        return read, sum(len(reply.tokens) for replies in self.replies for reply in replies)


def scripted(script: Script, max_new_tokens: int = 50) -> tuple[ChatModel, ScriptedEngine]:
    engine = ScriptedEngine(script)
    return ChatModel(engine, "scripted", max_new_tokens=max_new_tokens), engine


def says(word: str, probability: float | None = None) -> str | tuple[str, float]:
    """A reply that ends with this box."""
    return f"So: {box(word)}" if probability is None else (f"So: {box(word)}", probability)
