"""Disturbed responses keep labels honest and balanced."""

from __future__ import annotations

import random

import pytest

from spark_rl.config import RecycleConfig
from spark_rl.recycle import recycle
from spark_rl.recycle.probes import claim, claimed, hollow, hollows
from spark_rl.types import Response, Role
from spark_rl.verify import box, extract_answer
from tests.factories import make_config, question_group

RIGHT = Response("r", f"It is so.\n{box('3')}", "3", 1.0)
WRONG = Response("w", f"It is so.\n{box('4')}", "4", 0.0)


def tasks(rate, role, seed=0):
    groups = [question_group(number, [number + 1, number, number + 1, number + 2]) for number in range(2, 42)]
    made = recycle(groups, RecycleConfig(probe_rate=rate), seed=seed, step=1)
    return [task for bundle in made.bundles for task in bundle if task.role is role]


def disturbed(task):
    return [response for response in task.shown if response.disturbed]


def test_without_a_rate_nothing_is_disturbed_and_nothing_else_changes():
    assert not any(disturbed(task) for role in Role for task in tasks(0.0, role))
    assert [t.messages for t in tasks(0.0, Role.REFLECTION)] == [t.messages for t in tasks(0.0, Role.REFLECTION)]


@pytest.mark.parametrize("role", [Role.POINTWISE, Role.PAIRWISE])
def test_the_share_of_disturbed_bundles_is_the_rate(role):
    made = tasks(0.4, role)
    bundles = [made[i : i + 2] for i in range(0, len(made), 2)]
    share = sum(any(map(disturbed, bundle)) for bundle in bundles) / len(bundles)
    assert 0.25 < share < 0.55
    assert {task.label for bundle in bundles for task in bundle} == (
        {"Yes", "No"} if role is Role.POINTWISE else {"A", "B"}
    )
    assert all({a.label, b.label} in ({"Yes", "No"}, {"A", "B"}) for a, b in bundles), "a bundle stays balanced"


def test_a_pointwise_claim_stands_in_the_right_and_the_wrong_response_alike():
    seen = 0
    made = tasks(1.0, Role.POINTWISE)
    for first, second in zip(made[::2], made[1::2], strict=True):
        (a,), (b,) = first.shown, second.shown
        if a.disturbed and b.disturbed:
            lines = [set(r.text.splitlines()) for r in (a, b)]
            assert lines[0] & lines[1], "the claim is the same line"
            seen += 1
        else:
            assert [r.reward for r in (a, b) if r.disturbed] == [0.0], "a hollow response is wrong"
    assert seen > 5


def test_what_is_disturbed_is_shown_whole():
    for task in tasks(1.0, Role.POINTWISE):
        for response in disturbed(task):
            assert response.text in task.messages[-1]["content"]


def test_a_claim_changes_no_answer():
    rng = random.Random(0)
    for _ in range(300):
        line = claim(rng)
        assert extract_answer(line) is None
        for first in (True, False):
            for response in (RIGHT, WRONG):
                changed = claimed(response, line, first)
                assert extract_answer(changed.text) == response.extracted
                assert changed.reward == response.reward


def test_hollow_responses_are_wrong_and_hold_no_usual_answer():
    rng = random.Random(0)
    for _ in range(50):
        response = hollow(WRONG, rng)
        assert response.text in hollows()
        assert response.reward == 0.0
    assert all((extract_answer(text) or "?") in ("?", "the result") for text in hollows())


def test_probes_need_couples():
    with pytest.raises(ValueError, match=r"recycle\.probe_rate disturbs couples"):
        make_config(recycle={"probe_rate": 0.1, "balanced": False})
