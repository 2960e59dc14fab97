r"""How a reply states its answer: `\boxed{17}`, `<answer>17</answer>`, `#### 17`, `The answer is 17.`, and so on.

A run chooses one format for answers and one for verdicts. Templates, verifiers, recycler, views and votes all write and
read by it, so that what is trained, what is shown to a judge and what is voted on can never differ. In every format the
last statement outside the reasoning counts, a box inside it is its content (`<answer>\boxed{17}</answer>`), and reading
takes time linear in the text; but for a regular expression of the user's, which is given up after a while.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, lru_cache

import regex

from spark_rl.verify.extract import ANSWER_TAG, Span, box, last_box, visible

PATTERN_SECONDS = 0.1
"""CPU time that a regular expression of the user's may take on one reply; then no answer was found. A simple one takes
a hundredth of it on the longest replies, and a step of a thousand replies must not take hours."""
_SAMPLES = ("17", "A", "Yes", "x")
"""Answers of which a regular expression must read one again."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Format:
    """One way to state an answer."""

    name: str
    """As settings have it."""
    write: Callable[[str], str]
    """An answer, stated."""
    find: Callable[[str], Span | None]
    """Where the last answer that a text states stands in it."""
    request: str
    """The words of the shipped templates for it, after "then" or "and"."""
    mark: str
    """What every statement holds, in lower case; empty where they hold nothing but the answer."""
    decode: Callable[[str], str] = str
    """An answer, of how it stands in a text."""

    @property
    def form(self) -> str:
        """What a statement looks like, in no language: three dots stand for the answer where something must."""
        return self.write("") if self.name in ("boxed", "tags") else self.write("...").replace("....", "...")

    def asked_in(self, text: str) -> bool:
        """Whether a text speaks of this format."""
        return self.mark in text.lower()

    def place(self, text: str) -> Span | None:
        """Where in a text without reasoning the answer stands that it states last, white space left out."""
        if (found := self.find(text)) is None:
            return None
        start, end = found
        if self.name != "boxed" and ANSWER_TAG in text[start:end]:
            if (inner := last_box(text[start:end])) is None:
                return None
            start, end = start + inner[0], start + inner[1]
        content = text[start:end]
        start += len(content) - len(content.lstrip())
        return start, start + len(content.strip())

    def read(self, text: str) -> str | None:
        """The answer that a reply states outside its reasoning; None if it states none."""
        text = visible(text)
        place = self.place(text)
        return (self.decode(text[slice(*place)]).strip() or None) if place else None


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
    return _json(key.strip() or "answer") if kind == "json" else _pattern(name)


# ------------------------------------------------------------------------------------------------ by name

