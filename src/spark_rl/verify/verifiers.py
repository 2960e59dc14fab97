r"""Rules that grade an extracted answer against a gold answer.

A verifier is a function `(answer, gold, metadata) -> float | None`; None says that the *gold* cannot be read, so the
item must be skipped and nobody is punished for it. Verifiers that could hang or crash on adversarial input are marked
`isolated` and belong in a worker process (`pool.py`); the others take linear time and run inline.

A function of yours is named `module:function`, its module being in the current directory or installed. `words.py`:

    def has_all(answer, gold, metadata):
        return sum(word in answer for word in gold.split()) / len(gold.split())

    >>> grade("a red fox", "red fox", "words:has_all").reason  # doctest: +SKIP
    'correct'

A reward function in TRL's signature is named `trl:module:function`. It runs unchanged, and reads the whole response:

    def boxed(completions, **kwargs):
        return [float("boxed" in completion[0]["content"]) for completion in completions]

    >>> grade("It is 5.", "5", "trl:words:boxed").reason  # doctest: +SKIP
    'wrong'
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from spark_rl.verify.extract import box, extract_answer
from spark_rl.verify.formats import BOXED, Format
from spark_rl.verify.quantity import quantity
from spark_rl.verify.wording import choice, is_letter, letter, plain, same_text

if TYPE_CHECKING:
    from spark_rl.verify.mathematics import Rules

Metadata = Mapping[str, Any]
Score = Callable[[str, str, Metadata], float | None]


LARGEST = 1e30
"""Rewards are at most this, either way: training computes in float32."""
_STANDINGS = ("correct", "partial", "wrong")


def _standing(reward: float, right_at: float = 1.0) -> str:
    return "correct" if reward >= right_at else "wrong" if reward <= 0 else "partial"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The grade of one response."""

    reward: float | None
    """1 right, 0 wrong, between for a verifier with partial credit; of a function of yours any number of at most
    `LARGEST`; None when nothing could be graded."""
    extracted: str | None
    """The answer that was graded; None when the response holds none."""
    reason: str
    """`correct`, `partial`, `wrong`, `unparsed`, `bad_gold`, `no_reward` (a reward function gave None), `timeout`,
    `crash` or `error: <exception type>`."""
    detail: str = ""
    """What there is to say besides: the exception's type and message."""

    @property
    def is_graded(self) -> bool:
        """Whether the reward is what a verifier gave for an answer, and not what is given in the want of one."""
        return self.reason in _STANDINGS

    def at(self, right_at: float) -> Verdict:
        """The same where a response is right from a reward of `right_at` on, not from 1 on."""
        if self.reward is None or not self.is_graded:
            return self
        return replace(self, reason=_standing(self.reward, right_at))


def failed(reason: str) -> bool:
    """Whether the reason of a verdict, or of a rollout, is that the verifier failed: out of time, dead or raising. Such
    a reward says nothing of the answer that a judge could learn from."""
    return reason.startswith(("timeout", "crash", "error"))


@dataclass(frozen=True, slots=True)
class Verifier:
    """A rule, and what it takes to run it."""

    score: Score
    isolated: bool = False
    """Must run in a worker process: may take unbounded time or memory, or is code we do not know."""
    imports: tuple[str, ...] = ()
    """Modules loaded before the clock of an item starts."""
    reads: Literal["answer", "response"] = "answer"
    """What `score` is given first: the extracted answer, or the whole response with its reasoning, boxed or not."""


_TOLERANCES = frozenset(["tolerance", "relative_tolerance"])
_INTEGER = re.compile(r"[+-]?\d{1,400}", re.ASCII)


def score_math(answer: str, gold: str, metadata: Metadata) -> float | None:
    """Equality of what a mathematician reads: numbers, expressions, sets, intervals, relations, quantities; or text.

    `metadata` may allow more: a `tolerance` (absolute) or `relative_tolerance` (of gold) for numbers. `units: strict`
    allows less: a unit must be there where the gold has one, and only there.
    """
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold) and not _TOLERANCES & metadata.keys():
        return float(int(answer) == int(gold))
    from spark_rl.verify.mathematics import equal, read

    meant = read(gold)
    if meant is None:
        return None
    if answer == gold or same_text(plain(answer), plain(gold)):
        return 1.0
    given = read(answer)
    return float(given is not None and equal(meant, given, _rules(metadata)))


def _rules(metadata: Metadata) -> Rules:
    """What the metadata of a row allow."""
    from spark_rl.verify.mathematics import Rules

    units = metadata.get("units", "lenient")
    if units not in ("lenient", "strict"):
        raise ValueError(f"units is {units!r}; it must be 'lenient' or 'strict'")
    absolute, relative = (Fraction(str(metadata.get(name, 0))) for name in ("tolerance", "relative_tolerance"))
    return Rules(absolute, relative, units == "strict")


