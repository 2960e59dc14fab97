"""Every way to state an answer: as models write it, as they try to get away with, and how long it takes to read."""

import json
import logging
import re

import pytest
from clock import seconds_of, step
from hypothesis import assume, given
from hypothesis import strategies as st

from spark_rl.verify import BOXED, Check, VerifierPool, box, format_of, formats

NAMED = ("boxed", "tags", "hash", "phrase", "last_number", "json:answer")
PATTERN = r"Result:\s*(\S+)"
ALL = (*NAMED, PATTERN)


@pytest.fixture(scope="module")
def verifiers():
    with VerifierPool() as pool:
        yield pool


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("tags", "<answer>42</answer>", "42"),
        ("tags", "<answer>\n42\n</answer>", "42"),
        ("tags", "<Answer>42</ANSWER>", "42"),
        ("tags", r"<answer>\boxed{42}</answer>", "42"),
        ("tags", r"<answer>$\boxed{\frac{1}{2}}$</answer>", r"\frac{1}{2}"),
        ("tags", r"<answer>\boxed{42</answer>", None),
        ("tags", "<answer>1</answer> no, <answer>2</answer>", "2"),
        ("tags", "<answer>1</answer> no, <answer>2", "1"),
        ("tags", "<answer>1 <answer>2</answer>", "2"),
        ("tags", "<answer>1 <answer>2</answer> 3</answer>", "2"),
        ("tags", "<answer>1</answer><answer></answer>", None),
        ("tags", "<answer>42", None),
        ("tags", "42</answer>", None),
        ("tags", "<answer>two\nlines</answer>", "two\nlines"),
        ("hash", "6 * 7 = 42\n#### 42", "42"),
        ("hash", "####42", "42"),
        ("hash", "#### 1,234", "1,234"),
        ("hash", "#### $18\nDone.", "$18"),
        ("hash", "#### **18**", "18"),
        ("hash", "**#### 18**", "18"),
        ("hash", "####\n18", "18"),
        ("hash", r"#### \boxed{18}", "18"),
        ("hash", "#### 1\n#### 2", "2"),
        ("hash", "#### 1 #### 2", "2"),
        ("hash", "##### 1", None),
        ("hash", "### 1", None),
        ("hash", "#### ", None),
        ("phrase", "The answer is 42.", "42"),
        ("phrase", "the answer is: 42", "42"),
        ("phrase", "**The answer is: 42**", "42"),
        ("phrase", "**The answer is:** 42", "42"),
        ("phrase", "The **answer is** 42", "42"),
        ("phrase", "The answer is **42.**", "42"),
        ("phrase", '"The answer is 42."', "42"),
        ("phrase", "The answer is “42”.", "42"),
        ("phrase", "The answer is 'Paris'.", "Paris"),
        ("phrase", "The answer is 5'.", "5'"),
        ("phrase", "answer is 3.5 meters.", "3.5 meters"),
        ("phrase", "The answer is 42. I hope it is correct.", "42"),
        ("phrase", "The answer is 42, I hope.", "42, I hope"),
        ("phrase", "The answer is 5!.", "5!"),
        ("phrase", "The answer is (C).", "(C)"),
        ("phrase", r"The final answer is $\frac{1}{2}$.", r"$\frac{1}{2}$"),
        ("phrase", r"The final answer is: $\boxed{42}$. I hope it is correct.", "42"),
        ("phrase", r"The answer is \boxed{a. b}.", "a. b"),
        ("phrase", "The answer is:\n42", "42"),
        ("phrase", "The answer is:\n\n\\[\n\\boxed{42}\n\\]", "42"),
        ("phrase", "The answer is\n$$\n42\n$$", "42"),
        ("phrase", "The answer is 1. No, the answer is 2.", "2"),
        ("phrase", "The answer is what the answer is: 2", "2"),
        ("phrase", "The answer isn't 1.", None),
        ("phrase", "The answer is", None),
        ("phrase", "The answer is.", None),
        ("phrase", "Answers: 1", None),
        ("last_number", "12 apples", "12"),
        ("last_number", "50%", "50"),
        ("last_number", "x = -3", "-3"),
        ("last_number", "$-3$", "-3"),
        ("last_number", "(\u22123)", "\u22123"),
        ("last_number", "10-3", "3"),
        ("last_number", "- 3 apples", "3"),
        ("last_number", "so it is - 5", "-5"),
        ("last_number", "4 - 9 = - 5", "-5"),
        ("last_number", r"\(- 5\)", "-5"),
        ("last_number", "10 - 5", "5"),
        ("last_number", "Total - 5", "5"),
        ("last_number", "x - 5", "5"),
        ("last_number", "(10) - 5", "5"),
        ("last_number", "They are:\n- 3\n- 5", "5"),
        ("last_number", "about 1,234.50 or so.", "1,234.50"),
        ("last_number", "1,2", "2"),
        ("last_number", "It is .5", ".5"),
        ("last_number", "1.5e-3", "1.5e-3"),
        ("last_number", "3/4 of it", "3/4"),
        ("last_number", "It is 7.", "7"),
        ("last_number", "It is 7 (checked 2 times)", "2"),
        ("last_number", "no number", None),
        ("json:answer", '{"answer": 42}', "42"),
        ("json:answer", '```json\n{\n  "answer": "42"\n}\n```', "42"),
        ("json:answer", '{"why": "6*7", "answer": -1.5, "sure": true}', "-1.5"),
        ("json:answer", r'{"answer": "\\frac{1}{2}"}', r"\frac{1}{2}"),
        ("json:answer", r'{"answer": "\frac{1}{2}"}', r"\frac{1}{2}"),
        ("json:answer", r'{"answer": "\boxed{42}"}', "42"),
        ("json:answer", r'{"answer": "\\boxed{\\frac{1}{2}}"}', r"\frac{1}{2}"),
        ("json:answer", r'{"answer": "a\nb\n\neq"}', r"a\nb\n\neq"),
        ("json:answer", r'{"answer": "one\ntwo \"three\""}', 'one\ntwo "three"'),
        ("json:answer", '{"answer": "one\ntwo"}', "one\ntwo"),
        ("json:answer", r'{"answer": "\ud83d"}', r"\ud83d"),
        ("json:answer", '{"answer": [1, 2]}', "[1, 2]"),
        ("json:answer", '{"answer": {"answer": 5}}', "5"),
        ("json:answer", '{"answer": 1} and {"answer": 2}', "2"),
        ("json:answer", '{"answer": 1} and {"answer": null}', None),
        ("json:answer", '{"answer": "null"}', "null"),
        ("json:answer", '{"answer": 1} and {"answer": 2', "1"),
        ("json:answer", '{"answer": "4', None),
        ("json:answer", '{"answer": 1,234}', None),
        ("json:answer", '{"answer": Yes}', "Yes"),
        ("json:answer", r'{"text": "\"answer\": 1"}', None),
        ("json:answer", "answer: 42", None),
        ("json:verdict", '{"answer": 1, "verdict": "Yes"}', "Yes"),
        ("json", '{"answer": 42}', "42"),
        (PATTERN, "Result: 1, Result:  2", "2"),
        (PATTERN, "result: 1", None),
        (r"^ANSWER=\[(.+?)\]$", "so\nANSWER=[42]", "42"),
        (r"(?i)final answer:\s*(?:is )?(-?\d+)", "FINAL ANSWER: is -3", "-3"),
    ],
)
def test_what_is_read(name, text, answer):
    assert format_of(name).read(text) == answer


