"""What an answer can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sympy import Interval

OF_SYMPY = (ArithmeticError, AttributeError, NotImplementedError, RecursionError, TypeError, ValueError)
"""What SymPy raises where an operation makes no sense."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number, an expression or a matrix, and its unit."""

    value: Any
    unit: str = ""
    """As `units.unit` names it; empty without one."""
    counted: str = ""
    """What there are so many of, where that is no unit: students."""
    decimals: int | None = None
    """How many digits a decimal has behind the point; None of what is no decimal, an integer among them."""


@dataclass(frozen=True, slots=True)
class Items:
    """Several answers. Those of a tuple are in order, those of a set count once, those of a list neither.

    A ratio is of three or more, in order, as multiples of the first.
    """

    kind: Literal["tuple", "set", "list", "ratio"]
    items: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """A set of real numbers other than a few: an interval, a union of them."""

    set: Any
    variable: str = ""
    """The `x` of `x < 3`."""


@dataclass(frozen=True, slots=True)
class Named:
    """`name = value`, or `name \\in value`."""

    name: str
    value: Answer


@dataclass(frozen=True, slots=True)
class Relation:
    """An equation or inequality that states no value: `difference` is 0 (`=`), not 0, above 0 or at least 0."""

    kind: Literal["=", "!=", ">", ">="]
    difference: Any


@dataclass(frozen=True, slots=True)
class Text:
    """What is no mathematics, or none that is read: it equals what is spelled the same."""

    text: str


Answer = Quantity | Items | Region | Named | Relation | Text


def open_interval(pair: Items) -> Region | None:
    """The interval that a pair in round brackets may also be."""
    ends = [item.value for item in pair.items if isinstance(item, Quantity) and not item.unit]
    if len(ends) != 2 or len(pair.items) != 2 or not all(getattr(end, "is_extended_real", False) for end in ends):
        return None
    return Region(Interval.open(*ends)) if ends[0] < ends[1] else None
