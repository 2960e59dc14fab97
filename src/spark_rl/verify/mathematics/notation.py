r"""Answers as tokens: whatever writes the same thing, in LaTeX, Unicode or plain text, gives the same tokens.

>>> " ".join(token.text for token in tokenize(r"½x² \leq \text{2 cm}"))
'\\frac { 1 } { 2 } x ^ { 2 } \\le 2 cm'
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Literal, NamedTuple

from spark_rl.verify.wording import FUNCTIONS

MAX_CHARS = 2000
"""Longer answers are not read; white space counts once."""
MAX_DIGITS = 400
"""Of one number, and the greatest exponent of ten in `1e9`."""
MAX_DEPTH = 60
"""Of brackets in each other."""


class NotMath(Exception):
    """The text is no mathematics, or none that is read here."""


class Broken(NotMath):
    """It begins something that it does not end."""


class TooLarge(NotMath):
    """It is longer, larger or deeper than what is read, by limits that always decide the same way."""


class Token(NamedTuple):
    """A piece of an answer."""

    kind: Literal["number", "letter", "word", "command", "sign"]
    text: str
    """A number is an integer, a decimal or a fraction; a Greek letter has its name, a command its backslash."""
    spaced: bool = False
    """Whether white space is before it."""

    @property
    def nesting(self) -> int:
        """1 where a bracket or an environment opens, -1 where it closes, else 0."""
        opens = self.text in OPENS or self.text.startswith(r"\begin{")
        return opens - (self.text in _CLOSES or self.text.startswith(r"\end{"))


# ------------------------------------------------------------------------------------------------ spelling

_SIGNS = {
    **dict.fromkeys("−–—‐‑", "-"),
    **dict.fromkeys("·⋅∙∗×", "*"),
    **dict.fromkeys("÷⁄∕", "/"),
    **dict.fromkeys("≤⩽≦", r"\le "),
    **dict.fromkeys("≥⩾≧", r"\ge "),
    **dict.fromkeys("°º", r"\degree "),
    **dict.fromkeys("′’", "'"),
    **dict.fromkeys("⟨〈", r"\langle "),
    **dict.fromkeys("⟩〉", r"\rangle "),
    **dict.fromkeys("…⋯", r"\ldots "),
    **{"″": "''", "∣": "|", "、": ",", "。": ".", "√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"},
    **{"≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap "},
    **{"∈": r"\in ", "∉": r"\notin ", "∅": r"\emptyset ", "∖": r"\setminus ", "∧": r"\land ", "∨": r"\lor "},
    **{"⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "‖": r"\|"},
    **{"∠": r"\angle ", "△": r"\triangle ", "→": r"\to ", "∫": r"\int ", "∑": r"\sum ", "∏": r"\prod "},
    **{sign: rf"\mathbb{{{letter}}}" for sign, letter in zip("ℝℤℕℚℂ", "RZNQC", strict=True)},
}
_NAMES_OF_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho final sigma tau upsilon "
    "phi chi psi omega"
)
_GREEK = _NAMES_OF_GREEK.split()
_SIGNS |= {chr(0x3B1 + place): rf"\{name} " for place, name in enumerate(_GREEK)}
_SIGNS |= {chr(0x391 + place): rf"\{name.capitalize()} " for place, name in enumerate(_GREEK)} | {"ϕ": r"\phi "}
GREEK = frozenset(_GREEK) | frozenset(name.capitalize() for name in _GREEK) | {"ell", "hbar"}

_NAMES = FUNCTIONS | {"sqrt", "cbrt", "infty", "infinity"}
"""Commands that may be written without a backslash; Greek letters may, too."""

_COMMANDS = {
    **dict.fromkeys((r"\dfrac", r"\tfrac", r"\cfrac"), r"\frac"),
    **dict.fromkeys((r"\dbinom", r"\tbinom"), r"\binom"),
    **dict.fromkeys((r"\leq", r"\leqslant", "<="), r"\le"),
    **dict.fromkeys((r"\geq", r"\geqslant", ">="), r"\ge"),
    **dict.fromkeys((r"\neq", "!="), r"\ne"),
    **dict.fromkeys((r"\times", r"\cdot", r"\ast"), "*"),
    **dict.fromkeys((r"\dots", r"\cdots", r"\dotsc", r"\dotsb"), r"\ldots"),
    **dict.fromkeys((r"\vert", r"\mid"), "|"),
    **dict.fromkeys((r"\smallsetminus", r"\backslash"), r"\setminus"),
    **dict.fromkeys((r"\simeq", r"\thickapprox"), r"\approx"),
    **{r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\Vert": r"\|", "**": "^"},
    **{r"\lt": "<", r"\gt": ">", r"\div": "/", r"\varnothing": r"\emptyset", r"\prime": "'"},
    **{r"\wedge": r"\land", r"\vee": r"\lor"},
    **{r"\overline": r"\bar", r"\widehat": r"\hat", r"\overrightarrow": r"\vec", r"\infinity": r"\infty"},
    **{rf"\var{name}": rf"\{name}" for name in ("epsilon", "phi", "theta", "rho", "sigma", "kappa", "pi")},
}
_WORDS = {
    **{r"\%": "percent", "%": "percent", r"\$": "dollar", "€": "euro", "£": "sterling", "¥": "yen"},
}
OPENS = frozenset(["(", "[", "{", r"\{", r"\langle"])
_CLOSES = frozenset([")", "]", "}", r"\}", r"\rangle"])
_SPACES = frozenset([r"\,", r"\;", r"\:", r"\>", "\\ ", r"\quad", r"\qquad", r"\thinspace", r"\enspace"])
_WITHOUT_MEANING = (
    r"\! \left \right \middle \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \biggl \biggr \Biggl \Biggr "
    r"\displaystyle \textstyle \scriptstyle \limits \nolimits \rm \bf \it"
)
_TEXT_COMMANDS = r"\text \textrm \textnormal \textup \mbox \mathrm \operatorname \textsf \texttt \textit"
_STYLE_COMMANDS = r"\boxed \mathbf \boldsymbol \bm \mathit \mathsf \textbf \mathtt \emph"
_DROPPED, _TEXT, _STYLES = (frozenset(names.split()) for names in (_WITHOUT_MEANING, _TEXT_COMMANDS, _STYLE_COMMANDS))


def _in_latex(text: str) -> str:
    """Signs, Greek, fractions, super- and subscripts and full-width forms as LaTeX spells them."""
    return "".join(_spelled(kind, "".join(run)) for kind, run in groupby(text, _kind))


def _kind(char: str) -> str:
    return "" if char.isascii() or char in _SIGNS else unicodedata.decomposition(char).partition(" ")[0]


def _spelled(kind: str, run: str) -> str:
    if kind == "<fraction>":  # one by one: ½ is NFKC's 1⁄2, ⅓ its 1⁄3
        parts = (unicodedata.normalize("NFKC", char).partition("⁄") for char in run)
        return "".join(rf"\frac{{{over}}}{{{under or 1}}}" for over, _, under in parts)
    plain = "".join(_SIGNS.get(char, char) for char in unicodedata.normalize("NFKC", run) if kind) if kind else run
    if kind in ("<super>", "<sub>"):
        return f"{'^' if kind == '<super>' else '_'}{{{plain}}}"
    return "".join(_SIGNS.get(char, char) for char in plain)


# ------------------------------------------------------------------------------------------------ tokens

_TOKEN = re.compile(
    r"(?P<space>[\s~]+)"
    r"|(?P<environment>\\(?:begin|end) *\{[a-z]+\*?\})"
    r"|(?P<repeating>\d*\.(?P<before>\d*)\\(?:overline|bar|dot) *(?:\{ *(?P<period>\d+) *\}|(?P<digit>\d)))"
    r"|(?P<based>(?P<opens>(?<![\w)\]}])\((?=\d+\)_))?(?P<digits>\d+|(?=\d*[A-F])[0-9A-F]{2,}(?=_\{? ?16\b))"
    r"(?(opens)\))_(?:\{ *(?P<base>\d\d?) *\}|(?P<bare>\d\d?)))"
    r"|(?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE](?P<exponent>[+-]?\d+)(?![\w.]))?)"
    r"|(?P<command>\\[A-Za-z]+|\\.)"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<sign>\*\*|<=|>=|!=|.)",
    re.DOTALL | re.ASCII,
)
_KINDS = ("space", "environment", "repeating", "based", "number", "command", "letters", "sign")
_THOUSANDS = re.compile(r"(?<![\w.^,])\d{1,3}(?:(?:\\[,;:! ]|,\\! ?|\{,\}|[ ~])\d{3})+(?![\d,])", re.ASCII)
_COMMAS = re.compile(r"(?<![\d.,^_])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)", re.ASCII)
_LISTS = re.compile(r"\\(?:langle|lbrace|begin)")
_BRACKETS = {**dict.fromkeys("([{", 1), **dict.fromkeys(")]}", -1)}
_MIXED = re.compile(r"(?<![\w./^])(\d+) +(\d+)/(\d+)(?![\w.])", re.ASCII)
_DERIVATIVE = re.compile(r"(?<![A-Za-z\\])(d[A-Za-z])/(d[A-Za-z])(?![A-Za-z])")
_ROOT = re.compile(r"(\\sqrt(?:\[\d\])?) ?(\d+(?:\.\d+)?)", re.ASCII)
_ESCAPED = re.compile(r"\\\\(?=[A-Za-z])")
_DEGREE = re.compile(r"\^ *(?:\{ *)?\\(?:circ|degree)(?![A-Za-z])(?: *\})?")
_PERIOD = re.compile(r"(?<!\.)\. *(\}*) *$")
_SIGN_OF_MATH = re.compile(r"(?<!\\)\$")
_MATH_SIGNS = re.compile(r"\\[()\[\]]|(?<!\\)\$")


@lru_cache(maxsize=4096)  # of the answers in a group many are the same
def tokenize(text: str) -> tuple[Token, ...]:
    """The tokens of an answer.

    Raises:
        Broken: a brace is open.
        TooLarge: the text is too long, or a number in it.
    """
    text = " ".join(text.split())
    if len(text) > MAX_CHARS:
        raise TooLarge("the answer is too long")
    tokens = tuple(_tokens(_tidied(text), in_text=False))
    depths = accumulate(token.nesting for token in tokens)
    if max(depths, default=0) > MAX_DEPTH:
        raise TooLarge("the answer is nested too deeply")
    return tokens


def _tidied(text: str) -> str:
    """In LaTeX, without the signs around a formula and the separators between thousands."""
    text = text if text.isascii() else _in_latex(text)
    if len(_SIGN_OF_MATH.findall(text)) % 2:  # one alone is a dollar
        text = _SIGN_OF_MATH.sub(r"\\$", text, count=1)
    if r"\begin" not in text:
        text = _ESCAPED.sub(r"\\", text)
    text = _PERIOD.sub(r"\1", _MATH_SIGNS.sub(" ", text)).strip()
    text = _DEGREE.sub(r"\\degree ", text)
    text = _THOUSANDS.sub(lambda number: re.sub(r"\D", "", number[0]), _ROOT.sub(r"\1{\2}", text))
    if "," in text and not _LISTS.search(text):
        text = _COMMAS.sub(_without_commas, text)
    return _MIXED.sub(r"\1\\frac{\2}{\3}", _DERIVATIVE.sub(r"\\frac{\1}{\2}", text))


def _without_commas(number: re.Match[str]) -> str:
    """The digits; in brackets a comma parts items."""
    depth = sum(_BRACKETS.get(char, 0) for char in number.string[: number.start()])
    return number[0] if depth else number[0].replace(",", "")


def _tokens(text: str, in_text: bool) -> list[Token]:
    """Of tidied text, or of the content of a text command, in which letters are words."""
    tokens: list[Token] = []
    place, spaced = 0, False
    while match := _TOKEN.match(text, place):
        place, piece = match.end(), match[0]
        kind = next(name for name in _KINDS if match[name] is not None)
        if kind == "space" or piece in _SPACES:
            spaced = True
        elif piece in _TEXT or piece in _STYLES:
            content, place = _argument(text, place)
            is_function = piece == r"\operatorname" and content.strip() in FUNCTIONS
            inner = _tokens(content, in_text=piece in _TEXT and not is_function)
            tokens += [token._replace(spaced=spaced) if token is inner[0] and spaced else token for token in inner]
            spaced = content.endswith(" ") or (spaced and not inner)
        elif piece not in _DROPPED:
            tokens += _read(kind, match, spaced, in_text)
            spaced = False
    return tokens


def _read(kind: str, match: re.Match[str], spaced: bool, in_text: bool) -> list[Token]:
    piece = match[0]
    if kind == "letters":
        return _letters(piece, spaced, in_text)
    if kind in ("number", "repeating", "based"):
        return [Token("number", _number(kind, match), spaced)]
    if piece in _WORDS:
        return [Token("word", _WORDS[piece], spaced)]
    piece = _COMMANDS.get(piece, piece).replace(" ", "")
    if piece[1:] in GREEK:
        return [Token("letter", piece[1:], spaced)]
    if piece in (r"\i", r"\imath"):
        return [Token("letter", "i", spaced)]
    return [Token("command" if len(piece) > 1 and piece[1].isalpha() else "sign", piece, spaced)]


def _letters(run: str, spaced: bool, in_text: bool) -> list[Token]:
    """The name of a function or of a letter, a word, or variables beside each other."""
    if run in GREEK:
        return [Token("letter", run, spaced)]
    if run in _NAMES:
        return [Token("command", _COMMANDS.get(rf"\{run}", rf"\{run}"), spaced)]
    if run[:-1] in FUNCTIONS and not in_text:  # sinx
        return [Token("command", rf"\{run[:-1]}", spaced), Token("letter", run[-1])]
    if (in_text and run not in ("e", "i")) or run in ("and", "or") or len(run) > 3:
        return [Token("word", run, spaced)]
    return [Token("letter", letter, spaced and place == 0) for place, letter in enumerate(run)]


def _number(kind: str, match: re.Match[str]) -> str:
    """As `Fraction` reads it: 1.50 stays as it is, 1e3 is 1000, 101_2 is 5, 0.1 with the period 6 is 1/6."""
    piece = match[0]
    if len(piece) > MAX_DIGITS or abs(int(match["exponent"] or 0)) > MAX_DIGITS:
        raise TooLarge("a number is too long")
    if kind == "number":
        return str(Fraction(piece)) if match["exponent"] else piece
    if kind == "repeating":
        period, before = match["period"] or match["digit"], match["before"]
        tail = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(before))
        return str(Fraction(piece.partition("\\")[0].rstrip(".") or 0) + tail)
    try:
        return str(int(match["digits"], int(match["base"] or match["bare"])))
    except ValueError as error:
        raise NotMath(f"{piece} is no numeral in that base") from error


def _argument(text: str, start: int) -> tuple[str, int]:
    """What a command applies to, a group in braces or one token, and where it ends."""
    while text[start : start + 1] == " ":
        start += 1
    if text[start : start + 1] != "{":
        match = _TOKEN.match(text, start)
        end = match.end() if match and match["command"] else start + 1
        return text[start:end], end
    depth = 0
    for place in range(start, len(text)):
        if text[place] in "{}" and text[place - 1] != "\\":
            depth += 1 if text[place] == "{" else -1
            if depth == 0:
                return text[start + 1 : place], place + 1
    raise Broken("a brace is open")
