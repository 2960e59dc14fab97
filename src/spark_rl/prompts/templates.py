"""Role templates, in our own words (SPARK section 3.2 describes the roles; its prompts are not used).

Every template quotes the question first and gives its instruction last, so that tasks about one question share a
prefix and the instruction stands after whatever a quoted response may say. Quoted text is fenced by a run of
backticks longer than any run inside it, so it cannot close its own fence and pass for an instruction. The answer tag
is the extractor's own constant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from spark_rl.types import Message, Role, without_images
from spark_rl.verify.extract import box, visible


class View(StrEnum):
    """How much of a response a judge or reflector is shown (paper, ablation of section 4.3: both is best)."""

    ANSWER = "answer"
    """Only the extracted final answer, in the answer tag."""
    REASONING = "reasoning"
    """The whole visible response, over-long ones cut in the middle, visibly."""


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with the placeholders `{question}` and `{response}`, or `{first}` and `{second}`."""

    name: str
    role: Role
    text: str


_BOX = box("")
_YES, _NO, _A, _B = box("Yes"), box("No"), box("A"), box("B")

TEMPLATES: tuple[Template, ...] = (
    Template("answer-1", Role.ANSWER, f"{{question}}\n\nReason step by step, then put your final answer in {_BOX}."),
    Template(
        "pointwise-1",
        Role.POINTWISE,
        "Question:\n{question}\n\nA response to it:\n{response}\n\n"
        "Is the final answer of this response correct? Work it out for yourself, compare, "
        f"and end with {_YES} or {_NO}.",
    ),
    Template(
        "pointwise-2",
        Role.POINTWISE,
        "Question:\n{question}\n\nSomeone responded:\n{response}\n\n"
        f"Check this response against your own solution. End with {_YES} if its final answer is right, "
        f"and with {_NO} if it is wrong.",
    ),
    Template(
        "pointwise-3",
        Role.POINTWISE,
        "Question:\n{question}\n\nProposed solution:\n{response}\n\n"
        "You are the grader. Decide whether the proposed solution reaches the right answer, "
        f"and give your verdict as {_YES} or {_NO}.",
    ),
    Template(
        "pairwise-1",
        Role.PAIRWISE,
        "Question:\n{question}\n\nResponse A:\n{first}\n\nResponse B:\n{second}\n\n"
        f"Exactly one of the two responses is correct. Find out which, and end with {_A} or {_B}.",
    ),
    Template(
        "pairwise-2",
        Role.PAIRWISE,
        "Question:\n{question}\n\nTwo people responded.\n\nA:\n{first}\n\nB:\n{second}\n\n"
        f"Only one of them reached the right answer. Work it out for yourself and choose {_A} or {_B}.",
    ),
    Template(
        "reflection-1",
        Role.REFLECTION,
        "Question:\n{question}\n\nAn earlier response:\n{response}\n\n"
        "This response may be right or wrong. Check it, then answer the question again "
        f"and put your final answer in {_BOX}.",
    ),
    Template(
        "reflection-2",
        Role.REFLECTION,
        "Question:\n{question}\n\nYour first attempt:\n{response}\n\n"
        "Go through your first attempt once more. Keep its answer if it is right, correct it if it is wrong, "
        f"and put your final answer in {_BOX}.",
    ),
)

_PLACEHOLDER = re.compile(r"\{(question|response|first|second)\}")


def templates_for(role: Role) -> tuple[Template, ...]:
    """The templates of one role, in a fixed order."""
    return tuple(t for t in TEMPLATES if t.role is role)


def verdict(role: Role, right: bool) -> str:
    """The gold verdict: pointwise, whether the shown response is right; pairwise, whether the first of the two is."""
    if role is Role.POINTWISE:
        return "Yes" if right else "No"
    assert role is Role.PAIRWISE, role
    return "A" if right else "B"


def fence(text: str) -> str:
    """Quote text between runs of backticks longer than any run inside it (CommonMark's fenced block)."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}\n{text}\n{marks}"


def cut(text: str, max_chars: int) -> str:
    """Shorten text to about `max_chars` characters by leaving out its middle, and say so in its place."""
    if len(text) <= max_chars:
        return text
    head, tail = max_chars // 2, max_chars - max_chars // 2
    return f"{text[:head]}\n[... {len(text) - max_chars} characters left out ...]\n{text[len(text) - tail :]}"


def shown(text: str, extracted: str | None, view: View, max_chars: int) -> str | None:
    """What a judge sees of a response; None when the view has nothing to show (no answer was given).

    Nothing in it stands for an image, whatever the model wrote.
    """
    if view is View.ANSWER:
        return None if extracted is None else cut(box(without_images(extracted)), max_chars)
    return cut(without_images(visible(text)).strip(), max_chars) or None


def fill(template: Template, **quoted: str) -> tuple[Message, ...]:
    """Fill a template with fenced texts, in one pass, so that no quoted text can fill another placeholder.

    Raises:
        KeyError: a placeholder of the template was not given.
    """
    text = _PLACEHOLDER.sub(lambda m: fence(quoted[m.group(1)]), template.text)
    return ({"role": "user", "content": text},)


def answer_prompt(question: str, system: str | None = None) -> tuple[Message, ...]:
    """The prompt of a bare question: the question itself, unfenced, and the instruction to box the answer."""
    (template,) = templates_for(Role.ANSWER)
    user = {"role": "user", "content": template.text.replace("{question}", question, 1)}
    return ({"role": "system", "content": system}, user) if system else (user,)
