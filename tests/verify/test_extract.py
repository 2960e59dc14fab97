import pytest
from clock import steps_of
from hypothesis import given
from hypothesis import strategies as st

from spark_rl.verify import box, extract_answer, visible


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"so \boxed{ 5 }.", "5"),
        (r"\boxed {5}", "5"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{5} and \boxed{6", "5"),
        (r"\boxed{x = \boxed{5}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\{1, 2}", r"\{1, 2"),
        (r"\boxed{\begin{pmatrix}1\\{2}\end{pmatrix}}", r"\begin{pmatrix}1\\{2}\end{pmatrix}"),
        (r"\\boxed{5}", "5"),
        (r"a \\\boxed{5}", "5"),
        ("\\boxed{two\nlines}", "two\nlines"),
        (r"} \boxed{5} {", "5"),
        (r"{ \boxed{5}", "5"),
        (r"\boxed{5}\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed{\frac{1{2}}", None),
        (r"\boxed5", None),
        (r"\fbox{5}", None),
        ("the answer is 5", None),
        ("\\", None),
        ("", None),
        (r"<think>\boxed{1}</think>\boxed{2}", "2"),
        (r"\boxed{2} <think>\boxed{1}</think>", "2"),
        (r"<think>\boxed{1}</think> forgot to answer", None),
        (r"<think>\boxed{1}", None),
        (r"\boxed{2}<think>\boxed{1}", None),
        (r"\boxed{1}</think>\boxed{2}", "2"),
        (r"\boxed{1}</think>", None),
        (r"<think>a <think> tag \boxed{1}</think>\boxed{2}", "2"),
        (r"<think>a</think>\boxed{1}</think>\boxed{2}", "2"),
    ],
)
def test_answers(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("<think>hm</think>\n\nIt is 5.", "It is 5."),
        ("hm</think>It is 5.", "It is 5."),
        ("<think>hm", ""),
        ("one <think>hm</think>two<think>hm</think> three", "one \ntwo\n three"),
    ],
)
def test_visible(text, shown):
    assert visible(text) == shown


pieces = st.lists(st.sampled_from(["<think>", "</think>", "<", "think>", r"\boxed{", "{", "}", "\\", " ", "5"])).map(
    "".join
)
balanced = st.recursive(
    st.text(st.characters(exclude_characters="\\{}<")),
    lambda inner: st.lists(inner).map("".join) | inner.map("{{{}}}".format),
)


@given(pieces)
def test_visible_is_idempotent_and_keeps_no_tag(text):
    shown = visible(text)
    assert visible(shown) == shown
    assert "<think>" not in shown
    assert "</think>" not in shown


@given(balanced, pieces.filter(lambda text: "think" not in text), st.text(st.characters(exclude_characters="\\{}<")))
def test_what_is_boxed_last_is_extracted(answer, before, after):
    assert extract_answer(f"<think>{before}</think>{before} {box(answer)}{after}") == (answer.strip() or None)


@given(pieces)
def test_an_extracted_answer_survives_boxing(text):
    answer = extract_answer(text)
    if answer is not None and "boxed" not in answer and not answer.endswith("\\"):  # which would escape the brace
        assert extract_answer(box(answer)) == answer


@pytest.mark.parametrize(
    "unit", [r"\boxed{", r"\boxed{}", "{", "}", "\\", r"\boxed  ", "<think>", "</think>", "<", " "]
)
def test_linear_time_on_a_megabyte(unit):
    text = unit * (2**20 // len(unit))
    assert extract_answer(text) is None
    assert steps_of(lambda: extract_answer(text)) < 100 * len(text)  # 3 at most; quadratic would take hours
