"""Values are made together with several notations of them; notations are equal exactly where the values are."""

import os
import time
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spark_rl.verify import grade

MANY = settings(max_examples=1000 if os.environ.get("SPARK_RL_SOAK") else 40, deadline=None)


def reward(answer, gold, **metadata):
    return grade(answer, gold, "math", metadata).reward


def agree(one, other):
    """Whether two answers are equal; it is the same in both directions."""
    rewards = {reward(one, other), reward(other, one)}
    assert len(rewards) == 1, (one, other, rewards)
    return rewards == {1.0}


# ------------------------------------------------------------------------------------------------ notations of values


def of_integer(value):
    yield from (f"{value}", f"${value}$", rf"\({value}\)", rf"\boxed{{{value}}}", rf"\text{{{value}}}", f"{value}.0")
    yield from (f"{value:,}", f"{value:,}".replace(",", r"\,"), f"{value:,}".replace(",", "{,}"))
    yield from (rf"\frac{{{3 * value}}}{{3}}", f"{value * 2}/2", f"({value + 7})-7", f"{value}".replace("-", "−"))
    yield from (rf"{value * 10}\times10^{{-1}}", f"{value}e0", rf"\sqrt[3]{{{value**3}}}", rf"x = {value}")


def of_fraction(value):
    over, under = value.numerator, value.denominator
    sign, size = "-" * (over < 0), abs(over)
    yield from (rf"\frac{{{over}}}{{{under}}}", rf"{sign}\dfrac{{{size}}}{{{under}}}", f"{over}/{under}")
    yield from (rf"\left({over}\right)/{under}", rf"{over}\cdot{under}^{{-1}}", rf"{{{over} \over {under}}}")
    yield f"{sign}{repeating(Fraction(size, under))}"
    if under > 1 and size > under:
        yield from (
            rf"{sign}{size // under}\frac{{{size % under}}}{{{under}}}",
            f"{sign}{size // under} {size % under}/{under}",
        )


def repeating(value):
    """A positive fraction as a decimal whose period is under a bar."""
    whole, rest = divmod(value.numerator, value.denominator)
    digits, seen = "", {}
    while rest and rest not in seen:
        seen[rest] = len(digits)
        digit, rest = divmod(10 * rest, value.denominator)
        digits += str(digit)
    if not rest:
        return f"{whole}.{digits or 0}"
    return rf"{whole}.{digits[: seen[rest]]}\overline{{{digits[seen[rest] :]}}}"


def of_root(value):
    """Of factor, radicand and degree."""
    factor, radicand, degree = value
    root = rf"\sqrt[{degree}]" if degree > 2 else r"\sqrt"
    yield from (rf"{factor}{root}{{{radicand}}}", rf"{factor}\cdot{radicand}^{{1/{degree}}}")
    yield from (rf"{root}{{{radicand * factor**degree}}}", rf"{2 * factor}\frac{{{root}{{{radicand}}}}}2")


def of_complex(value):
    real, imaginary = value
    yield from (f"{real}+{imaginary}i", f"{imaginary}i+{real}", rf"\frac{{{2 * real}+{2 * imaginary}i}}{{2}}")
    yield from (f"{real}-{imaginary}i^3", f"i({imaginary}-{real}i)", rf"{real}+\sqrt{{-{imaginary**2}}}")


def of_roots(value):
    """A polynomial by its two roots."""
    one, other = value
    yield from (f"(x-({one}))(x-({other}))", f"(x-({other}))*(x-({one}))", f"x^2-({one + other})x+({one * other})")
    yield from (f"x(x-({one}))-({other})x+({one * other})", f"({one}-x)({other}-x)")


SMALL = st.integers(-(10**6), 10**6)
VALUES = {
    "integers": (SMALL, of_integer),
    "fractions": (st.fractions(-50, 50, max_denominator=60).filter(lambda value: value.denominator > 1), of_fraction),
    "roots": (st.tuples(st.integers(2, 9), st.sampled_from([2, 3, 5, 6, 7, 10]), st.sampled_from([2, 3])), of_root),
    "complex": (st.tuples(st.integers(1, 30), st.integers(1, 30)), of_complex),
    "polynomials": (
        st.tuples(st.integers(-9, 9), st.integers(-9, 9)).map(lambda roots: tuple(sorted(roots))),
        of_roots,
    ),
}
KINDS = pytest.mark.parametrize("kind", VALUES)


