"""From the rows of the published sets, as they stand on the Hub, to questions and items to judge.

A row function takes one raw row and gives one item, or None for a row that the set leaves out. What it cannot read is
a ValueError that names the column. Images are not read here: `published.load` adds them, by `placed`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from spark_rl.evaluate.rules import ANY_OF, HAS_PARTS, SAME_LETTERS
from spark_rl.types import IMAGE, Example, Image, without_images

Row = Mapping[str, Any]
LETTER = "Answer with the letter of the right option."
IN_THE_IMAGE = "Answer the question that stands in the image."


@dataclass(frozen=True, slots=True)
class BestOfItem:
    """A question with its responses, the right ones first (RewardBench 2: one of four; in `Ties` several of many)."""

    id: str
    question: str
    responses: tuple[str, ...]
    num_right: int
    subset: str
    images: tuple[Image, ...] = ()
    """Of the question, as those of an `Example`."""


@dataclass(frozen=True, slots=True)
class PairItem:
    """Two responses to compare."""

    id: str
    question: str
    right: str
    wrong: str
    source: str = ""
    """Reported by it, if there are several."""
    images: tuple[Image, ...] = ()
    """Of the question, as those of an `Example`."""


Item = Example | BestOfItem | PairItem
RowFunction = Callable[[Row], Item | None]

# ------------------------------------------------------------------------------------------------ columns


def _value(row: Row, column: str) -> Any:
    if row.get(column) is None:
        found = ", ".join(str(key) for key in row)
        raise ValueError(f"{column!r} is empty" if column in row else f"has no {column!r}, but {found or 'nothing'}")
    return row[column]


def text(row: Row, column: str) -> str:
    """A text or a number, as text."""
    value = _value(row, column)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _unreadable(column, "text", value)
    if not (stripped := str(value).strip()):
        raise ValueError(f"{column!r} is empty")
    return stripped


def texts(row: Row, column: str) -> list[str]:
    value = _value(row, column)
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
        raise _unreadable(column, "a list of texts", value)
    return list(value)


def whole_number(row: Row, column: str) -> int:
    value = _value(row, column)
    if isinstance(value, str) and value.strip().isdecimal():  # as tables of text have them
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        raise _unreadable(column, "a whole number", value)
    return int(value)


def _unreadable(column: str, wanted: str, value: Any) -> ValueError:
    return ValueError(f"{column!r} must be {wanted}, not {json.dumps(value, default=str)[:40]}")


def _letter(row: Row, column: str) -> str:
    letter = text(row, column).upper()
    if len(letter) > 1 or letter not in ascii_uppercase:
        raise _unreadable(column, "the letter of an option", letter)
    return letter


def _letter_at(row: Row, column: str, options: Sequence[str]) -> str:
    """The letter of an option that is given by its index."""
    index = whole_number(row, column)
    if not 0 <= index < len(options):
        raise _unreadable(column, f"an index below {len(options)}", index)
    return ascii_uppercase[index]


# ------------------------------------------------------------------------------------------------ images

_MARKER = re.compile(r"<image[ _]?(\d*)>")


def placed(question: str, images: Sequence[Image]) -> tuple[str, tuple[Image, ...]]:
    """The question with `IMAGE` where an image goes, and the images in the order of these.

    A marker with a number (`<image 2>`, `<image2>`) stands for the image of this number, again if it is there twice;
    one without for the next that has no number in the question. An image without a marker comes first; a marker without
    an image (several pictures may be drawn into one) stays as words.
    """
    question = without_images(question)
    if not images:
        return question, ()
    named = {int(number) for number in _MARKER.findall(question) if number}
    unnamed = [number for number in range(1, len(images) + 1) if number not in named]
    order: list[int] = []

    def place(marker: re.Match[str]) -> str:
        number = int(marker[1]) if marker[1] else unnamed.pop(0) if unnamed else 0
        if not 1 <= number <= len(images):
            return f"image {marker[1]}".strip()
        order.append(number)
        return IMAGE

    question = _MARKER.sub(place, question)
    order = [*unnamed, *order]
    return f"{IMAGE}\n" * len(unnamed) + question, tuple(images[number - 1] for number in order)


# ------------------------------------------------------------------------------------------------ questions


def _asked(question: str, answer: str, verifier: str, **metadata: Any) -> Example:
    """`published.load` names it, and asks it. Variants of one problem have the same `variant_of` in their metadata."""
    known = {key: value for key, value in metadata.items() if value is not None}
    return Example("", (), question, answer, verifier, metadata=known)


def _with_options(question: str, options: Sequence[str]) -> str:
    lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([question, *lines, LETTER])


def solved(question: str, answer: str, verifier: str, id: str | None = None) -> RowFunction:
    """Rows that are a question and its answer, in the columns of these names."""
    return lambda row: _asked(text(row, question), text(row, answer), verifier, id=row.get(id) if id else None)


def lettered(question: str = "question", answer: str = "answer", *keep: str) -> RowFunction:
    """Rows whose options stand in the question, and whose answer is a letter; `keep` are columns for breakdowns."""

    def read(row: Row) -> Example:
        kept = {column: row.get(column) for column in keep}
        return _asked(f"{text(row, question)}\n{LETTER}", _letter(row, answer), "choice", **kept)

    return read


def gsm8k(row: Row) -> Example:
    solution, mark, answer = text(row, "answer").rpartition("####")
    if not mark or not answer.strip():
        raise ValueError(f"'answer' must end with '####' and a number, not {(solution or answer)[-40:]!r}")
    return _asked(text(row, "question"), answer.strip(), "numeric")


_STEM = (
    "abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science college_mathematics "
    "college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics "
    "high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics "
    "high_school_physics high_school_statistics machine_learning"
)


def mmlu_stem(row: Row) -> Example | None:
    if (subject := text(row, "subject")) not in _STEM.split():
        return None
    options = texts(row, "choices")
    question = _with_options(text(row, "question"), options)
    return _asked(question, _letter_at(row, "answer", options), "choice", subject=subject)


def mathvista(row: Row) -> Example:
    question, answer, kind = text(row, "question"), text(row, "answer"), text(row, "answer_type")
    unit = f" (Unit: {row['unit']})" if row.get("unit") else ""
    kept = {"id": row.get("pid"), "answer_type": kind}
    if text(row, "question_type") == "multi_choice":
        options = texts(row, "choices")
        if answer not in options:
            raise ValueError(f"'answer' must be one of 'choices', not {answer[:40]!r}")
        letter = ascii_uppercase[options.index(answer)]
        return _asked(_with_options(question + unit, options), letter, "choice", **kept)
    match kind:
        case "integer":
            return _asked(f"{question}{unit}\nAnswer with a whole number.", answer, "numeric", **kept)
        case "float":
            places = whole_number(row, "precision")
            wanted = f"Answer with a number of {places} decimal place{'s' * (places != 1)}."
            tolerance = f"{0.5 * 10**-places:.{places + 1}f}"
            return _asked(f"{question}{unit}\n{wanted}", answer, "numeric", tolerance=tolerance, **kept)
        case "list":
            return _asked(f"{question}{unit}\nAnswer with a list, such as [1, 2].", answer, "math", **kept)
    raise ValueError(f"'answer_type' must be integer, float or list, not {kind!r}")


def mathvision(row: Row) -> Example:
    question, options = text(row, "question"), texts(row, "options")
    kept = {"id": row.get("id"), "subject": row.get("subject"), "level": row.get("level")}
    if not options:
        return _asked(question, text(row, "answer"), "math", **kept)
    named = options == list(ascii_uppercase[: len(options)])  # then the image shows what they are
    question = f"{question}\n{LETTER}" if named else _with_options(question, options)
    return _asked(question, _letter(row, "answer"), "choice", **kept)


def wemath(row: Row) -> Example:
    options = re.sub(r"\s*;\s*(?=[A-Z]\.)", "\n", text(row, "option"))
    kept = {"id": text(row, "ID"), "key": text(row, "key"), "concept": row.get("knowledge concept")}
    return _asked(f"{text(row, 'question')}\n{options}\n{LETTER}", _letter(row, "answer"), "choice", **kept)


def mathverse(row: Row) -> Example:
    question = IN_THE_IMAGE if row.get("question", " ") in (None, "") else text(row, "question")
    kept = {
        "id": row.get("sample_index"),
        "variant_of": text(row, "problem_index"),
        "version": text(row, "problem_version"),
    }
    match kind := text(row, "question_type"):
        case "multi-choice":
            return _asked(f"{question}\n{LETTER}", text(row, "answer"), "choice", **kept)
        case "free-form":
            return _asked(question, text(row, "answer"), "math", **kept)
    raise ValueError(f"'question_type' must be multi-choice or free-form, not {kind!r}")


def dynamath(row: Row) -> Example:
    question, answer = text(row, "question"), text(row, "ground_truth")
    kept = {"variant_of": text(row, "id"), "subject": row.get("subject"), "level": row.get("knowledge_level")}
    match text(row, "answer_type"):
        case "multiple choice":
            return _asked(f"{question}\n{LETTER}", _letter(row, "ground_truth"), "choice", **kept)
        case "float":
            wanted = "Answer with a number of three decimal places."
            return _asked(f"{question}\n{wanted}", answer, "numeric", tolerance="0.001", **kept)
    return _asked(question, answer, "math", **kept)


def logicvista(row: Row) -> Example:
    question = f"{text(row, 'question')}\nAnswer with the letter, or with all letters if several are right."
    return _asked(question, text(row, "answer").upper(), SAME_LETTERS, id=row.get("id"), skill=row.get("skill"))


_COPIES = 10**6
"""Rows of MMBench from this index on ask the question of index modulo this again, its options in another order."""


def mmbench(row: Row) -> Example | None:
    if (index := whole_number(row, "index")) >= _COPIES:
        return None
    given = {letter: str(row[letter]).strip() for letter in "ABCDE" if row.get(letter) is not None}
    options = [f"{letter}. {option}" for letter, option in given.items() if option not in ("", "nan")]
    if len(options) < 2:
        raise ValueError("has fewer than two options in the columns 'A' to 'E'")
    hint = str(row.get("hint") or "").strip()
    question = "\n".join([*([] if hint in ("", "nan") else [hint]), text(row, "question"), *options, LETTER])
    return _asked(question, _letter(row, "answer"), "choice", id=index, category=row.get("category"))


def mmmu(row: Row) -> Example:
    question, kind = text(row, "question"), text(row, "question_type")
    kept = {"id": row.get("id"), "subfield": row.get("subfield")}
    if kind == "multiple-choice":
        return _asked(_with_options(question, _literals(row, "options")), _letter(row, "answer"), "choice", **kept)
    if kind != "open":
        raise ValueError(f"'question_type' must be multiple-choice or open, not {kind!r}")
    answer = text(row, "answer")
    accepted = _literals(row, "answer") if answer.startswith("[") else [answer]
    wanted = "Answer with a word, a phrase or a number."
    return _asked(f"{question}\n{wanted}", accepted[0], ANY_OF, accepted=accepted, **kept)


def _literals(row: Row, column: str) -> list[str]:
    """A list that was written as Python's text of it."""
    try:
        found = ast.literal_eval(text(row, column))
    except (SyntaxError, ValueError):
        found = None
    if not isinstance(found, list) or not found:
        raise _unreadable(column, "the text of a list", row[column])
    return [str(each) for each in found]


