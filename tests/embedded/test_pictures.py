import itertools
import re
from collections import Counter

import pytest

from spark_rl.embedded.pictures import CELL, KINDS, LEVELS, PictureProblem, picture_problems
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


def from_caption(problem: PictureProblem) -> int:
    """Each question answered once more, from all that is seen in its picture."""
    asked, lines = problem.asked, problem.caption.split("\n")
    words = re.findall(r"\w+", asked)
    if problem.kind == "chart":
        bars = {name: int(height) for name, height in (line.split(":") for line in lines)}
        if "all bars" in asked:
            return sum(bars.values())
        first, second = (bars[word] for word in words if word in bars)
        return first - second if "higher" in asked else first + second
    if problem.kind == "shapes":
        count = Counter(word for line in lines for shape in line.split(",") for word in shape.split())
        if "than" in words:
            return count[words[words.index("are") + 1]] - count[words[-1]]
        return count[words[-1]]
    if problem.kind == "geometry":
        (width, height), form = numbers(problem.caption), lines[0]
        if "perimeter" in asked:
            return 2 * (width + height)
        return width * height // (2 if form == "triangle" else 1)
    colours = lines[0].split(",")
    rows = {line[0]: dict(zip(colours, numbers(line), strict=True)) for line in lines[1:]}
    if "than" in words:
        (row, colour), (other_row, other_colour) = words[4:6], words[7:9]
        return rows[row][colour] - rows[other_row][other_colour]
    if row := next((word for word in words if word in rows), None):
        return sum(rows[row].values())
    (colour,) = (word for word in words if word in colours)
    return sum(row[colour] for row in rows.values())


@by_kind
def test_answers_are_right_and_small_numbers(kind):
    for problem in some(300, kinds=[kind], levels=tuple(LEVELS)):
        assert problem.answer == str(from_caption(problem)), (problem.asked, problem.caption)
        assert 0 <= int(problem.answer) <= 99, "every number of an answer is one token of the embedded tokenizer"
        assert grade(problem.answer, problem.answer, "numeric").reward == 1


@by_kind
def test_worked_steps_lead_to_the_answer_and_a_carried_mistake_is_worked_on_with(kind):
    for problem in some(100, kinds=[kind], levels=tuple(LEVELS)):
        lines, result = problem.work()
        assert numbers(lines[-1])[-1] == result
        seen: list[int] = []
        lines, result = problem.work(lambda value, seen=seen: seen.append(value) or value + 1)
        assert len(seen) > 1 and result == seen[-1] + 1 == numbers(lines[-1])[-1]


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
