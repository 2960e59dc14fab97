r"""Quantities: a number or an expression, with a currency before it, or a scale and a unit behind it.

`5 \text{ million}` is 5000000, `\$5` five dollars, `5 \text{ cm}^2` and `5 cm^2` five square centimetres, `5x` a
product. Words that are no unit say what is counted.
"""

from __future__ import annotations

from spark_rl.verify import units
from spark_rl.verify.mathematics.answers import Quantity
from spark_rl.verify.mathematics.grammar import OF_ANGLES, expression
from spark_rl.verify.mathematics.notation import NotMath, Token
from spark_rl.verify.mathematics.tokens import Tokens, split, without_braces
from spark_rl.verify.quantity import changes

_CURRENCIES = frozenset(["dollar", "euro", "sterling", "yen"])
_TIMES = frozenset([r"\min", r"\sec"])
"""Functions by their names, but nothing follows them."""
_DEGREES = {"": "degree", "C": "degree_Celsius", "F": "degree_Fahrenheit"}


def measure(tokens: Tokens) -> Quantity:
    """An expression with a currency before it, or a scale and a unit behind it."""
    if tokens[-1].text in _TIMES:
        tokens = [*tokens[:-1], Token("word", tokens[-1].text[1:], tokens[-1].spaced)]
    currency = next((token.text for token in tokens[:2] if token.text in _CURRENCIES), "") if len(tokens) > 1 else ""
    if currency and (tokens[0].text == currency or tokens[0].text in "+-"):
        tokens = [token for place, token in enumerate(tokens) if place > 1 or token.text != currency]
    else:
        currency = ""
    end, unit = _unit(tokens)
    counted = _counted(tokens[end:]) if not unit else ""
    if currency and unit not in ("", currency):
        raise NotMath("two units")
    number = tokens[:end]
    scale = 1
    while len(number) > 1 and number[-1].kind == "word" and (factor := _scale(number[-1].text)):
        scale, number = scale * factor, number[:-1]
    value = expression(without_braces(number))
    if counted and not value.is_number:
        raise NotMath("words behind a formula")
    decimals = _decimals(number) if scale == 1 else None
    return Quantity(value * scale, unit or currency, counted, decimals)


def _scale(word: str) -> int | None:
    word = word.casefold()
    return units.SCALES.get(word) or units.SCALES.get(word.removesuffix("s"))


def _unit(tokens: Tokens) -> tuple[int, str]:
    """Where the unit begins, or what is counted, and the unit's name; the end and nothing if there is none."""
    _, of_angles = split(tokens, lambda token: token.text[1:] in OF_ANGLES)  # \sin 30^\circ is no angle
    depth = tokens[0].nesting
    for start, token in enumerate(tokens[1:], start=1):
        depth += token.nesting
        if depth:
            continue
        if (
            token.text == r"\degree"
            and not of_angles
            and (name := _DEGREES.get("".join(part.text for part in tokens[start + 1 :])))
        ):
            return start, name
        if token.kind == "word" and not _scale(token.text):
            return start, ("" if changes(token.text) else _name(tokens[start:])) or ""
    start = len(tokens)
    while start > 1 and tokens[start - 1].kind == "letter" and not (start < len(tokens) and tokens[start].spaced):
        start -= 1
    if start < len(tokens) and tokens[start - 1].kind == "number":
        letters = "".join(token.text for token in tokens[start:])
        if name := units.bare_unit(letters, tokens[start].spaced):
            return start, name
    return len(tokens), ""


def _name(tokens: Tokens) -> str | None:
    """Of `cm ^ { 2 }`, `miles per hour`, `m / s`."""
    text = "".join((" " if token.kind in ("word", "letter") else "") + token.text for token in tokens)
    return units.unit(text.replace("{", "").replace("}", "").replace("/ ", "/").strip())


def _counted(words: Tokens) -> str:
    """Words behind a number that do not change it."""
    if any(token.kind != "word" or changes(token.text) for token in words):
        raise NotMath("words that may change a number")
    return " ".join(token.text for token in words).casefold()


def _decimals(number: Tokens) -> int | None:
    """Digits behind the point of a plain decimal, which may be multiplied by a power of ten."""
    texts = [token.text for token in number if token.text not in "+{}"]
    texts = texts[1:] if texts[:1] == ["-"] else texts
    exponent = "".join(texts[4:]) if texts[1:4] == ["*", "10", "^"] else ""
    if not texts or "." not in texts[0] or (len(texts) > 1 and not exponent):
        return None
    places = len(texts[0].partition(".")[2])
    return places - int(exponent or 0) if exponent.removeprefix("-").isdigit() or not exponent else None
