r"""Numbers as people write them: `\$1,800`, `x = 18`, `1\frac{1}{2} \text{ cups}`, `18\%`; exact, in bounded time."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from spark_rl.verify import units
from spark_rl.verify.wording import bare


class Quantity(NamedTuple):
    """A number, and what it is said to be."""

    value: Fraction
    label: str = ""
    """What it is said to equal: the `x` of `x = 18`."""
    unit: str = ""
    """The words or the sign after it, or a currency's sign. Per cent is a unit: 18 % is 18, never 0.18."""

    def equals(self, other: Quantity, tolerance: Fraction) -> bool:
        """Whether labels agree where both have them, and values do, which are converted where both have known units:
        `18 km` is 18 and 18000 m, but not 18 m."""
        if len({self.label, other.label} - {""}) > 1:
            return False
        value, unit, target = self.value, units.unit(self.unit), units.unit(other.unit)
        if self.unit and other.unit and not unit and not target and _counted(self.unit) != _counted(other.unit):
            return False  # students and teachers
        if unit and target and unit != target:
            conversion = units.conversion(unit, target)
            if conversion is None:
                return False
            factor, added = conversion
            value = value * factor + added
        return abs(value - other.value) <= tolerance


_DECIMAL = r"[+-]? ?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?"
_WORD = r"[A-Za-z]+(?:\^[23])?"
_QUANTITY = re.compile(
    r"(?:(?P<label>[A-Za-z]+) ?= ?)?"
    r"(?:(?P<sign>[+-]?) ?(?P<whole>\d+) (?P<part>\d+)/(?P<parts>\d+)"
    rf"|(?P<number>{_DECIMAL})(?:/(?P<over>{_DECIMAL}))?)"
    rf"(?:(?P<unit> ?[%°](?: ?{_WORD}(?: {_WORD})?)?| {_WORD}(?: {_WORD}){{0,2}}(?:/{_WORD})?)\.?)?",
    re.ASCII,
)
_FRAC = re.compile(r"\\[dt]?frac *(\d|\{[^{}]*\}) *(\d|\{[^{}]*\})", re.ASCII)
_FORMULA = re.compile(r"\\\((.*)\\\)\.?|\\\[(.*)\\\]\.?", re.DOTALL)
_POWER = re.compile(
    r"(?:(?<=\d) ?(?:\\times|\\cdot|[×·*]| x ) ?|(?<![\w.^*/-]))10 ?\^ ?(?:\{ ?([+-]?\d{1,3}) ?\}|([+-]?\d{1,3}))",
    re.ASCII,
)
_CURRENCY = re.compile(r"^(\D*)[$€£]", re.ASCII)
_THIN = re.compile(r"(?<=\d)\\,(?=\d{3}(?!\d))", re.ASCII)
_SQUEEZED = re.compile("[\uff01-\uff5e¼-¾⅐-⅞]")
_SPACES = re.compile(r"\\[,;: ]|(?<=\w)~")  # before a number a tilde is "about"
_THOUSANDS = re.compile(r"(?<![\d.,/])\d{1,3}(?: \d{3})+(?![\d/])", re.ASCII)
_MAX_CHARS = 1000  # with three digits of exponent, this bounds the integers that are built

_SYMBOLS = "m g s h L N J W V A C cm mm km dm mi yd ft in kg mg lb oz ml mL hr Hz Pa kW kJ"
"""The words of one or two letters that are units. Others are variables, or join two numbers: `18 or twenty`."""
_NO_UNITS = (
    "and but nor not plus minus times over divided squared cubed factorial point mod negative zero one two three four "
    "five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty "
    "thirty forty fifty sixty seventy eighty ninety hundred hundreds thousand thousands mil million millions billion "
    "billions trillion trillions lakh crore dozen dozens half halves third thirds quarter quarters fourth fourths "
    "fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths "
    "thousandth thousandths millionth millionths billionth billionths sqrt root sin cos tan cot csc sinh cosh tanh log "
    "exp ln infinity alpha beta gamma delta epsilon theta lambda mu nu rho sigma tau phi chi psi omega "
    "wrong incorrect false too about until maybe perhaps rather twice thrice double doubled triple tripled quadruple "
    "tens grand gross score off more less fewer greater least most"
)
"""Words that change the number, deny it, or make it one of two."""
_IS_SYMBOL, _CHANGES = frozenset(_SYMBOLS.split()), frozenset(_NO_UNITS.split())
_CENTS = frozenset(["cent", "cents", "penny", "pence"])
"""Units that are no number of dollars, where units are not told apart otherwise."""


