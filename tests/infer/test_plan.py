"""Plans in step: who is asked what in which round, what it costs, and the budget."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import pieces, scripted

from spark_rl.infer import Ask, Plan, Spent, run
from spark_rl.infer.plan import together
from spark_rl.rollout.engine import Request


def user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def echo(prompt: str, i: int, request: Request) -> str:
    return f"{prompt}-{i}"


def asks_in_turn(name: str, sizes: list[int]) -> Callable[[Spent], Plan[list[list[str]]]]:
    """One prompt a round, answered so often each."""

    def plan(spent: Spent) -> Plan[list[list[str]]]:
        heard = []
        for number, n in enumerate(sizes):
            (replies,) = yield [Ask(user(f"{name}{number}"), n, temperature=1.0)]
            heard.append([reply.text for reply in replies])
        return heard

    return plan


def test_what_plans_ask_in_one_round_is_one_call() -> None:
    model, engine = scripted(echo)
    sizes = {"a": [1, 2], "b": [], "c": [1, 1, 1]}
    done = run([(name, asks_in_turn(name, each)) for name, each in sizes.items()], model)
    assert [each.value for each in done] == [[["a0-0"], ["a1-0", "a1-1"]], [], [["c0-0"], ["c1-0"], ["c2-0"]]]
    assert [[request.messages[0]["content"] for request in call] for call in engine.calls] == [
        ["a0", "c0"],
        ["a1", "c1"],
        ["c2"],
    ]


def test_a_prompt_counts_once_and_every_reply_counts() -> None:
    model, _ = scripted(lambda prompt, i, request: "one two")
    (done,) = run([("x", asks_in_turn("word", [3, 1]))], model)
    assert (done.spent.prompt_tokens, done.spent.generated_tokens) == (2, 4 * len(pieces("one two")))
    assert done.spent.total == 14


def test_together_keeps_several_plans_in_step() -> None:
    def pair(spent: Spent) -> Plan[list[list[list[str]]]]:
        inner = [asks_in_turn(name, sizes)(spent) for name, sizes in (("a", [1, 1]), ("b", []), ("c", [2]))]
        return (yield from together(inner))

    model, engine = scripted(echo)
    (done,) = run([("x", pair)], model)
    assert done.value == [[["a0-0"], ["a1-0"]], [], [["c0-0", "c0-1"]]]
    assert [len(call) for call in engine.calls] == [2, 1]


def test_progress_counts_plans() -> None:
    told: list[tuple[int, int]] = []
    model, _ = scripted(echo)
    run([("a", asks_in_turn("a", [1])), ("b", asks_in_turn("b", [1, 1]))], model, progress=lambda *n: told.append(n))
    assert told == [(0, 2), (1, 2), (2, 2)]


@given(sizes=st.lists(st.lists(st.integers(1, 3), max_size=4), max_size=4), seed=st.integers(0, 5))
def test_noise_is_addressed_by_plan_round_and_seed_not_by_the_batch(sizes: list[list[int]], seed: int) -> None:
    def noisy(prompt: str, i: int, request: Request) -> str:
        return str(random.Random(f"{request.seed}/{i}").random())

    model, _ = scripted(noisy)
    plans = [(f"p{i}", asks_in_turn(f"p{i}", each)) for i, each in enumerate(sizes)]
    at_once = [done.value for done in run(plans, model, seed=seed)]
    assert at_once == [run([plan], model, seed=seed)[0].value for plan in plans]
    heard = [text for plan in at_once for replies in plan for text in replies]
    assert len(set(heard)) == len(heard)
    assert not heard or at_once != [done.value for done in run(plans, model, seed=seed + 1)]


@given(
    limit=st.integers(1, 60),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    length=st.integers(1, 30),
)
def test_the_budget_is_kept(limit: int, sizes: list[int], length: int) -> None:
    """What is written never exceeds it; what is read may, by the prompts of one round."""
    model, engine = scripted(lambda prompt, i, request: "w" * 1 + " w" * length)
    (done,) = run([("x", asks_in_turn("x", sizes))], model, limit=limit)
    assert done.spent.generated_tokens <= limit
    assert done.spent.total <= limit + 1  # prompts are one token long here
    assert len(done.value) == len(sizes), "a plan is heard out"
    unanswered = [replies for replies in done.value if replies[0] == ""]
    assert len(engine.prompts) + len(unanswered) == len(sizes), "what is not paid for is not asked"


def test_what_nothing_is_left_for_gets_no_room() -> None:
    def plan(spent: Spent) -> Plan[list[str]]:
        reasons = []
        for _ in range(3):
            ((reply,),) = yield [Ask(user("x"))]
            reasons.append(reply.finish_reason)
        return reasons

    model, _ = scripted(lambda prompt, i, request: "a b c d")
    (done,) = run([("x", plan)], model, limit=10)
    assert done.value == ["stop", "length", "no_room"]


@pytest.mark.parametrize("limit", [None, 30])
def test_what_is_left(limit: int | None) -> None:
    spent = Spent(limit, 10, 15)
    assert (spent.total, spent.left) == (25, float("inf") if limit is None else 5)
