"""The embedded picture questions: small drawings, each with a checkable answer that is worked out step by step.

Four kinds (charts to read, shapes to count and compare, small geometry, tables), at three levels of difficulty. A
level is the number of cells on a side of the square picture; a cell is 16 pixels, which is one image token of the
embedded vision base. A picture belongs to exactly one split, by a hash of its description, whatever is asked about it.

The steps of a solution first say what is seen ("red:3") and then work with it; `carry` is called on both.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from spark_rl.embedded.tasks import Carry, Split, Worked, chain, split_of
from spark_rl.images.drawn import Mark, drawing
from spark_rl.types import IMAGE, Image

CELL = 16
"""Pixels."""
UNIT = CELL // 2
"""Pixels of one unit of height or width."""
LEVELS = {1: 3, 2: 4, 3: 5}
"""Level of difficulty -> cells on a side."""
COLOURS = ("red", "green", "blue", "yellow", "black")
FORMS = ("disc", "square", "triangle")
ROWS = "ABCD"


@dataclass(frozen=True, slots=True)
class PictureProblem:
    """A question about a picture, which can be worked again, with or without slips."""

    kind: str
    image: Image
    asked: str
    """The question's words."""
    steps: Callable[[Carry], Worked]
    facts: dict[str, int]
    """The numbers that are seen in the picture, by what they are of."""
    cells: tuple[tuple[str, ...], ...]
    """For each cell, row by row, the facts it is part of."""

    @property
    def images(self) -> tuple[Image, ...]:
        return (self.image,)

    @property
    def operands(self) -> tuple[int, ...]:
        return tuple(self.facts.values())

    @property
    def question(self) -> str:
        return f"{IMAGE}\n{self.asked}"

    def work(self, carry: Carry = lambda value: value) -> Worked:
        return self.steps(carry)

    @property
    def answer(self) -> str:
        return str(self.work()[1])


Kind = Callable[[random.Random, int], PictureProblem]
"""Draws a problem of a kind, given the number of cells on a side."""


def _problem(
    kind: str,
    cells: int,
    marks: Sequence[Mark],
    asked: str,
    steps: Callable[[Carry], Worked],
    facts: dict[str, int],
    of_cells: Sequence[Sequence[str]],
) -> PictureProblem:
    path = drawing(cells * CELL, cells * CELL, marks)
    image = Image(path, hashlib.sha256(path.encode()).hexdigest())
    return PictureProblem(kind, image, asked, steps, facts, tuple(map(tuple, of_cells)))


# ------------------------------------------------------------------------------------------------ what is worked out


def _combine(op: str, facts: dict[str, int], names: Sequence[str]) -> Callable[[Carry], Worked]:
    """Look these facts up, then go through them with one operator."""

    def steps(carry: Carry) -> Worked:
        values = [carry(facts[name]) for name in names]
        combined, result = chain(values[0], [(op, value) for value in values[1:]], carry)
        return [f"{name}:{value}" for name, value in zip(names, values, strict=True)] + combined, result

    return steps


# ------------------------------------------------------------------------------------------------ the four kinds


def chart(rng: random.Random, cells: int) -> PictureProblem:
    """Bars of different colours, whose heights are in units."""
    colours = rng.sample(COLOURS, cells)
    heights = [rng.randint(1, 2 * cells - 1) for _ in colours]
    bars = dict(zip(colours, heights, strict=True))
    marks = [
        ("rectangle", i * CELL + 2, cells * CELL - UNIT * height, CELL - 4, UNIT * height, colour)
        for i, (colour, height) in enumerate(bars.items())
    ]
    low, high = sorted(rng.sample(colours, 2), key=bars.__getitem__)
    first, second = rng.sample([low, high], 2)
    asked, steps = rng.choice(
        (
            (f"How high are {first} and {second} together?", _combine("+", bars, (first, second))),
            (f"How much higher is {high} than {low}?", _combine("-", bars, (high, low))),
            ("How high are all bars together?", _combine("+", bars, colours)),
        )
    )
    return _problem("chart", cells, marks, asked, steps, bars, [[colour] for colour in colours] * cells)


