r"""Answers as a reader sees them, without LaTeX around words: letters of options, and text that is no mathematics."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from functools import lru_cache

_COMMAND = (
    r"\\(?:text(?:bf|it|md|normal|rm|sf|tt|up)?|math(?:bf|it|rm|sf|tt)|operatorname|boldsymbol|bm|mbox)(?![A-Za-z])"
)
_COMMANDS = re.compile(_COMMAND)
_WRAPPED = re.compile(rf"{_COMMAND}\s*\{{([^{{}}]*)\}}")
_SPACES = re.compile(r"(?<!\\)(?:\\[,;: ]|~)")
_NO_BRACES = str.maketrans("", "", "{}")


def bare(text: str) -> str:
    r"""`text` without text commands, braces and doubled white space, for rules that read no formulas; linear in time.

    >>> bare(r"\textbf{A} and \mathrm{{C}}")
    'A and C'
    """
    return " ".join(_COMMANDS.sub(" ", text).translate(_NO_BRACES).split())


@lru_cache(maxsize=4096)  # of the answers in a group many are the same
def plain(text: str) -> str:
    r"""`text` without text commands, *their* braces, doubled white space and a final period; else as it is.

    >>> plain(r"\text{Figure } 2."), plain(r"x^{\text{a}}")
    ('Figure 2', 'x^{a}')
    """
    text = text.strip().strip("$")
    for _ in range(2):  # \textbf{\text{...}} is the deepest that is ever written
        text = _WRAPPED.sub(r"\1", text)
    return " ".join(_SPACES.sub(" ", text).split()).removesuffix(".").rstrip()


# ------------------------------------------------------------------------------------------------ options

_LETTER = re.compile("[a-j]")
_OPTION = re.compile(
    r"(?:(?:option|choice|answer) ?:? ?\(?)?([a-j])(?:[*$\"']* ?[.):](?!(?<=\.)[a-z]\b)(.*))?", re.DOTALL
)
_NAMED = re.compile(
    # Any letter that stands alone, but for the words `a` and `i`: these in a list, after a word that joins options (but
    # no article: "or a dog"), or written as that of an option.
    r"(?<!°)(?<!\w\()\b([b-hj])\b(?!\()"
    r"|(?:^|[,;&|])\W{0,2}([ai])(?=$|\W{0,2}[,;&|]| (?:or|and)\b)"
    r"|\b(?:or|and|nor|not|but|is|option|choice|answer)\b\W{0,2}([ai])\b(?! \w)"
    r"|\b([ai])\b ?[.):]|(?<!\w)\(([ai])$"
)


def choice(text: str) -> str:
    r"""The letter or words that are chosen: up to case, text commands, brackets, emphasis and final punctuation."""
    text = unicodedata.normalize("NFKC", text).replace(r"\(", "").replace(r"\)", "")
    words = " ".join(_COMMANDS.sub(" ", plain(text)).casefold().split())
    return words.lstrip("([{$*\"' ").rstrip(")]}$*\"' .:,")


def is_letter(chosen: str) -> bool:
    """Whether a `choice` is the letter of an option, A to J."""
    return _LETTER.fullmatch(chosen) is not None


def letter(chosen: str) -> str | None:
    """The letter that a `choice` names, alone or before the option's text; None if there is none, or a second one.

    >>> letter("a. a dog"), letter("option a"), letter("a. or b"), letter("a dog")
    ('a', 'a', None, None)
    """
    option = _OPTION.fullmatch(chosen)
    if not option:
        return None
    others = {named[named.lastindex or 0] for named in _NAMED.finditer((option[2] or "").strip())}
    return option[1] if others <= {option[1]} else None


# ------------------------------------------------------------------------------------------------ text

_FUNCTIONS = (
    "sin cos tan cot sec csc sinh cosh tanh coth sech csch arcsin arccos arctan arccot arcsec arccsc asin acos atan "
    "arcsinh arccosh arctanh arsinh arcosh artanh asinh acosh atanh ln log lg exp max min gcd lcm Re Im arg sgn sign "
    "abs floor ceil"
)
FUNCTIONS = frozenset(_FUNCTIONS.split())
"""Names that make mathematics of what follows them."""
_SHORT = "[Dd]o|[Gg]o|[Ii]f|[Ii]n|[Ii]s|[Ii]t|[Nn]o|[Oo]f|[Oo]n|[Oo]r|[Ss]o|[Tt]o|[Uu]p"
"""Words that are hardly ever products; `at`, `be` or `my` may well be."""
_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{3,}")
_WORDS = re.compile(rf"(?:[^\W\d_]{{3,}}|(?:{_SHORT})(?= |$))(?:[ '-][^\W\d_]+)*")
_FORMULA = re.compile(r"(?!\d+E\d+$)(?=.*?[A-Za-z)]\d)\d* ?[A-Z][A-Za-z\d()]*")
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(:[0-5]\d)?(?: ?([ap])\.?m\.?)?", re.IGNORECASE | re.ASCII)
_YEARS = re.compile(r"([12]\d{3}) ?(?:--?|–) ?([12]\d{3})", re.ASCII)
_MONTH = (
    "(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    "|nov(?:ember)?|dec(?:ember)?)"
)
_DATE = re.compile(
    r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,? )?"
    rf"(?:{_MONTH}\.? \d\d?(?:st|nd|rd|th)?(?P<year>,? \d{{4}})?"
    rf"|\d\d?(?:st|nd|rd|th)?(?: of)? {_MONTH}\.?(?P<last>,? \d{{4}})?"
    r"|(?P<first>\d{4})(?P<sign>[-/])\d\d?(?P=sign)\d\d?)",
    re.IGNORECASE | re.ASCII,
)
_NUMBERED = re.compile(r"0?(\d\d?)/0?(\d\d?)/(\d{4})", re.ASCII)


def _date(text: str) -> str | None:
    """A whole date as 2020-01-31, or without its year. Days and months as numbers may be in either order, so stay."""
    if numbered := _NUMBERED.fullmatch(text):
        return "/".join(numbered.groups())
    if not (date := _DATE.fullmatch(text)):
        return None
    from dateutil.parser import ParserError, parse

    try:
        day = parse(text, default=datetime(4, 1, 1))
    except ParserError:  # there is no such day
        return text.casefold()
    return f"{day:%Y-%m-%d}" if date["year"] or date["last"] or date["first"] else f"{day:%m-%d}"


@lru_cache(maxsize=4096)
def as_text(text: str) -> str | None:
    r"""What is text and no mathematics, in one form: words, chemical formulas, dates, times of day, years from and to.

    Else a word is a product of its letters, and `cat` equals `act`, `N2O` equals `NO2`; `2010-2015` would be -5. A
    coefficient before letters (`2x`, `3ab`) is mathematics. So is `10:30`, which may be a ratio: a time has minutes
    below ten, seconds, or its half of the day.

    >>> as_text("N2O"), as_text("09:30 a.m."), as_text("2010-2015"), as_text("2x")
    ('n2o', '9:30am', '2010-2015', None)
    """
    if date := _date(text):
        return date
    if _WORDS.fullmatch(text):
        return None if FUNCTIONS & set(text.split()) else text.casefold()
    if _FORMULA.fullmatch(text):
        return text.casefold().replace(" ", "")
    if time := _TIME.fullmatch(text):
        hour, minute, second, half = time.groups(default="")
        if half or second or minute[0] == "0":
            return f"{int(hour)}:{minute}{second}{half.lower()}{'m' * bool(half)}"
    if (years := _YEARS.fullmatch(text)) and years[1] < years[2]:
        return f"{years[1]}-{years[2]}"
    return None


def same_text(one: str, other: str) -> bool:
    """Whether two answers, as `plain` gives them, are spelled the same.

    Case counts, since it does in mathematics, unless there are words or either is text.
    """
    if one == other or one.casefold() != other.casefold():
        return one == other
    return _has_words(one) or as_text(one) is not None or as_text(other) is not None


def _has_words(text: str) -> bool:
    return any(word not in FUNCTIONS for word in _WORD.findall(text))
