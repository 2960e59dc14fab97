"""A sheet of answers and golds (`pairs.txt`), of which more than half are wrong answers."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from spark_rl.verify import grade

SIGN = re.compile(r"(?:^|  )(==|!=|=>|!>)  ")


class Pair(NamedTuple):
    verifier: str
    kind: str
    answer: str
    sign: str
    gold: str


def read_pairs():
    verifier, kind = "", ""
    for line in Path(__file__).with_name("pairs.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            kind = line.strip("# ")
        elif marker := re.fullmatch(r"\[([a-z]+)\]", line):
            verifier = marker[1]
        elif line:
            answer, sign, gold = SIGN.split(line)
            yield Pair(verifier, kind, answer, sign, gold)


PAIRS = list(read_pairs())


def disagreements(pair):
    """What the verifier says otherwise than the sheet."""
    ways = [(pair.answer, pair.gold)] + [(pair.gold, pair.answer)] * (pair.sign in ("==", "!="))
    for answer, gold in ways:
        reward = grade(answer, gold, pair.verifier).reward
        if (reward == 1) != pair.sign.startswith("="):
            yield f"{answer!s} for the gold {gold!s} gets {reward}"


@pytest.mark.parametrize("kind", dict.fromkeys((pair.verifier, pair.kind) for pair in PAIRS), ids=": ".join)
def test_every_pair_is_graded_as_the_sheet_says(kind):
    assert [said for pair in PAIRS if (pair.verifier, pair.kind) == kind for said in disagreements(pair)] == []


def test_more_than_half_of_many_pairs_are_wrong_answers():
    signs = Counter(pair.sign[0] for pair in PAIRS)
    assert len(set(PAIRS)) == len(PAIRS) >= 300
    assert signs["!"] >= signs["="]
