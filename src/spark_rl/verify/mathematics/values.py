"""Whether two expressions have the same value.

Rationals are compared exactly, other numbers to 30 digits, expressions at points where both are real: around 1, and,
where parts of them change their course (roots, absolute values), beside their constants and far beyond these.
"""

from __future__ import annotations

from typing import Any

import sympy
from sympy import I, Rational, S, Symbol
from sympy.core.function import AppliedUndef

DIGITS = 40
"""To which values are computed; the last ten may differ."""
_MAX_CONSTANTS = 6
"""Beside which expressions are compared."""
_LARGEST = 10**6
"""Beyond it no points are taken: powers of them would be too large."""
_SIZES = [
    Rational(*parts) for parts in zip((16, 5, 53, 13, 137, 25, 407, 11), (13, 17, 19, 23, 29, 31, 37, 41), strict=True)
]
_SIGNS = ("++++", "++++", "----", "+-+-", "++++", "-+-+", "++--", "----")
_WHOLE = (3, 1, 0, 7, 2, 12, 5, 30, 4, 13, 9, 26, 11, 21)
"""Values of letters that are whole numbers: multiples of small primes among them."""
_STEPS = (sympy.floor, sympy.ceiling)
_BENT = (sympy.Abs, sympy.Max, sympy.Min, sympy.sign, sympy.log, sympy.arg, sympy.asin, sympy.acos, sympy.atan)
_WAVES = (sympy.sin, sympy.cos, sympy.tan)
_OF_WHOLE = (sympy.factorial, sympy.factorial2, sympy.binomial)


def same_value(one: Any, other: Any) -> bool:
    """Whether two expressions have the same value, for all values of their letters."""
    if one == other:
        return True
    if isinstance(one, Rational) and isinstance(other, Rational):
        return False
    one, other = without_functions(one), without_functions(other)
    letters = sorted(one.free_symbols | other.free_symbols, key=lambda letter: letter.name)
    if not letters:
        return _close(one, other)
    compared = 0
    is_complex = one.has(I) or other.has(I)
    for values in _points(letters, one, other):
        left, right = (each.xreplace(values) for each in (one, other))
        if not (is_complex or (left.is_real and right.is_real)) or left.has(S.NaN, S.ComplexInfinity):
            continue
        if not _close(left, right):
            if is_complex or (_is_real_throughout(one, values) and _is_real_throughout(other, values)):
                return False
            continue
        compared += 1
    return compared > 1


def without_functions(value: Any) -> Any:
    """With a letter in the place of each f(x), which has no values, and of steps, which no points can tell apart."""
    steps = {each for each in value.atoms(*_STEPS) if each.free_symbols}
    named = {each: Symbol(str(each.func(sympy.expand(each.args[0])))) for each in steps}
    return value.xreplace(named | {each: Symbol(str(each)) for each in value.atoms(AppliedUndef)})


# ------------------------------------------------------------------------------------------------ points


def _points(letters: list[Symbol], *values: Any) -> list[dict[Symbol, Rational]]:
    """Where to compare expressions."""
    whole = set().union(*map(_whole_letters, values))
    edges = _edges(*values) if any(map(_is_bent, values)) else []
    return [
        {letter: _at(turn, place, edges, letter in whole) for place, letter in enumerate(letters)}
        for turn in range(len(_SIGNS) + len(edges))
    ]


def point(letters: list[Symbol]) -> dict[Symbol, Rational]:
    """One of them, for any expression."""
    return {letter: _at(0, place, [], False) for place, letter in enumerate(letters)}


def _at(turn: int, place: int, edges: list[Rational], is_whole: bool) -> Rational:
    """The value of the letter of a place: above and below 1, with like and with unlike signs, then beside the edges."""
    if is_whole:
        return Rational(_WHOLE[(turn + 5 * place) % len(_WHOLE)])
    if turn >= len(_SIGNS):
        return edges[(turn - len(_SIGNS) + 3 * place) % len(edges)]
    size = _SIZES[(turn + 3 * place) % len(_SIZES)] + place // len(_SIZES)
    return -size if _SIGNS[turn][place % 4] == "-" else size


def _edges(*values: Any) -> list[Rational]:
    """Beside the constants of expressions, and far beyond them, on both sides of 0."""
    constants = {abs(number) for value in values for number in value.atoms(Rational)}
    nearest = sorted(constant for constant in constants if 0 < constant <= _LARGEST)[-_MAX_CONSTANTS:]
    size = 1 + max(nearest, default=Rational(1))
    beside = [constant + part for constant in nearest for part in (Rational(1, 7), Rational(-1, 7))]
    beyond = [2 * size + Rational(1, 3), min(size**2, Rational(_LARGEST)) + Rational(1, 3)]
    return [sign * edge for edge in (*beyond, *beside) for sign in (1, -1)]


def _is_bent(value: Any) -> bool:
    """Whether a part of it changes its course somewhere: an absolute value, a root, a logarithm."""
    return value.has(*_BENT) or any(not power.exp.is_integer for power in value.atoms(sympy.Pow))


def _whole_letters(value: Any) -> set[Symbol]:
    """Letters that only whole numbers make sense of: n! and (-1)^n; by custom n, k and m that count half turns."""
    counted = [*value.atoms(*_OF_WHOLE), *(power.exp for power in value.atoms(sympy.Pow) if power.base.is_negative)]
    turns = [turn for wave in value.atoms(*_WAVES) if (turn := wave.args[0]).has(sympy.pi)]
    by_custom = {letter for turn in turns for letter in turn.free_symbols if letter.name in ("n", "k", "m")}
    return by_custom.union(*(part.free_symbols for part in counted))


def _is_real_throughout(value: Any, at: dict[Symbol, Rational]) -> bool:
    """Whether no root in it is of a negative number at a point: the product of two such is real again."""
    powers = [part.subs(at, simultaneous=True) for power in value.atoms(sympy.Pow) for part in power.args]
    return all(
        exponent.is_integer or base.is_negative is False
        for base, exponent in zip(powers[::2], powers[1::2], strict=True)
    )


def _close(one: Any, other: Any) -> bool:
    """Whether two numbers are the same to 30 digits of the largest term that their difference has left."""
    if one.is_infinite or other.is_infinite:
        return bool(one == other)
    difference = one - other
    terms = sympy.Add.make_args(difference)
    sizes = [sympy.Abs(term.evalf(DIGITS)) for term in (terms if len(terms) > 1 else (one, other))]
    return bool(sympy.Abs(difference.evalf(DIGITS)) <= max(sizes) * Rational(1, 10 ** (DIGITS - 10)))
