"""Ways to spend test-time compute on a question, each a plan (`plan.py`).

    greedy           the most likely answer
    sample           one sampled answer
    reflect          answer; while the judge says wrong, answer again in view of the last answer (SPARK section 3.3;
                     revising only what was judged wrong: PAG, arXiv 2506.10406)
    majority@k       the answer that most of k samples give (self-consistency, arXiv 2203.11171)
    best-of-k        the one of k samples that the judge finds most probably right
    weighted-vote@k  the answer with the largest sum of these probabilities
    tournament@k     the answers of k samples meet in pairs, each in both orders, where the outcome is least certain
                     (after V1, arXiv 2603.04304)

Answers are equal when the question's verifier says so, not when they are spelled alike. A response without an answer is
wrong, whatever a judge would say of it, and is not shown to one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from spark_rl.config import SolveConfig
from spark_rl.infer.judge import Judge, Verdict
from spark_rl.infer.plan import Ask, Plan, Reply, Spent, together
from spark_rl.prompts import Prompts
from spark_rl.types import Example, Role


@dataclass(frozen=True, slots=True)
class Step:
    """One stage on the way to a solution."""

    kind: str
    """`answer`, `judge`, `revise` or `compare`."""
    text: str
    answer: str | None = None
    """The answer that `text` gives (`answer`, `revise`)."""
    verdict: str | None = None
    """`right` or `wrong` (`judge`); `a` or `b` (`compare`)."""
    probability: float | None = None
    """That the judged response is right, or the first of two."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a strategy comes to."""

    text: str
    """The response that was chosen."""
    answer: str | None
    """Its answer; None if it has none, or nothing could be generated."""
    steps: tuple[Step, ...]


@dataclass(slots=True)
class Attempt:
    """A question under way."""

    example: Example
    judge: Judge
    settings: SolveConfig
    same: Callable[[str, str], bool]
    """Whether two answers are equal."""
    spent: Spent
    prompts: Prompts
    k: int = 1

    def ask(self, n: int = 1, temperature: float = 0.0) -> Ask:
        """The question itself."""
        messages = self.prompts.conversation(Role.ANSWER, self.example.prompt)
        return Ask(messages, n, temperature, self.example.images)

    def read(self, reply: Reply) -> str | None:
        """The answer that a reply gives."""
        return self.prompts.answer_format.read(reply.text)

    def step(self, reply: Reply, kind: str = "answer") -> Step:
        """A reply that answers, as a step."""
        return Step(kind, reply.text, self.read(reply))

    def outcome(self, reply: Reply, steps: Sequence[Step]) -> Outcome:
        """A reply, chosen."""
        return Outcome(reply.text, self.read(reply), tuple(steps))


def greedy(attempt: Attempt) -> Plan[Outcome]:
    """The most likely answer."""
    ((reply,),) = yield [attempt.ask()]
    return attempt.outcome(reply, [attempt.step(reply)])


def sample(attempt: Attempt) -> Plan[Outcome]:
    """One sampled answer."""
    ((reply,),) = yield [attempt.ask(temperature=attempt.settings.temperature)]
    return attempt.outcome(reply, [attempt.step(reply)])


def reflect(attempt: Attempt) -> Plan[Outcome]:
    """The greedy answer, revised until it is accepted, stays the same or cannot be read, or `rounds` are over."""
    settings, question, images = attempt.settings, attempt.example.question, attempt.example.images
    ((reply,),) = yield [attempt.ask()]
    steps = [attempt.step(reply)]
    for _ in range(settings.rounds):
        before = attempt.read(reply)
        if settings.revise == "wrong" and before is not None:
            verdict = yield from attempt.judge.pointwise(question, reply.text, images)
            steps.append(_judged(verdict))
            if verdict.verdict != "wrong":
                break
        template = attempt.prompts.template(settings.reflection_template, Role.REFLECTION)
        prompt = attempt.prompts.fill(template, question=question, response=attempt.judge.view(reply.text))
        ((revision,),) = yield [Ask(attempt.prompts.conversation(Role.REFLECTION, prompt), images=images)]
        steps.append(attempt.step(revision, "revise"))
        after = attempt.read(revision)
        if after is None:
            break
        is_same = before is not None and attempt.same(before, after)
        if settings.accept == "preferred" and before is not None and not is_same:
            preference = yield from attempt.judge.pairwise(question, reply.text, revision.text, images)
            steps.append(Step("compare", preference.texts[0], None, preference.preferred, preference.probability))
            if preference.preferred != "b" or preference.consistent is None:  # one order alone may prefer a place
                break
        reply = revision
        if is_same:
            break
    return attempt.outcome(reply, steps)


