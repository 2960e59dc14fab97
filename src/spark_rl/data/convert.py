r"""From rows as other projects publish them to rows of ours (`{"id", "prompt", "answer", "images", "source"}`).

    spark     internlm/Spark-Data: `message`, the JSON text of chat messages, and `answer`
    virl39k   TIGER-Lab/ViRL39K: `question`, `answer`, `qid`, `image`, a list of paths
    easyr1    hiyouga/geometry3k and what else EasyR1 trains on: `problem` with `<image>`, `answer`, `images`
    verl      what verl's preprocessing writes: `prompt`, chat messages with `<image>`, `images`, `reward_model`

A prompt comes out with one `<image>` where each image goes. It is text, to which training adds our instruction to box
the answer, or chat messages where there are several turns or the only one asks for the box itself. No file is touched
here: an image stays the path or the bytes that the row has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from spark_rl.data.rows import MAX_PROMPT_CHARS
from spark_rl.images import ImageError, from_data_url
from spark_rl.jsonl import parse_json
from spark_rl.types import without_images
from spark_rl.verify import ANSWER_TAG, extract_answer

MARKER = "<image>"
Row = Mapping[str, Any]
Turn = dict[str, str]
Picture = str | bytes
"""A path, or what an image file holds."""


class Unusable(ValueError):
    """A row cannot be converted.

    Args:
        kind: what it comes with, in words that suit other rows as well; rows are counted by it.
        detail: what it is in this row.
    """

    def __init__(self, kind: str, detail: object = "") -> None:
        self.kind, self.detail = kind, str(detail)
        super().__init__(f"{kind}: {detail}" if detail else kind)


@dataclass(frozen=True, slots=True)
class Question:
    """A row of ours, but for its images, which are still as they were given."""

    prompt: str | list[Turn]
    answer: str
    images: tuple[Picture, ...]
    id: str | None = None
    source: str | None = None

    @property
    def verifier(self) -> str | None:
        """The rule for the answer; None where it is the default."""
        return "choice" if _OPTION.fullmatch(self.answer) else None

    def row(self, id: str, source: str, images: Sequence[str]) -> dict[str, Any]:
        """As JSON, with the paths of its images, and an id and a source for a row that names none."""
        named = {"verifier": self.verifier} if self.verifier else {}
        return {
            "id": self.id or id,
            "prompt": self.prompt,
            "answer": self.answer,
            "images": list(images),
            "source": self.source or source,
            **named,
        }


@dataclass(frozen=True, slots=True)
class Format:
    """How a project writes its rows."""

    columns: frozenset[str]
    """By which it is known."""
    question: Callable[[Row], Question]
    """Raises `Unusable`."""


def detect(columns: Collection[str]) -> str | None:
    """The name of the format that has these columns; None if there is none."""
    return next((name for name, each in FORMATS.items() if each.columns <= set(columns)), None)


# ------------------------------------------------------------------------------------------------ formats


def _spark(row: Row) -> Question:
    written = _text(row, "message")
    try:
        message = parse_json(written)
    except ValueError:
        raise Unusable("a 'message' that is no JSON", _shown(written)) from None
    turns, images = _turns(message, "message")
    turns[-1]["content"] = _SPARK_INSTRUCTION.sub("", turns[-1]["content"]).rstrip()
    return _question(turns, _text(row, "answer"), images, source=_optional(row, "datasource"))


def _virl39k(row: Row) -> Question:
    turns = [{"role": "user", "content": _text(row, "question")}]
    return _question(
        turns, _text(row, "answer"), _images(row, "image"), _optional(row, "qid"), _optional(row, "source")
    )


def _easyr1(row: Row) -> Question:
    turns = [{"role": "user", "content": _text(row, "problem")}]
    return _question(turns, _text(row, "answer"), _images(row, "images"), _optional(row, "id"))


def _verl(row: Row) -> Question:
    turns, images = _turns(row.get("prompt"), "prompt")
    gold = row.get("reward_model")
    if not isinstance(gold, Mapping):
        raise Unusable("no 'reward_model'", _shown(gold))
    answer = _text(gold, "ground_truth")
    return _question(turns, answer, [*images, *_images(row, "images")], source=_optional(row, "data_source"))


FORMATS: Mapping[str, Format] = {
    "spark": Format(frozenset({"message", "answer"}), _spark),
    "virl39k": Format(frozenset({"question", "answer", "qid"}), _virl39k),
    "easyr1": Format(frozenset({"problem", "answer"}), _easyr1),
    "verl": Format(frozenset({"prompt", "reward_model"}), _verl),
}

_SPARK_INSTRUCTION = re.compile(
    r"\s*Please first conduct reasoning, and then answer the question\.\s*"
    r"Repeat the final answer using a '(?:\\+b|\x08)oxed\{\}'\.?\s*$"
)
"""With the `\b` that a careless escape makes of a backslash and a b."""
_OPTION = re.compile(r"[A-J]|\([A-J]\)|(?i:yes|no|true|false)")
"""Answers that are one of several options, and no mathematics."""


def _question(
    turns: list[Turn], answer: str, images: Sequence[Picture], id: str | None = None, source: str | None = None
) -> Question:
    turns = [{**turn, "content": without_images(turn["content"])} for turn in turns]
    if (length := sum(len(turn["content"]) for turn in turns)) > MAX_PROMPT_CHARS:
        raise Unusable("a prompt that is too long", f"{length} characters")
    found = sum(turn["content"].count(MARKER) for turn in turns)
    if found == 0:
        first = next(turn for turn in turns if turn["role"] == "user")
        first["content"] = f"{MARKER}\n" * len(images) + first["content"]
    elif found != len(images):
        raise Unusable(f"another number of images than of {MARKER}", f"{len(images)} and {found}")
    is_text = len(turns) == 1 and ANSWER_TAG not in turns[0]["content"]
    return Question(turns[0]["content"] if is_text else turns, _bare(answer), tuple(images), id, source)


# ------------------------------------------------------------------------------------------------ values


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if value is None or value == "":
        raise Unusable(f"no {column!r}")
    if not isinstance(value, str):
        raise Unusable(f"{column!r} that is no text", _shown(value))
    if not value.strip():
        raise Unusable(f"no {column!r}")
    return value.strip()


def _optional(row: Row, column: str) -> str | None:
    return None if row.get(column) in (None, "") else _text(row, column)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)[:60]


def _bare(answer: str) -> str:
    r"""Without the box, and the dollars, that all of it stands in."""
    if ANSWER_TAG in answer:
        inner = extract_answer(answer)
        if inner is None:
            raise Unusable("an answer whose box has no end", _shown(answer))
        answer = inner.strip()
    answer = re.sub(r"^(\${1,2})([^$]+)\1$", r"\2", answer).strip()
    if not answer:
        raise Unusable("no 'answer'")
    return answer


def _images(row: Row, column: str) -> list[Picture]:
    value = row.get(column)
    values = [] if value is None else value if isinstance(value, list) else [value]
    return [picture(each) for each in values]


def picture(value: Any) -> Picture:
    """The path or the bytes of an image that is given as a path, `file://...`, a data URL, bytes, or a mapping that
    holds one of them.

    Raises:
        Unusable: it is none of these.
    """
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("bytes", "path", "image") if value.get(key)), None)
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value.strip():
        raise Unusable("an image that is neither path nor bytes", _shown(value))
    if value.startswith("data:"):
        try:
            return from_data_url(value)
        except ImageError:
            raise Unusable("a data URL that cannot be decoded", value[:40]) from None
    if value.startswith("file://"):
        return unquote(urlsplit(value).path)
    if "://" in value:
        raise Unusable("an image that is an address", value)
    return value


# ------------------------------------------------------------------------------------------------ chat messages


def _turns(message: Any, column: str) -> tuple[list[Turn], list[Picture]]:
    """Turns whose content is text, and the images that stood among their parts."""
    given = [message] if isinstance(message, Mapping) else message
    if not isinstance(given, list) or not given:
        raise Unusable(f"a {column!r} that holds no chat messages", _shown(message))
    turns: list[Turn] = []
    images: list[Picture] = []
    for turn in given:
        role = turn.get("role") if isinstance(turn, Mapping) else None
        if role not in ("system", "user", "assistant"):
            raise Unusable(f"a {column!r} that holds no chat messages", _shown(turn))
        content, among = _content(turn.get("content"))
        turns.append({"role": role, "content": content})
        images += among
    if turns[-1]["role"] != "user":
        raise Unusable("messages that do not end with a user's turn", turns[-1]["role"])
    return turns, images


def _content(content: Any) -> tuple[str, list[Picture]]:
    """A turn's text and images. An image's marker stands where it stood, unless the text has markers for all."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise Unusable("messages without content", _shown(content))
    parts: list[str] = []
    texts: list[str] = []
    images: list[Picture] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            images.append(picture(part.get("image")))
            parts.append(f"{MARKER}\n")
        elif kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
            parts.append(part["text"])
        else:
            raise Unusable("parts of messages that are neither text nor image", _shown(part))
    joined = "".join(texts)
    return (joined if MARKER in joined else "".join(parts).rstrip()), images
