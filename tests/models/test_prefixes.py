"""Prompts fall into classes by what they begin with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_rl.models import prefixes
from spark_rl.models.prefixes import prompt_classes, saving


@st.composite
def alike_prompts(draw) -> list[list[int]]:
    """Prompts put together from a few passages, so that they begin alike in all ways."""
    passages = draw(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=3))
    parts = st.lists(st.sampled_from(passages), min_size=1, max_size=4)
    return [[i for part in draw(parts) for i in part] for _ in range(draw(st.integers(1, 7)))]


def best_saving(prompts: list[list[int]], depth: int = 0) -> int:
    """The same by definition: a node of the trie, or the best of its children, whichever saves more."""
    below: dict[int, list[list[int]]] = {}
    for ids in prompts:
        if len(ids) - 1 > depth:
            below.setdefault(ids[depth], []).append(ids)
    children = sum(best_saving(part, depth + 1) for part in below.values())
    return max(saving(len(prompts), depth), children, 0)


@given(prompts=alike_prompts(), fixed=st.integers(0, 6), free=st.integers(0, 2))
def test_classes_are_a_partition_that_saves_most(prompts, fixed, free):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "_FIXED", fixed)
        patch.setattr(prefixes, "_FREE", free)
        classes = prompt_classes(prompts)
        assert sorted(i for each in classes for i in each.members) == list(range(len(prompts)))
        for length, members in classes:
            assert members == sorted(members)
            assert len({tuple(prompts[i][:length]) for i in members}) == 1
            assert all(len(prompts[i]) > length for i in members)
        saved = [saving(len(members), length) for length, members in classes if length]
        assert all(each > 0 for each in saved) and sum(saved) == best_saving(prompts)
        assert sum(not length for length, _ in classes) <= 1


def test_a_short_header_is_no_prefix_and_examples_of_each_role_are():
    header, examples = [1] * 20, {role: [role] * 300 for role in (2, 3)}
    assert prompt_classes([[*header, i] for i in range(500)]) == [(0, list(range(500)))]
    assert prompt_classes([]) == [] and prompt_classes([[1]]) == [(0, [0])]
    prompts = [[*header, *examples[2 + i % 2], i, 9] for i in range(8)] + [[5, 6]]
    assert prompt_classes(prompts) == [(320, [0, 2, 4, 6]), (320, [1, 3, 5, 7]), (0, [8])]


def test_a_prefix_ends_before_an_image_and_leaves_a_token():
    prompts = [[7] * 400] * 4
    assert prompt_classes(prompts) == [(399, [0, 1, 2, 3])]
    assert prompt_classes(prompts, [500, 390, 400, 500]) == [(390, [0, 1, 2, 3])]
    assert prompt_classes(prompts, [0, 0, 10, 10]) == [(0, [0, 1, 2, 3])]


def test_a_deep_trie_is_walked_without_recursion():
    prompts = [[1] * n + [2, 3] for n in range(1500)]
    ((length, members), _) = prompt_classes(prompts)
    assert length > 500 and members == list(range(length, 1500))
