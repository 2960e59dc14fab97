"""Which prompts begin alike, and with how many tokens: worked examples, long system turns, a passage of many questions.

A prefix that is computed once for n prompts saves n - 1 times its length. Roles have examples of their own after one
and the same header, so a step has a few classes of prompts, each with a prefix of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

_FREE = 64
"""Tokens of a prefix that save a prompt nothing: what its completions pay for attending to the prefix apart."""
_FIXED = 256
"""Tokens that a class must save before it saves anything: prompts of different ones do not run together."""


class PromptClass(NamedTuple):
    """Prompts that begin with the same tokens."""

    length: int
    """Tokens of their prefix; 0: they share nothing that pays."""
    members: list[int]
    """The prompts, by number, rising."""


def prompt_classes(prompts: Sequence[Sequence[int]], most: Sequence[int] | None = None) -> list[PromptClass]:
    """Part the prompts into classes with a prefix each, so that as many tokens as can be are saved.

    Those that share nothing come last, as one class without a prefix.

    Args:
        prompts: token ids.
        most: for each prompt, the tokens that may be part of a prefix (those before its first image); never its last.
    """
    limits = [len(ids) for ids in prompts] if most is None else most
    heads = [tuple(ids[: min(limit, len(ids) - 1)]) for ids, limit in zip(prompts, limits, strict=True)]
    order = sorted(range(len(heads)), key=heads.__getitem__)
    common = [_common(heads[a], heads[b]) for a, b in pairwise(order)]
    classes = [PromptClass(length, sorted(order[start:end])) for length, start, end in _best(common)]
    shared = {i for each in classes for i in each.members}
    rest = [i for i in range(len(prompts)) if i not in shared]
    classes.sort(key=lambda each: each.members)
    return [*classes, PromptClass(0, rest)] if rest else classes


def saving(num: int, length: int) -> int:
    """Tokens that a prefix of `length` saves `num` prompts; below 0 if it costs more."""
    return (num - 1) * (length - _FREE) - _FIXED


@dataclass(slots=True)
class _Node:
    """Neighbours among the sorted prompts that have `length` tokens in common, from `start` on."""

    length: int
    start: int
    saved: int = 0
    """By the classes that parts of it fall into."""
    classes: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, part: _Node) -> None:
        self.saved += part.saved
        self.classes += part.classes

    def close(self, end: int) -> None:
        """Make it one class, if that saves more than its parts do."""
        own = saving(end - self.start, self.length)
        if own > self.saved:
            self.saved, self.classes = own, [(self.length, self.start, end)]


def _best(common: Sequence[int]) -> list[tuple[int, int, int]]:
    """The classes (length, start, end) of sorted prompts that save most, by what each has in common with the next one.

    Nodes of the prompts' trie are visited from the leaves up: one is closed where neighbours have less in common.
    """
    path = [_Node(0, 0)]
    for i, length in enumerate([*common, 0]):
        part = _Node(length, i)
        while path[-1].length > length:
            closed = path.pop()
            closed.close(i + 1)
            part.start = closed.start
            if path[-1].length >= length:
                path[-1].add(closed)
            else:
                part.add(closed)
        if path[-1].length < length:
            path.append(part)
    return path[0].classes


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that two sequences begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
