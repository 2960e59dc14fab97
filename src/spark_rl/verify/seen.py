"""In which formats replies state their answers, for those that do not do so in the one they were asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from spark_rl.verify.formats import Format, format_of
from spark_rl.verify.pool import Check, VerifierPool
from spark_rl.verify.verifiers import resolve

OF_ANSWERS = ("boxed", "tags", "hash", "phrase", "json:answer", "last_number")
"""Formats that are looked for. The last is weak evidence, since any number ends a reply."""
OF_VERDICTS = ("boxed", "tags", "phrase", "json:answer")
_LEAST, _LEAST_SHARE = 2, 0.05
"""Golds that another format must hold beyond those of the one that was asked for, to be worth a change."""
_MANY = 0.25
"""The same of answers, as a share of the replies, where there are not so many golds."""
_SURE = 2.0
"""Standard deviations by which last numbers must be right more often than they are by chance."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What of some replies is stated in one format, in numbers of replies."""

    format: Format
    replies: int
    answers: int
    """That state an answer."""
    golds: int
    """That state the gold, or of a judge's either verdict."""
    by_chance: int = 0
    """Of `last_number`: whose last number is the gold of another question."""
    gold: str = "the gold"
    """What golds are called."""

    @property
    def is_clear(self) -> bool:
        """Whether the golds are no chance."""
        noise = _SURE * math.sqrt(self.golds + self.by_chance)
        return self.format.name != "last_number" or self.golds - self.by_chance > noise

    @property
    def found(self) -> int:
        """Replies that state the gold, or, if none does, an answer."""
        return self.golds or self.answers

    @property
    def holds(self) -> str:
        """What `found` replies do: ``hold the gold as `#### ...```."""
        what = self.gold if self.golds else "an answer"
        if self.format.name == "last_number":
            return f"end with {what} as their last number ({self.by_chance / self.replies:.0%} would by chance)"
        return f"hold {what} as `{self.format.form}`"

    def advice(self, key: str, who: str = "") -> str:
        """``40% of the replies hold the gold as `#### ...`: set data.answer_format=hash``.

        Args:
            key: the setting of the format.
            who: instead of the share of the replies, what holds it.
        """
        who = who or f"{self.found / self.replies:.0%} of the replies"
        return f"{who} {self.holds}: set {key}={self.format.name}"


def formats_seen(
    checks: Sequence[Check],
    pool: VerifierPool,
    own: Format,
    right_at: float = 1.0,
    names: Sequence[str] = OF_ANSWERS,
) -> list[Seen]:
    """How many of these replies state an answer, and the gold, in the format that they were asked for, and in each of
    those that are named.

    Replies that their verifier reads whole need no format and are left out; so there may be nothing to say. Golds of a
    function of the user's, which may take its time, are looked for by the rule `math`.

    Args:
        right_at: the reward from which on an answer is the gold.
    """
    read = [
        replace(check, verifier="math") if ":" in check.verifier else check
        for check in checks
        if resolve(check.verifier).reads == "answer"
    ]
    return [_seen(read, pool, stated, right_at) for stated in _formats(own, names)] if read else []


def verdicts_seen(replies: Sequence[tuple[str, tuple[str, str]]], own: Format) -> list[Seen]:
    """The same of a judge's replies, each given with the words of its two verdicts."""
    found = []
    for stated in _formats(own, OF_VERDICTS) if replies else ():
        contents = [(stated.read(text), words) for text, words in replies]
        read = [(content, words) for content, words in contents if content is not None]
        either = sum(any(resolve("choice").score(content, word, {}) == 1 for word in words) for content, words in read)
        found.append(Seen(stated, len(replies), len(read), either, gold="a verdict"))
    return found


def better_format(seen: Sequence[Seen]) -> Seen | None:
    """The format in which far more golds are stated than in the first one, that the replies were asked for; if there is
    none, that in which far more answers are. None if neither is."""
    if not seen:
        return None
    own, *others = seen
    weak = [each for each in others if each.format.name == "last_number" and each.is_clear]
    strong = [each for each in others if each.format.name != "last_number"]
    best = max(strong, key=lambda each: (each.golds, each.answers))
    if weak and weak[0].golds > 2 * best.golds:
        best = weak[0]
    least = max(_LEAST, _LEAST_SHARE * own.replies)
    if best.golds - own.golds >= least:
        return best
    most = max(strong, key=lambda each: each.answers)
    return most if most.answers - own.answers > _MANY * own.replies else None


def _formats(own: Format, names: Sequence[str]) -> list[Format]:
    return [own, *(format_of(name) for name in names if name != own.name)]


def _seen(checks: Sequence[Check], pool: VerifierPool, stated: Format, right_at: float) -> Seen:
    answers, golds = _graded([replace(check, format=stated) for check in checks], pool, right_at)
    by_chance = 0
    if stated.name == "last_number":
        _, by_chance = _graded([replace(check, format=stated) for check in _crossed(checks)], pool, right_at)
    return Seen(stated, len(checks), answers, golds, by_chance)


def _graded(checks: Sequence[Check], pool: VerifierPool, right_at: float) -> tuple[int, int]:
    """How many hold an answer, and how many the gold."""
    verdicts = pool.verify(checks)
    graded = [v.reward for v in verdicts if v.extracted is not None]
    return len(graded), sum(reward is not None and reward >= right_at for reward in graded)


def _crossed(checks: Sequence[Check]) -> Iterator[Check]:
    """Each reply with the gold of the next question that has another one, or else its own: of equal golds no number can
    be told from one that the model likes."""
    for i, check in enumerate(checks):
        later = (checks[(i + k) % len(checks)] for k in range(1, len(checks)))
        yield replace(next((other for other in later if other.gold != check.gold), check), text=check.text)
