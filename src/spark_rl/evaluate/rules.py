"""Verifiers for published answers that no general verifier reads: lists of accepted answers, sets of letters, parts.

They are named as functions of a user's are, `spark_rl.evaluate.rules:any_of`.
"""

from __future__ import annotations

import re

from spark_rl.verify.verifiers import Metadata, score_choice, score_numeric
from spark_rl.verify.wording import bare, choice, letter

ANY_OF, SAME_LETTERS, HAS_PARTS = (f"{__name__}:{name}" for name in ("any_of", "same_letters", "has_parts"))

_LETTER = re.compile(r"\b[A-Z]\b")
_ONLY_LETTERS = re.compile(r"[A-Z]{1,5}")
_UNDECIDED = re.compile(r"\b(?:NOT|OR|NOR|NEITHER|EXCEPT)\b")


def any_of(answer: str, gold: str, metadata: Metadata) -> float:
    """Equality with one of `metadata["accepted"]` (without it, with the gold): words up to case, numbers to 0.005."""
    accepted = metadata.get("accepted") or [gold]
    return float(
        any(score_choice(answer, each, {}) or score_numeric(answer, each, {"tolerance": "0.005"}) for each in accepted)
    )


def same_letters(answer: str, gold: str, metadata: Metadata) -> float | None:
    """Equality of the sets of letters that stand alone: `C, A`, `AC` and `a and c` are the same answer.

    `A or C` and `A, not C` are none.
    """
    expected = _letters(gold)
    return float(_letters(answer) == expected) if expected else None


def _letters(text: str) -> set[str]:
    if chosen := letter(choice(text)):
        return {chosen.upper()}
    text = bare(text).upper()
    if _UNDECIDED.search(text):
        return set()
    return set(text if _ONLY_LETTERS.fullmatch(text) else _LETTER.findall(text))


def has_parts(answer: str, gold: str, metadata: Metadata) -> float:
    """The share of the gold's parts (`a<AND>b`) that stand in the answer as words; of `<OR>` the best alternative."""
    return max(_share(answer, alternative.split("<AND>")) for alternative in gold.split("<OR>"))


def _share(answer: str, parts: list[str]) -> float:
    return sum(_stands_in(part, answer) for part in parts) / len(parts)


def _stands_in(part: str, text: str) -> bool:
    part, text = (" ".join(each.casefold().split()).rstrip(".") for each in (part, text))
    before = r"(?<![\w.-])" if part[:1].isdigit() else r"(?<!\w)"
    return bool(part) and re.search(rf"{before}{re.escape(part)}(?!\w|\.\d)", text) is not None
