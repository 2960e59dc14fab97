"""Whatever is answered, every item gets its own verdict, no worker dies of it, and nothing grows.

Among answers of all sorts stand items whose verdict is known, each other than the ones before, so that a verdict that
went to another item would show. Nothing is said of the verdicts on the others.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator

import psutil

from spark_rl.verify import Check, VerifierPool, box, failed

NUM_ANSWERS = 100_000 if os.environ.get("SPARK_RL_SOAK") else 400
GOLDS = {
    "math": ["5", r"\frac{1}{2}", "x^2+1", r"\{1,2\}", "(0,1]", r"\sqrt{2}", "3\\text{ cm}", "x=4", r"2\pi", "1+2i"],
    "numeric": ["5", "0.25", "1,000", "18 dollars", "-3/4"],
    "choice": ["A", "Yes", "blue"],
    "exact": ["a b", "5"],
}
PIECES = [
    *["0", "1", "5", "12", "3.14", "-", "+", "*", "/", "^", "_", "=", ",", ";", ":", "(", ")", "[", "]", "{", "}", "|"],
    *["x", "y", "n", "e", "i", "pi", "A", "Yes", "cm", "million", "or", "and", " ", "\n", "\t", "%", "$", "\\", "!"],
    *[r"\frac", r"\sqrt", r"\sqrt[3]", r"\pi", r"\infty", r"\cdot", r"\times", r"\le", r"\cup", r"\log", r"\sin"],
    *[r"\text{", r"\left(", r"\right)", r"\begin{pmatrix}", r"\end{pmatrix}", r"\\", "&", r"\binom", r"\int_0^1"],
    *["½", "∈", "∛", "－", "５", "，", "é", "\u202e", "\u200b", "\x00", "😀", "٣", "°", "²", "<think>", "</think>"],
]
"""What formulas and their accidents are made of."""


def huge(rng: random.Random) -> str:
    return rng.choice(
        [
            "9" * rng.choice([20, 400, 5000, 50_000]),
            f"1e{10 ** rng.randrange(9)}",
            "^".join(["9"] * rng.randrange(2, 5)),
            "9^{9^{9}}",
            f"{rng.randrange(10 ** rng.randrange(1, 6))}!",
            f"0.{'3' * rng.choice([20, 3000])}",
        ]
    )


def long(rng: random.Random) -> str:
    piece = rng.choice(PIECES)
    return rng.choice(["", "5"]) + piece * rng.choice([100, 2000, 50_000]) + rng.choice(["", "x"])


def deep(rng: random.Random) -> str:
    opened, closed = rng.choice(
        [("(", ")"), ("{", "}"), (r"\sqrt{", "}"), ("[", "]"), (r"\frac{1}{", "}"), ("-(", ")")]
    )
    depth = rng.choice([3, 30, 300, 3000])
    return opened * depth + "5" + closed * (depth - rng.randrange(2))


def listed(rng: random.Random) -> str:
    numbers = map(str, range(rng.choice([3, 50, 5000])))
    return rng.choice([r"\{%s\}", "%s", "(%s)"]) % ",".join(numbers)


def anything(rng: random.Random) -> str:
    codes = (rng.choice([rng.randrange(32, 127), rng.randrange(0xD800)]) for _ in range(rng.randrange(1, 40)))
    return "".join(map(chr, codes))


def pieces(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randrange(1, 12)))


def mutated(rng: random.Random, gold: str) -> str:
    at = rng.randrange(len(gold) + 1)
    return gold[:at] + rng.choice(PIECES) * rng.randrange(2) + gold[at + rng.randrange(2) :]


def checks(rng: random.Random) -> Iterator[tuple[Check, float | None]]:
    """Items with the reward that they must have, or None where it may be any."""
    for number in range(NUM_ANSWERS):
        verifier = rng.choice(["math", "math", "math", *GOLDS])
        gold = rng.choice(GOLDS[verifier])
        kind = rng.choices([mutated, pieces, anything, huge, long, deep, listed], [40, 30, 20, 3, 3, 3, 1])[0]
        answer = mutated(rng, gold) if kind is mutated else kind(rng)  # type: ignore[call-arg, operator]
        yield Check(rng.choice(["", "so "]) + box(answer), gold, verifier), None
        if number % 4 == 0:
            right = number % 8 == 0
            yield Check(box(str(number + (not right))), str(number), rng.choice(["math", "numeric"])), float(right)


def memory(pool: VerifierPool) -> int:
    """Bytes that this process and the workers hold."""
    pids = [os.getpid(), *(worker.process.pid for worker in pool._workers)]
    return sum(psutil.Process(pid).memory_info().rss for pid in pids if psutil.pid_exists(pid))


def test_every_item_gets_its_own_verdict_whatever_is_answered():
    expected: list[float | None] = []

    def asked() -> Iterator[Check]:
        for check, reward in checks(random.Random(f"fuzz-{NUM_ANSWERS}")):
            expected.append(reward)
            yield check

    reasons, at_half = Counter[str](), 0
    with VerifierPool(workers=2, cpu_seconds=1) as pool:
        for number, verdict in enumerate(pool.stream(asked())):
            known = expected[number]
            assert known is None or (verdict.reward, verdict.reason) == (known, "correct" if known else "wrong"), number
            assert verdict.reason in ("correct", "wrong", "unparsed", "partial") or failed(verdict.reason), verdict
            assert verdict.reward is not None and 0 <= verdict.reward <= 1, verdict
            reasons[verdict.reason] += 1
            if number == NUM_ANSWERS // 2:
                at_half = memory(pool)
        assert memory(pool) < 1.3 * at_half + 2**27
    print(dict(reasons.most_common()))
    assert reasons.total() == len(expected) == NUM_ANSWERS + NUM_ANSWERS // 4
    assert not any(reason.startswith(("crash", "error")) for reason in reasons), reasons
