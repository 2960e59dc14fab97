"""The embedded questions: small, generated, checkable, and each worked step by step.

Seven families the base was trained on, two transfer families that no training ever sees (they recombine what the
seven teach), and a retention set of everyday facts that reinforcement learning should not unlearn. A question belongs
to exactly one split, by a hash of its operands, so that a paraphrase never crosses splits.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["pretrain", "train", "validation", "test"]
_SPLITS: dict[Split, range] = {
    "pretrain": range(0, 10),
    "train": range(10, 16),
    "validation": range(16, 18),
    "test": range(18, 20),
}

Carry = Callable[[int], int]
"""Called on every intermediate result; the identity for right work, something else for a slip."""
Worked = tuple[list[str], int]
"""The steps, one a line, and the result."""


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of question. `make` draws its operands, `ask` words it, `work` solves it in steps."""

    name: str
    make: Callable[[random.Random], list[int]]
    wordings: tuple[str, ...]
    """Wordings with the placeholder `{}` for the body."""
    body: Callable[[list[int]], str]
    work: Callable[[list[int], Carry], Worked]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question of a family with its operands (so that it can be worked again, with or without slips)."""

    family: Family
    operands: tuple[int, ...]
    question: str
    images: tuple[()] = ()
    """There are none, unlike in a `PictureProblem`."""

    @property
    def kind(self) -> str:
        return self.family.name

    @property
    def asked(self) -> str:
        """The question's words."""
        return self.question

    def work(self, carry: Carry = lambda value: value) -> Worked:
        return self.family.work(list(self.operands), carry)

    @property
    def body(self) -> str:
        """The operands as the question writes them."""
        return self.family.body(list(self.operands))

    @property
    def answer(self) -> str:
        return str(self.work()[1])


def chain(first: int, terms: list[tuple[str, int]], carry: Carry) -> Worked:
    """first op term op term ..., one operation a line."""
    apply = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    value, lines = first, []
    for op, term in terms:
        result = carry(apply[op](value, term))
        lines.append(f"{value}{op}{term}={result}")
        value = result
    return lines, value


def _operators(ops: str) -> Callable[[list[int], Carry], Worked]:
    """Work with the operators of `ops` in turn, the last one repeated as often as needed."""

    def work(x: list[int], carry: Carry) -> Worked:
        signs = ops + ops[-1] * (len(x) - 1 - len(ops))
        return chain(x[0], list(zip(signs, x[1:], strict=False)), carry)

    return work


def _expression(ops: str) -> Callable[[list[int]], str]:
    def body(x: list[int]) -> str:
        signs = ops + ops[-1] * (len(x) - 1 - len(ops))
        return str(x[0]) + "".join(f"{op}{term}" for op, term in zip(signs, x[1:], strict=False))

    return body


def _listing(x: list[int]) -> str:
    return ",".join(map(str, x))


def _running(choose: Callable[[int, int], int]) -> Callable[[list[int], Carry], Worked]:
    """Go through the numbers, keeping the chosen one of each two."""

    def work(x: list[int], carry: Carry) -> Worked:
        kept, lines = x[0], []
        for value in x[1:]:
            new = carry(choose(kept, value))
            lines.append(f"{kept},{value}:{new}")
            kept = new
        return lines, kept

    return work


def _above(x: list[int], carry: Carry) -> Worked:
    total, lines = 0, []
    for value in x[1:]:
        total = carry(total + (value > x[0]))
        lines.append(f"{value}:{total}")
    return lines, total


def _middle(x: list[int], carry: Carry) -> Worked:
    middle = carry(sorted(x)[len(x) // 2])
    return [_listing(sorted(x)), f"middle:{middle}"], middle


def _digits(rng: random.Random, n: int, low: int = 1, high: int = 9) -> list[int]:
    return [rng.randint(low, high) for _ in range(n)]


_WHAT = ("What is {}?", "Work out {}.", "Find the value of {}.")

FAMILIES: tuple[Family, ...] = (
    Family("sum", lambda r: _digits(r, r.randint(3, 6)), _WHAT, _expression("+"), _operators("+")),
    Family(
        "difference",
        lambda r: [r.randint(40, 60), *_digits(r, r.randint(2, 4))],
        _WHAT,
        _expression("-"),
        _operators("-"),
    ),
    Family(
        "product",
        lambda r: [r.randint(2, 9), r.randint(2, 9), *_digits(r, r.randint(1, 2))],
        _WHAT,
        _expression("*+"),
        _operators("*+"),
    ),
    Family(
        "largest",
        lambda r: r.sample(range(1, 60), r.randint(3, 6)),
        ("Which is the largest of {}?", "Find the largest number among {}."),
        _listing,
        _running(max),
    ),
    Family(
        "smallest",
        lambda r: r.sample(range(1, 60), r.randint(3, 6)),
        ("Which is the smallest of {}?", "Find the smallest number among {}."),
        _listing,
        _running(min),
    ),
    Family(
        "above",
        lambda r: r.sample(range(5, 35), 1) + r.sample(range(1, 40), r.randint(3, 6)),
        ("How many numbers are above {}?", "Count the numbers above {}."),
        lambda x: f"{x[0]} in {_listing(x[1:])}",
        _above,
    ),
    Family(
        "middle",
        lambda r: r.sample(range(1, 30), r.choice((3, 3, 5))),
        ("Sort {}. Which number is in the middle?", "Which number is in the middle of {} after sorting?"),
        _listing,
        _middle,
    ),
)

TRANSFER: tuple[Family, ...] = (
    Family(
        "mixed",
        lambda r: [r.randint(5, 9), r.randint(2, 9), r.randint(2, 6), r.randint(2, 9)],
        _WHAT,
        _expression("+-+"),
        _operators("+-+"),
    ),
    Family(
        "product-minus",
        lambda r: [r.randint(3, 9), r.randint(3, 9), *_digits(r, r.randint(1, 2), 1, 4)],
        _WHAT,
        _expression("*-"),
        _operators("*-"),
    ),
)

_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_MONTHS = [
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
]
FACTS: tuple[tuple[str, str], ...] = tuple(
    (f"Which {kind} comes right {word} {names[i]}?", names[(i + shift) % len(names)])
    for kind, names in (("day", _DAYS), ("month", _MONTHS))
    for word, shift in (("after", 1), ("before", -1))
    for i in range(len(names))
)
"""The retention set: (question, answer)."""


def split_of(body: str) -> Split:
    """The one split a question belongs to, whatever its family and wording."""
    bucket = int.from_bytes(hashlib.sha256(body.encode()).digest()[:4], "big") % 20
    return next(split for split, buckets in _SPLITS.items() if bucket in buckets)


def problems(families: tuple[Family, ...], split: Split, seed: int) -> Iterator[Problem]:
    """An endless seeded stream of a split's problems, the families in turn; questions may come again."""
    rng = random.Random(f"{split}-{seed}")
    while True:
        for family in families:
            while True:
                operands = family.make(rng)
                body = family.body(operands)
                if split_of(body) == split:
                    break
            question = rng.choice(family.wordings).format(body)
            yield Problem(family, tuple(operands), question)
