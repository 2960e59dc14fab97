from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_rl.verify import grade
from spark_rl.verify.quantity import quantity


def reward(answer, gold, verifier="numeric"):
    return grade(answer, gold, verifier).reward


EIGHTEEN = [
    r"18 \text{ dollars}",
    "18 dollars",
    "18 dollars.",
    r"18\text{ dollars}",
    r"18\,\mathrm{kg}",
    r"18\text{kg}",
    r"18 \text{ cm}^2",
    "18 miles per hour",
    "18 square feet",
    r"\text{18}",
    r"\text{18 dollars}",
    r"\mathbf{18}",
    r"\textbf{\text{18}}",
    r"\boldsymbol{18}",
    r"18\%",
    "18%",
    "18 %",
    "18 percent",
    r"18^\circ",
    r"18^{\circ}",
    "18°",
    r"18^\circ\text{C}",
    "x=18",
    "x = 18.",
    r"\text{Total} = \$18",
    r"\(18\)",
    r"\[18\]",
    "$x = 18$",
    r"\$18",
    r"\$18.00",
    r"$\$18$",
    r"18\$",
    "€18",
    "36/2",
    "+ 18",
]


@pytest.mark.parametrize("answer", EIGHTEEN)
def test_a_number_is_read_in_ordinary_latex(answer):
    assert reward(answer, "18") == 1
    assert reward("18", answer) == 1
    assert reward(answer, "18.5") == 0
    assert reward("19", answer) == 0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"1,\!800", "1800"),
        ("1 800", "1800"),
        ("1\u2009800", "1800"),
        ("1\u202f800", "1800"),
        (r"1\,800", "1800"),
        (r"1\ 800.5", "1800.5"),
        ("1~800", "1800"),
        ("1 234 567", "1234567"),
        (r"0.123\,456", "0.123456"),
        ("1,234 apples", "1234"),
        (r"\frac12", "0.5"),
        (r"\frac1{2}", "0.5"),
        (r"\frac {1} {2}", "0.5"),
        (r"-\frac{1}{2}", "-0.5"),
        (r"\frac{1{,}000}{2}", "500"),
        (r"1\frac{1}{2}", "1.5"),
        (r"1\frac12", "1.5"),
        (r"-1\frac{1}{2}", "-1.5"),
        ("1 1/2", "1.5"),
        ("1 1/2 cups", "1.5"),
        (r"2\,\dfrac{3}{4} \text{ cups}", "2.75"),
        (r"12\frac{345}{678}", "8481/678"),
        (r"-\$5", "-5"),
        (r"\$-5", "-5"),
        ("- 5", "-5"),
    ],
)
def test_a_number_is_read_in_all_its_forms(answer, gold):
    assert reward(answer, gold) == 1
    assert reward(gold, answer) == 1


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "18 or 20",
            "20 or 18",
            "18 or twenty",
            "18 and 20",
            "18, 20",
            "18-20",
            "18–20",
            "18 to 20",
            "18 20",
            "18/20",
        ),
        *(
            "18 twenty",
            "18 or more",
            "18 to twenty",
            "18 but maybe twenty",
            "about 18",
            "not 18",
            "18 not",
            "~18",
            "±18",
        ),
        *("18x", "18 x", "18 xy", "18pi", "18 pi", r"18\pi", "18!", "18^2", "18e", "18 e", "1e", "-18", "18i", "18 i"),
        *(
            "18 thousand",
            "18 theta",
            "18 K",
            "18 million dollars",
            "18 dozen",
            "18 halves",
            "18 squared",
            "18 times two",
            "18 over five",
        ),
        *(
            r"\{18, 20\}",
            r"\{18\}",
            "(18, 20)",
            "[18]",
            "(18)",
            "18:20",
            "18 = 20",
            "x = y = 18",
            r"x \ne 18",
            "x > 18",
        ),
        *(r"\not=18", "not = 18", "x != 18", "x = 18 or x = 20", "f(x) = 18", "18 cm 20 mm", "18% 20%", "18 + 0"),
        *(r"\(18\) or \(20\)", r"\text{18} \text{20}", r"\text{18}\text{200}", "$18$ $20$", r"\$18 \$20"),
        *(
            r"18\frac{1}{2}",
            r"\frac{18}{1}\frac{1}{2}",
            r"\frac{18}{0}",
            "18 0/1",
            "18 4/4",
            "18 a b c",
            "18 a very long word",
        ),
        *(
            "18 apples left over in two baskets",
            "18..",
            "",
            "x =",
            "dollars",
            r"\text{}",
            r"\frac{18}{}",
            r"\frac{}{18}",
        ),
    ],
)
def test_what_is_no_number_or_two_is_not_read_as_one(answer):
    assert reward(answer, "18") == 0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("18%", "0.18"),
        ("0.18", "18%"),
        (r"18\%", "0.18"),
        (r"\frac123", "0.5"),
        (r"\frac123", "1/23"),
        (r"\frac{1}{2}3", "1/23"),
        (r"1\frac{800}{3}", "600"),
        (r"1\frac{3}{2}", "2.5"),
        (r"\$18 \$200", "18200"),
        ("$18$ $200$", "18200"),
        (r"\(18\) \(200\)", "18200"),
        ("18, 200", "18200"),
        ("18 20", "1820"),
        ("18 2000", "182000"),
        (r"18\,20", "1820"),
        ("0.5 100", "0.51"),
        ("3 4", "34"),
        ("1e3 000", "1000000"),
    ],
)
def test_two_numbers_are_not_joined(answer, gold):
    assert reward(answer, gold) == 0


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("18 km", "18 m", 0.0),
        ("$18", "€18", 0.0),
        ("5 feet", "5 ft", 1.0),
        ("18 hours", "18 hour", 1.0),
        ("18 seconds", "18 s", 1.0),
        ("y = 18", "x = 18", 0.0),
        ("18%", "18°", 0.0),
        ("18 percent", r"18\%", 1.0),
        ("18 degrees", r"18^\circ", 1.0),
        (r"18 \text{ dollars}", "18 Dollars", 1.0),
        (r"\$18", "18 dollars", 1.0),
        ("18", "18 km", 1.0),
        ("x = 18", "18 m", 1.0),
    ],
)
def test_a_label_or_a_unit_may_be_left_out_but_not_be_another(answer, gold, right):
    assert reward(answer, gold) == reward(gold, answer) == right