# ------------------------------------------------------------------------------------------------ all alike


@pytest.mark.parametrize("name", ALL)
def test_the_last_statement_outside_the_reasoning_is_read(name):
    stated = format_of(name)
    one, two = stated.write("1"), stated.write("2")
    assert stated.read(f"It is so.\n{two}") == "2"
    assert stated.read(f"{one}\nNo, wait.\n{two}") == "2"
    assert stated.read(f"<think>\n{one}\n</think>\n{two}") == "2"
    assert stated.read(f"<think>\n{one}\n</think>\nI do not know") is None
    assert stated.read(f"{two}\n<think>\n{one}") is None
    assert stated.read(f"{one}\n</think>\n{two}") == "2"
    assert stated.read(f"They say:\n```\n{one}\n```\nBut:\n{two}") == "2"
    assert stated.read(f"<|im_end|>{two}") == "2"
    assert stated.read("") is None


@pytest.mark.parametrize("name", ALL)
def test_another_formats_statement_is_none(name):
    stated = format_of(name)
    others = [format_of(other).write("x1") for other in ALL if other not in (name, "last_number")]
    if name == "last_number":
        return
    assert [stated.read(other) for other in others] == [None] * len(others)
    for other in others:
        assert stated.read(f"{stated.write('2')}\nor {other}") == "2"
        assert stated.asked_in(stated.write("2")) and not stated.asked_in(other.replace("answer", ""))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("gold", "verifier"), [("42", "math"), ("-3", "numeric"), ("1,234", "math"), ("3/4", "math"), ("0.5", "exact")]
)
def test_the_ideal_reply_is_right_and_another_is_not(name, gold, verifier, verifiers):
    stated = format_of(name)
    replies = [f"Let me see.\n{stated.write(answer)}" for answer in (gold, "77")]
    verdicts = verifiers.verify([Check(reply, gold, verifier, format=stated) for reply in replies])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "reply", "gold"),
    [
        ("hash", "#### $18", "18"),
        ("hash", "#### 1,234", "1234"),
        ("hash", "#### 18 dollars.", "18"),
        ("phrase", "The answer is 3.5 meters.", "3.5"),
        ("phrase", r"The final answer is $\frac{1}{2}$.", "0.5"),
        ("last_number", "That makes \u22123.", "-3"),
        ("last_number", "1.5e3", "1500"),
        ("json:answer", '{"answer": "$18"}', "18"),
    ],
)
def test_numbers_as_models_write_them_are_right(name, reply, gold, verifiers):
    assert verifiers.verify([Check(reply, gold, "math", format=format_of(name))])[0].reward == 1.0