def mmvet(row: Row) -> Example:
    kept = {"id": row.get("question_id"), "capability": row.get("capability")}
    return _asked(text(row, "question"), text(row, "answer"), HAS_PARTS, **kept)


def scienceqa(row: Row) -> Example:
    options, hint = texts(row, "choices"), str(row.get("hint") or "").strip()
    question = f"{hint}\n{text(row, 'question')}" if hint else text(row, "question")
    kept = {"subject": row.get("subject"), "topic": row.get("topic")}
    return _asked(_with_options(question, options), _letter_at(row, "answer", options), "choice", **kept)


def pope(row: Row) -> Example:
    answer = text(row, "answer").casefold()
    if answer not in ("yes", "no"):
        raise _unreadable("answer", "yes or no", answer)
    kept = {"id": row.get("question_id"), "category": row.get("category")}
    return _asked(f"{text(row, 'question')}\nAnswer Yes or No.", answer, "choice", **kept)


def seedbench(row: Row) -> Example | None:
    if text(row, "data_type") != "image":
        return None
    question = _with_options(text(row, "question"), [text(row, f"choice_{letter}") for letter in "abcd"])
    kept = {"id": row.get("question_id"), "question_type": row.get("question_type_id")}
    return _asked(question, _letter(row, "answer"), "choice", **kept)


