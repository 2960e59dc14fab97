r"""From tokens to answers: finds lists, tuples, sets, intervals, relations and units around expressions.

>>> read(r"x \in (1, 2]"), read(r"5 \text{ cm}")
(Named(name='x', value=Region(set=Interval.Lopen(1, 2), variable='')),
 Quantity(value=5, unit='centimeter', counted='', decimals=None))
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

import sympy
from sympy import Interval, S, Symbol
from sympy.core.function import AppliedUndef

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
from spark_rl.verify.mathematics.equal import equal, rounds_to
from spark_rl.verify.mathematics.grammar import expression
from spark_rl.verify.mathematics.measures import measure
from spark_rl.verify.mathematics.notation import OPENS, Broken, NotMath, Token, TooLarge, tokenize
from spark_rl.verify.mathematics.tokens import Tokens, closes, is_list, split, without_braces
from spark_rl.verify.wording import as_text, plain

MAX_PARTS = 20
"""Of a region that is made of several."""

_RELATIONS = frozenset(["=", "<", ">", r"\le", r"\ge", r"\ne", r"\approx", r"\in", r"\notin"])
_SETS = frozenset([r"\cup", r"\cap", r"\setminus"])
_LOGICAL = {r"\land": "and", r"\lor": "or"}
_ONE_IN_BRACES = re.compile(r"(?<!\S)\{ (\S+) \}(?!\S)")
_FLIPPED = {"<": ">", r"\le": ">=", ">": ">", r"\ge": ">="}
_NUMBER_SETS = {"R": S.Reals, "Z": S.Integers, "N": S.Naturals, "Q": S.Rationals, "C": S.Complexes}


@lru_cache(maxsize=4096)  # one gold serves all rollouts of its group
def read(text: str) -> Answer | None:
    """What an answer says; None if that is neither mathematics nor words."""
    words = plain(text)
    if (known := as_text(words)) is not None:
        return Text(known)
    try:
        tokens = tokenize(text)
    except NotMath as error:
        return Text(words) if isinstance(error, TooLarge) else None
    try:
        return _answer(tokens) if tokens else None
    except OF_SYMPY:
        return _as_text(tokens)
    except Broken:
        return _as_text(tokens) if any(token.kind == "word" for token in tokens) else None
    except NotMath:
        return _as_text(tokens) if any(token.kind in ("word", "letter", "number") for token in tokens) else None


def _as_text(tokens: Tokens) -> Text:
    """As it is spelled, but for braces around one token; in words case does not count."""
    text = _ONE_IN_BRACES.sub(r"\1", " ".join(token.text for token in tokens))
    return Text(text.casefold() if any(token.kind == "word" for token in tokens) else text)


def _answer(tokens: Tokens) -> Answer:
    """A list, or one item. Semicolons part lists of their own: `p=1,q=2; p=3,q=4`."""
    if any(token.text in _LOGICAL for token in tokens) and all(
        map(_is_structured, split(tokens, lambda token: token.text in _LOGICAL)[0])
    ):  # conditions; of statements they make another statement
        tokens = [token._replace(text=_LOGICAL.get(token.text, token.text)) for token in tokens]
    groups, _ = split(tokens, lambda token: token.text == ";")
    if len(groups) > 1 and any(is_list(group) for group in groups):
        answers = [_answer(group) for group in groups]
        return Items(
            "list", tuple(replace(each, kind="tuple") if isinstance(each, Items) else each for each in answers)
        )
    parts, joints = split(tokens, lambda token: token.text in (",", ";", "and", "or"))
    if {"and", "or"} & set(joints):  # 1, 2, and 3
        parts = [part for place, part in enumerate(parts) if part or place in (0, len(joints))]
    if sum(map(_is_structured, parts)) > MAX_PARTS:
        raise TooLarge("a region has too many parts")
    items: list[Answer] = []
    for part in parts:
        items += _alternatives(part)
    return items[0] if len(items) == 1 else _together(items, joints)


def _alternatives(tokens: Tokens) -> list[Answer]:
    r"""The item, or two where there is a `\pm`: all of its signs go together."""
    if not any(token.text in (r"\pm", r"\mp") for token in tokens):
        return [_item(tokens)]
    plus, minus = Token("sign", "+"), Token("sign", "-")
    signs = ({r"\pm": plus, r"\mp": minus}, {r"\pm": minus, r"\mp": plus})
    return [_item([sign.get(token.text, token) for token in tokens]) for sign in signs]


def _together(items: list[Answer], joints: list[str]) -> Answer:
    """Items of a list as one answer: values of one name, parts of one region, or just a list."""
    regions = [item for item in items if isinstance(item, Region) and item.variable]
    if len(regions) == len(items) and len({region.variable for region in regions}) == 1:
        sets = [region.set for region in regions]
        both = sympy.Intersection(*sets)
        is_both = "and" in joints or ("or" not in joints and both != S.EmptySet)
        return Region(both if is_both else sympy.Union(*sets), regions[0].variable)
    first = items[0]
    if isinstance(first, Named) and all(not isinstance(item, Named) or item.name == first.name for item in items[1:]):
        values = [item.value if isinstance(item, Named) else item for item in items]
        return Named(first.name, Items("list", tuple(values)))
    return Items("list", tuple(items))


def _item(tokens: Tokens) -> Answer:
    tokens = without_braces(tokens)
    if not tokens:
        raise NotMath("an item is empty")
    parts, signs = split(tokens, lambda token: token.kind != "word" and token.text in _RELATIONS)
    if signs:
        return _related(parts, signs)
    parts, signs = split(tokens, lambda token: token.text in _SETS)
    if signs:
        return _operated([_as_set(_item(part)) for part in parts], signs)
    terms, _ = split(tokens, lambda token: token.text == ":")
    if len(terms) > 2:
        first, *others = map(_number, terms)
        if first.is_zero:
            raise NotMath("a ratio to nothing")
        return Items("ratio", tuple(Quantity(other / first) for other in others))
    return _bracketed(tokens) or _angle(tokens) or measure(tokens)


# ------------------------------------------------------------------------------------------------ brackets and sets


def _bracketed(tokens: Tokens) -> Answer | None:
    """A tuple, an interval or a set; None if it is none, but perhaps an expression."""
    opening, closing = tokens[0].text, tokens[-1].text
    if opening == r"\emptyset" and len(tokens) == 1:
        return Region(S.EmptySet)
    if (
        [token.text for token in tokens[:2]] == [r"\mathbb", "{"]
        and len(tokens) == 4
        and tokens[2].text in _NUMBER_SETS
    ):
        return Region(_NUMBER_SETS[tokens[2].text])
    if opening not in OPENS or closes(tokens) != len(tokens) - 1:
        return None
    inside = tokens[1:-1]
    if opening in (r"\{", "{"):
        return _set(inside)
    parts, _ = split(inside, lambda token: token.text in (",", ";"))
    if len(parts) == 1:
        return _item(inside) if opening == "(" and closing == ")" and _is_structured(inside) else None
    if opening == r"\langle" or (opening, closing) == ("(", ")"):
        return Items("tuple", tuple(_item(part) for part in parts))
    if len(parts) != 2:
        return Items("list" if opening == closing else "tuple", tuple(_item(part) for part in parts))
    start, end = (_number(part) for part in parts)
    if (start >= end) == True:  # noqa: E712 - a relation of SymPy
        return Items("tuple", (Quantity(start), Quantity(end))) if start != end else _item(parts[0])
    return Region(Interval(start, end, left_open=opening == "(", right_open=closing == ")"))


def _is_structured(tokens: Tokens) -> bool:
    return any(token.text in _RELATIONS | _SETS for token in tokens)


def _set(inside: Tokens) -> Answer:
    """Of what is in its braces: elements, or a variable and a condition."""
    if not inside:
        return Region(S.EmptySet)
    parts, _ = split(inside, lambda token: token.text in ("|", ":"))
    if len(parts) == 2:
        return _where(_item(parts[0]), _answer(parts[1]), _spelled(parts[0]))
    answer = _answer(inside)
    return Items("set", answer.items if isinstance(answer, Items) and answer.kind == "list" else (answer,))


def _where(element: Answer, condition: Answer, name: str) -> Region:
    r"""`\{x : x > 3\}` and `\{x \in \mathbb{Z} : x > 3\}`; of other elements, as in `\{2n : n > 3\}`, none is made."""
    domain = S.Reals
    if isinstance(element, Named):
        name, domain = element.name, _as_set(element.value).set  # type: ignore[union-attr]
    elif not isinstance(element, Quantity) or not isinstance(element.value, Symbol):
        raise NotMath("a set of what is no variable")
    of = condition.name if isinstance(condition, Named) else getattr(condition, "variable", "")
    if of != name:
        raise NotMath("a condition on something else")
    return Region(sympy.Intersection(domain, _as_set(condition).set))  # type: ignore[union-attr]


def _as_set(answer: Answer) -> Answer:
    """An operand of a union; a pair in round brackets is an interval there."""
    if isinstance(answer, Named):
        answer = answer.value
    if isinstance(answer, Region):
        return Region(answer.set)
    if isinstance(answer, Items) and answer.kind == "tuple" and (interval := open_interval(answer)):
        return interval
    if isinstance(answer, Items) and answer.kind == "set":
        return Region(sympy.FiniteSet(*(item.value for item in answer.items if isinstance(item, Quantity))))
    raise NotMath("no set")


def _operated(sets: list[Answer], signs: list[str]) -> Answer:
    if len(sets) > MAX_PARTS:
        raise TooLarge("a region has too many parts")
    result = sets[0].set  # type: ignore[union-attr]
    for sign, other in zip(signs, sets[1:], strict=True):
        operation = {r"\cup": sympy.Union, r"\cap": sympy.Intersection, r"\setminus": sympy.Complement}[sign]
        result = operation(result, other.set)  # type: ignore[union-attr]
    return Region(result)


# ------------------------------------------------------------------------------------------------ relations


def _related(parts: list[Tokens], signs: list[str]) -> Answer:
    if not all(parts):
        raise NotMath("a relation has one side")
    if signs == [r"\in"]:
        return Named(_spelled(parts[0]), _as_region(_item(parts[1])))
    if signs == [r"\notin"]:
        return Named(_spelled(parts[0]), Region(sympy.Complement(S.Reals, _as_set(_item(parts[1])).set)))  # type: ignore[union-attr]
    if set(signs) <= {"=", r"\approx"}:
        return _equated(parts, signs)
    return _compared([_number(part) for part in parts], signs)


def _as_region(answer: Answer) -> Answer:
    return (isinstance(answer, Items) and answer.kind == "tuple" and open_interval(answer)) or answer


def _equated(parts: list[Tokens], signs: list[str]) -> Answer:
    """`name = value`, also `name = sum = value` if that is true; else an equation."""
    if signs[-1] == r"\approx" and not _is_name(parts[-2]):  # \sqrt{2} \approx 1.41 is \sqrt{2}
        rounded, exact = _item(parts[-1]), _item(parts[-2])
        if not (isinstance(rounded, Quantity) and isinstance(exact, Quantity) and rounds_to(exact.value, rounded)):
            raise NotMath("it is not about that")
        parts, signs = parts[:-1], signs[:-1]
        if not signs:
            return exact
    if not _is_name(parts[0]) and _is_name(parts[-1]) and len(parts) == 2:
        parts = parts[::-1]
    if _is_name(parts[0]):
        values = [_item(part) for part in parts[1:]]
        if len(parts) == 2 and _holds(values[0], parts[0]):
            return Relation("=", expression(parts[0]) - values[0].value)  # type: ignore[union-attr]
        if all(equal(values[-1], value) for value in values[:-1]):
            return Named(_spelled(parts[0]), values[-1])
        raise NotMath("its sides differ")
    if len(parts) > 2:
        raise NotMath("a chain without a name")
    left, right = (expression(part) for part in parts)
    return Relation("=", left - right)


def _holds(value: Answer, name: Tokens) -> bool:
    """Whether the name that is given a value stands in it: `x = 2x - 5` states no value."""
    if not isinstance(value, Quantity) or not value.value.free_symbols:
        return False
    try:
        return bool(value.value.has(expression(name)))
    except NotMath:  # a name in words
        return False


def _is_name(tokens: Tokens) -> bool:
    """Whether it may be given a value: a letter (with an index, a mark), points, words, a function of letters, the
    size of something named, a tuple or the ratio of two of these."""
    if not tokens:
        return False
    if tokens[0].text == r"\angle" or all(token.kind == "word" for token in tokens) or _are_points(tokens):
        return True
    if tokens[0].text == "(" and closes(tokens) == len(tokens) - 1:
        return all(map(_is_name, split(tokens[1:-1], lambda token: token.text == ",")[0]))
    parts, _ = split(tokens, lambda token: token.text in (":", "/"))
    if len(parts) == 2:
        return all(map(_is_name, parts))
    if tokens[0].text in ("|", r"\lvert"):  # |x| = 5 does not give x
        return _are_points(tokens[1:-1]) or (tokens[1].kind == "command" and _is_name(tokens[1:-1]))
    if [token.text for token in tokens[1::2]] == ["(", ")"]:  # p(x), which elsewhere may be a product
        return tokens[0].kind == tokens[2].kind == "letter"
    if tokens[0].text == r"\frac" and len(tokens) > 4:
        end = closes(tokens[1:]) + 1
        return _is_name(tokens[2:end]) and _is_name(without_braces(tokens[end + 1 :]))
    try:
        return isinstance(expression(tokens), Symbol | AppliedUndef)
    except NotMath:
        return False


def _spelled(tokens: Tokens) -> str:
    text = "".join(token.text for token in tokens if token.text not in "{}")
    return text.casefold() if any(token.kind == "word" for token in tokens) else text


def _compared(sides: list[Any], signs: list[str]) -> Answer:
    """A chain of inequalities: the region of its one variable, else a relation."""
    if len(sides) == 2 and signs == [r"\ne"]:
        relation = Relation("!=", sides[0] - sides[1])
        variables = relation.difference.free_symbols
        if len(variables) == 1 and (variable := variables.pop()) in sides:
            other = sides[1] if sides[0] == variable else sides[0]
            return Region(sympy.Complement(S.Reals, sympy.FiniteSet(other)), variable.name)
        return relation
    if any(sign not in _FLIPPED for sign in signs):
        raise NotMath("relations of several kinds")
    links = []
    for left, right, sign in zip(sides, sides[1:], signs, strict=False):
        larger, smaller = (right, left) if sign in ("<", r"\le") else (left, right)
        links.append(Relation(_FLIPPED[sign], larger - smaller))  # type: ignore[arg-type]
    unknowns = set().union(*(_unknowns(link.difference) for link in links))
    if len(unknowns) == 1:
        (unknown,) = unknowns
        try:
            return Region(sympy.Intersection(*(_solved(link, unknown) for link in links)), str(unknown))
        except NotImplementedError:  # of SymPy
            pass
    return links[0] if len(links) == 1 else Items("list", tuple(links))


def _unknowns(value: Any) -> set[Any]:
    """Letters, and functions of them in their place."""
    functions = value.atoms(AppliedUndef)
    return value.xreplace(dict.fromkeys(functions, S.One)).free_symbols | functions


def _solved(link: Relation, variable: Any) -> Any:
    """Where an inequality holds, by SymPy, over the reals."""
    real = sympy.Dummy(real=True)
    difference = link.difference.xreplace({variable: real})
    flat = difference.replace(sympy.Abs, lambda inside: inside)
    if not flat.is_polynomial(real) or sympy.degree(flat, real) > MAX_PARTS:
        raise NotImplementedError
    factors = [factor for factor, _ in sympy.factor_list(flat, real)[1]] if flat == difference else [flat]
    if any(sympy.degree(factor, real) > 2 for factor in factors):
        raise NotImplementedError
    holds = difference > 0 if link.kind == ">" else difference >= 0
    return sympy.solve_univariate_inequality(holds, real, relational=False)


def _number(tokens: Tokens) -> Any:
    """A side of an inequality or the end of an interval: an expression without a unit."""
    if any(token.text in (",", ";") for token in tokens):
        raise NotMath("no number")
    return expression(without_braces(tokens))


# ------------------------------------------------------------------------------------------------ points


def _angle(tokens: Tokens) -> Answer | None:
    """Angles, triangles, arcs by their points, of which an angle's may be read backwards; segments by two or more."""
    if tokens[0].text in (r"\angle", r"\triangle") or (len(tokens) > 1 and _are_points(tokens)):
        points = "".join(token.text for token in tokens[1:])
        if tokens[0].text == r"\angle" and len(tokens) == 4 and _are_points(tokens[1:]):
            points = min(points, points[::-1])
        return Text(tokens[0].text + points)
    return None


def _are_points(tokens: Tokens) -> bool:
    return all(token.kind == "letter" and len(token.text) == 1 and token.text.isupper() for token in tokens)
