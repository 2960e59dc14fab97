r"""Rules that grade an extracted answer against a gold answer.

A verifier is a function `(answer, gold, metadata) -> float | None`; None says that the *gold* cannot be read, so the
item must be skipped and nobody is punished for it. Verifiers that could hang or crash on adversarial input are marked
`isolated` and belong in a worker process (`pool.py`); the others take linear time and run inline.
"""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from functools import lru_cache
from importlib import import_module
from typing import Any

from spark_rl.verify.extract import box, extract_answer

Metadata = Mapping[str, Any]
Score = Callable[[str, str, Metadata], float | None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The grade of one response."""

    reward: float | None
    """1 right, 0 wrong, between for a verifier with partial credit; None when nothing could be graded."""
    extracted: str | None
    """The answer that was graded; None when the response holds none."""
    reason: str
    """`correct`, `partial`, `wrong`, `unparsed`, `bad_gold`, `timeout`, `crash` or `error: <exception type>`."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """A rule, and what it takes to run it."""

    score: Score
    isolated: bool = False
    """Must run in a worker process: may take unbounded time or memory, or is code we do not know."""
    imports: tuple[str, ...] = ()
    """Modules loaded before the clock of an item starts."""


_FUNCTION = re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|log|ln|exp|pi|theta|infty)(?![A-Za-z])")
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?!\w)")
_WORDS = re.compile(r"[^\W\d_]{3,}(?:[ '-][^\W\d_]+)*")


@lru_cache(maxsize=4096)  # one gold serves all rollouts of its group
def _parse_math(text: str) -> list[Any]:
    """The SymPy expression in `text`, as a list of one; empty when it is not mathematics."""
    from math_verify import LatexExtractionConfig, parse

    text = _FUNCTION.sub(r"\\\1", text.strip().strip("$").strip()).replace("**", "^")
    text = _SCIENTIFIC.sub(r"\1\\cdot10^{\2}", text)
    if _WORDS.fullmatch(text):  # else a word is a product of its letters, and "cat" equals "act"
        text = rf"\text{{{text.casefold()}}}"
    config = LatexExtractionConfig(boxed_match_priority=0)
    return parse(box(text), [config], fallback_mode="no_fallback", parsing_timeout=None)


def score_math(answer: str, gold: str, metadata: Metadata) -> float | None:
    """Mathematical equality by math-verify: numbers, expressions, equations, sets, intervals, matrices, words.

    Its own time limits are off: they need signals, and cannot stop C code. The worker's CPU limit can.
    """
    from math_verify import verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off
    parsed_gold = _parse_math(gold)
    if not parsed_gold:
        return None
    return float(verify(parsed_gold, _parse_math(answer), timeout_seconds=None))


_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|operatorname)(?:bf|it|rm)?\b|\\math(?:bf|it)\b")


def _choice(text: str) -> str:
    text = _TEXT_COMMAND.sub("", unicodedata.normalize("NFKC", text)).casefold()
    return " ".join(text.split()).lstrip("([{$*\"' ").rstrip(")]}$*\"' .:,")


def score_choice(answer: str, gold: str, metadata: Metadata) -> float | None:
    r"""Equality of letters or words up to case and wrapping: `(a)`, `A.` and `\text{A}` are all A. Grades verdicts."""
    return float(_choice(answer) == _choice(gold)) if _choice(gold) else None


_DECIMAL = r"[+-]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?"
_NUMBER = re.compile(rf"({_DECIMAL})(?:/({_DECIMAL}))?", re.ASCII)
_FRAC = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_MAX_NUMBER_CHARS = 1000  # with three digits of exponent, this bounds the integers that are built


def _number(text: str) -> Fraction | None:
    if len(text) > _MAX_NUMBER_CHARS:
        return None
    text = text.replace(r"\$", "").strip("$ \t\n").replace("−", "-").replace("{,}", ",").replace(r"\,", "")
    match = _NUMBER.fullmatch(_FRAC.sub(r"\1/\2", text))
    if not match:
        return None
    numerator, denominator = (Fraction((part or "1").replace(",", "")) for part in match.groups())
    return numerator / denominator if denominator else None


def score_numeric(answer: str, gold: str, metadata: Metadata) -> float | None:
    """Exact equality of decimals and fractions, or within `tolerance` (absolute) or `relative_tolerance` (of gold)."""
    expected, value = _number(gold), _number(answer)
    if expected is None:
        return None
    absolute = Fraction(str(metadata.get("tolerance", 0)))
    relative = Fraction(str(metadata.get("relative_tolerance", 0)))
    return float(value is not None and abs(value - expected) <= max(absolute, relative * abs(expected)))


def score_exact(answer: str, gold: str, metadata: Metadata) -> float | None:
    """Equality of strings up to white space."""
    return float(answer.split() == gold.split()) if gold.split() else None


@lru_cache(maxsize=256)
def _reasoning_gym_score(dataset: str) -> Callable[..., float]:
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(dataset)


def score_reasoning_gym(answer: str, gold: str, metadata: Metadata) -> float | None:
    """The score of reasoning-gym itself; `metadata` is `{"dataset": its name, "entry": the generated item}`."""
    return _reasoning_gym_score(metadata["dataset"])(answer=answer, entry=metadata["entry"])


VERIFIERS: dict[str, Verifier] = {
    "math": Verifier(score_math, isolated=True, imports=("math_verify",)),
    "choice": Verifier(score_choice),
    "numeric": Verifier(score_numeric),
    "exact": Verifier(score_exact),
    "reasoning_gym": Verifier(score_reasoning_gym, isolated=True, imports=("reasoning_gym",)),
}


def resolve(name: str) -> Verifier:
    """The verifier called `name`; `module:function` names a function of yours, imported where it runs."""
    if name in VERIFIERS:
        return VERIFIERS[name]
    module, colon, function = name.partition(":")
    if colon:
        return Verifier(
            lambda answer, gold, metadata: getattr(import_module(module), function)(answer, gold, metadata),
            isolated=True,
            imports=(module,),
        )
    nearest = get_close_matches(name, VERIFIERS, n=1, cutoff=0)[0]
    raise ValueError(
        f"unknown verifier {name!r}: did you mean {nearest!r}? Known are {', '.join(VERIFIERS)}, "
        "and a function of yours as module:function."
    )


def grade(
    answer: str,
    gold: str,
    verifier: str = "math",
    metadata: Metadata | None = None,
    limit: AbstractContextManager[None] | None = None,
) -> Verdict:
    """Grade an extracted answer in this process, inside `limit`. The one place where an exception becomes a value."""
    rule = resolve(verifier)
    try:
        for module in rule.imports:
            import_module(module)
        with limit or nullcontext():
            reward = rule.score(answer, gold, metadata or {})
        if reward is None:
            return Verdict(None, answer, "bad_gold")
        reward = float(reward)
        if not math.isfinite(reward):
            raise ValueError(f"verifier {verifier} returned {reward}")
    except Exception as error:
        return Verdict(None, answer, f"error: {type(error).__name__}")
    return Verdict(reward, answer, "correct" if reward >= 1 else "wrong" if reward <= 0 else "partial")


def gold_problem(verdict: Verdict, verifier: str) -> str | None:
    """Why a gold is unusable, given the verdict on the boxed gold graded against itself; None when it is fine."""
    match verdict.reason:
        case "correct":
            return None
        case "unparsed":
            return r"The gold cannot be written in \boxed{}: it is empty, or its braces do not balance."
        case "bad_gold":
            return f"The {verifier} verifier cannot read the gold; correct it or name another verifier."
        case "wrong" | "partial":
            return f"The {verifier} verifier does not accept the gold as its own answer; name another verifier."
        case failure:
            return f"The {verifier} verifier failed on the gold ({failure})."


def check_gold(gold: str, verifier: str = "math", metadata: Metadata | None = None) -> str | None:
    """None, or a sentence on why no response could ever be graded right against `gold`.

    Runs here, without time limit; for golds of unknown origin send `Check(box(gold), gold, ...)` through a
    `VerifierPool` and read the verdicts with `gold_problem`.
    """
    answer = extract_answer(box(gold))
    verdict = grade(answer, gold, verifier, metadata) if answer else Verdict(0.0, None, "unparsed")
    return gold_problem(verdict, verifier)
