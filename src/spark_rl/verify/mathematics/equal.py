"""Whether two answers say the same.

Numbers and expressions are compared by `values.py`, units by pint, sets by their parts or by SymPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import sympy
from sympy import MatrixBase, Rational, S, Symbol

from spark_rl.verify import units
from spark_rl.verify.mathematics.answers import (
    OF_SYMPY,
    Answer,
    Items,
    Named,
    Quantity,
    Region,
    Relation,
    Text,
    open_interval,
)
from spark_rl.verify.mathematics.values import DIGITS, point, same_value, without_functions


@dataclass(frozen=True, slots=True)
class Rules:
    """What may differ between an answer and its gold."""

    tolerance: Fraction = Fraction(0)
    """Absolute, of numbers."""
    relative_tolerance: Fraction = Fraction(0)
    """Of the gold number's size."""
    strict_units: bool = False
    """Whether a unit that only one side has makes them differ. What is counted only the answer may leave out."""


MAX_ITEMS = 30
"""Of a set, but for its rational numbers."""
ROUNDED = 3
"""Significant digits that make a decimal gold a rounded one."""
STRICT = Rules()


def equal(gold: Answer, answer: Answer, rules: Rules = STRICT) -> bool:
    """Whether `answer` says what `gold` does; what SymPy fails to compare does not."""
    try:
        return _equal(gold, answer, rules)
    except OF_SYMPY:
        return False


def _equal(gold: Answer, answer: Answer, rules: Rules) -> bool:
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _equal_named(gold, answer, rules)
    if isinstance(gold, Region) or isinstance(answer, Region):
        return _equal_regions(gold, answer)
    if isinstance(gold, Items) or isinstance(answer, Items):
        return _equal_items(gold, answer, rules)
    if isinstance(gold, Quantity) and isinstance(answer, Quantity):
        return _equal_quantities(gold, answer, rules)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return gold.kind == answer.kind and _proportional(gold, answer)
    return isinstance(gold, Text) and gold == answer


# ------------------------------------------------------------------------------------------------ structures


def _equal_named(gold: Answer, answer: Answer, rules: Rules) -> bool:
    """A name that only one side gives is passed over; where it is an unknown, the equations may be the same."""
    if isinstance(gold, Named) and isinstance(answer, Named) and gold.name == answer.name:
        return equal(gold.value, answer.value, rules)
    if isinstance(gold, Named | Relation) and isinstance(answer, Named | Relation):
        one, other = _equation(gold), _equation(answer)
        return one is not None and other is not None and _proportional(one, other)
    names = {
        each.name if isinstance(each, Named) else each.variable
        for each in (gold, answer)
        if isinstance(each, Named | Region)
    }
    if len(names - {""}) > 1:
        return False
    values = [each.value if isinstance(each, Named) else each for each in (gold, answer)]
    return equal(values[0], values[1], rules)


def _equation(answer: Named | Relation) -> Relation | None:
    """`y = 2x + 1` as an equation; None of `x = 5`, which is solved: the question itself must not equal it."""
    if isinstance(answer, Relation):
        return answer if answer.kind == "=" else None
    value = answer.value.value if isinstance(answer.value, Quantity) else None
    if value is None or isinstance(value, MatrixBase) or not value.free_symbols - {Symbol(answer.name)}:
        return None
    return Relation("=", Symbol(answer.name) - value)


def _equal_regions(gold: Answer, answer: Answer) -> bool:
    one, other = _region(gold), _region(answer)
    if one is None or other is None or (one.variable and other.variable and one.variable != other.variable):
        return False
    if one.set == other.set:
        return True
    parts, others = (_parts(region.set) for region in (one, other))
    if parts and len(parts) == len(others):
        return all(map(_equal_ends, parts, others))
    if one.set.free_symbols or other.set.free_symbols:
        return False
    return bool(sympy.SymmetricDifference(one.set, other.set).doit() == S.EmptySet)


def _parts(region: Any) -> list[Any]:
    """The intervals of a region by their order; none if it is none of intervals."""
    parts = list(region.args) if isinstance(region, sympy.Union) else [region]
    if not all(isinstance(part, sympy.Interval) for part in parts):
        return []
    return sorted(parts, key=lambda part: float(part.start)) if len(parts) > 1 else parts


def _equal_ends(one: Any, other: Any) -> bool:
    """Of intervals, in whatever form their ends are written."""
    opens = (one.left_open, one.right_open) == (other.left_open, other.right_open)
    return opens and same_value(one.start, other.start) and same_value(one.end, other.end)


def _region(answer: Answer) -> Region | None:
    if isinstance(answer, Region):
        return answer
    if isinstance(answer, Items) and answer.kind == "tuple":
        return open_interval(answer)
    if isinstance(answer, Items) and all(isinstance(item, Quantity) and not item.unit for item in answer.items):
        return Region(sympy.FiniteSet(*(item.value for item in answer.items if isinstance(item, Quantity))))
    return None


