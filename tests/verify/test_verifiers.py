import re
import subprocess
import sys
from fractions import Fraction

import pytest
from clock import steps_of
from hypothesis import given
from hypothesis import strategies as st

from spark_rl.verify import Verdict, check_gold, gold_problem, grade, resolve, verdict_side


def reward(verifier, answer, gold, **metadata):
    return grade(answer, gold, verifier, metadata).reward


MATH = [  # answer, gold, right
    ("1/2", r"\frac{1}{2}", True),
    ("0.5", "1/2", True),
    (r"\dfrac12", "0.5", True),
    ("x=5", "5", True),
    ("5", "x = 5", True),
    ("y=5", "x=5", False),
    ("( 1, 2 )", "(1,2)", True),
    ("(2,1)", "(1,2)", False),
    ("(1, 2]", "(1,2]", True),
    ("[1, 2]", "(1,2]", False),
    ("{2,1}", r"\{1,2\}", True),
    (r"1 \text{ and } 2", "2, 1", True),
    ("50%", r"50\%", True),
    ("50", r"50\%", True),
    ("0.5", r"50\%", False),
    ("-7", "−7", True),
    (r"\$5", "5", True),
    ("$5$", "5", True),
    ("1,234", "1234", True),
    ("1000", "1e3", True),
    ("2**10", "1024", True),
    ("(x+1)^2", "x^2+2x+1", True),
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"\frac{\pi}{2}", "pi/2", True),
    (r"\sin x", "sin(x)", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", True),
    ("cat", r"\text{Cat}", True),
    ("act", "cat", False),
    ("new york", "New York", True),
    ("6", "5", False),
    ("5 or 6", "5", False),
    ("$6$ $5$", "5", False),
    ("final answer is 5, answer: 6", "5", False),
    ("???", "5", False),
]


@pytest.mark.parametrize(("answer", "gold", "right"), MATH)
def test_math(answer, gold, right):
    assert reward("math", answer, gold) == float(right)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("5.", "5"),
        (r"\frac{1}{2}.", "0.5"),
        ("1 000", "1000"),
        (r"1\,234\,567.5", "1234567.5"),
        (r"10,\!000", "10000"),
        (r"10\ 000", "10000"),
        ("2 1/2", "2.5"),
        ("-2 1/2", "-2.5"),
        (r"\frac{1}{2}\mathrm{e}^{2}", r"\frac{e^2}{2}"),
        (r"1-\frac{1}{\mathrm e}", "1-e^{-1}"),
        (r"1+2\mathrm{i}", "1+2i"),
        ("2i", r"2\cdot i"),
        (r"\mathbf{5}", "5"),
        (r"\textbf{-1/2}", "-0.5"),
        ("2√3", r"2\sqrt{3}"),
        ("90°", r"90^\circ"),
        ("2·3", "6"),
        ("(-∞, 3]", r"(-\infty, 3]"),
        ("x²+1", "x^2+1"),
        ("12:00", "12:00"),
        ("10:30 AM", "10:30 a.m."),
        ("2010-2015", "2010 – 2015"),
        ("+7", "7"),
        ("007", "7"),
    ],
)
def test_math_reads_what_is_meant(written, meant):
    assert reward("math", written, meant) == 1
    assert reward("math", meant, written) == 1
    assert reward("math", "0", written) == 0
    assert reward("math", "1/2", written) == float(meant == "0.5")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("1000", "1, 000"), ("1200", "(1, 200)"), ("1200", r"1,\ 200"), ("5", r"5\,e"), ("10000", "10^4 000")],
)
def test_math_does_not_read_more_than_is_meant(answer, gold):
    assert reward("math", answer, gold) == 0


TEXTS = [
    *(
        "Figure 2",
        "Room 5",
        "10:30 AM",
        "2nd",
        "A and C",
        "x-axis",
        "red, blue",
        "II",
        "3 apples",
        "July 4, 2020",
        "3:45",
    ),
    *(
        "2010-2015",
        "It is parallel",
        "June 20",
        "N2O",
        "is",
        "No",
        "(C)",
        "Ca(OH)2",
        "7 and a half",
        "x if y > 0",
        "AB",
    ),
]


