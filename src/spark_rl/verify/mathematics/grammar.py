r"""Expressions: tokens to SymPy, by precedence. What could be read in two ways, or not at all, is refused.

expression = sum [\over sum | \choose sum]
sum        = term {(+ | -) term}
term       = factor {(* | / | nothing) factor}      `2 x`, `2(3)` and `x(x+1)` are products, `2\frac{1}{2}` is 5/2
factor     = {+ | -} power
power      = atom {! | '} [^ exponent]
atom       = number | letter [_ index] | group | |x| | \frac, \sqrt, \binom, \sin, ... and their arguments

`e`, `i` and `\pi` are the constants, `^\circ` is pi/180 in a trigonometric function and 1 elsewhere, `\log` is to base
10. Letters are told apart by case, index and decoration. SymPy evaluates as it builds, so each power and factorial is
measured before it is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import sympy
from sympy import E, I, Integer, Rational, Symbol, pi

from spark_rl.verify.mathematics.notation import MAX_DEPTH, Broken, NotMath, Token, TooLarge
from spark_rl.verify.wording import FUNCTIONS

MAX_RESULT_DIGITS = 10_000
"""Of an integer that a power or a factorial makes."""
MAX_ROOT = 1000
"""Degree of a root."""
MAX_TERMS = 1000
"""Of a sum or a product with numbers for bounds."""
MAX_INTEGRAND = 8
"""Operations in what is integrated."""
MAX_OPERANDS = 10
"""Of a maximum, and functions in each other."""
MAX_ROWS = 4
"""Of a matrix with letters of which a determinant or a power is taken; of numbers they may be five times as many."""

_CLOSING = {"(": ")", "[": "]", "{": "}", r"\lvert": r"\rvert", "|": "|", r"\|": r"\|"}
_CLOSING |= {r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", r"\lVert": r"\rVert"}
_ENDS = (
    r"\le \ge \ne \in \notin \approx \cup \cap \setminus \ldots \pm \mp \to \degree \rangle \langle \emptyset "
    r"\over \choose"
)
_STOPS = frozenset(_CLOSING.values()) | frozenset(_ENDS.split())
"""Commands that no product goes on with."""
_MARKS = r"\vec \hat \bar \tilde \dot \ddot \underline \mathcal \mathbb \mathfrak \mathscr"
_DECORATIONS = frozenset(_MARKS.split())
_NEEDS_LIBRARY = frozenset([r"\int", r"\iint", r"\iiint", r"\oint", r"\sum", r"\prod", r"\lim"])
_NO_BRACES = str.maketrans("", "", "{}")
_CONSTANTS = {"e": E, "i": I, "pi": pi}
OF_ANGLES = frozenset(("sin", "cos", "tan", "cot", "sec", "csc"))
_OF_PARTS = frozenset(("Re", "Im", "arg"))
"""Functions of the parts of a complex number, into which SymPy takes apart powers of letters for minutes."""
_APPLIED = frozenset("fgFGP")
"""Letters that name functions where brackets follow: f(x) is no product."""


_OTHER_NAMES = {
    **{"ln": sympy.log, "max": sympy.Max, "min": sympy.Min, "abs": sympy.Abs, "sgn": sympy.sign, "ceil": sympy.ceiling},
    **{"Re": sympy.re, "Im": sympy.im},
}


def _function(name: str) -> Any:
    """SymPy's function of LaTeX's name: that of `arcsin` and `arsinh` is `asin` and `asinh`."""
    inverse = name.startswith("ar") and name != "arg"
    plain = f"a{name.removeprefix('arc').removeprefix('ar')}" if inverse else name
    return _OTHER_NAMES.get(name) or getattr(sympy, plain)


def expression(tokens: Sequence[Token]) -> Any:
    """The SymPy expression or matrix that `tokens` write.

    Raises:
        NotMath: they write none.
        TooLarge: one that takes too long to compute.
    """
    if any(token.text in _NEEDS_LIBRARY for token in tokens):
        return _by_library(tokens)
    parser = _Parser(tokens)
    try:
        value = parser.expression()
    except (TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:  # of SymPy: f(x) of sets
        raise NotMath(str(error)) from error
    if parser.place != len(tokens):
        raise NotMath(f"{tokens[parser.place].text} is not expected")
    if value.has(sympy.nan, sympy.zoo):
        raise NotMath("undefined")
    return value


def _by_library(tokens: Sequence[Token]) -> Any:
    """Sums, integrals and limits, by the parser of math-verify."""
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    text = " ".join(
        rf"\{token.text}" if len(token.text) > 1 and token.kind == "letter" else token.text for token in tokens
    )
    text = re.sub(r"(?<=\d) \(", r" \\cdot (", text)  # 2 (3) is 5 to it
    try:
        value = latex2sympy(
            text, normalization_config=None, conversion_config=ConversionConfig(lowercase_symbols=False)
        )
        _check_terms(value)
        value = value.doit(manual=True)  # of integrals: only what is integrated by hand, since the rest may take hours
    except TooLarge:
        raise
    except Exception as error:  # its parser raises plain exceptions
        raise NotMath("not read by math-verify") from error
    if not isinstance(value, sympy.Expr):
        raise NotMath("no expression")
    constants = {Symbol("i"): I, Symbol("e"): E}
    return value.xreplace(constants).xreplace({number: Rational(str(number)) for number in value.atoms(sympy.Float)})


def _check_terms(value: Any) -> None:
    if any(integral.function.count_ops() > MAX_INTEGRAND for integral in value.atoms(sympy.Integral)):
        raise TooLarge("an integral of too much")
    for repeated in value.atoms(sympy.Sum, sympy.Product):
        for _, *bounds in repeated.limits:
            first, last = bounds if len(bounds) == 2 else (0, sympy.oo)
            count = last - first
            if count.is_infinite or (count.is_number and count > MAX_TERMS):
                raise TooLarge("a sum of too many terms")


class _Parser:
    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = list(tokens)
        self.place = 0
        self.depth = 0
        self.in_bars = 0
        self.of_angle = False
        self.functions = 0

    # -------------------------------------------------------------------------------------------- reading

    @property
    def next(self) -> str:
        return self.tokens[self.place].text if self.place < len(self.tokens) else ""

    @property
    def kind(self) -> str:
        return self.tokens[self.place].kind if self.place < len(self.tokens) else "end"

    def take(self) -> Token:
        if self.place == len(self.tokens):
            raise Broken("it ends too early")
        self.place += 1
        return self.tokens[self.place - 1]

    def found(self, *texts: str) -> bool:
        """Whether the next token is one of these; it is taken if so."""
        if self.kind != "word" and self.next in texts:
            self.place += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.found(text):
            raise (NotMath if self.next else Broken)(f"{text} is missing")

    # -------------------------------------------------------------------------------------------- grammar

    def expression(self) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooLarge("nested too deeply")
        value = self.sum()
        if self.found(r"\over"):
            value = value / self.sum()
        elif self.found(r"\choose"):
            value = _binomial(value, self.sum())
        self.depth -= 1
        return value

    def sum(self) -> Any:
        value = self.term()
        while self.next in ("+", "-"):
            sign = self.take().text
            value = value + self.term() if sign == "+" else value - self.term()
        return value

    def term(self) -> Any:
        """Behind a slash or a colon a product without a sign, `1/2x`, could be read in two ways."""
        value = self.factor()
        colons = 0
        while True:
            if self.found("*"):
                value = value * self.factor()
            elif self.found("/", ":"):
                colons += self.tokens[self.place - 1].text == ":"
                value = value / self.factor()
                if colons > 1 or (self.starts_factor() and (colons or not self.tokens[self.place].spaced)):
                    raise NotMath("a quotient in two ways")
            elif self.starts_factor():
                value = value * self.mixed()
            else:
                return value

    def factor(self) -> Any:
        if self.found("-"):
            return -self.factor()
        if self.found("+"):
            return self.factor()
        return self.mixed()

    def mixed(self) -> Any:
        """A power, or an integer and a part of one: 2 and 1/2 is 2.5."""
        start = self.place
        value = self.power()
        is_integer = self.place == start + 1 and self.tokens[start].text.isdigit()
        if is_integer and self.next == r"\frac" and self.is_fraction():
            part = self.power()
            return value + part if isinstance(part, Rational) and 0 < part < 1 else value * part
        return value

    def is_fraction(self) -> bool:
        """Whether the next is `\\frac` of two integers."""
        following = "".join(token.text for token in self.tokens[self.place + 1 : self.place + 7])
        over, _, under = following.strip("{").partition("}{")
        return (over.isdigit() and under.partition("}")[0].isdigit()) or following[:1].isdigit()

    def starts_factor(self) -> bool:
        """Whether a product goes on without a sign. Two numbers are never a product."""
        if self.kind == "number":
            is_power = self.tokens[self.place + 1 : self.place + 2] and self.tokens[self.place + 1].text == "^"
            before = self.tokens[self.place - 1]
            return bool(is_power) or (before.kind != "number" and before.text != r"\degree")
        if self.kind in ("letter", "command"):
            return self.next not in _STOPS and not self.next.startswith(r"\end{")
        if self.kind == "word":
            return len(self.next) == 1
        if self.next == "|":
            return not self.in_bars
        return self.next in _CLOSING

    def power(self) -> Any:
        value = self.atom()
        while self.found("!"):
            value = sympy.factorial2(_small(value)) if self.found("!") else sympy.factorial(_small(value))
        if self.found("^"):
            value = power(value, self.exponent())
        if self.found(r"\degree") and self.of_angle:
            value = value * pi / 180
        return value

    def exponent(self) -> Any:
        """A group, or one factor with its sign: 10^-2."""
        if self.found("-"):
            return -self.exponent()
        return self.atom()

    def argument(self) -> Any:
        """Of a command: a group, or the first digit or letter that follows, as TeX takes it."""
        token = self.tokens[self.place] if self.place < len(self.tokens) else None
        if token and token.kind == "number" and token.text.isdigit() and len(token.text) > 1:
            self.tokens[self.place] = token._replace(text=token.text[1:])
            return Integer(int(token.text[0]))
        return self.atom()

    def group(self, closing: str) -> Any:
        """To `closing`, which is taken."""
        bars, self.in_bars = self.in_bars, closing == "|"
        value = self.expression()
        self.in_bars = bars
        self.expect(closing)
        return value

    def atom(self) -> Any:
        token = self.take()
        match token.kind:
            case "number":
                return Rational(token.text)
            case "letter":
                return self.letter(token.text)
            case "word" if len(token.text) == 1:
                return self.letter(token.text)
            case "command":
                return self.command(token.text)
        if token.text not in _CLOSING or token.kind == "word":
            raise NotMath(f"{token.text} is not expected")
        value = self.group(_CLOSING[token.text])
        return sympy.Abs(value) if token.text == "|" else self.norm(value) if token.text == r"\|" else value

    def norm(self, value: Any) -> Any:
        return value.norm() if isinstance(value, sympy.MatrixBase) else sympy.Function("norm")(value)

    def letter(self, name: str) -> Any:
        index = f"_{self.index()}" if self.found("_") else ""
        primes = ""
        while self.found("'"):
            primes += "'"
        if (
            self.next == "^"
            and self.tokens[self.place + 1 : self.place + 4]
            and self.tokens[self.place + 1].text == "'"
        ):
            self.place += 2
            primes += "'"
        if not index and not primes and name in _CONSTANTS:
            return _CONSTANTS[name]
        if (primes or name in _APPLIED) and self.next == "(":
            self.take()
            return sympy.Function(name + index + primes)(*self.arguments(")"))
        return Symbol(name + index + primes)

    def index(self) -> str:
        """As text: 1 and {1} are the same."""
        if not self.found("{"):
            return self.take().text
        depth, parts = 1, ""
        while True:
            token = self.take()
            depth += {"{": 1, "}": -1}.get(token.text, 0)
            if not depth:
                return parts
            parts += token.text

    def arguments(self, closing: str) -> list[Any]:
        values = [self.expression()]
        while self.found(","):
            values.append(self.expression())
        self.expect(closing)
        return values

    # -------------------------------------------------------------------------------------------- commands

    def command(self, command: str) -> Any:
        match command:
            case r"\frac":
                start = self.place
                over, under = self.argument(), self.argument()
                return self.derivative(start) or over / under
            case r"\binom":
                return _binomial(self.argument(), self.argument())
            case r"\sqrt" | r"\cbrt":
                degree = sympy.sympify(3 if command == r"\cbrt" else self.group("]") if self.found("[") else 2)
                value = self.atom()
                if degree.is_odd and value.is_negative:  # the real root
                    return -power(-value, 1 / degree)
                return power(value, 1 / degree)
            case r"\infty":
                return sympy.oo
            case r"\lvert":
                return sympy.Abs(self.group(r"\rvert"))
            case r"\lfloor":
                return sympy.floor(self.group(r"\rfloor"))
            case r"\lceil":
                return sympy.ceiling(self.group(r"\rceil"))
            case r"\lVert":
                return self.norm(self.group(r"\rVert"))
            case _ if command in _DECORATIONS:
                return self.decorated(command)
            case _ if command.startswith(r"\begin{"):
                return self.matrix(command)
            case _ if command[1:] in FUNCTIONS:
                return self.function(command[1:])
        raise NotMath(f"{command} is not known")

    def derivative(self, start: int) -> Any:
        """What the tokens from `start` to here write if it is dy/dx, which is no ratio of products; else None."""
        text = "".join(token.text for token in self.tokens[start : self.place])
        is_one = re.fullmatch(r"\{d(?!d|[+*/-]).*\}\{d[^d^+*/}-].*\}", text)
        return Symbol(text.replace("}{", "/").translate(_NO_BRACES)) if is_one else None

    def decorated(self, command: str) -> Any:
        """A letter with a mark is another letter; a bar over a complex number is its conjugate."""
        start = self.place
        name = self.index() if self.next == "{" else self.take().text
        if command == r"\bar" and any(token.kind == "number" for token in self.tokens[start : self.place]):
            parser = _Parser(self.tokens[start : self.place])
            return sympy.conjugate(parser.expression())
        index = f"_{self.index()}" if self.found("_") else ""
        return Symbol(f"{command}{{{name}}}{index}")

    def function(self, name: str) -> Any:
        base = exponent = None
        while self.next in ("^", "_"):
            if self.take().text == "_":
                base = self.argument()
            else:
                exponent = self.exponent()
        self.functions += 1
        if self.functions > MAX_OPERANDS:
            raise TooLarge("too many functions in each other")
        of_angle, self.of_angle = self.of_angle, name in OF_ANGLES
        values = self.operands()
        self.of_angle = of_angle
        self.functions -= 1
        if len(values) > MAX_OPERANDS:
            raise TooLarge("a function of too many")
        if name.endswith("h") and not name.startswith("a") and values[0].is_number:
            power(E, values[0])  # sinh and the like are as large
        if name in _OF_PARTS and values[0].free_symbols:
            raise NotMath("a part of what is no number")
        if name in ("log", "lg"):
            value = sympy.log(values[0], 10 if base is None else base)
        elif exponent == -1:  # \sin^{-1} is arcsin
            return _function(f"a{name}")(*values)
        elif name == "exp":
            value = power(E, values[0])
        else:
            value = _divisor(name, values) if name in ("gcd", "lcm") else _function(name)(*values)
        return value if exponent is None else power(value, exponent)

    def operands(self) -> list[Any]:
        """What a function is applied to: a list in brackets, a group, or the product that follows up to a sign."""
        if self.found("("):
            return self.arguments(")")
        if self.next in ("{", "[", "|", r"\lvert"):
            return [self.atom()]
        value = self.factor() if self.next == "-" else self.power()
        while self.starts_factor() and self.next[1:] not in FUNCTIONS:
            if self.next in _CLOSING:
                raise NotMath("a bracket that may be within the function or behind it")
            value = value * self.power()
        following = self.tokens[self.place + 1 : self.place + 2]
        if self.next == "/" and not (following and following[0].text[1:] in FUNCTIONS):
            raise NotMath("a quotient that may be within the function")
        return [value]

    def matrix(self, begin: str) -> Any:
        kind = begin[len(r"\begin{") : -1]
        if kind == "array" and self.found("{"):
            while not self.found("}"):
                self.take()
        rows: list[list[Any]] = [[]]
        end = begin.replace("begin", "end")
        while not self.found(end):
            if self.found(r"\\"):
                rows.append([])
            elif not self.found("&"):
                rows[-1].append(self.expression())
        rows = [row for row in rows if row]
        matrix = sympy.ImmutableMatrix(rows)
        if kind == "vmatrix":
            _check_rows(matrix)
            return matrix.det()
        if kind not in ("matrix", "pmatrix", "bmatrix", "array", "smallmatrix"):
            raise NotMath(f"{begin} is not known")
        return matrix


# ------------------------------------------------------------------------------------------------ sizes


def power(base: Any, exponent: Any) -> Any:
    """`base` to the `exponent`.

    Raises:
        TooLarge: the result has too many digits.
    """
    if isinstance(base, sympy.MatrixBase):
        if not isinstance(exponent, Integer) or abs(exponent) > 10:
            raise TooLarge("a power of a matrix")
        _check_rows(base, powers=abs(exponent))
    elif isinstance(exponent, Rational):
        numbers = [part for part in base.atoms(Rational)] if base.is_number else []
        largest = max((max(abs(number.p), number.q) for number in numbers), default=1)
        if exponent.q > MAX_ROOT or abs(exponent) * math.log10(max(largest, 2)) > MAX_RESULT_DIGITS:
            raise TooLarge("a number is too large")
    elif base.is_number and exponent.is_number:
        digits = exponent.evalf(5) * sympy.log(base, 10).evalf(5) if base != 0 else sympy.S.Zero
        if sympy.Abs(digits).evalf(5) > MAX_RESULT_DIGITS:
            raise TooLarge("a number is too large")
    result = base**exponent
    if isinstance(result, sympy.Pow) and result.exp.is_Rational and result.exp.q > MAX_ROOT:  # roots of roots
        raise TooLarge("a root of too high a degree")
    return result


def _check_rows(matrix: Any, powers: int = 1) -> None:
    if (matrix.free_symbols and powers > 2) or max(matrix.shape) > MAX_ROWS * (1 if matrix.free_symbols else 5):
        raise TooLarge("a matrix is too large")


def _small(value: Any) -> Any:
    """The argument of a factorial."""
    if isinstance(value, Rational) and abs(value) > 3000:
        raise TooLarge("a number is too large")
    return value


def _divisor(name: str, values: Sequence[Any]) -> Any:
    """Of numbers; of letters nothing is known, and their polynomials' is another one."""
    if not all(isinstance(value, Integer) for value in values):
        return sympy.Function(name)(*values)
    return Integer((sympy.igcd if name == "gcd" else sympy.ilcm)(*values))


def _binomial(over: Any, under: Any) -> Any:
    if any(isinstance(part, Rational) and abs(part) > 30_000 for part in (over, under)):
        raise TooLarge("a number is too large")
    return sympy.binomial(over, under)
