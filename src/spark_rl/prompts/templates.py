"""Role templates, in our own words (SPARK section 3.2 describes the roles; its prompts are not used).

Every template quotes the question first and gives its instruction last, so that tasks about one question share a
prefix and the instruction stands after whatever a quoted response may say. How an answer or a verdict is to be stated
is left open: that is a format's (`verify/formats.py`), and `Prompts` puts the two together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from spark_rl.types import Role

QUOTED = {
    Role.ANSWER: ("question",),
    Role.POINTWISE: ("question", "response"),
    Role.PAIRWISE: ("question", "first", "second"),
    Role.REFLECTION: ("question", "response"),
}
"""The placeholders of each role for texts that are quoted."""
OF_ANSWERS = ("give_answer", "form")
"""Placeholders for how an answer is to be stated: in the words of its format ("put your final answer in ..."), and as
it looks alone, for templates in other languages."""
OF_VERDICTS = {Role.POINTWISE: ("yes", "no"), Role.PAIRWISE: ("a", "b")}
"""Placeholders for the two verdicts, as they are to be stated: that of a right response, or of the first of two, comes
first."""
PLACEHOLDER = re.compile(r"\{(question|response|first|second|give_answer|form|yes|no|a|b)\}")


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with placeholders: those of its role in `QUOTED`, and those for what is to be stated."""

    name: str
    role: Role
    text: str
    verdicts: tuple[str, str] = ("", "")
    """The words of a judge's two verdicts; without any those of the role (`Role.verdicts`)."""

    def __post_init__(self) -> None:
        if self.role.is_judge and not any(self.verdicts):
            object.__setattr__(self, "verdicts", self.role.verdicts)


TEMPLATES: tuple[Template, ...] = (
    Template("answer-1", Role.ANSWER, "{question}\n\nReason step by step, then {give_answer}."),
    Template(
        "pointwise-1",
        Role.POINTWISE,
        "Question:\n{question}\n\nA response to it:\n{response}\n\n"
        "Is the final answer of this response correct? Work it out for yourself, compare, and end with {yes} or {no}.",
    ),
    Template(
        "pointwise-2",
        Role.POINTWISE,
        "Question:\n{question}\n\nSomeone responded:\n{response}\n\n"
        "Check this response against your own solution. End with {yes} if its final answer is right, "
        "and with {no} if it is wrong.",
    ),
    Template(
        "pointwise-3",
        Role.POINTWISE,
        "Question:\n{question}\n\nProposed solution:\n{response}\n\n"
        "You are the grader. Decide whether the proposed solution reaches the right answer, "
        "and give your verdict as {yes} or {no}.",
    ),
    Template(
        "pairwise-1",
        Role.PAIRWISE,
        "Question:\n{question}\n\nResponse A:\n{first}\n\nResponse B:\n{second}\n\n"
        "Exactly one of the two responses is correct. Find out which, and end with {a} or {b}.",
    ),
    Template(
        "pairwise-2",
        Role.PAIRWISE,
        "Question:\n{question}\n\nTwo people responded.\n\nA:\n{first}\n\nB:\n{second}\n\n"
        "Only one of them reached the right answer. Work it out for yourself and choose {a} or {b}.",
    ),
    Template(
        "reflection-1",
        Role.REFLECTION,
        "Question:\n{question}\n\nAn earlier response:\n{response}\n\n"
        "This response may be right or wrong. Check it, then answer the question again and {give_answer}.",
    ),
    Template(
        "reflection-2",
        Role.REFLECTION,
        "Question:\n{question}\n\nYour first attempt:\n{response}\n\n"
        "Go through your first attempt once more. Keep its answer if it is right, correct it if it is wrong, "
        "and {give_answer}.",
    ),
)