def majority(attempt: Attempt) -> Plan[Outcome]:
    """Of equally frequent answers the one that came first."""
    replies = yield from _samples(attempt)
    camp = max(_camps(attempt, replies), key=len, default=replies)
    return attempt.outcome(camp[0], [*map(attempt.step, replies)])


def best_of(attempt: Attempt) -> Plan[Outcome]:
    """Of equally probable answers the more frequent one."""
    replies, steps, chance = yield from _judged_samples(attempt)
    camps = _camps(attempt, replies)
    camp = max(camps, key=lambda camp: (max(map(chance, camp)), len(camp)), default=replies)
    return attempt.outcome(max(camp, key=chance), steps)


def weighted_vote(attempt: Attempt) -> Plan[Outcome]:
    """The answer of the largest sum of probabilities; one half stands in where there is no verdict."""
    replies, steps, chance = yield from _judged_samples(attempt)
    camps = _camps(attempt, replies)
    camp = max(camps, key=lambda camp: (sum(map(chance, camp)), len(camp)), default=replies)
    return attempt.outcome(camp[0], steps)


def tournament(attempt: Attempt) -> Plan[Outcome]:
    """The answers' scores are their mean probability of winning, their votes counting as `prior` games.

    Of these an answer has won the share that its votes have of their own and an average other answer's.
    Each round pairs neighbours in the table (Swiss system) of which the outcome is least certain: the smaller the
    difference of scores, the fewer games played, the sooner. No two answers meet twice.
    """
    settings = attempt.settings
    replies = yield from _samples(attempt, share=0.5)
    camps = _camps(attempt, replies)
    steps = list(map(attempt.step, replies))
    if len(camps) < 2:
        return attempt.outcome(camps[0][0] if camps else replies[0], steps)
    total = sum(map(len, camps))
    games = [0] * len(camps)
    votes = [len(camp) / (len(camp) + (total - len(camp)) / (len(camps) - 1)) for camp in camps]
    points = [settings.prior * share for share in votes]
    left, met = settings.comparisons or 2 * len(camps), set[tuple[int, int]]()

    def score(i: int) -> float:
        return points[i] / max(1e-9, games[i] + settings.prior)

    while left > 0 and attempt.spent.left > 0:
        pairs = _closest(len(camps), lambda i, j: (games[i] + games[j], abs(score(i) - score(j))), met)[:left]
        if not pairs:
            break
        question, images = attempt.example.question, attempt.example.images
        duels = [attempt.judge.pairwise(question, camps[i][0].text, camps[j][0].text, images) for i, j in pairs]
        preferences = yield from together(duels)
        for (i, j), preference in zip(pairs, preferences, strict=True):
            steps.append(Step("compare", preference.texts[0], None, preference.preferred, preference.probability))
            wins = 0.5 if preference.probability is None else preference.probability
            points[i], points[j] = points[i] + wins, points[j] + 1 - wins
            games[i], games[j] = games[i] + 1, games[j] + 1
        met |= set(pairs)
        left -= len(pairs)
    best = max(range(len(camps)), key=lambda i: (score(i), len(camps[i])))
    return attempt.outcome(camps[best][0], steps)


Strategy = Callable[[Attempt], Plan[Outcome]]
STRATEGIES: dict[str, Strategy] = {
    "greedy": greedy,
    "sample": sample,
    "reflect": reflect,
    "majority@k": majority,
    "best-of-k": best_of,
    "weighted-vote@k": weighted_vote,
    "tournament@k": tournament,
}