NUMBERS = st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**4)
DRESSES = [
    *(r"\text{%s}", r"%s \text{ apples}", "x = %s", r"\(%s\)", r"%s\%%", r"%s^\circ", r"\$%s", r"\mathbf{%s} cm")
]


def written(number: Fraction) -> str:
    r"""As a mixed number in LaTeX."""
    sign, (whole, part) = "-" * (number < 0), divmod(abs(number), 1)
    frac = rf"\frac{{{part.numerator}}}{{{part.denominator}}}" if part else ""
    return sign + (str(whole) if whole or not frac else "") + frac


@given(NUMBERS, NUMBERS, st.sampled_from(DRESSES))
def test_dress_does_not_change_a_number(a: Fraction, b: Fraction, dress: str):
    for text in (str(a), written(a)):
        assert quantity(dress % text).value == a
        assert reward(dress % text, str(b)) == float(a == b)


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.sampled_from([" or ", ", ", " and ", "-", " - ", " to ", "; ", " cm "]),
)
def test_of_two_numbers_neither_is_right(a: int, b: int, between: str):
    assert quantity(f"{a}{between}{b}") is None


@given(st.text(alphabet=r"0123 \{}$.,/-+xe%°=~!()ordfracte^", max_size=30))
def test_no_text_is_an_exception(text: str):
    assert reward(text, "18") in (0, 1)


@pytest.mark.parametrize(
    "answer", ["18 cents", "18 too low", "18 twice", "18 wrong", "18% off", "ln = 18", "about = 18"]
)
def test_words_that_change_a_number_are_no_units(answer):
    assert reward(answer, "18") == 0
