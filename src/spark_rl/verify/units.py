"""Units, by pint: which words are one, and how many of one make another. Loaded when the first unit is read."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "lakh": 10**5,
    "crore": 10**7,
}
"""Words that multiply the number before them; a plural is the same."""

_OURS = """
dollar = [dollar] = USD = dollars
cent = dollar / 100 = _ = cents
euro = [euro] = EUR = euros
sterling = [sterling] = GBP
yen = [yen] = JPY
rupee = [rupee] = INR = rupees = Rs
yuan = [yuan] = CNY = RMB
@alias percent = pct = percentage
@alias ohm = Omega
@alias count = unit = units
"""
_LETTERS = frozenset("mgshLNJWVACKF")
"""Symbols of one letter that are units behind a number and a space; others are variables, or thousands and millions."""
_SYMBOLS = (
    "cm mm km dm mi yd ft in kg mg lb oz ml mL hr Hz Pa kW kJ kN dB "
    "kHz MHz kPa kWh min sec hrs mol rad deg lbs mph kph rpm ohm yds pct Omega"
)
_SHORT = frozenset(_SYMBOLS.split())
"""Symbols of two or three letters that are units behind a number; others are products."""
_SIGNS = {"$": "dollar", "€": "euro", "£": "sterling", "¥": "yen", "%": "percent"}
_WORDS = "or and to of by at is an as me us we pi ab up so no few all any one two ten"
_LARGE = re.compile(r"\d\d|\d *[\^(]|\d *\*\*")
"""Numbers that pint would compute, of any size."""
_NOT_UNITS = frozenset(_WORDS.split())
_COUNTED = (
    "circle circles point points dot dots hand hands link links chain chains rod rods pole poles stone stones "
    "line lines turn turns page pages"
)
_THINGS = frozenset(_COUNTED.split())
"""Things that are also names of units."""
"""Short words that pint takes for units."""


@cache
def _registry() -> Any:
    import logging

    import pint

    logging.getLogger("pint").setLevel(logging.ERROR)  # it warns that a cent is no longer one of music
    registry: Any = pint.UnitRegistry(autoconvert_offset_to_baseunit=True, cache_folder=None, non_int_type=Fraction)
    for line in _OURS.strip().splitlines():
        registry.define(line)
    return registry


@lru_cache(maxsize=4096)
def unit(words: str) -> str | None:
    """The unit that `words` name, in one form; None if they name none.

    >>> unit("miles per hour"), unit("cm^2"), unit("apples")
    ('mile / hour', 'centimeter ** 2', None)
    """
    text = re.sub(r"\s+", " ", words.strip().rstrip("."))
    text = _SIGNS.get(text, text).replace("per cent", "percent")
    text = re.sub(r"\b(sq|cu)\b\.?", lambda short: {"sq": "square", "cu": "cubic"}[short[1]], text)
    if (
        not text
        or text in _NOT_UNITS
        or (len(text) == 1 and text.isalpha() and text not in _LETTERS)
        or not re.fullmatch(r"[A-Za-z°][A-Za-z° */^().\-\d]*", text)
    ):
        return None
    if _LARGE.search(text):
        return None
    import pint

    for spelling in (text, text.lower()):
        if not all(map(_is_unit, re.findall(r"[A-Za-z]+", spelling))):
            continue
        try:
            powers = pint.util.to_units_container(_registry().parse_units(spelling)).items()
        except (pint.PintError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError):  # of any text
            continue
        except Exception as error:  # pint's tokenizer raises what Python's does
            if type(error).__module__ not in ("tokenize", "builtins"):
                raise
            continue
        return str(pint.util.UnitsContainer({name: float(Fraction(str(power))) for name, power in powers})) or None
    return None


def _is_unit(word: str) -> bool:
    """Whether a word may be in a unit. Symbols behind symbols of prefixes make words of everything: c-at-s, p-in-s."""
    if word in ("per", "square", "cubic", "squared", "cubed") or len(word) < 3 or word in _SHORT:
        return True
    readings = _registry().parse_unit_name(word)
    return word not in _THINGS and any(not prefix or word.lower().startswith(prefix) for prefix, _, _ in readings)


def bare_unit(letters: str, spaced: bool) -> str | None:
    """The unit that letters outside of text commands name behind a number: `5 cm`, `5 m`, but no `5x` or `5m`."""
    return unit(letters) if letters in _SHORT or (spaced and letters in _LETTERS) else None


@lru_cache(maxsize=4096)
def conversion(one: str, other: str) -> tuple[Fraction, Fraction] | None:
    """The factor, and what is added then, that make a value of one unit one of the other, by `unit`'s names.

    None if the two measure different things. Exact, but for pi in that of angles, of which pint has fifty digits.

    >>> conversion("degree_Celsius", "degree_Fahrenheit")
    (Fraction(9, 5), Fraction(32, 1))
    """
    registry = _registry()
    source, target = registry.Unit(one), registry.Unit(other)
    if not source.is_compatible_with(target):
        return None
    none, unity = (Fraction(registry.Quantity(Fraction(value), source).to(target).magnitude) for value in (0, 1))
    return unity - none, none