def _equal_items(gold: Answer, answer: Answer, rules: Rules) -> bool:
    if isinstance(gold, Quantity) and isinstance(gold.value, MatrixBase):
        return _equal_items(_vector(gold), answer, rules) if gold.value.shape[1] == 1 else False
    if isinstance(answer, Quantity) and isinstance(answer.value, MatrixBase):
        return _equal_items(gold, _vector(answer), rules) if answer.value.shape[1] == 1 else False
    kinds = {each.kind for each in (gold, answer) if isinstance(each, Items)}
    golds, answers = (each.items if isinstance(each, Items) else (each,) for each in (gold, answer))
    if "ratio" in kinds and len(kinds) > 1:
        return False
    if kinds & {"tuple", "ratio"}:
        golds, answers = _values(golds), _values(answers)
        if "set" in kinds or not isinstance(gold, Items) or not isinstance(answer, Items):
            return False
        return _in_order(golds, answers, rules)
    if _are_distinct(golds) != _are_distinct(answers):  # x = 1, y = 2 and bare values: by their order
        return _in_order(_values(golds), _values(answers), rules)
    if "set" in kinds or all(isinstance(item, Items) for item in golds):  # pairs in a list are solutions
        golds, answers = _distinct(golds), _distinct(answers)
    return len(golds) == len(answers) and _matched(list(golds), list(answers), rules)


def _in_order(golds: Sequence[Answer], answers: Sequence[Answer], rules: Rules) -> bool:
    pairs = zip(golds, answers, strict=False)
    return len(golds) == len(answers) and all(equal(one, other, rules) for one, other in pairs)


def _values(items: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """Of `y = 2, x = 1` by their names' order; others as they are."""
    named = [item for item in items if isinstance(item, Named)]
    if len(named) < len(items):
        return items
    return tuple(item.value for item in sorted(named, key=lambda item: item.name))


def _are_distinct(items: tuple[Answer, ...]) -> bool:
    """Whether they are values of several unknowns; x_1 and x_2 are two values of one."""
    return len({item.name.partition("_")[0] if isinstance(item, Named) else "" for item in items}) > 1


def _vector(column: Quantity) -> Items:
    return Items("tuple", tuple(Quantity(value) for value in column.value))


def _distinct(items: Sequence[Answer]) -> tuple[Answer, ...]:
    if sum(not (isinstance(item, Quantity) and item.value.is_Rational) for item in items) > MAX_ITEMS:
        raise ValueError("too many to compare each with each")
    kept: list[Answer] = []
    for item in items:
        if not any(equal(item, other) for other in kept):
            kept.append(item)
    return tuple(kept)


def _matched(golds: list[Answer], answers: list[Answer], rules: Rules) -> bool:
    """Whether each gold has an answer of its own. Equality is transitive but for tolerances: the first one serves."""
    for gold in golds:
        place = next((place for place, answer in enumerate(answers) if equal(gold, answer, rules)), None)
        if place is None:
            return False
        answers.pop(place)
    return True


# ------------------------------------------------------------------------------------------------ quantities


def _equal_quantities(gold: Quantity, answer: Quantity, rules: Rules) -> bool:
    if answer.counted not in ("", gold.counted) or (gold.counted and answer.unit):
        return False
    if gold.unit == answer.unit or (not rules.strict_units and not (gold.unit and answer.unit)):
        return _equal_values(gold, answer, rules)
    conversion = units.conversion(answer.unit or "dimensionless", gold.unit or "dimensionless")
    if conversion is None or isinstance(answer.value, MatrixBase):
        return False
    factor, added = map(Rational, conversion)
    return _equal_values(gold, replace(answer, value=answer.value * factor + added), rules)


def _equal_values(gold: Quantity, answer: Quantity, rules: Rules) -> bool:
    one, other = gold.value, answer.value
    if isinstance(one, MatrixBase) or isinstance(other, MatrixBase):
        alike = isinstance(one, MatrixBase) and isinstance(other, MatrixBase) and one.shape == other.shape
        return alike and all(same_value(left, right) for left, right in zip(one.flat(), other.flat(), strict=True))
    if same_value(one, other):
        return True
    if not (one.is_number and other.is_number):
        return False
    if answer.decimals is None and _is_rounded(other, gold):
        return True
    if not rules.tolerance and not rules.relative_tolerance:
        return False
    allowed = max(Rational(rules.tolerance), Rational(rules.relative_tolerance) * abs(one))
    return bool((abs(one - other) - allowed).evalf(DIGITS) <= 0)


def _is_rounded(value: Any, gold: Quantity) -> bool:
    """Whether a gold decimal, of some digits, is `value` rounded; a terminating decimal is itself and nothing else."""
    if gold.decimals is None or len(str(abs(gold.value * Rational(10) ** gold.decimals))) < ROUNDED:
        return False
    return not (value.is_Rational and _terminates(value.q)) and rounds_to(value, gold)


def rounds_to(value: Any, decimal: Quantity) -> bool:
    """Whether a decimal, or an integer, is `value` rounded to its digits."""
    if not value.is_real or not decimal.value.is_Rational:
        return False
    return bool(abs(value - decimal.value).evalf(DIGITS) * 2 * Rational(10) ** (decimal.decimals or 0) <= 1)


def _terminates(denominator: int) -> bool:
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def _proportional(gold: Relation, answer: Relation) -> bool:
    """Whether the two sides' differences are the same but for a factor, a positive one for inequalities."""
    one, other = without_functions(gold.difference), without_functions(answer.difference)
    if one.free_symbols != other.free_symbols or not one.free_symbols:
        return False
    letters = sorted(one.free_symbols, key=lambda letter: letter.name)
    left, right = (each.xreplace(point(letters)) for each in (one, other))
    if left == 0 or right == 0 or not (left.is_real and right.is_real):
        return False
    factor = left / right
    return (gold.kind in ("=", "!=") or bool(factor > 0)) and same_value(one, other * factor)
