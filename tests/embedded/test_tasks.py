import itertools
import re
from collections.abc import Callable
from statistics import median

import pytest

from spark_rl.embedded.tasks import FACTS, FAMILIES, TRANSFER, Family, Problem, problems, split_of
from spark_rl.verify import grade

SPLITS = ("pretrain", "train", "validation", "test")
ALL = (*FAMILIES, *TRANSFER)
by_family = pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)


def draw(families: tuple[Family, ...], split: str, count: int, seed: int = 0) -> list[Problem]:
    return list(itertools.islice(problems(families, split, seed), count))


def numbers(question: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", question)]


def calculate(question: str) -> int:
    return eval(re.search(r"\d+(?:[-+*]\d+)+", question)[0])  # digits and signs, as the pattern says


SOLVERS: dict[str, Callable[[str], int]] = {
    "sum": calculate,
    "difference": calculate,
    "product": calculate,
    "mixed": calculate,
    "product-minus": calculate,
    "largest": lambda question: max(numbers(question)),
    "smallest": lambda question: min(numbers(question)),
    "middle": lambda question: int(median(numbers(question))),
    "above": lambda question: sum(n > numbers(question)[0] for n in numbers(question)[1:]),
}
"""Each family solved once more, from the words of the question alone."""


def test_a_question_belongs_to_one_split_and_streams_keep_to_theirs():
    for split in SPLITS:
        drawn = draw(ALL, split, 300)
        assert {split_of(problem.body) for problem in drawn} == {split}


def test_no_question_is_in_two_splits():
    questions = [{problem.body for problem in draw(ALL, split, 3000)} for split in SPLITS]
    assert all(len(of_split) > 1000 for of_split in questions)
    assert len(set().union(*questions)) == sum(map(len, questions))


def test_streams_are_seeded():
    first, same, other = ([p.question for p in draw(FAMILIES, "train", 50, seed)] for seed in (0, 0, 1))
    assert first == same != other


def test_families_come_in_turn():
    drawn = draw(FAMILIES, "train", 3 * len(FAMILIES))
    assert [problem.family for problem in drawn] == list(FAMILIES) * 3


@by_family
def test_answers_are_right_and_small_numbers(family):
    for problem in draw((family,), "train", 200):
        expected = SOLVERS[family.name](problem.question)
        assert problem.answer == str(expected)
        assert 0 <= expected <= 99, "every number of an answer is one token of the embedded tokenizer"
        assert grade(problem.answer, problem.answer, "numeric").reward == 1
        assert grade(str(expected + 1), problem.answer, "numeric").reward == 0


@by_family
def test_worked_steps_lead_to_the_answer(family):
    for problem in draw((family,), "train", 200):
        lines, result = problem.work()
        assert lines and str(result) == problem.answer
        assert numbers(lines[-1])[-1] == result
        for line in lines:
            if equation := re.fullmatch(r"(-?\d+)([-+*])(\d+)=(-?\d+)", line):
                left, sign, right, value = equation.groups()
                assert calculate(f"{left}{sign}{right}") == int(value)
        equations = ["=" in line for line in lines]
        assert all(equations) or not any(equations)


@by_family
def test_a_carried_mistake_is_worked_on_with(family):
    """`carry` sees every intermediate result, and the last one it returns is the result."""
    for problem in draw((family,), "train", 50):
        seen: list[int] = []
        lines, result = problem.work(lambda value, seen=seen: seen.append(value) or value + 1)
        assert seen and result == seen[-1] + 1
        assert numbers(lines[-1])[-1] == result
        assert len(seen) >= len(problem.work()[0]) - 1


@by_family
def test_every_wording_is_used(family):
    prefixes = {wording.partition("{}")[0] for wording in family.wordings}
    questions = [problem.question for problem in draw((family,), "train", 200)]
    assert {p for p in prefixes if any(q.startswith(p) for q in questions)} == prefixes


def test_names_are_unique_and_transfer_is_apart():
    names = [family.name for family in ALL]
    assert len(set(names)) == len(names)
    assert not set(FAMILIES) & set(TRANSFER)


def test_facts_are_right():
    facts = dict(FACTS)
    assert len(facts) == len(FACTS) == 38
    assert facts["Which day comes right after Sunday?"] == "Monday"
    assert facts["Which day comes right before Thursday?"] == "Wednesday"
    assert facts["Which month comes right after December?"] == "January"
    assert facts["Which month comes right before March?"] == "February"
    for question, answer in FACTS:
        kind, word, name = re.fullmatch(r"Which (\w+) comes right (\w+) (\w+)\?", question).groups()
        back = f"Which {kind} comes right {'before' if word == 'after' else 'after'} {answer}?"
        assert facts[back] == name
