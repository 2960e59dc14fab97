"""What a prompt shows of a response, and how texts of others are quoted in it.

Quoted text is fenced by a run of backticks longer than any run inside it, so it cannot close its own fence and pass for
an instruction.
"""

from __future__ import annotations

import re
from enum import StrEnum

from spark_rl.types import without_images
from spark_rl.verify import BOXED, Format, visible


class View(StrEnum):
    """How much of a response a judge or reflector is shown (paper, ablation of section 4.3: both is best)."""

    ANSWER = "answer"
    """Only the extracted final answer, stated as the format does."""
    REASONING = "reasoning"
    """The whole visible response, over-long ones cut in the middle, visibly."""


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


def shown(text: str, extracted: str | None, view: View, max_chars: int, stated: Format = BOXED) -> str | None:
    """What a judge sees of a response; None when the view has nothing to show (no answer was given).

    Nothing in it stands for an image, whatever the model wrote.

    Args:
        stated: how an answer that is shown alone is stated.
    """
    if view is View.ANSWER:
        return None if extracted is None else cut(stated.write(without_images(extracted)), max_chars)
    return cut(without_images(visible(text)).strip(), max_chars) or None