_TAGS = re.compile(r"<answer>((?:(?!</?answer>).)*+)</answer>", re.DOTALL | re.IGNORECASE)
_HASH = re.compile(r"(?<!#)####(?!#)\s*+")
_PHRASE = re.compile(r"\banswer\s++is\b(?!['\u2019])[*_]*:?[*_]*\s*+(?:(?:\\\[|\$\$)\s*+(?<=\n))?", re.IGNORECASE)
"""With what opens a displayed formula on a line of its own."""
_SENTENCE_END = re.compile(r"[.!?](?=[\"'*_`)\u201d\u2019]*+(?:\s|$))")
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}.])[+\-\u2212]|(?:(?<=[=:(\[{$])|(?<=[=:] )|(?<=\bis ))[+\-\u2212] )?"
    r"(?:\d+(?:,\d{3}(?!\d))*(?:\.\d+)?|(?<!\d)\.\d+)(?:[eE][+-]?\d+)?(?:/\d+(?:\.\d+)?)?",
    re.ASCII,
)
"""A sign that stands apart belongs to the number after what announces one, as in "= - 5"; elsewhere it is a dash, a
bullet or an operation, as in "10 - 5"."""


def _last(pattern: re.Pattern[str], text: str, group: int = 0) -> Span | None:
    place = None
    for match in pattern.finditer(text):
        place = match.span(group)
    return place


def _tags(text: str) -> Span | None:
    return _last(_TAGS, text, 1)


def _number(text: str) -> Span | None:
    return _last(_NUMBER, text)


def _joined(number: str) -> str:
    """Without white space between the sign and the digits."""
    return "".join(number.split())


def _hash(text: str) -> Span | None:
    """What follows the last four hashes on its line, without emphasis."""
    if (marks := _last(_HASH, text)) is None:
        return None
    return _stripped(text, marks[1], _line_end(text, marks[1]), "*` ")


def _phrase(text: str) -> Span | None:
    """What follows the last "answer is", to the end of its sentence and without emphasis and quotes."""
    if (words := _last(_PHRASE, text)) is None:
        return None
    start, line_end = words[1], _line_end(text, words[1])
    end = stop.start() if (stop := _SENTENCE_END.search(text, start, line_end)) else line_end
    if ANSWER_TAG in text[start:end]:  # a box may hold what looks like the end of a sentence
        return (start, end) if last_box(text[start:end]) else (start, line_end)
    start, end = _stripped(text, start, end, '*_"`\u201c\u201d ')
    while end > start and text[end - 1] == ".":
        end -= 1
    return (start + 1, end - 1) if end - start > 1 and text[start] == text[end - 1] == "'" else (start, end)


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def _stripped(text: str, start: int, end: int, characters: str) -> Span:
    while start < end and text[start] in characters:
        start += 1
    while start < end and text[end - 1] in characters:
        end -= 1
    return start, end


_FORMATS = (
    Format("boxed", box, last_box, f"put your final answer in {box('')}", ANSWER_TAG),
    Format("tags", "<answer>{}</answer>".format, _tags, "put your final answer in <answer></answer>", "<answer>"),
    Format("hash", "#### {}".format, _hash, 'end with a line of "####" and your final answer', "####"),
    Format(
        "phrase", "The answer is {}.".format, _phrase, 'end with "The answer is" and your final answer', "answer is"
    ),
    Format("last_number", "{}".format, _number, "end with the number that is your final answer", "", _joined),
)
_NAMED = {each.name: each for each in _FORMATS}
BOXED = _NAMED["boxed"]


# ------------------------------------------------------------------------------------------------ JSON

_VALUE = re.compile(
    r'(?:"(?P<string>(?:[^"\\]|\\.)*+)"|(?P<list>\[[^\[\]{}]*+\])|(?P<null>null\b)|(?P<word>[^\s,}\]"{\[]++))'
    r'(?=\s*+(?:[}\]]|,\s*+["}]))',
    re.DOTALL,
)
"""A value, in an object that goes on or is closed after it: else it may be cut."""
_LATEX = re.compile(r"(?<!\\)\\(?!u[\da-fA-F]{4})(?!n(?!(?:u|eq?|ot(?:in)?|eg|abla|mid)(?![a-zA-Z])))[a-zA-Z]{2}")
"""A command such as `\\frac`, whose backslash should have been doubled: JSON would read a form feed. `\\n` before a
word is a new line, but for the commands that begin so."""


@lru_cache
def _json(key: str) -> Format:
    """The last value under a key, in whatever object and however much text stands around it."""
    quoted = json.dumps(key, ensure_ascii=False)
    named = re.compile(rf"{re.escape(quoted)}\s*+:\s*+")

    def write(answer: str) -> str:
        return json.dumps({key: answer}, ensure_ascii=False)

    def find(text: str) -> Span | None:
        place = None
        for match in named.finditer(text):
            if value := _VALUE.match(text, match.end()):
                kind = str(value.lastgroup)
                place = (value.start(), value.start()) if kind == "null" else value.span(kind)
        return place

    request = f"give your final answer as JSON: {write('...')}"
    return Format(f"json:{key}", write, find, request, quoted.lower(), _unescaped)


def _unescaped(written: str) -> str:
    """What stands between the quotes of a string of JSON, read; as it is where that is no JSON, or no text."""
    if "\\" not in written:
        return written
    if not _LATEX.search(written):
        try:
            value = str(json.loads(f'"{written}"', strict=False))
            value.encode()
        except ValueError:  # also of half of a surrogate pair
            pass
        else:
            return value
    return written.replace('\\"', '"')


# ------------------------------------------------------------------------------------------------ regular expressions

_PIECE = re.compile(
    r"(?P<space>\\s)[*+?]?[?+]?|(?P<nothing>\^|\$|\\[a-zA-Z]|\(\?[a-zA-Z]+\)|\(\?:[^()]*\)[*?]|\[[^\]]*\])"
    r"|(?:\\(?P<escaped>\W)|(?P<literal>[^\\.()\[\]{}|*+?]))(?P<times>[*+?]?)"
)


def _pattern(name: str) -> Format:
    try:
        pattern = regex.compile(name, flags=regex.MULTILINE)
    except regex.error as error:
        raise ValueError(f"{_unknown(name)} ({error})") from None
    if pattern.groups != 1:
        raise ValueError(_unknown(name))

    def find(text: str) -> Span | None:
        place = None
        try:
            for match in pattern.finditer(text, timeout=PATTERN_SECONDS):
                if match[1] is not None:
                    place = match.span(1)
        except TimeoutError:
            _say_given_up(name)
            return None
        return place

    before, after = _around(name)
    mark = (before.strip() or after.strip()).lower()
    written = Format(name, lambda answer: f"{before}{answer}{after}", find, "", mark)
    samples = (*_SAMPLES, *name[slice(*_group(name))].split("|"))  # "(Ja|Nein)" finds none but these
    if not mark or not any(written.read(written.write(answer)) == answer for answer in samples):
        raise ValueError(
            f"it is not clear how to write an answer that the regular expression {name!r} finds, which prompts must "
            r"show; put plain text around the group, as in 'Result:\s*(.+)'"
        )
    return Format(name, written.write, find, f"give your final answer in this form: {written.form}", mark)


@cache
def _say_given_up(pattern: str) -> None:
    """Once in a process, however many replies are like that."""
    logger.warning(
        "the regular expression %r took more than %g seconds on a reply, which counts as one without an answer; so "
        "will others like it. Make it simpler, without a repetition inside of another",
        pattern,
        PATTERN_SECONDS,
    )


def _unknown(name: str) -> str:
    if near := get_close_matches(name, [*_NAMED, "json"], n=1):
        return f"{name!r} is no answer format; did you mean {near[0]!r}?"
    known = ", ".join([*_NAMED, "json:<key>"])
    return f"{name!r} is no answer format: neither one of {known}, nor a regular expression with one group"


def _group(pattern: str) -> Span:
    """Where the content of the group stands."""
    opens = re.search(r"(?<!\\)\((?!\?)", pattern)
    if opens is None:
        return 0, 0
    closes, depth = opens.end(), 1
    while depth and closes < len(pattern):
        depth += {"(": 1, ")": -1}.get(pattern[closes], 0) if pattern[closes - 1] != "\\" else 0
        closes += 1
    return opens.end(), closes - 1


def _around(pattern: str) -> tuple[str, str]:
    """Plain text that stands before and after the group; wrong where the expression is not simple, which shows when it
    is read again."""
    start, end = _group(pattern)
    return _plain(pattern[: max(0, start - 1)]), _plain(pattern[end + 1 :])


def _plain(pattern: str) -> str:
    text = ""
    for piece in _PIECE.finditer(pattern):
        if piece["space"]:
            text += " "
        elif piece["times"] in ("", "+"):
            text += piece["escaped"] or piece["literal"]
    return text
