"""Lists of tokens: taken apart outside of brackets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spark_rl.verify.mathematics.notation import Broken, Token

Tokens = Sequence[Token]


def split(tokens: Tokens, parts: Callable[[Token], bool]) -> tuple[list[Tokens], list[str]]:
    """The tokens between those that part them outside of brackets, and the latter."""
    pieces: list[Tokens] = []
    joints: list[str] = []
    depth = start = 0
    for place, token in enumerate(tokens):
        if depth == 0 and parts(token):
            pieces.append(tokens[start:place])
            joints.append(token.text)
            start = place + 1
        depth += token.nesting
    return [*pieces, tokens[start:]], joints


def is_list(tokens: Tokens) -> bool:
    return bool(split(tokens, lambda token: token.text == ",")[1])


def closes(tokens: Tokens) -> int:
    """Where the bracket closes that the tokens begin with."""
    depth = 0
    for place, token in enumerate(tokens):
        depth += token.nesting
        if depth == 0:
            return place
    raise Broken("a bracket is open")


def without_braces(tokens: Tokens) -> Tokens:
    """Without TeX's braces around all of it, unless those of a set."""
    while len(tokens) > 1 and tokens[0].text == "{" and closes(tokens) == len(tokens) - 1 and not is_list(tokens[1:-1]):
        tokens = tokens[1:-1]
    return tokens
