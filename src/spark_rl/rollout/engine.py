"""What the trainer asks of a text generator, whichever library is behind it. No torch here.

One call takes requests of all roles together, each with its own number of samples, length cap and temperature, and
returns their completions in the order of the requests.

Sampling noise is addressed, not streamed: sample `i` of a request draws its token at position `t` with the `t`-th
uniform number of the Philox stream keyed by `(request.seed, i)` (`uniforms`), by inverse CDF. So its tokens depend on
the request alone, not on what else is in the batch, on the rank or on a resume (up to the rounding of the forward).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spark_rl.types import FinishReason, Image, Message

_WORD = 2**64


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to sample from it."""

    id: str
    prompt_ids: tuple[int, ...]
    """Empty for a server, which renders `messages` itself."""
    n: int
    """Number of completions."""
    max_new_tokens: int
    temperature: float = 1.0
    """0 means greedy; log-probabilities are then those at temperature 1."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    """Strings that end a completion."""
    seed: int = 0
    messages: tuple[Message, ...] = ()
    images: tuple[Image, ...] = ()
    """Those of the prompt, in order."""

    def __post_init__(self) -> None:
        if not self.prompt_ids and not self.messages:
            raise ValueError(f"request {self.id!r} has an empty prompt; render the messages to at least one token")
        if self.n < 1 or self.max_new_tokens < 1:
            raise ValueError(f"request {self.id!r}: n and max_new_tokens must be at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"request {self.id!r}: temperature must be >= 0 and top_p in (0, 1]")
        if "" in self.stop:
            raise ValueError(f"request {self.id!r}: an empty stop string would end every completion; remove it")


@dataclass(slots=True)
class Completion:
    """One sampled continuation of a request's prompt."""

    token_ids: list[int]
    """Everything sampled: the end-of-turn token too, and up to the token that completed a stop string. Empty where a
    server does not tell."""
    logps: list[float]
    """Log-probability of each token under softmax(logits / temperature), before top_p; nats. Empty where a server does
    not tell."""
    text: str
    """Decoded without special tokens; ends before the stop string that was hit."""
    finish_reason: FinishReason
    tokens: list[str] = field(default_factory=list)
    """The text of each token, from servers that tell no ids."""
    num_tokens: int = 0
    """Tokens generated; the number of `token_ids` unless given."""
    num_prompt_tokens: int = 0
    """Tokens of the prompt as a server counted them; 0 where the request says."""

    def __post_init__(self) -> None:
        self.num_tokens = self.num_tokens or len(self.token_ids)


class Engine(Protocol):
    """Anything that can sample completions."""

    def generate(
        self, requests: Sequence[Request], progress: Callable[[float, int], None] | None = None
    ) -> list[list[Completion]]:
        """`n` completions for each request, in the order of the requests.

        `progress(done, total)` is called now and then with the number of completions that have ended, of those under
        way counting what is written of the most that may be.
        """
        ...


def uniforms(seed: int, sample: int, count: int) -> NDArray[np.float64]:
    """The first `count` uniform numbers in [0, 1) of sample number `sample` of a request with this seed."""
    key = np.array([seed % _WORD, sample % _WORD], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)