def shapes(rng: random.Random, cells: int) -> PictureProblem:
    """Shapes of three forms and three colours, at most one a cell."""
    rows = [
        [(rng.choice(COLOURS[:3]), rng.choice(FORMS)) if rng.random() < 0.7 else None for _ in range(cells)]
        for _ in range(cells)
    ]
    size = CELL - 6
    marks: list[Mark] = []
    for y, row in enumerate(rows):
        for x, shape in enumerate(row):
            if shape:
                at = (x * CELL + 3, y * CELL + 3)
                sides = (size,) if shape[1] == "disc" else (size, size)
                marks.append(("rectangle" if shape[1] == "square" else shape[1], *at, *sides, shape[0]))

    facts = {what: sum(what in shape for row in rows for shape in row if shape) for what in (*COLOURS[:3], *FORMS)}
    what = rng.choice(list(facts))
    fewer, more = sorted(rng.sample(rng.choice((COLOURS[:3], FORMS)), 2), key=facts.__getitem__)
    asked, steps = rng.choice(
        (
            (f"How many {what} shapes are there?", _combine("+", facts, (what,))),
            (f"How many more {more} than {fewer} shapes are there?", _combine("-", facts, (more, fewer))),
            (f"How many {more} and {fewer} shapes are there together?", _combine("+", facts, (more, fewer))),
        )
    )
    return _problem("shapes", cells, marks, asked, steps, facts, [list(facts)] * cells**2)


def geometry(rng: random.Random, cells: int) -> PictureProblem:
    """A rectangle or a right-angled triangle, whose sides are in units."""
    form = rng.choice(("rectangle", "rectangle", "triangle"))
    width, height = (rng.randint(1, min(2 * cells, 9)) for _ in range(2))
    if form == "triangle":
        width = max(2, width // 2 * 2)
    x, y = (UNIT * rng.randint(0, 2 * cells - side) for side in (width, height))
    colour = rng.choice(COLOURS)
    mark = ("corner" if form == "triangle" else form, x, y, UNIT * width, UNIT * height, colour)

    facts = {"width": width, "height": height}
    names = list(facts)

    def area(carry: Carry) -> Worked:
        lines, product = _combine("*", facts, names)(carry)
        if form == "rectangle":
            return lines, product
        half = carry(product // 2)
        return [*lines, f"{product}/2={half}"], half

    def perimeter(carry: Carry) -> Worked:
        lines, half = _combine("+", facts, names)(carry)
        around = carry(2 * half)
        return [*lines, f"{half}+{half}={around}"], around

    what, steps = rng.choice((("area", area), ("perimeter", perimeter))) if form == "rectangle" else ("area", area)
    asked = f"What is the {what} of the {form}?"
    return _problem("geometry", cells, [mark], asked, steps, facts, [names] * cells**2)


def table(rng: random.Random, cells: int) -> PictureProblem:
    """Digits in rows named by letters and columns named by colours."""
    colours = rng.sample(COLOURS, cells - 1)
    digits = {row: {colour: rng.randint(1, 9) for colour in colours} for row in ROWS[: cells - 1]}
    marks: list[Mark] = [("rectangle", (x + 1) * CELL, 2, CELL, CELL - 6, c) for x, c in enumerate(colours)]
    for y, (row, entries) in enumerate(digits.items(), start=1):
        for x, text in enumerate([row, *map(str, entries.values())]):
            marks.append(("text", x * CELL + 5, y * CELL + 2, text, "black"))
    row, colour = rng.choice(list(digits)), rng.choice(colours)
    facts = {f"{row} {colour}": value for row, entries in digits.items() for colour, value in entries.items()}
    less, more = sorted(rng.sample(list(facts), 2), key=facts.__getitem__)
    asked, steps = rng.choice(
        (
            (f"What do the numbers of {row} add up to?", _combine("+", facts, [f"{row} {c}" for c in colours])),
            (f"What do the {colour} numbers add up to?", _combine("+", facts, [f"{r} {colour}" for r in digits])),
            (f"How much more is {more} than {less}?", _combine("-", facts, (more, less))),
        )
    )
    of_cells = [[f"{row} {colour}"] if row and colour else [] for row in ("", *digits) for colour in ("", *colours)]
    return _problem("table", cells, marks, asked, steps, facts, of_cells)


KINDS: dict[str, Kind] = {"chart": chart, "shapes": shapes, "geometry": geometry, "table": table}


def picture_problems(
    split: Split, seed: int, kinds: Sequence[str] = tuple(KINDS), levels: Sequence[int] = (1, 2)
) -> Iterator[PictureProblem]:
    """An endless seeded stream of a split's problems, the kinds in turn, each at one of the levels."""
    rng = random.Random(f"pictures-{split}-{seed}")
    while True:
        for kind in kinds:
            while True:
                problem = KINDS[kind](rng, LEVELS[rng.choice(levels)])
                if split_of(problem.image.path) == split:
                    break
            yield problem
