import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_rl.evaluate.rules import same_letters
from spark_rl.verify import grade
from spark_rl.verify.wording import as_text, plain, same_text

LETTERS = "ABCDEFGHIJ"


def reward(answer, gold):
    return grade(answer, gold, "choice").reward


@pytest.mark.parametrize(
    "answer",
    [
        *("A. 12", "(A) 12", "A) 12", "A: 12", "A.12", "a. 12", "A . 12", "(A). 12", "(A: 12)", "（A）12", "A．12"),
        *(
            r"\text{A. dog}",
            r"\text{(A) dog}",
            r"\textbf{A.} dog",
            r"\textbf{A}. dog",
            r"\text{A}: $x^2$",
            "**A.** dog",
        ),
        *(
            r"\text{Option A}",
            "option A",
            "Choice A.",
            "Answer: A",
            "Option (A)",
            "Answer A: dog",
            r"\textbf{Option A}",
        ),
        *(
            r"\boldsymbol{A}",
            r"\mathsf{A}",
            r"\mathbf{(A)}",
            r"\mathrm{A}",
            r"\bm{A}",
            r"\(A\)",
            r"\text{\textbf{A}}",
            "$A$.",
        ),
        *(
            "A. A dog",
            "A. a cat or a dog",
            "A. 37°C",
            "A. f(b) = 2",
            "A. It is both",
            "A. 5/2",
            "A. N2O",
        ),
        *("A.\ndog", "A. false", r"A. \frac{1}{2}", "A. A is right", "A. to be, or not to be", "(A) (12, 13)"),
    ],
)
def test_a_letter_may_be_followed_by_its_option(answer):
    assert reward(answer, "A") == reward(answer, "(a)") == reward(answer, r"\text{A}") == 1
    assert [letter for letter in LETTERS if reward(answer, letter)] == ["A"]


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "A or B",
            "A. or B.",
            "A. or B",
            "A. or b",
            "(A) or (B)",
            "A) x B) y",
            "a) x b) y",
            "A. x B. y",
            "A: x, B: y",
        ),
        *(
            "A. x; B. y",
            "A.x B.y",
            "(A) x (B)",
            "(A)(B)",
            "(A), (B)",
            "A. B",
            "A: B",
            "A. B, C",
            "A, B",
            "A and B",
            "A/B",
        ),
        *(
            "A. and also (B)",
            "A. dog, B",
            "A. dog; b",
            "A. dog and B",
            "A. Option B",
            "A. vitamin C",
            "A. wrong, the answer is B",
            "A. not A but B",
            "A) or maybe B",
            "A) -> B",
            "A. instead of b",
            "A. C B D",
            "Option A or Option B",
            "A. not B",
        ),
        *("Option A: x, Option B: y", "A. x or option B", "Option A or B", "A. B.", "A) B)", r"\text{A. }\text{B. }"),
        *(
            "AB",
            "ABC",
            "A B",
            "A.B",
            "A:B:C",
            "B. A",
            "B. x A. y",
            "not A",
            "not A.",
            "Not (A)",
            r"\neg A",
            "!A",
            r"\bar{A}",
        ),
        *(
            "neither A nor B",
            "all but A",
            "A dog",
            "A dog.",
            "a.m.",
            "A.D.",
            "the answer is A",
            "I think A",
            "option",
            "answer:",
        ),
        *(
            "options A",
            "option A dog",
            "12. A",
            "A=B",
            "-A",
            "A'B",
            "A1",
            "Apple",
            "A-B",
            "A to C",
            "A…C",
            "{A, B}",
            r"\{A, B\}",
        ),
        *(
            "A. dog\nB. cat",
            "A. 12 \\text{ or } B. 13",
            "A. dog | B",
            "A. dog & B",
            "Option: A. B. C. D.",
            "A) B) C) D)",
        ),
    ],
)
def test_two_letters_or_none_are_no_letter(answer):
    assert reward(answer, "A") == 0


@given(st.sampled_from(LETTERS), st.sampled_from(LETTERS), st.text(max_size=12))
def test_no_answer_is_two_letters(one: str, other: str, text: str):
    for answer in (
        text,
        f"{one}. {text}",
        f"({one}) {text} {other}",
        f"{one}: {other}{text}",
        f"{text}{one}) {other}.",
    ):
        assert sum(reward(answer, letter) for letter in LETTERS) <= 1


@given(
    st.permutations(LETTERS), st.sampled_from(["%s. %s", "(%s) %s", "%s) %s", "%s: %s"]), st.text("xyz 123", min_size=1)
)
def test_two_options_are_no_answer(letters: list[str], option: str, text: str):
    for between in (" ", ", ", " or ", " and ", "; ", "\n"):
        answer = between.join(option % (letter, text) for letter in letters[:2])
        assert not any(reward(answer, letter) for letter in LETTERS)


@given(st.text(max_size=8), st.text(min_size=2, max_size=8))
def test_words_are_graded_as_strictly_as_before(answer: str, gold: str):
    assert reward(f"{gold}. {answer}x", f"{gold}y") in (0, None)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (r"\text{AC}", True),
        (r"\textbf{A, C}", True),
        (r"\text{A} \text{ and } \text{C}", True),
        (r"\mathrm{C}, \mathrm{A}", True),
        (r"\boldsymbol{CA}", True),
        ("{A}, {C}", True),
        ("A. dog, C. cat", True),
        ("A", False),
        (r"\text{ABC}", False),
        ("A or C", False),
        ("A, not C", False),
        ("neither A nor C", False),
        ("not A, C", False),
        ("all except A, C", False),
        (r"\text{A C E}", False),
    ],
)
def test_same_letters(answer, right):
    assert same_letters(answer, "A, C", {}) == float(right)
    assert same_letters("A", "or", {}) is None


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (r"\text{Figure 2}.", "Figure 2"),
        (r"\textbf{\text{Figure } 2}", "Figure 2"),
        (r"3\ \mathrm{apples}", "3 apples"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"x^{\text{a}}", "x^{a}"),
        (r"\textstyle x", r"\textstyle x"),
        (r"1\\ 2", r"1\\ 2"),
        ("5.", "5"),
        ("$x$", "x"),
    ],
)
def test_plain(text, seen):
    assert plain(text) == seen


@pytest.mark.parametrize(
    "text",
    ["2x", "3ab", "x2", "xy", "AB", "at", "x", "5:12", "2x3y", "1e5", "12", "A and C", "f(2)", "10-20", "x-1", ""],
)
def test_mathematics_is_no_text(text):
    assert as_text(text) is None


def test_case_counts_in_mathematics():
    assert not any(same_text(*pair) for pair in ((r"\pi", r"\Pi"), ("x", "X"), ("ab", "AB"), (r"\sin x", r"\sin X")))
    assert same_text("the x", "The X") and same_text("N2O", "n2o")