@pytest.mark.parametrize("text", TEXTS)
def test_math_reads_the_same_text_with_and_without_text_commands(text):
    for answer in (
        rf"\mathrm{{\text{{{text}}}}}",
        rf"\textbf{{{text}.}}",
    ):  # as golds, math-verify reads not all of them
        assert reward("math", answer, text) == 1
    for answer in (rf"\text{{{text}}}", rf"\text{{{text}.}}", f" ${text}$ ", f"{text}."):
        assert reward("math", answer, text) == reward("math", text, answer) == 1
        assert reward("math", f"not {text}", answer) == reward("math", rf"\text{{not }}{text}", answer) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        # words
        (r"\text{red}, \text{blue}", "red, blue", True),
        (r"3\text{ apples}", "3 apples", True),
        (r"3\ \text{apples}", "3 apples", True),
        (r"\text{Figure 2}", "FIGURE 2", True),
        (r"\text{Figure 2}", "Figure 3", False),
        (r"\text{June 20}", "June 2", False),
        ("July 4, 2020", "July 5, 2020", False),
        ("It is parallel", "Is it parallel", False),
        ("is", "si", False),
        (r"\text{is}", "si", False),
        ("on", "no", False),
        ("No", "on", False),
        ("No", "NO", True),
        ("in", "ni", False),
        ("A and C", "C and A", True),
        ("A and C", "A and B", False),
        ("A or B", "A", False),
        # chemical formulas, which a digit after a letter makes
        ("N2O", "NO2", False),
        ("H2O", "HO2", False),
        ("H2O", "2HO", False),
        ("2H2O", "4HO", False),
        ("O2", "2O", False),
        ("Fe2(SO4)3", "Fe3(SO4)2", False),
        ("H2O", r"\mathrm{H2O}", True),
        (r"\mathrm{H_2O}", r"\text{H}_2\text{O}", True),
        ("5C3", "3C5", False),
        ("A3F", "a3f", True),
        # times and years
        ("2010-2015", "-5", False),
        ("2015-2010", "5", True),
        ("2010-2015", "2010--2015", True),
        ("2010-2015", "2010-2016", False),
        ("3:45", "3/45", True),
        ("3:05", "3/5", False),
        ("9:30 am", "09:30 AM", True),
        ("9:05", "09:05", True),
        ("9:30", "09:30", True),
        ("6:5", "12:10", True),
        (r"\frac{2}{3}", "10:15", True),
        ("2 H2O", "2H2O", True),
        ("3:05", "3/5", False),
        ("10:30 AM", "10:30 pm", False),
        ("10:30", "10:30 pm", False),
        ("10:30:15", "10:30:16", False),
        # mathematics
        ("xy", "yx", True),
        ("ab", "ba", True),
        ("at", "ta", True),
        ("2x", r"x \cdot 2", True),
        ("3xy", "3yx", True),
        ("2AB", "2BA", True),
        ("x2", "2x", True),
        ("5:12", r"\frac{5}{12}", True),
        ("3:4", "6:8", True),
        ("x meters", "x", True),
        (r"\frac{1}{23}", r"\frac{12}{3}", False),
        (r"x^{12}", "x^1 2", False),
        (r"\text{12}", "1 2", False),
        (r"\mathbf{x}+1", "x+1", True),
        (r"\sin x", "sin x", True),
        (r"1 \text{ or } 2", r"1", False),
    ],
)
def test_math_tells_text_from_mathematics(one, other, same):
    assert reward("math", one, other) == reward("math", other, one) == float(same)


@given(st.text("NOHCa", min_size=1, max_size=4), st.text("NOH2", min_size=1, max_size=4))
def test_math_takes_formulas_for_the_same_only_if_they_are_spelled_so(one: str, other: str):
    assert reward("math", f"C2{one}", f"C2{other}") == float(one.casefold() == other.casefold())


@given(st.integers(-(10**30), 10**30), st.integers(-(10**30), 10**30))
def test_math_is_equality_of_integers(a: int, b: int):
    assert reward("math", str(a), str(b)) == float(a == b)
    assert reward("math", f"{a:+}", str(a)) == 1


@pytest.mark.parametrize("gold", ["???", "", r"\frac{"])
def test_math_gold_that_is_no_mathematics(gold):
    assert grade("5", gold, "math") == Verdict(None, "5", "bad_gold")


