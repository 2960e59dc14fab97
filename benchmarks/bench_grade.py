r"""How fast `math` grades ordinary answers, to math-verify alone on the same rows. One JSON line a kind.

    OMP_NUM_THREADS=1 python benchmarks/bench_grade.py [--rows 400] [--rounds 5]

Both grade in this process, without a worker: a gold and an answer to it, every second one wrong, no two rows alike, so
that nothing is remembered from one to the next. math-verify is called as its documentation says, `parse` of both boxed
texts and `verify`, without its time limits, which need signals.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Callable, Iterator

from harness import interleaved, show, speedup

from spark_rl.verify import box, grade

Pair = tuple[str, str]


def integers(number: int, wrong: int) -> Pair:
    return str(number), str(number + wrong)


def numbers(number: int, wrong: int) -> Pair:
    return rf"\frac{{{number}}}{{{8}}}", str((number + wrong) / 8)


def expressions(number: int, wrong: int) -> Pair:
    return rf"x^2+{2 * number}x+{number**2}", rf"(x+{number + wrong})^2"


def roots(number: int, wrong: int) -> Pair:
    return rf"\frac{{{number}\sqrt{{3}}}}{{2}}", rf"\frac{{{number + wrong}}}{{2}}\sqrt{{3}}"


def lists(number: int, wrong: int) -> Pair:
    return rf"{number}, {number + 1}, -{number}", rf"-{number}, {number + wrong}, {number + 1}"


def intervals(number: int, wrong: int) -> Pair:
    return rf"(-\infty, {number}]", rf"\left(-\infty, {number + wrong}\right]"


KINDS: tuple[Callable[[int, int], Pair], ...] = (integers, numbers, expressions, roots, lists, intervals)


def ours(pairs: list[Pair]) -> list[bool]:
    return [grade(answer, gold, "math").reward == 1 for gold, answer in pairs]


def theirs(pairs: list[Pair]) -> list[bool]:
    from math_verify import parse, verify

    parsed = (
        (parse(box(gold), parsing_timeout=None), parse(box(answer), parsing_timeout=None)) for gold, answer in pairs
    )
    return [verify(gold, answer, timeout_seconds=None) for gold, answer in parsed]


def compare(kind: Callable[[int, int], Pair], drawn: Iterator[int], rows: int, rounds: int) -> dict[str, object]:
    batches = [[kind(next(drawn), row % 2) for row in range(rows)] for _ in range(2 * (rounds + 1))]
    left = iter(batches)
    times = interleaved(lambda: ours(next(left)), lambda: theirs(next(left)), rounds=rounds)
    per_second = round(rows * rounds / sum(times[0]))
    right = sum(ours(batches[0]))
    return speedup(f"grade/{kind.__name__}", *times, at_least=1.0, right=right, rows_per_second=per_second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    drawn = iter(random.Random(0).sample(range(10, 10**6), 2 * (arguments.rounds + 1) * arguments.rows * len(KINDS)))
    for kind in KINDS:
        show(compare(kind, drawn, arguments.rows, arguments.rounds))


if __name__ == "__main__":
    main()
