import itertools
import json
import re
from collections import Counter

import pytest

from spark_rl.embedded.pictures import CELL, COLOURS, FORMS, KINDS, LEVELS, UNIT, PictureProblem, picture_problems
from spark_rl.embedded.tasks import split_of
from spark_rl.images.drawn import draw
from spark_rl.types import IMAGE
from spark_rl.verify import grade

SPLITS = ("pretrain", "train", "validation", "test")
by_kind = pytest.mark.parametrize("kind", KINDS)


def some(count: int, split: str = "train", seed: int = 0, **choice) -> list[PictureProblem]:
    return list(itertools.islice(picture_problems(split, seed, **choice), count))


def numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def seen(problem: PictureProblem) -> dict[str, int]:
    """The facts of a picture, read off its marks."""
    marks = json.loads(problem.image.path.removeprefix("drawn:"))["marks"]
    if problem.kind == "chart":
        return {colour: height // UNIT for _, _, _, _, height, colour in marks}
    if problem.kind == "shapes":
        names = [word for form, *_, colour in marks for word in (colour, "square" if form == "rectangle" else form)]
        return Counter(names)
    if problem.kind == "geometry":
        ((_, _, _, width, height, _),) = marks
        return {"width": width // UNIT, "height": height // UNIT}
    colours = {x // CELL: values[-1] for name, x, _, *values in marks if name == "rectangle"}
    texts = {(x // CELL, y // CELL): text for name, x, y, text, *_ in marks if name == "text"}
    return {f"{texts[0, y]} {colours[x]}": int(text) for (x, y), text in texts.items() if x}


def answered(problem: PictureProblem) -> int:
    """Each question answered once more, from all that is seen in its picture."""
    asked, facts = problem.asked, seen(problem)
    if problem.kind == "geometry":
        width, height = facts["width"], facts["height"]
        if "perimeter" in asked:
            return 2 * (width + height)
        return width * height // (2 if "triangle" in asked else 1)
    if "all bars" in asked:
        return sum(facts.values())
    if problem.kind == "table" and "than" not in asked:
        return sum(value for name, value in facts.items() if set(name.split()) & set(asked.split()))
    names = [*FORMS, *COLOURS] if problem.kind == "shapes" else facts
    first, *second = sorted((name for name in names if re.search(rf"\b{name}\b", asked)), key=asked.index)
    return facts[first] + sum(-facts[name] if "than" in asked else facts[name] for name in second)


@by_kind
def test_answers_are_right_and_small_numbers(kind):
    for problem in some(300, kinds=[kind], levels=tuple(LEVELS)):
        assert problem.answer == str(answered(problem)), (problem.asked, problem.facts)
        assert 0 <= int(problem.answer) <= 99, "every number of an answer is one token of the embedded tokenizer"
        assert grade(problem.answer, problem.answer, "numeric").reward == 1


@by_kind
def test_facts_are_what_is_seen_and_cells_have_a_part_in_them(kind):
    for problem in some(100, kinds=[kind], levels=tuple(LEVELS)):
        facts = seen(problem)
        assert {name: value for name, value in problem.facts.items() if value} == facts
        assert len(problem.cells) == (draw(problem.image.path).width // CELL) ** 2
        assert set(itertools.chain.from_iterable(problem.cells)) == problem.facts.keys()


@by_kind
def test_worked_steps_lead_to_the_answer_and_a_carried_mistake_is_worked_on_with(kind):
    for problem in some(100, kinds=[kind], levels=tuple(LEVELS)):
        lines, result = problem.work()
        assert numbers(lines[-1])[-1] == result
        carried: list[int] = []
        lines, result = problem.work(lambda value, carried=carried: carried.append(value) or value + 1)
        assert carried and result == carried[-1] + 1 == numbers(lines[-1])[-1]


@by_kind
@pytest.mark.parametrize(("level", "cells"), LEVELS.items())
def test_a_level_is_the_size_of_the_picture(kind, level, cells):
    for problem in some(20, kinds=[kind], levels=[level]):
        assert draw(problem.image.path).size == (cells * CELL, cells * CELL)


def test_a_picture_belongs_to_one_split():
    paths = [{problem.image.path for problem in some(1000, split, levels=tuple(LEVELS))} for split in SPLITS]
    for split, of_split in zip(SPLITS, paths, strict=True):
        assert {split_of(path) for path in of_split} == {split}
    assert len(set().union(*paths)) == sum(map(len, paths))


def test_streams_are_seeded_and_the_kinds_come_in_turn():
    def asked(seed: int) -> list[tuple[str, str]]:
        return [(problem.image.path, problem.asked) for problem in some(40, seed=seed)]

    assert asked(0) == asked(0) != asked(1)
    assert [problem.kind for problem in some(12)] == list(KINDS) * 3


def test_a_question_holds_one_image():
    assert all(problem.question.count(IMAGE) == 1 for problem in some(200))


@by_kind
def test_words_alone_do_not_tell_the_answer(kind):
    """The control of a blind model: the best guess from the words is mostly wrong."""
    of_words: dict[str, Counter] = {}
    for problem in some(3000, kinds=[kind]):
        of_words.setdefault(problem.asked, Counter())[problem.answer] += 1
    often = [answers for answers in of_words.values() if answers.total() >= 30]
    assert often and sum(max(a.values()) for a in often) / sum(a.total() for a in often) < 0.4