@KINDS
@MANY
@given(st.data())
def test_notations_are_equal_exactly_where_their_values_are(kind, data):
    values, notations = VALUES[kind]
    one, other = data.draw(values), data.draw(values)
    assume(kind != "fractions" or one == other or abs(one - other) > 0.1)  # a gold 10.5 may be rounded
    draw = {value: list(notations(value)) for value in (one, other)}
    first, again, second = (data.draw(st.sampled_from(draw[value])) for value in (one, one, other))
    assert agree(first, first)
    assert agree(first, again)
    assert agree(first, second) == (one == other)


@KINDS
@MANY
@given(st.data())
def test_a_neighbouring_value_is_another_answer(kind, data):
    values, notations = VALUES[kind]
    value = data.draw(values)
    near = value + 1 if not isinstance(value, tuple) else (value[0] + 1, *value[1:])
    if kind == "fractions":
        near = value + Fraction(1, 7)  # no decimal of a place or more is rounded so far
    if kind == "polynomials":
        near = tuple(sorted(near))
    one, other = (data.draw(st.sampled_from(list(notations(each)))) for each in (value, near))
    assert not agree(one, other)


LISTS = {
    "tuple": (lambda parts: f"({', '.join(parts)})", lambda values: values),
    "set": (lambda parts: rf"\{{{', '.join(parts)}\}}", frozenset),
    "list": (lambda parts: r" \text{ and } ".join(parts), sorted),
    "interval": (lambda parts: rf"\left[{parts[0]}, {parts[-1]}\right)", lambda values: (values[0], values[-1])),
}
SHORT_LISTS = st.lists(
    st.fractions(-9, 9, max_denominator=9).filter(lambda value: value.denominator > 1), min_size=2, max_size=4
)


@pytest.mark.parametrize("kind", LISTS)
@MANY
@given(st.data())
def test_of_several_values_the_order_counts_where_it_means_something(kind, data):
    wrap, means = LISTS[kind]
    values = data.draw(SHORT_LISTS)
    others = data.draw(st.permutations(values) | SHORT_LISTS)
    if kind == "interval":
        values, others = sorted(values), sorted(others)
    one, other = (
        wrap([data.draw(st.sampled_from(list(of_fraction(value)))) for value in each]) for each in (values, others)
    )
    if kind == "interval" and (values[0] == values[-1] or others[0] == others[-1]):
        return
    assert agree(one, other) == (means(values) == means(others))


LENGTHS = {"mm": 1, "cm": 10, "m": 1000, "km": 1_000_000, "inches": Fraction(254, 10), "feet": Fraction(3048, 10)}


@MANY
@given(st.integers(1, 10**6), *[st.sampled_from(sorted(LENGTHS))] * 2, st.integers(0, 2))
def test_units_are_converted(value, one, other, more):
    converted = Fraction(value) * LENGTHS[one] / LENGTHS[other] + Fraction(more, 1000)
    answer = rf"{converted.numerator}/{converted.denominator}\text{{ {other}}}"
    assert agree(answer, rf"{value}\text{{ {one}}}") == (more == 0)
    assert agree(rf"{value}\text{{ {one}}}", rf"{value}\ \mathrm{{{other}}}") == (one == other)


# ------------------------------------------------------------------------------------------------ any text

_PIECES = r"""1 2 10 0.5 1e9 x n i e \pi f(x) \alpha + - * / ^ ^2 ^{10} ! ' _1 = < \le \ne \in , ; : | ( ) [ ] { } \{ \}
\frac \frac12 \sqrt \sqrt[3]{2} \binom52 \sin \ln \log_2 \max \int_0^1 \sum_{i=1}^{n} dx \infty \emptyset \mathbb{R} \pm
\ldots ^\circ \% \$ \text{cm} \text{million} \text{or} \begin{pmatrix} \end{pmatrix} & \\ \overline{ \vec{a} \over ½ √
≤ – (1,2) [0,1] \{1,2\} x>3 |x| \cup \setminus \approx"""
TEXTS = st.lists(st.sampled_from(_PIECES.split()), min_size=1, max_size=9).map(" ".join)


@MANY
@given(TEXTS, st.sampled_from(["5", r"\frac12", "x^2+1", "[0,1]", r"5\text{ cm}", "x>3", r"\{1,2\}", "y=2x+1"]))
def test_any_text_gets_a_reward(text, gold):
    verdict = grade(text, gold)
    assert verdict.reward in (0, 1), verdict
    assert reward(gold, text) in (0, 1, None)
    assert reward(text, text) in (1, None)
    if verdict.reward == 1:
        assert reward(text, gold + " ") == 1


