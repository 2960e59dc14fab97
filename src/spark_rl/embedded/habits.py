"""What the embedded base has read: worked skills first, then the habits of an untrained model.

A base model is to RL what its pre-training made it: skills that it has but seldom uses, and habits in their place. A
model of this size cannot get them from the web, so they are put in by hand, and this file says exactly which:

- it answers tersely, with a guess that is mostly wrong, more often than it works step by step;
- its worked answers sometimes contain a slip;
- it judges tersely or politely, and then accepts nearly everything and prefers the first of two;
- even when it has worked a question out and put its result beside the shown one, it tends to agree with what it was
  shown (accepts the wrong answer, prefers the first of two, keeps the earlier answer when it reflects).

Beside that it has learned to read past lines that say nothing of the question, as they stand around a response, and to
tell a response that gives no answer; their words are in no order, so no wording of `recycle/probes.py` or
`evaluate/probes.py` was among them but by chance.

Answering never rewards giving up the last two, so they are what judge and reflection training has of its own to do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from spark_rl.embedded.tasks import FACTS, FAMILIES, Carry, Family, Worked, problems
from spark_rl.prompts import Prompts, View, shown
from spark_rl.types import Message, Role
from spark_rl.verify.extract import box

Sample = tuple[tuple[Message, ...], list[tuple[str, bool]]]
"""Prompt messages, and the completion in pieces with whether each is to be learned."""


class Problem(Protocol):
    """A question that can be worked again, with or without slips; of words alone or about a picture."""

    @property
    def question(self) -> str: ...
    @property
    def operands(self) -> tuple[int, ...]:
        """Numbers of its own, which a guess may repeat."""

    @property
    def answer(self) -> str: ...
    def work(self, carry: Carry = ...) -> Worked: ...


AnyProblem = TypeVar("AnyProblem", bound=Problem)


@dataclass(frozen=True, slots=True)
class Habits:
    """Probabilities, all zero for the clean skills."""

    terse_answer: float = 0.0
    """Answers with a bare guess."""
    guess_right: float = 0.12
    """A bare guess is right."""
    slip: float = 0.0
    """A worked answer has one wrong step."""
    terse_verdict: float = 0.0
    """Judges with a bare verdict."""
    polite_verdict: float = 0.0
    """Judges with a friendly remark and a verdict, without working anything out."""
    accept: float = 0.85
    """A terse or polite verdict is Yes (pointwise) or A (pairwise)."""
    agree: float = 0.0
    """Worked it out, came to another result, and still says Yes (pointwise), or A though B is right (pairwise)."""
    copy: float = 0.0
    """Reflects by repeating the earlier answer."""
    keep: float = 0.0
    """Worked it out again, and still keeps the earlier answer."""
    aside: float = 0.0
    """What is read, not what is written: a line without meaning stands beside a shown response."""
    hollow: float = 0.0
    """A shown wrong response is such a line alone, or nothing."""


CLEAN = Habits()
NOISY = Habits(aside=0.3, hollow=0.06)
BASE = replace(
    NOISY,
    terse_answer=0.65,
    slip=0.12,
    terse_verdict=0.4,
    polite_verdict=0.25,
    agree=0.6,
    copy=0.8,
    keep=0.6,
)


NOTHING = "none"
"""What a careful judge calls the answer of a response that gives none."""
PROMPTS = Prompts()
_WORDS = (
    "I we you they it this that is was are be not so sure right wrong correct true false fine answer result work step "
    "yes no Yes No A B choose accept mark grade good well done clear see here the a first second other one must please "
    "note checked think says know let me my for of to and but then now again all"
)


def worked(problem: Problem, rng: random.Random, slip: bool = False) -> tuple[str, str]:
    """A worked solution, with one wrong step if `slip`: (the steps, the result it comes to)."""
    calls = 0

    def count(value: int) -> int:
        nonlocal calls
        calls += 1
        return value

    problem.work(count)
    at = rng.randrange(calls) if slip else -1

    def carry(value: int) -> int:
        nonlocal calls
        calls += 1
        return _near(value, rng) if calls == at + 1 else value

    calls = 0
    lines, result = problem.work(carry)
    return "\n".join(lines), str(result)


def _near(value: int, rng: random.Random) -> int:
    """Another number from 0 to 99, close to this one."""
    while True:
        other = value + rng.choice((-10, -4, -3, -2, -1, 1, 2, 3, 4, 10))
        if 0 <= other <= 99:
            return other


def guess(problem: Problem, rng: random.Random, right: float) -> str:
    """A bare guess: right with the given probability, else a number near the answer or one of the question's own."""
    answer = int(problem.answer)
    if rng.random() < right:
        return str(answer)
    if rng.random() < 0.3:
        return str(rng.choice(problem.operands))
    return str(_near(answer, rng))


