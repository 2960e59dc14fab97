"""Worked examples: question and reply without templates and formats become turns in a run's own ones.

What is written down is the work: `{question, answer, reply}`, or `{question, response, right, reply}` for a judge. The
question is put into the run's template, what a judge is shown is quoted as in training, and the reply gets the answer
or the verdict in the run's format, unless it states it already. So the same examples serve every format, and verdicts
in the words of one's own templates. Each reply is then read as a rollout would be, and must come to what it is meant
to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from spark_rl.prompts.example_rows import Row, example_rows
from spark_rl.prompts.prompts import Prompts
from spark_rl.prompts.quoting import View, shown
from spark_rl.prompts.templates import Template
from spark_rl.types import Message, Role, without_images
from spark_rl.verify import Format, grade, verdict_side

Turns = tuple[Message, ...]
_KEYS = {
    Role.ANSWER: ("question", "answer", "reply"),
    Role.POINTWISE: ("question", "response", "right", "reply"),
    Role.PAIRWISE: ("question", "right", "wrong", "first", "reply"),
    Role.REFLECTION: ("question", "response", "answer", "reply"),
}
_MAX_CHARS = 1_000_000
"""Of a response: as an example has it, it is not cut."""


def with_examples(prompts: Prompts, given: Mapping[Role, Any], whole: float = 0.5) -> Prompts:
    """Prompts with other worked examples for some roles.

    Args:
        given: as `PromptsConfig.examples_by_role` has it.
        whole: the share of examples that show whole responses; the others show answers alone, as far as there are.

    Raises:
        ValueError: there is no such file, or an example cannot be used; one sentence, which names its place.
    """
    examples = dict(prompts.examples)
    for role, each in given.items():
        if isinstance(each, Mapping):
            examples.pop(role, None)  # taken from a run's data, once they are read
            continue
        examples[role] = worked(prompts, role, list(example_rows(role, each)), whole)
    return replace(prompts, examples={role: turns for role, turns in examples.items() if turns})


def worked(prompts: Prompts, role: Role, rows: Sequence[Row], whole: float = 0.5) -> Turns:
    """The turns of a role's examples, one after the other, in the role's first template (`Prompts.recycled_in`).

    Raises:
        ValueError: as `with_examples`.
    """
    template, turns = prompts.template(None, role), list[Message]()
    for number, (place, row) in enumerate(rows):
        shows_whole = int((number + 1) * whole + 1e-9) > int(number * whole + 1e-9)  # evenly spread
        view = View.REASONING if shows_whole else View.ANSWER
        try:
            made = _written(prompts, role, row, template, view)
            check_turns(prompts, role, made)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        turns += made
    return tuple(turns)


def check_turns(prompts: Prompts, role: Role, turns: Sequence[Message]) -> None:
    """See that turns can stand before a prompt of a role, and that each reply states an answer, or a verdict.

    Raises:
        ValueError: the reason alone.
    """
    if [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2) or not turns:
        raise ValueError(
            f"its turns are {', '.join(str(turn['role']) for turn in turns) or 'none'}; let user and assistant take "
            "turns, the assistant last (a system's turn is data.system)"
        )
    stated = prompts.format(role)
    for number, turn in enumerate(turns, start=1):
        if turn["role"] == "assistant":
            found = stated.read(turn["content"])
            if found is None or (role.is_judge and _side(prompts, role, found) is None):
                what = f"the verdict {' or '.join(prompts.verdicts(role))}" if role.is_judge else "an answer"
                raise ValueError(f"turn {number} (assistant) does not state {what} as {stated.write('...')}; let it")


def one_sided(prompts: Prompts) -> list[str]:
    """A sentence for each judge whose examples all come to one verdict."""
    said = []
    for role, turns in prompts.examples.items():
        found = [prompts.format(role).read(turn["content"]) or "" for turn in turns if turn["role"] == "assistant"]
        if role.is_judge and len({_side(prompts, role, verdict) for verdict in found}) == 1:
            said.append(
                f"prompts.examples.{role}: every example says {found[0]}, which a judge copies; add one with the other "
                "verdict"
            )
    return said


def stated(text: str, answer: str, how: Format, same: Callable[[str], bool], other: Callable[[str], bool]) -> str:
    """A reply that states an answer: as it is, if it does, else with the statement in a line of its own.

    Args:
        same: whether what is read is that answer.
        other: whether it is another one, so that the reply contradicts it.

    Raises:
        ValueError: it does, or the format cannot state that answer.
    """
    found = how.read(text)
    if found is not None and same(found):
        return text
    if found is not None and other(found):
        raise ValueError(f"its reply states {found!r:.40}, and {answer!r:.40} is meant; change one of the two")
    text = f"{text.strip()}\n{how.write(answer)}".strip()
    found = how.read(text)
    if found is None or not same(found):
        raise ValueError(f"{answer!r:.40} cannot be stated as {how.name}: it is read as {found!r:.40}")
    return text


def _written(prompts: Prompts, role: Role, row: Any, template: Template, view: View) -> Turns:
    """The turns of one example."""
    if isinstance(row, Mapping) and "messages" in row:
        messages = _Fields(row, ("messages",)).row["messages"]
        if not isinstance(messages, list):
            raise ValueError("'messages' must be a list of turns")
        return tuple(map(_message, messages))
    fields = _Fields(row, _KEYS[role])
    question, how = fields.text("question"), prompts.verdict_format
    if role is Role.ANSWER:
        (asked,) = prompts.question(question)
        return (asked, _said(_answered(fields, prompts.answer_format)))
    if role is Role.PAIRWISE:
        right, wrong = _shown(prompts, [_response(fields, key, prompts) for key in ("right", "wrong")], view)
        is_first = fields.choice("first", "right", "wrong")
        first, second = (right, wrong) if is_first else (wrong, right)
        (asked,) = prompts.fill(template, question=question, first=first, second=second)
        return (asked, _said(_judged(fields, 0 if is_first else 1, template, how)))
    (response,) = _shown(prompts, [_response(fields, "response", prompts)], view)
    (asked,) = prompts.fill(template, question=question, response=response)
    if role is Role.REFLECTION:
        return (asked, _said(_answered(fields, prompts.answer_format)))
    return (asked, _said(_judged(fields, 0 if fields.choice("right", True, False) else 1, template, how)))


def _said(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _answered(fields: _Fields, how: Format) -> str:
    """A reply, or a response that is shown, with its answer; without one it must state it itself."""
    text = fields.text("reply", needed=False)
    answer = fields.text("answer", needed=not text)
    if not answer:
        return text
    any_number = how.name == "last_number"  # which the work is full of
    return stated(text, answer, how, partial(is_same_answer, answer), lambda found: not any_number)


def _judged(fields: _Fields, side: int, template: Template, how: Format) -> str:
    verdicts = template.verdicts
    return stated(
        fields.text("reply", needed=False),
        verdicts[side],
        how,
        lambda found: verdict_side(found, verdicts) == side,
        lambda found: verdict_side(found, verdicts) == 1 - side,
    )


def _response(fields: _Fields, key: str, prompts: Prompts) -> str:
    """A response that is shown, whole: text in the run's format, or a mapping as of an answer's example."""
    given = fields.row.get(key)
    if isinstance(given, Mapping):
        return _answered(_Fields(given, ("answer", "reply")), prompts.answer_format)
    return fields.text(key)


def _shown(prompts: Prompts, responses: Sequence[str], view: View) -> list[str]:
    """Responses as training shows them, both of a pair by one view."""
    how = prompts.answer_format
    extracted = [how.read(text) for text in responses]
    view = View.REASONING if None in extracted else view
    return [shown(*each, view, _MAX_CHARS, how) or "" for each in zip(responses, extracted, strict=True)]


class _Fields:
    """What is written in an example, by key."""

    def __init__(self, row: Any, known: Sequence[str]) -> None:
        listed = ", ".join(map(repr, known))
        if not isinstance(row, Mapping):
            raise ValueError(f"must be a mapping with {listed}, not {row!r:.40}")
        for key in row:
            if key not in known:
                near = get_close_matches(str(key), known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"here it may have {listed}"
                raise ValueError(f"unknown key {key!r}; {hint}")
        self.row = row

    def text(self, key: str, needed: bool = True) -> str:
        """The text of a key, a number's digits; empty if there is none and none is needed."""
        value = self.row.get(key)
        if type(value) in (int, float):
            value = str(value)
        if value is None and not needed:
            return ""
        if value is None:
            raise ValueError(f"has no {key!r}; add it")
        if not isinstance(value, str) or not value.strip():
            quotes = "; put quotes around it" if isinstance(value, bool) else ""
            raise ValueError(f"{key!r} must be text, not {_yaml(value):.40}{quotes}")
        return without_images(value)

    def choice(self, key: str, first: Any, second: Any) -> bool:
        """Whether a key has the first of two values."""
        value = self.row.get(key)
        if type(value) is not type(first) or value not in (first, second):
            raise ValueError(f"{key!r} must be {_yaml(first)} or {_yaml(second)}, not {_yaml(value):.40}")
        return bool(value == first)


def is_same_answer(answer: str, found: str) -> bool:
    """Whether two answers are equal to someone who reads mathematics or picks an option."""
    return answer == found or any(grade(found, answer, rule).reward == 1 for rule in ("choice", "math"))


def _side(prompts: Prompts, role: Role, found: str) -> int | None:
    """Which verdict is read, by the words of any template of the role."""
    said = (verdict_side(found, template.verdicts) for template in prompts.templates_for(role))
    return next((side for side in said if side is not None), None)


def _message(turn: Any) -> Message:
    is_turn = isinstance(turn, Mapping) and turn.keys() == {"role", "content"}
    if not is_turn or not isinstance(turn["content"], str) or not turn["content"].strip():
        raise ValueError("every turn of 'messages' must have a 'role' and, as text, a 'content', and nothing else")
    return {"role": turn["role"], "content": without_images(turn["content"])}


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else repr(value)