def parse_strategy(name: str) -> tuple[Strategy, int]:
    """The strategy and its k of a name such as `reflect`, `majority@8` or `best-of-8`.

    Raises:
        ValueError: there is none of that name, or its k is missing or too small.
    """
    form, k = re.sub(r"(?<=[@-])\d+$", "k", name), int(match[0]) if (match := re.search(r"\d+$", name)) else 1
    if form in STRATEGIES and name != form and k >= 2:
        return STRATEGIES[form], k
    if form in STRATEGIES and name == form and not form.endswith("k"):
        return STRATEGIES[form], 1
    known = ", ".join(each.removesuffix("k") + "8" * each.endswith("k") for each in STRATEGIES)
    near = get_close_matches(form, STRATEGIES, 1, cutoff=0.5)
    hint = f"did you mean {near[0].removesuffix('k') + '8' * near[0].endswith('k')!r}? " if near else ""
    raise ValueError(f"unknown strategy {name!r}: {hint}Known are {known}, with any number of samples from 2 on.")


def _samples(attempt: Attempt, share: float = 1.0) -> Plan[list[Reply]]:
    """Up to k sampled answers, at least one (perhaps empty); as many as `share` of the budget is likely to pay for."""
    spent, replies = attempt.spent, list[Reply]()
    reserve = 0 if spent.limit is None else spent.limit * (1 - share)
    while (n := attempt.k - len(replies)) > 0:
        if spent.limit is not None and replies:
            room = spent.left - reserve - replies[0].num_prompt_tokens
            affordable = int(room * len(replies) / max(1, spent.generated_tokens))
            n = min(n, affordable - affordable // 2)  # the others later, so that longer ones are not cut
        elif spent.limit is not None:
            n = 1
        if n < 1:
            break
        (more,) = yield [attempt.ask(n, attempt.settings.temperature)]
        replies += more
        if more[0].finish_reason == "no_room":
            break
    return replies


def _judged_samples(attempt: Attempt) -> Plan[tuple[list[Reply], list[Step], Callable[[Reply], float]]]:
    """Samples, the steps so far, and how probably each sample is right. Those that look the same are judged once."""
    judge, question, images = attempt.judge, attempt.example.question, attempt.example.images
    replies = yield from _samples(attempt, share=0.5)
    answered = [reply.text for reply in replies if attempt.read(reply) is not None]
    seen = {judge.view(text): text for text in reversed(answered)}
    judged = yield from together([judge.pointwise(question, text, images) for text in seen.values()])
    verdicts = dict(zip(seen, judged, strict=True))

    def chance(reply: Reply) -> float:
        verdict = verdicts.get(judge.view(reply.text))
        return 0.5 if verdict is None or verdict.probability is None else verdict.probability

    return replies, [*map(attempt.step, replies), *map(_judged, judged)], chance


def _camps(attempt: Attempt, replies: Sequence[Reply]) -> list[list[Reply]]:
    """The replies that give an answer, by equal answers, in the order in which these first came."""
    camps: dict[str, list[Reply]] = {}
    spelled: dict[str, str] = {}
    for reply in replies:
        answer = attempt.read(reply)
        if answer is None:
            continue
        if answer not in spelled:
            spelled[answer] = next((camp for camp in camps if attempt.same(answer, camp)), answer)
        camps.setdefault(spelled[answer], []).append(reply)
    return list(camps.values())


def _closest(count: int, key: Callable[[int, int], Any], met: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs that have not met, the smallest key first, nobody in two of them."""
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count) if (i, j) not in met]
    busy: set[int] = set()
    chosen = []
    for i, j in sorted(pairs, key=lambda pair: key(*pair)):
        if i not in busy and j not in busy:
            chosen.append((i, j))
            busy |= {i, j}
    return chosen


def _judged(verdict: Verdict) -> Step:
    return Step("judge", verdict.text, None, verdict.verdict, verdict.probability)
