r"""How a reply states its answer: `\boxed{17}`, `<answer>17</answer>`, `#### 17`, `The answer is 17.`, and so on.

A run chooses one format for answers and one for verdicts. Templates, verifiers, recycler, views and votes all write and
read by it, so that what is trained, what is shown to a judge and what is voted on can never differ. In every format the
last statement outside the reasoning counts, and reading takes time linear in the text; but for a regular expression of
the user's, which is given up after a while.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial

import regex

from spark_rl.verify.extract import ANSWER_TAG, box, last_box, visible

PATTERN_SECONDS = 1.0
"""What a regular expression of the user's may take on one reply; then no answer was found."""
_SAMPLES = ("17", "A", "Yes", "x")
"""Answers of which a regular expression must read one again."""


@dataclass(frozen=True, slots=True)
class Format:
    """One way to state an answer."""

    name: str
    """As settings have it."""
    write: Callable[[str], str]
    """An answer, stated."""
    find: Callable[[str], str | None]
    """The last answer that a text without reasoning states."""
    request: str
    """The words of the shipped templates for it, after "then" or "and"."""

    @property
    def form(self) -> str:
        """What a statement looks like, in no language: three dots stand for the answer where something must."""
        return self.write("") if self.name in ("boxed", "tags") else self.write("...").replace("....", "...")

    def read(self, text: str) -> str | None:
        """The answer that a reply states outside its reasoning; None if it states none."""
        found = self.find(visible(text))
        return (found.strip() or None) if found is not None else None


@lru_cache
def format_of(name: str) -> Format:
    """The format called `name`: `boxed`, `tags`, `hash`, `phrase`, `last_number`, `json:<key>` (`json` is
    `json:answer`), or a regular expression with one group.

    Raises:
        ValueError: there is no such format, or it is not known how to write by the expression.
    """
    if name in _NAMED:
        return _NAMED[name]
    kind, _, key = name.partition(":")
    return _json(name, key or "answer") if kind == "json" else _pattern(name)


# ------------------------------------------------------------------------------------------------ by name

_TAGS = re.compile(r"<answer>((?:(?!</?answer>).)*+)</answer>", re.DOTALL | re.IGNORECASE)
_HASH = re.compile(r"####[ \t]*+([^\n]*)")
_PHRASE = re.compile(r"\banswer is:?[ \t]*+([^\n]*)", re.IGNORECASE)
_SENTENCE_ENDS = re.compile(r"[.!?](?=\s|$)")
_NUMBER = re.compile(r"((?:(?<![\w)\]}.])[+\-\u2212])?\d+(?:,\d{3}(?!\d))*(?:\.\d+)?(?:/\d+(?:\.\d+)?)?)", re.ASCII)


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    content = None
    for match in pattern.finditer(text):
        content = match[1]
    return content


def _after_the_words(text: str) -> str | None:
    """What follows "answer is", to the end of its sentence and without emphasis; or the box in it."""
    content = _last(_PHRASE, text)
    if content is None or ANSWER_TAG in content:
        return last_box(content or "")
    return _SENTENCE_ENDS.split(content, maxsplit=1)[0].strip("*_\"'` ").rstrip(".")


_FORMATS = (
    Format("boxed", box, last_box, f"put your final answer in {box('')}"),
    Format("tags", "<answer>{}</answer>".format, partial(_last, _TAGS), "put your final answer in <answer></answer>"),
    Format("hash", "#### {}".format, partial(_last, _HASH), 'end with a line of "####" and your final answer'),
    Format("phrase", "The answer is {}.".format, _after_the_words, 'end with "The answer is" and your final answer'),
    Format("last_number", "{}".format, partial(_last, _NUMBER), "end with the number that is your final answer"),
)
_NAMED = {each.name: each for each in _FORMATS}
BOXED = _NAMED["boxed"]


# ------------------------------------------------------------------------------------------------ JSON


def _json(name: str, key: str) -> Format:
    """The last value under a key, in whatever object and however much text stands around it."""
    named = re.compile(rf"{re.escape(json.dumps(key, ensure_ascii=False))}\s*:\s*")

    def write(answer: str) -> str:
        return json.dumps({key: answer}, ensure_ascii=False)

    def find(text: str) -> str | None:
        value = None
        for match in named.finditer(text):
            value = _value(text, match.end())
        return value

    return Format(name, write, find, f"give your final answer as JSON: {write('...')}")


_LATEX = re.compile(r"(?<!\\)\\(?!u[\da-fA-F]{4})[a-zA-Z]{2}")
"""A command such as `\\frac`, whose backslash should have been doubled: JSON would read a form feed."""
_VALUE = re.compile(r'"(?:[^"\\\n]|\\.)*+"|[^\s,}\]"{\[]++')


def _value(text: str, start: int) -> str | None:
    """The string, number or word of JSON that starts there."""
    found = _VALUE.match(text, start)
    if found is None:
        return None
    if not found[0].startswith('"'):
        return found[0]
    if not _LATEX.search(found[0]):
        try:
            return str(json.loads(found[0]))
        except ValueError:
            pass
    return found[0][1:-1].replace('\\"', '"')


# ------------------------------------------------------------------------------------------------ regular expressions

_PIECE = re.compile(
    r"(?P<nothing>\^|\$|\\[bAZ]|\(\?[a-zA-Z]+\)|\(\?:[^()]*\)[*?])|(?P<space>\\s)[*+?]?\??|\\?(?P<literal>[^\\.()\[\]{}|*+?]|(?<=\\)\W)"
    r"(?P<times>[*+?]?)"
)


def _pattern(name: str) -> Format:
    try:
        pattern = regex.compile(name, flags=regex.MULTILINE)
    except regex.error as error:
        raise ValueError(f"{_unknown(name)} ({error})") from None
    if pattern.groups != 1:
        raise ValueError(_unknown(name))

    def find(text: str) -> str | None:
        content = None
        try:
            for match in pattern.finditer(text, timeout=PATTERN_SECONDS):
                content = match[1]
        except TimeoutError:
            return None
        return content

    before, after = _around(name)
    written = Format(name, lambda answer: f"{before}{answer}{after}", find, "")
    if not any(written.read(written.write(answer)) == answer for answer in _SAMPLES):
        raise ValueError(
            f"it is not clear how to write an answer that the regular expression {name!r} finds, which prompts must "
            r"show; put plain text around the group, as in 'Result:\s*(.+)'"
        )
    return Format(name, written.write, find, f"give your final answer in this form: {written.form}")


def _unknown(name: str) -> str:
    if near := get_close_matches(name, _NAMED, n=1):
        return f"{name!r} is no answer format; did you mean {near[0]!r}?"
    known = ", ".join([*_NAMED, "json:<key>"])
    return f"{name!r} is no answer format: neither one of {known}, nor a regular expression with one group"


def _around(pattern: str) -> tuple[str, str]:
    """Plain text that stands before and after the group; wrong where the expression is not simple, which shows when it
    is read again."""
    opens = re.search(r"(?<!\\)\((?!\?)", pattern)
    if opens is None:
        return "", ""
    closes, depth = opens.end(), 1
    while depth and closes < len(pattern):
        depth += {"(": 1, ")": -1}.get(pattern[closes], 0) if pattern[closes - 1] != "\\" else 0
        closes += 1
    return _plain(pattern[: opens.start()]), _plain(pattern[closes:])


def _plain(pattern: str) -> str:
    text = ""
    for piece in _PIECE.finditer(pattern):
        if piece["space"]:
            text += " "
        elif piece["literal"] and piece["times"] in ("", "+"):
            text += piece["literal"]
    return text
