"""What replies to a few questions say of a run on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import Any

import pytest
from factories import make_example, make_group

from spark_rl.config import config_from, load_config
from spark_rl.data import question_task
from spark_rl.evaluate.first_config import Speed, as_yaml, first_config
from spark_rl.evaluate.prognosis import answer_figures, judge_figures, needed_tokens, pass_at, prognosis
from spark_rl.evaluate.trial import Trial
from spark_rl.prompts import Prompts
from spark_rl.types import Role
from spark_rl.verify import BOXED, Seen

RIGHT, WRONG = r"\boxed{{{}}}", r"\boxed{{0}}"
FAST = Speed(read=1e-5, answers=0.1, verdicts=0.1, updated=0.1)


SEEN = [Seen(BOXED, 32, 0, 0)]


def trial(*replies: Sequence[str], finish: str = "stop", logp: float = -0.1) -> Trial:
    """One question's replies a row, `{}` being the gold."""
    groups = []
    for number, texts in enumerate(replies, start=10):
        task = question_task(make_example(number))
        group = make_group(task, [text.format(task.label) for text in texts])
        for rollout in group.rollouts:
            rollout.finish_reason, rollout.logps = finish, [logp] * len(rollout.token_ids)  # type: ignore[assignment]
        groups.append(group)
    tokens = [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
    return Trial("", Prompts(), groups, SEEN, tokens, [20] * len(groups), 1.0)


def said(tried: Trial, remedy: str = "set data.answer_format=hash") -> tuple[str, str]:
    found = prognosis(answer_figures(tried, 1.0, vocab_size=100), remedy, 256)
    return found.kind, found.sentence


def test_pass_at_k_is_the_share_of_choices_with_a_right_one() -> None:
    for right in range(6):
        samples = [1] * right + [0] * (5 - right)
        assert pass_at(3, right, 5) == pytest.approx(fmean(any(chosen) for chosen in combinations(samples, 3)))


def test_figures_are_of_questions_and_of_replies() -> None:
    figures = answer_figures(trial([RIGHT, WRONG] * 4, [WRONG] * 8, [RIGHT] * 8, ["no"] * 8), 1.0)
    assert figures["pass@1"]["value"] == pytest.approx(12 / 32) and figures["pass@8"] == 0.5
    assert figures["pass@1"]["low"] < 12 / 32 < figures["pass@1"]["high"] and figures["pass@1"]["n"] == 4
    assert (figures["mixed_groups"], figures["parse_rate"], figures["noise"]) == (1, 0.75, None)
    assert answer_figures(trial([RIGHT, WRONG]), 1.0)["pass@2"] == 1


@pytest.mark.parametrize(
    ("tried", "kind", "words"),
    [
        (trial([RIGHT, WRONG] * 4, [WRONG] * 8), "learns", "RL can learn here: pass@1 25%, pass@8 50%, 1 of 2 groups"),
        (trial(*[[RIGHT] * 8] * 4), "too easy", "pass@1 100%"),
        (trial(*[[WRONG] * 8] * 4), "too hard", "take easier questions"),
        (trial(*[[RIGHT] * 8, [WRONG] * 8] * 2), "little", "pass@1 50%, pass@8 50%, 0 of 4 groups"),
        (trial(*[["#### {}"] * 8] * 4), "unread", "cannot be read: set data.answer_format=hash"),
        (trial(*[["so I think"] * 8] * 4, finish="length"), "cut", "try rollout.max_new_tokens=512"),
        (trial(*[["%g33"] * 8] * 4, finish="length", logp=-4.5), "noise", "98% of the largest entropy"),
    ],
)
def test_the_prognosis_is_one_line(tried: Trial, kind: str, words: str) -> None:
    found, sentence = said(tried)
    assert found == kind and words in sentence


def test_a_verifier_that_reads_replies_whole_needs_no_format() -> None:
    whole = replace(trial(*[["well said"] * 8] * 4), seen=[])
    assert said(whole) == ("too hard", "too hard for this model: pass@1 0%, pass@8 0%; take easier questions")


def test_replies_get_room_to_grow() -> None:
    assert needed_tokens(trial(["x" * 100] * 8), None, limit=256) == 160
    assert needed_tokens(trial(["x"] * 8), trial(["y" * 60] * 8), limit=256) == 96
    assert needed_tokens(trial(["x"] * 8), None, limit=256) == 64
    assert needed_tokens(trial(["x" * 256] * 8, finish="length"), None, limit=256) == 512


def suggested(*overrides: str, speed: Speed = FAST, rows: int = 500, **changes: Any) -> Any:
    given = {"data": {"train": ["q.jsonl"]}}
    for override in overrides:
        section, _, rest = override.partition(".")
        given.setdefault(section, {})[rest.partition("=")[0]] = True  # type: ignore[assignment]
    config = load_config(None, ["preset=spark", "data.train=[q.jsonl]", *overrides])
    values: dict[str, Any] = {"limit": 256, "context": 1024, "num_params": 10**6, "rows": rows, **changes}
    made = first_config(config, given, trial([RIGHT, WRONG]), None, speed=speed, **values)
    written = as_yaml(made)
    import yaml

    assert config_from(_with_preset(yaml.safe_load(written))) == made
    return made


def _with_preset(values: dict[str, Any]) -> dict[str, Any]:
    from spark_rl.config import merge

    return merge(load_config(None, [f"preset={values['preset']}"]).model_dump(mode="json"), values)


def test_what_was_set_stays() -> None:
    made = suggested("rollout.max_new_tokens=99", "train.learning_rate=0.5", "data.validation=[held.jsonl]")
    assert (made.rollout.max_new_tokens, made.train.learning_rate) == (99, 0.5)
    assert [source.path for source in made.data.validation] == ["held.jsonl"]


def test_what_was_not_set_follows_model_machine_and_data() -> None:
    fast, slow = suggested(), suggested(speed=Speed(1e-5, 3.0, 3.0, 1.0), num_params=10**10, context=100, rows=20)
    assert (fast.rollout.groups_per_step, slow.rollout.groups_per_step) == (64, 16)
    assert (fast.train.learning_rate, slow.train.learning_rate) == (2e-4, 1e-6)
    assert slow.rollout.max_new_tokens == 50
    (held_out,) = fast.data.validation
    assert (held_out.path, held_out.size) == ("q.jsonl", 100) and slow.data.validation == []


@pytest.mark.parametrize(
    ("source", "held_out"),
    [
        ("embedded:train", ["embedded:validation"]),
        ("embedded:vision-train", ["embedded:vision-validation"]),
        (
            "{path: reasoning_gym:gcd, options: {max_value: 9}}",
            [{"path": "reasoning_gym:gcd", "size": 200, "options": {"max_value": 9}}],
        ),
        ("org/set", [{"path": "org/set", "split": "train", "size": 100}]),
    ],
)
def test_other_questions_of_the_kind_are_held_out(source: str, held_out: list[Any]) -> None:
    made = suggested(f"data.train={source}")
    assert made.model_dump(mode="json")["data"]["validation"] == held_out


def test_verdicts_are_named_by_the_words_of_the_templates() -> None:
    words = [replace(t, verdicts=("Ja", "Nein")) if t.role is Role.POINTWISE else t for t in Prompts().templates]
    german = replace(trial([RIGHT]), prompts=Prompts(templates=tuple(words)))
    assert (judge_figures(german)["yes"], judge_figures(trial([RIGHT]))["yes"]) == ("Ja", "Yes")