def quantity(text: str) -> Quantity | None:
    r"""The one number that `text` states; None if it states none, several, or an expression such as `18x`.

    >>> quantity(r"\text{Total} = 1\frac{1}{2} \text{ cups}")
    Quantity(value=Fraction(3, 2), label='total', unit='cups')
    """
    return _read(text) if len(text) <= _MAX_CHARS else None


@lru_cache(maxsize=4096)  # one gold serves all rollouts of its group
def _read(text: str) -> Quantity | None:
    match = _QUANTITY.fullmatch(_tidied(text))
    if not match or not _is_named_well(match["label"] or "", match["unit"] or ""):
        return None
    if match["whole"]:
        part, parts = int(match["part"]), int(match["parts"])
        if not 0 < part < parts:  # 3 4/1 is two numbers
            return None
        value = (int(match["whole"]) + Fraction(part, parts)) * (-1 if match["sign"] == "-" else 1)
    else:
        over = _fraction(match["over"] or "1")
        if not over:
            return None
        value = _fraction(match["number"]) / over
    label, unit = ((match[name] or "").strip() for name in ("label", "unit"))
    return Quantity(value, label.casefold(), unit or _currency(text.strip()))


def _currency(text: str) -> str:
    """The sign of the currency in it; a pair of `$` stands around a formula."""
    is_dollar = r"\$" in text or text.startswith("$") != text.endswith("$")
    return next((sign for sign in "€£" if sign in text), "$" if is_dollar else "")


def _tidied(text: str) -> str:
    """With one space where there is space, without LaTeX, the currency's sign and separators between thousands."""
    text = text.strip()
    if not text.isascii():
        text = _SQUEEZED.sub(_spread, text)
    if formula := _FORMULA.fullmatch(text):
        text = formula[1] or formula[2] or ""
    text = text.replace(r"\$", "$").strip("$€£ \t\n").replace("−", "-").replace("{,}", ",").replace(r"\%", "%")
    if "\\" in text or "~" in text:
        text = _SPACES.sub(" ", _THIN.sub("", text.replace(r"\!", "")))
        text = _FRAC.sub(lambda frac: f" {frac[1].strip('{}')}/{frac[2].strip('{}')} ", text)
    if "10" in text and "^" in text:
        text = _POWER.sub(_exponent, text)
    text = bare(text).replace(r"^\circ", "°").replace("²", "^2").replace("³", "^3")
    return _THOUSANDS.sub(lambda number: number[0].replace(" ", ""), _CURRENCY.sub(r"\1", text).strip())


def _spread(sign: re.Match[str]) -> str:
    """A full-width sign as the plain one, a fraction of one sign as a fraction behind a space: `2½` as `2 1/2`."""
    plain = unicodedata.normalize("NFKC", sign[0])
    return f" {plain.replace('⁄', '/')} " if "⁄" in plain else plain


def _counted(words: str) -> str:
    """What is counted, one or many."""
    return words.casefold().removesuffix("s")


def _exponent(power: re.Match[str]) -> str:
    """Of a power of ten, as in 3e8; the power alone is 1e8."""
    return f"{'' if power.start() and power[0][0] != '1' else '1'}e{power[1] or power[2]}"


def _is_named_well(label: str, unit: str) -> bool:
    """Whether these name a number, and do not change it."""
    words = [word.partition("^")[0] for word in unit.strip("%° ").replace("/", " ").split()]
    known = all(len(word) > 2 or word in _IS_SYMBOL for word in words)
    return known and not any(changes(word) or word.lower() in _CENTS for word in (label, *words))


def changes(word: str) -> bool:
    """Whether a word behind a number changes it or denies it: `5 dozen`, `5 wrong`."""
    return word.lower() in _CHANGES


def _fraction(decimal: str) -> Fraction:
    return Fraction(decimal.replace(",", "").replace(" ", ""))
