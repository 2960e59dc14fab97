"""Worked examples of answers that are taken from a run's own training data.

Rows are looked at in an order of the run's seed. Those with a worked response come first; of the others there is only
the answer to show, which teaches a model how to state one, and no way to it. What becomes an example is a question like
any other in its prompt, but is not trained on, and was not held out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from spark_rl.data.check import question_key
from spark_rl.data.sources import Source
from spark_rl.prompts import Prompts
from spark_rl.types import Message, Role, Task
from spark_rl.verify import SELF, Check, VerifierPool

_ROWS_AN_EXAMPLE = 64
"""Rows looked at for each example that is wanted."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Examples, and what was seen of the rows that they are of."""

    turns: tuple[Message, ...]
    keys: frozenset[int]
    """Of their questions."""
    num_bare: int
    """Examples without a response, which show an answer alone."""


def take_examples(
    num: int,
    sources: Sequence[Source],
    prompts: Prompts,
    held_out: Collection[int],
    verifiers: VerifierPool,
    *,
    seed: int,
    right_at: float = 1.0,
) -> Taken:
    """Choose questions of different text, and their replies, which are right by the rows' own verifiers.

    Args:
        held_out: keys of questions that must not be among them.

    Raises:
        ValueError: there are not as many.
    """

    def is_right(task: Task, reply: str) -> bool:
        check = Check(reply, task.label, task.verifier, task.example.metadata, task.messages, prompts.answer_format)
        (verdict,) = verifiers.verify([check])
        return verdict.at(right_at).reason == "correct"

    looked_at = sorted(_candidates(num, sources, prompts, held_out, seed), key=lambda each: each[2] is None)
    turns, keys, num_bare = list[Message](), set[int](), 0
    for key, task, response in looked_at:
        if len(keys) == num:
            break
        reply = None if key in keys else _reply(task, response or "", prompts, is_right)
        if reply is not None:
            turns += [*(m for m in task.messages if m["role"] != "system"), {"role": "assistant", "content": reply}]
            keys.add(key)
            num_bare += response is None
    if len(keys) < num:
        raise ValueError(
            f"prompts.examples asks for {num} rows of data.train, and {len(keys)} of {len(looked_at)} that were looked "
            "at can be examples (questions without images that a rule verifies and that are not held out, and whose "
            "response, if they have one, is right); ask for fewer, or write examples yourself: "
            "prompts.examples={answer: FILE}"
        )
    return Taken(tuple(turns), frozenset(keys), num_bare)


def _candidates(
    num: int, sources: Sequence[Source], prompts: Prompts, held_out: Collection[int], seed: int
) -> Iterator[tuple[int, Task, str | None]]:
    """Rows that could be examples as far as they tell: the key of the question, its task, its response."""
    rows = [(source, index) for source in sources for index in _some(source, num, seed)]
    random.Random(f"examples-{seed}").shuffle(rows)
    for source, index in rows:
        try:
            task = source.read(index)
        except ValueError:
            continue  # which is said where all rows are read
        is_asked = task.role is Role.ANSWER and task.verifier != SELF and not task.example.images and task.label
        if is_asked and (key := question_key(task, prompts)) not in held_out:
            yield key, task, source.response(index)


def _some(source: Source, num: int, seed: int) -> list[int]:
    some = random.Random(f"examples-{seed}-{source.path}")
    return some.sample(range(source.num_rows), min(source.num_rows, num * _ROWS_AN_EXAMPLE))


def _reply(task: Task, response: str, prompts: Prompts, is_right: Callable[[Task, str], bool]) -> str | None:
    """The response with the gold stated in the run's format, unless it states it; None if it is not right."""
    how = prompts.answer_format
    found = how.read(response)
    if found is not None and is_right(task, response):
        return response
    if found is not None and how.name != "last_number":  # of which the work is full
        return None
    reply = f"{response.strip()}\n{how.write(task.label)}".strip()
    return reply if is_right(task, reply) else None