def score_choice(answer: str, gold: str, metadata: Metadata) -> float | None:
    r"""Equality of letters or words up to case and wrapping: `(a)`, `A.` and `\text{A}` are all A. Grades verdicts.

    Where the gold is a letter its option may follow, `A. 12` or `(A) 12`, unless a second letter is named.
    """
    expected, chosen = choice(gold), choice(answer)
    if not expected:
        return None
    return float(chosen == expected or (is_letter(expected) and letter(chosen) == expected))


def verdict_side(text: str, words: tuple[str, str]) -> int | None:
    """Which of a judge's two verdicts a text is, 0 or 1, by the rule that grades them; None for neither or both."""
    said = [side for side, word in enumerate(words) if score_choice(text, word, {}) == 1]
    return said[0] if len(said) == 1 else None


def score_numeric(answer: str, gold: str, metadata: Metadata) -> float | None:
    """Exact equality of decimals and fractions, or within `tolerance` (absolute) or `relative_tolerance` (of gold).

    A unit or a label (`18 dollars`, `x = 18`) is passed over, unless the gold has another one.
    """
    expected, given = quantity(gold), quantity(answer)
    if expected is None:
        return None
    absolute = Fraction(str(metadata.get("tolerance", 0)))
    relative = Fraction(str(metadata.get("relative_tolerance", 0)))
    return float(given is not None and given.equals(expected, max(absolute, relative * abs(expected.value))))


def score_exact(answer: str, gold: str, metadata: Metadata) -> float | None:
    """Equality of strings up to white space."""
    return float(answer.split() == gold.split()) if gold.split() else None


@lru_cache(maxsize=256)
def _reasoning_gym_score(dataset: str) -> Callable[..., float]:
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(dataset)


def score_reasoning_gym(answer: str, gold: str, metadata: Metadata) -> float | None:
    """The score of reasoning-gym itself; `metadata` is `{"dataset": its name, "entry": the generated item}`."""
    dataset, entry = metadata["dataset"], metadata["entry"]
    if dataset in _OF_TUPLES:
        entry = {**entry, "metadata": _tuples(entry["metadata"])}
    return _reasoning_gym_score(dataset)(answer=answer, entry=entry)


_OF_TUPLES = ("arc_agi", "rearc")
"""Tasks whose scorer compares grids made of tuples, which are lists once they have been written as JSON."""


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


SELF = "self"
"""Names no rule: the model's own verdicts are the reward; see the section `self_reward` of a run."""


def score_self(answer: str, gold: str, metadata: Metadata) -> float | None:
    """None: there is no gold, so a rule has nothing to say."""
    return None


VERIFIERS: dict[str, Verifier] = {
    "math": Verifier(score_math, isolated=True, imports=("spark_rl.verify.mathematics",)),
    "choice": Verifier(score_choice),
    "numeric": Verifier(score_numeric),
    "exact": Verifier(score_exact),
    "reasoning_gym": Verifier(score_reasoning_gym, isolated=True, imports=("reasoning_gym",)),
    SELF: Verifier(score_self),
}


def score_trl(function: Callable[..., Any], response: str, gold: str, metadata: Metadata) -> float | None:
    """What a reward function in TRL's signature gives one completion.

    As in `GRPOTrainer`, all arguments are lists with an entry a completion, in the conversational form, and further
    columns come as keywords: the keys of `metadata`, and the gold under the names that TRL's examples use. Deviation:
    there are no `completion_ids` and no trainer here, and a function without `**kwargs` is given what it accepts.
    """
    columns = {"answer": gold, "solution": gold, "ground_truth": gold, "prompts": [], **metadata}
    if "prompt" in metadata:
        columns["prompts"] = columns.pop("prompt")
    columns["completions"] = [{"role": "assistant", "content": response}]
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    rewards = function(**{name: [value] for name, value in columns.items() if takes_all or name in parameters})
    if inspect.isawaitable(rewards):
        rewards = asyncio.run(_awaited(rewards))
    if not hasattr(rewards, "__len__") or len(rewards) != 1:
        raise ValueError(f"a reward function must return a list of one reward for one completion, not {rewards!r}")
    reward: float | None = rewards[0]
    return reward


async def _awaited(rewards: Awaitable[Any]) -> Any:
    return await rewards