HUGE = {
    "spaces": "5" + " " * 100_000 + "x",
    "a long list": ",".join(map(str, range(20_000))),
    "exponent": "1e999999999",
    "powers": "9^{9^{9^{9}}}",
    "power of an expression": r"(1+\sqrt2)^{9^9}",
    "factorials": "((3000!)!)!",
    "brackets": "(" * 900 + "1" + ")" * 900,
    "braces": r"\sqrt{" * 300 + "2" + "}" * 300,
    "a sum": r"\sum_{i=1}^{1000000000} \sqrt{i}",
    "a product": r"\prod_{i=1}^{1000000000} i",
    "an integral": r"\int \frac{\ln(x+\sqrt{x^2+1})}{x^5+x+1} dx",
    "variables": "(" + "+".join(f"x_{{{place}}}" for place in range(9)) + ")^{40}",
    "a determinant": r"\begin{vmatrix}" + r"\\".join(["a&b&c&d&f&g&h&k&l"] * 9) + r"\end{vmatrix}",
    "an inverse": r"\begin{pmatrix}x+1&y\\z&w\end{pmatrix}^{-10}",
    "an inequality": "x^4+x^3-7x^2+x-1>0",
    "a union": r"\cup".join(f"({2 * place},{2 * place + 1})" for place in range(150)),
    "conditions": " or ".join(f"{2 * place}<x<{2 * place + 1}" for place in range(100)),
    "a maximum": rf"\max({','.join(f'x_{place}' for place in range(60))})",
    "a set": r"\{" + ",".join(rf"\sqrt{{{place}}}" for place in range(2, 170)) + r"\}",
    "logarithms": r"\log_{\log_{2}3}" * 20 + "5",
    "parts of a power": r"\arg(\frac{x}{y}^{1000})",
    "a degree": "x>3|x|^{1000}",
    "a binomial": r"\binom{10^9}{k}",
    "a unit": r"5\text{ cm}^{9^{9^{9^{9}}}}",
    "hyperbolic": r"\exp(\sinh(\sinh(10^9)))",
    "a tower": "e^{e^{e^{e^{5}}}}",
}


def cpu_time(answer, gold):
    start = time.process_time()
    assert reward(answer, gold) == 0
    return time.process_time() - start


@pytest.fixture(scope="module")
def ordinary():
    """CPU time of an ordinary comparison of expressions, the first ones of which load SymPy's parts."""
    pairs = [(rf"\frac{{x^{n}-1}}{{x-1}}+\sin x", rf"\sqrt{{x^{n}+{n}}}") for n in range(2, 22)]
    return max(cpu_time(*pair) for pair in pairs[-10:] + pairs)


@pytest.mark.parametrize("answer", HUGE.values(), ids=HUGE)
def test_limits_decide_before_what_takes_long(answer, ordinary):
    cpu_time(r"\int_0^1 x dx + \sum_{i=1}^{3} i^2", "0")  # loads the other parser
    assert min(cpu_time(answer, gold) for gold in ("5", "x^2+n")) < 300 * ordinary
    assert reward(answer, answer) in (1, None)
    assert reward("5", answer) in (0, None)


@pytest.mark.parametrize(
    ("answer", "gold", "metadata", "right"),
    [
        ("3.14", "3.1415", {"tolerance": 0.01}, 1),
        ("3.14", "3.1415", {"tolerance": 0.001}, 0),
        (r"\pi", "3.1", {"tolerance": 0.05}, 1),
        ("101", "100", {"relative_tolerance": 0.01}, 1),
        ("102", "100", {"relative_tolerance": 0.01}, 0),
        ("(1.001, 2)", "(1, 2)", {"tolerance": 0.01}, 1),
        (r"1.001\text{ km}", r"1000\text{ m}", {"tolerance": 2}, 1),
        (r"1.003\text{ km}", r"1000\text{ m}", {"tolerance": 2}, 0),
        ("5", r"5\text{ cm}", {"units": "strict"}, 0),
        (r"5\text{ cm}", "5", {"units": "strict"}, 0),
        (r"50\text{ mm}", r"5\text{ cm}", {"units": "strict"}, 1),
        ("0.05", r"5\%", {"units": "strict"}, 1),
        ("5", r"5\%", {"units": "strict"}, 0),
        ("5", r"\frac{1}{", {}, None),
        ("5", "", {}, None),
        ("5", "{", {}, None),
    ],
)
def test_what_the_metadata_allow(answer, gold, metadata, right):
    assert reward(answer, gold, **metadata) == right