@pytest.mark.parametrize(
    ("answer", "gold", "right"), [row for row in MATH if row[0][0] not in "ac$f?" and row[1] != "1e3"]
)
def test_math_agrees_with_math_verify(answer, gold, right):
    """Where we rewrite nothing, the grade is that of the library with its own defaults on the boxed text."""
    from math_verify import parse, verify

    if "**" not in answer and gold not in ("pi/2", "sin(x)", "New York", r"50\%"):
        assert verify(parse(rf"$\boxed{{{gold}}}$"), parse(rf"$\boxed{{{answer}}}$")) is right


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("A", "A", 1.0),
        ("a", "A", 1.0),
        ("(A)", "A", 1.0),
        ("A.", "A", 1.0),
        (r"\text{A}", "A", 1.0),
        (r"\textbf{(A)}", "A", 1.0),
        ("$A$", "A", 1.0),
        ("**A**", "A", 1.0),
        (r"\text{Yes}", "Yes", 1.0),
        (r"\text{ yes. }", "Yes", 1.0),
        ("No", "Yes", 0.0),
        ("B", "A", 0.0),
        ("A or B", "A", 0.0),
        ("AB", "A", 0.0),
        ("oN", "No", 0.0),
        ("not  sure", "Not sure", 1.0),
        (".5", "5", 0.0),
        ("yes, it is", "Yes", 0.0),
        ("Yes. Or no", "Yes", 0.0),
        ("Yes or No", "Yes", 0.0),
        ("A. 12", "A. 13", 0.0),
        ("A", "A. 12", 0.0),
        ("A", "()", None),
    ],
)
def test_choice(answer, gold, right):
    assert reward("choice", answer, gold) == right


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("1,234.50", "1234.5", 1.0),
        ("1{,}234", "1234", 1.0),
        ("12,34", "1234", 0.0),
        (r"\$18", "18", 1.0),
        ("−3", "-3", 1.0),
        (".5", "1/2", 1.0),
        (r"\frac{1}{2}", "0.5", 1.0),
        (r"-\dfrac{2}{4}", "-0.5", 1.0),
        ("0.3333333", "1/3", 0.0),
        ("1e3", "1000", 1.0),
        ("1/0", "1", 0.0),
        ("five", "5", 0.0),
        ("5 5", "5", 0.0),
        ("٥", "5", 0.0),
        ("nan", "5", 0.0),
        ("5", "five", None),
        ("5", "1/0", None),
        ("5", "1e999999999", None),
    ],
)
def test_numeric(answer, gold, right):
    assert reward("numeric", answer, gold) == right


def test_numeric_tolerance():
    assert reward("numeric", "3.14", "3.1416", tolerance=0.01) == 1
    assert reward("numeric", "3.1", "3.1416", tolerance=0.01) == 0
    assert reward("numeric", "99", "100", relative_tolerance=0.01) == 1
    assert reward("numeric", "98.9", "100", relative_tolerance=0.01) == 0
    verdict = grade("1", "1", "numeric", {"tolerance": "some"})
    assert (verdict.reason, verdict.detail) == ("error: ValueError", "ValueError: Invalid literal for Fraction: 'some'")


@given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6))
def test_numeric_is_equality_of_rationals(a: Fraction, b: Fraction):
    assert reward("numeric", str(a), str(a)) == 1
    assert reward("numeric", str(a), str(b)) == float(a == b)
    assert reward("numeric", f"{a.numerator:,}", str(a.numerator)) == 1


HOSTILE = (
    *(
        "9",
        "(",
        "{",
        "1/",
        ",",
        "1,",
        " ",
        "1 ",
        "1 000 ",
        " a",
        "a ",
        "a. ",
        "or ",
        "(a",
        ", ",
        "x=",
        "$",
        "-",
        ".",
        ":",
    ),
    *("\\", r"\text{", r"\textbf", r"\frac", r"\frac{1}", r"\(", r"\,", r"\!", r"^\circ", "°", "=", "\n", "~", "é"),
)


