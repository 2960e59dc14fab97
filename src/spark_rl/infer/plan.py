"""Test-time procedures as plans: a plan asks, is given the replies, and asks again, as sequential code.

    def answer_twice(messages: Messages) -> Plan[bool]:
        ((first,),) = yield [Ask(messages)]
        ((second,),) = yield [Ask(messages, temperature=1.0)]
        return first.text == second.text

`run` goes through many plans in step: what they all ask in one round is one generation call.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from spark_rl.infer.chat import ChatModel
from spark_rl.rollout.engine import Completion, Request
from spark_rl.types import Image, Message

T = TypeVar("T")
Reply = Completion
"""`token_ids` and `tokens` as the engine gives them; `text` with the reasoning tag that the chat template opened."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt, and how often it is to be answered."""

    messages: tuple[Message, ...]
    n: int = 1
    temperature: float = 0.0
    """0 is greedy."""
    images: tuple[Image, ...] = ()
    """Those of the messages, in order."""


@dataclass(slots=True)
class Spent:
    """What a plan has cost so far, tokens."""

    limit: int | None = None
    """Its budget: of `total`."""
    prompt_tokens: int = 0
    """Each prompt counted once, however many replies it got."""
    generated_tokens: int = 0

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.generated_tokens

    @property
    def left(self) -> float:
        return float("inf") if self.limit is None else max(0, self.limit - self.total)


Plan = Generator[Sequence[Ask], list[list[Reply]], T]
"""Yields asks, is sent the replies to each, returns its result."""


def together(plans: Sequence[Plan[T]]) -> Plan[list[T]]:
    """One plan that carries out several in step."""
    results: dict[int, T] = {}
    replies: dict[int, list[list[Reply]]] = {}
    while asked := _advance(plans, replies, results):
        answered = iter((yield [ask for asks in asked.values() for ask in asks]))
        replies = {i: [next(answered) for _ in asks] for i, asks in asked.items()}
    return [results[i] for i in range(len(plans))]


def _advance(
    plans: Sequence[Plan[T]], replies: dict[int, list[list[Reply]]], results: dict[int, T]
) -> dict[int, Sequence[Ask]]:
    """Begin the plans, or send them their replies. Returns what they ask; the results of ended ones join `results`."""
    asked: dict[int, Sequence[Ask]] = {}
    for i, plan in enumerate(plans):
        if i in results:
            continue
        try:
            asked[i] = plan.send(replies[i]) if i in replies else next(plan)
        except StopIteration as end:
            results[i] = end.value
    return asked


@dataclass(slots=True)
class Done(Generic[T]):
    """A plan's result and cost."""

    value: T
    spent: Spent


def run(
    plans: Sequence[tuple[str, Callable[[Spent], Plan[T]]]],
    model: ChatModel,
    *,
    seed: int = 0,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Done[T]]:
    """Carry the plans out, in step.

    Args:
        plans: an id, to which sampling noise is addressed, and what begins the plan, given the meter of its tokens.
        limit: budget of a plan, tokens. What is generated is cut where it ends; the prompts of a round may exceed it.
        progress: told (ended, all) plans after each round.
    """
    meters = [Spent(limit) for _ in plans]
    running = [begin(meter) for (_, begin), meter in zip(plans, meters, strict=True)]
    replies: dict[int, list[list[Reply]]] = {}
    results: dict[int, T] = {}
    for number in itertools.count():
        asked = _advance(running, replies, results)
        if progress:
            progress(len(results), len(plans))
        if not asked:
            break
        answered = _round(asked, meters, plans, model, f"{seed}/{number}")
        replies = {i: [next(answered) for _ in asks] for i, asks in asked.items()}
        for i, given in replies.items():
            _count(meters[i], given)
    return [Done(results[i], meters[i]) for i in range(len(plans))]


def _round(
    asked: dict[int, Sequence[Ask]],
    meters: Sequence[Spent],
    plans: Sequence[tuple[str, object]],
    model: ChatModel,
    address: str,
) -> Generator[list[Reply], None, None]:
    """The replies to all asks of a round, in order."""
    requests: list[Request | None] = []
    asks = [(i, j, ask) for i, of_plan in asked.items() for j, ask in enumerate(of_plan)]
    for i, j, ask in asks:
        share = meters[i].left / sum(each.n for each in asked[i])
        cap = int(min(model.max_new_tokens, share))
        requests.append(
            Request(
                id=f"{plans[i][0]}/{j}",
                prompt_ids=(),
                messages=ask.messages,
                images=ask.images,
                n=ask.n,
                max_new_tokens=cap,
                temperature=ask.temperature,
                stop=model.stop,
                seed=_seed(f"{address}/{plans[i][0]}/{j}"),
            )
            if cap >= 1
            else None
        )
    answered = iter(model.generate([request for request in requests if request is not None]))
    for (_, _, ask), request in zip(asks, requests, strict=True):
        yield next(answered) if request else [Reply([], [], "", "no_room") for _ in range(ask.n)]


def _count(meter: Spent, replies: Sequence[Sequence[Reply]]) -> None:
    for of_ask in replies:
        meter.prompt_tokens += max((reply.num_prompt_tokens for reply in of_ask), default=0)
        meter.generated_tokens += sum(reply.num_tokens for reply in of_ask)


def _seed(address: str) -> int:
    return int.from_bytes(hashlib.sha256(address.encode()).digest()[:8], "big") >> 1