_BE_BRIEF = re.compile(r"\s*Please answer directly with [^.]*\.$")


def realworldqa(row: Row) -> Example:
    """Its own instruction to answer without any reasoning is replaced by one that says the form of the answer."""
    question, answer = text(row, "question"), text(row, "answer")
    is_option = len(answer) == 1 and re.search(rf"^\(?{re.escape(answer)}[.)]", question, re.MULTILINE)
    wanted = LETTER if is_option else "Answer with a single word or number."
    return _asked(f"{_BE_BRIEF.sub('', question)}\n{wanted}", answer, "choice")


# ------------------------------------------------------------------------------------------------ items to judge


def reward_bench_2(row: Row) -> BestOfItem:
    right, wrong, subset = texts(row, "chosen"), texts(row, "rejected"), text(row, "subset")
    if len(right) != whole_number(row, "num_correct"):
        raise ValueError(f"'chosen' holds {len(right)} responses where 'num_correct' says {row['num_correct']}")
    if not right or not wrong:
        raise ValueError(f"{'rejected' if right else 'chosen'!r} is empty")
    return BestOfItem(f"{subset}/{text(row, 'id')}", text(row, "prompt"), (*right, *wrong), len(right), subset)


_VL_SOURCES = {
    "mathverse": "reasoning",
    "mmmu": "reasoning",
    "hallucination": "hallucination",
    "rlhf": "hallucination",
    "rlaif": "hallucination",
}
"""By what the id begins with; everything else (WildVision, VLFeedback) is general."""


def vl_reward_bench(row: Row) -> PairItem:
    responses, ranking, id = texts(row, "response"), _value(row, "human_ranking"), text(row, "id")
    if len(responses) != 2:
        raise ValueError(f"'response' holds {len(responses)} texts where two are compared")
    if list(ranking) not in ([0, 1], [1, 0]):
        raise _unreadable("human_ranking", "[0, 1] or [1, 0]", ranking)
    right, wrong = responses if list(ranking) == [0, 1] else reversed(responses)
    source = _VL_SOURCES.get(re.split("[-_]", id)[0].lower(), "general")
    return PairItem(id, text(row, "query"), right, wrong, source)