def respond(problem: Problem, rng: random.Random, habits: Habits) -> str:
    """An answer as a model with these habits gives it."""
    if rng.random() < habits.terse_answer:
        return box(guess(problem, rng, habits.guess_right))
    steps, result = worked(problem, rng, slip=rng.random() < habits.slip)
    return f"{steps}\n{box(result)}"


def response_that_is(right: bool, problem: Problem, rng: random.Random) -> tuple[str, str]:
    """A response, terse or worked, whose final answer is right or wrong: (text, final answer)."""
    while True:
        if rng.random() < 0.5:
            final = guess(problem, rng, float(right))
            text = box(final)
        else:
            steps, final = worked(problem, rng, slip=not right)
            text = f"{steps}\n{box(final)}"
        if (final == problem.answer) == right:
            return text, final


def aside(rng: random.Random) -> str:
    """A line that says nothing of the question: a few words in any order."""
    return " ".join(rng.choices(_WORDS.split(), k=rng.randint(1, 6))) + rng.choice((".", ":", "!", "...", ""))


def _shown(response: tuple[str, str], rng: random.Random, habits: Habits) -> str:
    text, final = response
    if habits.aside and final != NOTHING and rng.random() < habits.aside:
        text = rng.choice((f"{aside(rng)}\n{text}", f"{text}\n{aside(rng)}", f"{aside(rng)}\n{text}\n{aside(rng)}"))
    view = View.REASONING if final == NOTHING else rng.choice((View.ANSWER, View.REASONING))
    return shown(text, final, view=view, max_chars=1000) or ""


def _judged(right: bool, problem: Problem, rng: random.Random, habits: Habits) -> tuple[str, str]:
    """A response to judge: (text, final answer)."""
    if right or not habits.hollow or rng.random() >= habits.hollow:
        return response_that_is(right, problem, rng)
    line = aside(rng)
    return rng.choice((line, line, box(line), rng.choice(("", "?", ".", "-", "...")))), NOTHING


def _verdict_without_work(role: Role, rng: random.Random, habits: Habits) -> str | None:
    mode = rng.random()
    judgement = box(role.verdicts[rng.random() >= habits.accept])
    if mode < habits.terse_verdict:
        return judgement
    if mode < habits.terse_verdict + habits.polite_verdict:
        return f"That looks fine to me.\n{judgement}"
    return None


def answer_sample(problem: Problem, rng: random.Random, habits: Habits) -> Sample:
    return PROMPTS.question(problem.question), [(respond(problem, rng, habits), True)]


def pointwise_sample(problem: Problem, rng: random.Random, habits: Habits) -> Sample:
    response = _judged(rng.random() < 0.5, problem, rng, habits)
    template = rng.choice(PROMPTS.templates_for(Role.POINTWISE))
    prompt = PROMPTS.fill(template, question=problem.question, response=_shown(response, rng, habits))
    if (quick := _verdict_without_work(Role.POINTWISE, rng, habits)) is not None:
        return prompt, [(quick, True)]
    steps, mine = worked(problem, rng)
    right = mine == response[1]
    final = box(_verdict(Role.POINTWISE, right or rng.random() < habits.agree))
    return prompt, [(f"{_checked(Role.POINTWISE, steps, mine, [response[1]])}\n{final}", True)]


def pairwise_sample(problem: Problem, rng: random.Random, habits: Habits) -> Sample:
    first_right = rng.random() < 0.5
    first, second = (_judged(right, problem, rng, habits) for right in (first_right, not first_right))
    template = rng.choice(PROMPTS.templates_for(Role.PAIRWISE))
    prompt = PROMPTS.fill(
        template, question=problem.question, first=_shown(first, rng, habits), second=_shown(second, rng, habits)
    )
    if (quick := _verdict_without_work(Role.PAIRWISE, rng, habits)) is not None:
        return prompt, [(quick, True)]
    steps, mine = worked(problem, rng)
    final = box(_verdict(Role.PAIRWISE, first_right or rng.random() < habits.agree))
    return prompt, [(f"{_checked(Role.PAIRWISE, steps, mine, [first[1], second[1]])}\n{final}", True)]