@pytest.mark.parametrize("verifier", ["choice", "numeric", "exact"])
@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.parametrize("start", ["", "A. ", "1 ", "x="])
def test_inline_verifiers_are_fast_on_hostile_answers(verifier, piece, start):
    """For `numeric` also just below the length from which it reads nothing."""
    for length in (900, 100_000):
        answer = start + piece * (length // len(piece))
        pairs = [(answer, "A" if verifier == "choice" else "5"), ("5", answer), (answer + "}!", answer)]
        assert steps_of(lambda pairs=pairs: [reward(verifier, *pair) for pair in pairs]) < 1e7


@pytest.mark.parametrize("verifier", ["choice", "numeric", "exact"])
@pytest.mark.parametrize("answer", ["1e999999999", "1e-999999999", "9" * 10**6, "(" * 10**6, "1/" * 10**6, "," * 10**6])
def test_inline_verifiers_are_fast_on_huge_answers(verifier, answer):
    assert reward(verifier, answer, "5") == 0
    assert reward(verifier, "5", answer) in (0, None)
    assert steps_of(lambda: (reward(verifier, answer, "5"), reward(verifier, "5", answer))) < 4e7


@pytest.mark.parametrize(("answer", "gold", "right"), [("a  b\n", "a b", 1.0), ("A b", "a b", 0.0), ("a", " ", None)])
def test_exact(answer, gold, right):
    assert reward("exact", answer, gold) == right


def test_reasoning_gym_scores_by_its_own_rules():
    import reasoning_gym

    entry = reasoning_gym.create_dataset("countdown", size=1, seed=7)[0]
    metadata = {"dataset": "countdown", "entry": entry}
    numbers = entry["metadata"]["numbers"]
    assert reward("reasoning_gym", entry["answer"], entry["answer"], **metadata) == 1
    assert reward("reasoning_gym", f"({entry['answer']})", entry["answer"], **metadata) == 1  # another right expression
    assert reward("reasoning_gym", str(numbers[0]), entry["answer"], **metadata) < 1
    assert check_gold(entry["answer"], "reasoning_gym", metadata) is None


def test_partial_credit_is_neither_right_nor_wrong():
    import reasoning_gym

    entry = reasoning_gym.create_dataset("leg_counting", size=1, seed=1)[0]
    verdict = grade(
        f"{entry['answer']} legs", entry["answer"], "reasoning_gym", {"dataset": "leg_counting", "entry": entry}
    )
    assert 0 < verdict.reward < 1
    assert verdict.reason == "partial"


def test_failures_are_values():
    assert grade("5", "5", "reasoning_gym", {}).reason == "error: KeyError"
    missing = grade("5", "5", "no_such_module:score")
    assert missing.reason == "error: ModuleNotFoundError"
    assert missing.detail == "ModuleNotFoundError: No module named 'no_such_module'"
    assert grade("5", "5", "math:no_such_function").detail.endswith("module 'math' has no attribute 'no_such_function'")


@pytest.mark.parametrize(
    ("name", "nearest"), [("maths", "math"), ("Choice", "choice"), ("reasoning-gym", "reasoning_gym")]
)
def test_an_unknown_verifier_is_refused_with_the_nearest_name(name, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        resolve(name)


@pytest.mark.parametrize("name", ["a:", ":b", ":", "trl:", "trl:foo", "trl:foo:", "trl::bar", "a:b:c", "a b:c", ".a:b"])
def test_a_name_that_names_no_function_is_refused(name):
    with pytest.raises(ValueError, match=r"names no function: write it as (trl:)?module:function"):
        resolve(name)


def test_reward_functions_read_the_response_and_others_the_answer():
    assert resolve("trl:some.module:f").reads == "response"
    assert {resolve(name).reads for name in ("math", "choice", "some.module:f")} == {"answer"}
    assert resolve("trl:f:g").isolated and resolve("f:g").isolated


@pytest.mark.parametrize(
    ("gold", "verifier", "complaint"),
    [
        ("1/2", "math", None),
        (r"\{1,2\}", "math", None),
        ("Yes", "choice", None),
        ("???", "math", "cannot read"),
        ("", "exact", "cannot be written"),
        ("}", "exact", "cannot be written"),
        ("12 apples", "numeric", None),
        ("12 or 13 apples", "numeric", "cannot read"),
        ("5", "reasoning_gym", r"failed on the gold \(KeyError: 'dataset'\)"),
    ],
)
def test_check_gold(gold, verifier, complaint):
    problem = check_gold(gold, verifier, {})
    if complaint is None:
        assert problem is None
    else:
        assert re.search(complaint, problem)


def test_importing_the_package_loads_nothing_heavy():
    heavy = "{'torch', 'sympy', 'math_verify', 'reasoning_gym', 'numpy'}"
    code = f"import sys, spark_rl.verify; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("reward", "right_at", "reason"),
    [
        (5.0, 1.0, "correct"),
        (5.0, 5.0, "correct"),
        (2.0, 5.0, "partial"),
        (-1.0, 5.0, "wrong"),
        (0.5, 0.5, "correct"),
        (-0.5, -1.0, "correct"),
        (-2.0, -1.0, "wrong"),
    ],
)
def test_right_begins_where_a_scale_says_so(reward, right_at, reason):
    assert Verdict(reward, "5", "partial").at(right_at).reason == reason


def test_what_no_verifier_has_graded_is_right_on_no_scale():
    assert Verdict(0.0, None, "unparsed").at(-1.0).reason == "unparsed"
    assert Verdict(None, "5", "timeout").at(-1.0).reason == "timeout"


@pytest.mark.parametrize(
    ("reward", "verifier", "right_at", "complaint"),
    [
        (2.0, "words:stars", 1.0, None),
        (5.0, "words:stars", 5.0, None),
        (0.5, "words:stars", 0.5, None),
        (0.5, "words:stars", 1.0, "gives the gold itself 0.5, and right is 1 or more"),
        (-1.0, "words:stars", 2.0, "gives the gold itself -1, and right is 2 or more"),
        (1.0, "math", 2.0, "The math verifier gives the gold itself 1, and right is 2 or more"),
        (-1.0, "trl:words:stars", 1.0, None),
    ],
)
def test_a_gold_must_be_right_on_its_scale(reward, verifier, right_at, complaint):
    problem = gold_problem(Verdict(reward, "5", "correct" if reward >= 1 else "partial"), verifier, right_at)
    assert problem is None if complaint is None else complaint in problem


@pytest.mark.parametrize(
    ("text", "side"), [("yes.", 0), (r"\text{No}", 1), ("perhaps", None), ("Yes or No", None), ("", None)]
)
def test_a_verdict_is_one_of_two_words(text: str, side: int | None) -> None:
    assert verdict_side(text, ("Yes", "No")) == side
