"""The probes of the evaluation are fair, and none of their wordings is trained on."""

from __future__ import annotations

import random
import re

import pytest

from spark_rl.evaluate.probes import CLAIMS, HOLLOW, probes_of
from spark_rl.recycle.probes import claim, hollows
from spark_rl.verify import box, extract_answer, grade


def words(text):
    return " ".join(re.findall(r"\w+|[^\w\s]", text.casefold()))


def test_no_wording_of_the_evaluation_is_one_of_training():
    rng = random.Random(0)
    trained = {words(claim(rng)) for _ in range(5000)} | {words(text) for text in hollows()}
    tested = {words(text) for texts in (*HOLLOW.values(), *CLAIMS.values()) for text in texts} - {""}
    assert not trained & tested
    long_ones = [text for text in tested if len(text.split()) > 1]
    assert not [t for t in trained if any(other in t for other in long_ones)]


@pytest.mark.parametrize("number", range(12))
def test_a_probe_is_to_be_accepted_just_when_the_verifier_accepts_it(number):
    right, wrong = f"1+1=2\n{box('2')}", f"1+1=3\n{box('3')}"
    for probe in probes_of("q", "What is 1+1?", right, wrong, number):
        answer = extract_answer(probe.response)
        reward = 0.0 if answer is None else grade(answer, "2", "numeric").reward
        assert reward == float(probe.right), probe


def test_every_kind_and_wording_comes_up():
    made = [p for n in range(12) for p in probes_of(str(n), "q", "right", "wrong", n)]
    assert len({p.id for p in made}) == len(made)
    assert all(any(p.response == text for p in made) for texts in HOLLOW.values() for text in texts)
    assert all(any(text in p.response for p in made) for texts in CLAIMS.values() for text in texts)
    places = {p.response.startswith(("right", "wrong")) for p in made if p.kind.endswith("added")}
    assert places == {True, False}, "claims stand before and after"
