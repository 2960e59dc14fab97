r"""The answer tag of most models: what a response answers is its last balanced `\boxed{...}`.

Reasoning is not an answer, in this format and in all others (`formats.py`): a `<think>` block is cut first.
"""

from __future__ import annotations

import re

ANSWER_TAG = r"\boxed"
"""The LaTeX command that marks an answer or a verdict."""

_THINK = re.compile(r"<(/?)think>")
# A token is an opening tag, an escaped character (so that \{ is no brace) or a brace. The look-ahead reads the
# double-escaped \\boxed{5} as a tag too.
_TOKEN = re.compile(r"\\(?:boxed\s*+(\{)|(?!\\boxed\b).)|[{}]", re.DOTALL)


def box(text: str) -> str:
    r"""`text` as an answer: `\boxed{text}`."""
    return f"{ANSWER_TAG}{{{text}}}"


def visible(text: str) -> str:
    """`text` without its reasoning: what a judge is shown and where the answer is looked for.

    A block that never closes hides everything, since its writer never got to an answer. A closing tag without an
    opening one ends a block that the chat template opened in the prompt.
    """
    pieces: list[str] = []
    start, thinking = 0, False
    for tag in _THINK.finditer(text):
        closing = bool(tag[1])
        if closing and not thinking:
            pieces.clear()
        elif not closing and not thinking:
            pieces.append(text[start : tag.start()])
        start, thinking = tag.end(), not closing
    return "" if thinking else "\n".join([*pieces, text[start:]]).strip()


def extract_answer(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{...}` outside the reasoning, or None; linear in `len(text)`.

    >>> extract_answer(r"<think>\boxed{3}?</think> It is \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    return last_box(visible(text))


def last_box(text: str) -> str | None:
    """The same of a text without reasoning."""
    first = text.find(ANSWER_TAG)
    if first < 0:
        return None
    open_braces: list[tuple[bool, int]] = []  # (opened by a tag, where its content starts)
    last = (0, 0)
    for token in _TOKEN.finditer(text, first):
        if token[1] or token[0] == "{":
            open_braces.append((bool(token[1]), token.end()))
        elif token[0] == "}" and open_braces:
            is_answer, start = open_braces.pop()
            if is_answer and start > last[0]:  # of nested boxes the inner one
                last = (start, token.start())
    return text[slice(*last)].strip() or None