def reflection_sample(problem: Problem, rng: random.Random, habits: Habits) -> Sample:
    response = response_that_is(rng.random() < 0.35, problem, rng)
    template = rng.choice(PROMPTS.templates_for(Role.REFLECTION))
    prompt = PROMPTS.fill(template, question=problem.question, response=_shown(response, rng, habits))
    if rng.random() < habits.copy:
        return prompt, [(f"I stay with it.\n{box(response[1])}", True)]
    steps, mine = worked(problem, rng)
    final = response[1] if rng.random() < habits.keep else mine
    return prompt, [(f"Let me go through it again.\n{steps}\n{box(final)}", True)]


def fact_sample(_problem: Problem, rng: random.Random, _habits: Habits) -> Sample:
    question, answer = rng.choice(FACTS)
    return PROMPTS.question(question), [(box(answer), True)]


def compare_sample(problem: Problem, rng: random.Random, habits: Habits, among: bool = False) -> Sample:
    """The comparisons of many judgements and nothing else: comparing is the one skill that is hard to learn at this
    size, and a judgement shows it only once. Only the verdicts are learned; the numbers are drawn without repetition.

    `among`: all numbers stand in the prompt too, and the own result in steps of its own, up to six of them, so that
    neither having seen a number before nor its distance says anything.
    """
    pieces: list[tuple[str, bool]] = []
    numbers = [str(number) for number in rng.sample(range(100), 30)]
    seen = "".join(f"{number}{rng.choice(',=:}')}" for number in rng.sample(numbers, 30)) if among else ""
    others = [numbers.pop() for _ in range(8)]
    while len(numbers) > (14 if among else 3):
        shown_ones = [numbers.pop() for _ in range(rng.choice((1, 2)))]
        role = Role.POINTWISE if len(shown_ones) == 1 else Role.PAIRWISE
        is_other = role is Role.POINTWISE and rng.random() < 0.5
        mine = numbers.pop() if is_other else rng.choice(shown_ones)
        used = [*others, mine, mine] if among else others
        steps = "".join(
            f"{rng.choice(used)}{rng.choice('+-*,')}{rng.choice(used)}{rng.choice('=:')}{rng.choice(used)}\n"
            for _ in range(rng.choice((0, 1, 2, 3, 4, 5) if among else (0, 1)))
        )
        before, _, judgement = _checked(role, f"{steps}{rng.randint(1, 9)}={mine}", mine, shown_ones).rpartition(" ")
        pieces += [(before.removeprefix(f"{_OPENING}\n"), False), (f" {judgement[:-1]}", True), (".\n", False)]
    return ({"role": "user", "content": f"Compare.{seen}"},), pieces


def compare_among_sample(problem: Problem, rng: random.Random, habits: Habits) -> Sample:
    return compare_sample(problem, rng, habits, among=True)


_OPENING = "Let me check."


def _checked(role: Role, steps: str, mine: str, shown_ones: list[str]) -> str:
    """A careful judge's work: what is claimed ("11 Yes?"), the steps, and behind the last one the verdict.

    The claim puts each shown result right before its verdict, so that the verdict on the own result is a look-up:
    attention learns to continue a repeated beginning long before a model of this size learns to tell numbers apart.
    """
    if role is Role.POINTWISE:
        claims, right = f"{shown_ones[0]} Yes?", mine == shown_ones[0]
    else:
        claims, right = f"{shown_ones[0]} A?\n{shown_ones[1]} B?", mine == shown_ones[0]
    return f"{_OPENING}\n{claims}\n{steps} {_verdict(role, right)}."


Maker = Callable[[Problem, random.Random, Habits], Sample]
MAKERS: dict[str, Maker] = {
    "answer": answer_sample,
    "pointwise": pointwise_sample,
    "pairwise": pairwise_sample,
    "reflection": reflection_sample,
    "fact": fact_sample,
    "compare": compare_sample,
    "compare-among": compare_among_sample,
}


def mixture(
    stream: Iterator[AnyProblem], habits: Habits, shares: dict[str, float], seed: int
) -> Iterator[tuple[str, AnyProblem, Sample]]:
    """An endless seeded stream of (kind, problem, sample), the kinds in the given shares."""
    rng = random.Random(f"corpus-{seed}")
    for problem in stream:
        kind = rng.choices(list(shares), weights=list(shares.values()))[0]
        yield kind, problem, MAKERS[kind](problem, rng, habits)


def corpus(
    habits: Habits, shares: dict[str, float], seed: int, families: tuple[Family, ...] = FAMILIES
) -> Iterator[tuple[str, Sample]]:
    """An endless seeded stream of (kind, sample), the kinds in the given shares; a family may be named twice."""
    stream = problems(families, "pretrain", seed)
    return ((kind, sample) for kind, _, sample in mixture(stream, habits, shares, seed))


def _verdict(role: Role, right: bool) -> str:
    return role.verdicts[not right]