def resolve(name: str) -> Verifier:
    """The verifier called `name`. Functions of yours are imported where they run.

    Raises:
        ValueError: there is none of that name, or it is not of the form `module:function` or `trl:module:function`.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    is_trl = name.startswith("trl:")
    module, colon, function = name.removeprefix("trl:").partition(":")
    if all(part.isidentifier() for part in (*module.split("."), function)):

        def score(read: str, gold: str, metadata: Metadata) -> float | None:
            yours = getattr(import_module(module), function)
            return score_trl(yours, read, gold, metadata) if is_trl else yours(read, gold, metadata)

        return Verifier(score, isolated=True, imports=(module,), reads="response" if is_trl else "answer")
    if is_trl or colon:
        form = "trl:module:function" if is_trl else "module:function"
        raise ValueError(f"verifier {name!r} names no function: write it as {form}")
    nearest = get_close_matches(name, VERIFIERS, n=1, cutoff=0)[0]
    raise ValueError(
        f"unknown verifier {name!r}: did you mean {nearest!r}? Known are {', '.join(VERIFIERS)}, "
        "a function of yours as module:function, and a reward function of TRL's kind as trl:module:function."
    )


def check_trusted(name: str, named: str) -> None:
    """Rows come from anywhere, so none may have a function called but the one that the user has named in a command.

    Raises:
        ValueError: it is another function.
    """
    if ":" in name and name != named:
        raise ValueError(f"'verifier' names the function {name!r}; to trust it, give --verifier {name}")


def grade(
    read: str,
    gold: str,
    verifier: str = "math",
    metadata: Metadata | None = None,
    limit: AbstractContextManager[None] | None = None,
) -> Verdict:
    """Grade what the verifier reads (an extracted answer, for most) in this process, inside `limit`.

    The one place where an exception becomes a value.
    """
    rule = resolve(verifier)
    extracted = read if rule.reads == "answer" else extract_answer(read)
    try:
        for module in rule.imports:
            import_module(module)
        with limit or nullcontext():
            reward = rule.score(read, gold, metadata or {})
        if reward is None:
            return Verdict(None, extracted, "bad_gold" if rule.reads == "answer" else "no_reward")
        reward = float(reward)
        if not abs(reward) <= LARGEST:
            raise ValueError(f"verifier {verifier} returned {reward:g}, which is no number of at most {LARGEST:g}")
    except Exception as error:
        kind = type(error).__name__
        return Verdict(None, extracted, f"error: {kind}", f"{kind}: {error}".splitlines()[0][:200].rstrip(": "))
    return Verdict(reward, extracted, _standing(reward))


_OF_EQUALITY = ("tolerance", "relative_tolerance", "units")
"""Metadata that says how answers are compared, and nothing about which is right."""


def equality(verifier: str, metadata: Metadata) -> tuple[str, dict[str, Any]]:
    """The verifier and the metadata by which answers to a question are compared with each other, the second one in the
    place of the gold: without what may hold the gold, and `math` for verifiers that never read it."""
    if verifier in ("reasoning_gym", SELF) or resolve(verifier).reads == "response":
        return "math", {}
    return verifier, {name: metadata[name] for name in _OF_EQUALITY if name in metadata}


def gold_problem(verdict: Verdict, verifier: str, right_at: float = 1.0, stated: Format = BOXED) -> str | None:
    """Why a gold is unusable, given the verdict on the gold graded against itself; None when it is fine.

    Of a verifier that reads whole responses only failures are problems: a format reward rightly gives a bare gold 0.

    Args:
        right_at: the reward from which on a response is right.
        stated: how the gold was stated.
    """
    verdict = verdict.at(right_at)
    match verdict.reason:
        case "correct":
            return None
        case "wrong" | "partial" | "no_reward" if resolve(verifier).reads == "response":
            return None
        case "unparsed":
            if stated is BOXED:
                return r"The gold cannot be written in \boxed{}: it is empty, or its braces do not balance."
            return (
                f"The gold cannot be stated in the format {stated.name}; correct it or set another data.answer_format."
            )
        case "bad_gold":
            return f"The {verifier} verifier cannot read the gold; correct it or name another verifier."
        case "wrong" | "partial" if ":" in verifier or (verdict.reward or 0) >= 1:
            return (
                f"The {verifier} verifier gives the gold itself {verdict.reward:g}, and right is {right_at:g} or more; "
                "correct the verifier, the gold or right_at."
            )
        case "wrong" | "partial":
            stating, other = "", ""
            if stated is not BOXED:
                stating, other = f", stated in the format {stated.name},", " or data.answer_format"
            return (
                f"The {verifier} verifier does not accept the gold{stating} as its own answer; name another "
                f"verifier{other}."
            )
        case failure:
            return f"The {verifier} verifier failed on the gold ({verdict.detail or failure}); correct one of the two."


def check_gold(gold: str, verifier: str = "math", metadata: Metadata | None = None) -> str | None:
    """None, or a sentence on why no response could ever be graded right against `gold`.

    Runs here, without time limit; for golds of unknown origin send `Check(box(gold), gold, ...)` through a
    `VerifierPool` and read the verdicts with `gold_problem`.
    """
    read = box(gold) if resolve(verifier).reads == "response" else extract_answer(box(gold))
    verdict = grade(read, gold, verifier, metadata) if read else Verdict(0.0, None, "unparsed")
    return gold_problem(verdict, verifier)