# ------------------------------------------------------------------------------------------------ properties

words = st.text(max_size=20).map(str.strip).filter(lambda text: text and not re.search(r"\\boxed|</?think>", text))
one_line = words.filter(lambda text: len(text.splitlines()) == 1 and "\n" not in text)
balanced = st.recursive(st.text(st.characters(exclude_characters="\\{}<")), lambda inner: inner.map("{{{}}}".format))
CAN_STATE = {
    "boxed": balanced.map(str.strip).filter(bool),
    "tags": words.filter(lambda text: "answer>" not in text.lower()),
    "hash": one_line.filter(lambda text: "####" not in f"#{text}#" and text == text.strip("*` ")),
    "phrase": one_line.filter(
        lambda text: (
            not re.search(r"answer\s+is", text, re.IGNORECASE)
            and not re.search(r"[.!?](\W|$)", text)
            and text == text.strip("*_\"'`“”:. ")
            and not text.startswith(("$$", "\\["))
        )
    ),
    "last_number": st.integers().map(str)
    | st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str)
    | st.fractions().map(str),
    "json:answer": st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20)
    .map(str.strip)
    .filter(lambda text: text and "\\boxed" not in text and "<" not in text),
    PATTERN: st.text(st.characters(categories=("L", "N", "P", "S"), exclude_characters="<\\"), min_size=1),
}


@pytest.mark.parametrize("name", ALL)
@given(data=st.data(), before=st.text(max_size=20))
def test_what_is_written_is_read(name, data, before):
    stated = format_of(name)
    answer = data.draw(CAN_STATE[name])
    assert stated.read(f"{stated.write(answer)}") == answer
    assume("think" not in before)
    assert stated.read(f"{before}\n{stated.write(answer)}\n") == answer


PIECES = [
    *("<answer>", "</answer>", "<think>", "</think>", "#", "####", "answer is", "The answer is:", '"answer"', ":", "{"),
    *("}", "[", "]", '"', "'", "\\", r"\boxed{", "\n", " ", ".", "!", "*", "_", "$$", r"\[", "1", ",", "-", "/", "e"),
    *("null", "Result:", "\\u", "d83d", "x"),
]


@pytest.mark.parametrize("name", ALL)
@given(text=st.lists(st.sampled_from(PIECES)).map("".join) | st.text())
def test_nothing_raises_and_what_is_read_can_be_encoded(name, text):
    stated = format_of(name)
    answer = stated.read(text)
    if answer is not None and text.isascii():
        assert answer and answer == answer.strip() and answer.encode()
        json.dumps(stated.write(answer))


@pytest.mark.parametrize("name", NAMED)
def test_reading_takes_time_linear_in_the_text(name):
    stated = format_of(name)
    units = [*PIECES, *(a + b for a in ("<answer>", "####", "answer is", '"answer":', ".", "1") for b in PIECES)]
    tick = step()
    for unit in units:
        text = unit * (2**14 // len(unit))
        assert seconds_of(lambda text=text: stated.read(text)) < 100 * len(text) * tick, unit  # quadratic: 10,000 times


# ------------------------------------------------------------------------------------------------ names


def test_an_expression_whose_group_lists_words_is_written_with_them():
    stated = format_of("Ergebnis: (Ja|Nein)")
    assert stated.form == "Ergebnis: ..." and stated.read("Ergebnis: Ja oder Ergebnis: Nein.") == "Nein"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("boxd", "did you mean 'boxed'"),
        ("Boxed", "did you mean 'boxed'"),
        ("jsn", "did you mean 'json'"),
        ("nonsense", "neither one of boxed, tags, hash, phrase, last_number, json:<key>, nor a regular expression"),
        ("a(b", "missing )"),
        ("(a)(b)", "with one group"),
        (r"\w+\d(.+)", "put plain text around the group"),
        ("(.+)", "put plain text around the group"),
        (r"(?:is|=)(.+)", "put plain text around the group"),
    ],
)
def test_what_is_no_format_is_said(name, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        format_of(name)


def test_a_statement_is_shown_in_no_language():
    forms = {name: format_of(name).form for name in ALL}
    assert forms == {
        "boxed": box(""),
        "tags": "<answer></answer>",
        "hash": "#### ...",
        "phrase": "The answer is ...",
        "last_number": "...",
        "json:answer": '{"answer": "..."}',
        PATTERN: "Result: ...",
    }
    assert format_of("boxed") is BOXED


def test_an_expression_that_backtracks_without_end_is_given_up_and_said_once(caplog):
    formats._say_given_up.cache_clear()
    stated = format_of(r"so: ((?:x|xx)+)$")
    assert stated.read("so: xxx") == "xxx"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert stated.read("so: " + "x" * 60 + "?") is None
    assert [record.getMessage().split(" on a reply")[0] for record in caplog.records] == [
        f"the regular expression {stated.name!r} took more than 0.1 seconds"
    ]
