"""What a run says of replies in which it finds no answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from factories import make_example, make_group, small_run

from spark_rl.data import question_task
from spark_rl.prompts import Prompts
from spark_rl.train.loop import Trainer
from spark_rl.train.metrics import role_metrics, warnings
from spark_rl.train.records import rollout_record
from spark_rl.train.signal import signal_sentences
from spark_rl.train.unread import Unread
from spark_rl.types import Group, Role
from spark_rl.verify import BOXED, Format, VerifierPool, format_of

SLOTS = {Role.ANSWER: 4, Role.POINTWISE: 0, Role.PAIRWISE: 0, Role.REFLECTION: 0}


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool() as pool:
        yield pool


def unread(pool: VerifierPool, prompts: Prompts = Prompts()) -> Unread:
    return Unread(prompts, pool, 1.0)


def groups(*texts: str, verifier: str = "numeric", stated: Format = BOXED) -> list[Group]:
    """Groups of these replies to five questions, `{}` being their gold; none is rewarded."""
    tasks = [question_task(make_example(n, verifier=verifier)) for n in range(20, 25)]
    found = [make_group(task, [text.format(task.label) for text in texts], [0.0] * len(texts)) for task in tasks]
    for group in found:
        for rollout in group.rollouts:
            rollout.extracted = stated.read(rollout.text)
    return found


def said(pool: VerifierPool, asked: list[Group], prompts: Prompts = Prompts()) -> tuple[str, str]:
    """The warning of three such steps, and the finding at the end."""
    metrics = role_metrics(asked)
    explain = partial(unread(pool, prompts).explain, rows=[rollout_record(group) for group in asked])
    (warning,) = warnings([metrics] * 3, SLOTS, explain=explain)
    (finding,) = signal_sentences([metrics] * 3, SLOTS, explain)
    return warning, finding


def test_the_format_that_holds_the_gold_is_named_with_its_setting(pool: VerifierPool) -> None:
    for sentence in said(pool, groups("I see.\n#### {}", "#### {}", "no", "no", "no")):
        assert sentence.endswith(
            r"since no rollout holds an answer as `\boxed{}`; 40% of the replies hold the gold as `#### ...`: set "
            "data.answer_format=hash"
        )


def test_the_format_of_the_run_is_named_not_always_the_box(pool: VerifierPool) -> None:
    tags = format_of("tags")
    warning, _ = said(pool, groups(r"\boxed{{{}}}", stated=tags), Prompts(tags))
    assert "an answer as `<answer></answer>`; 100% of the replies hold the gold as" in warning
    assert warning.endswith(r"`\boxed{}`: set data.answer_format=boxed")


def test_without_any_format_worked_examples_are_the_way(pool: VerifierPool) -> None:
    asked = groups("I cannot say.", "Who knows?")
    warning, _ = said(pool, asked)
    assert "show the model how with prompts.examples" in warning and "warm_start" in warning
    shown = Prompts(examples={Role.ANSWER: ({"role": "user", "content": "?"},)})
    assert "although worked examples are shown" in said(pool, asked, shown)[0]


def test_replies_that_are_cut_need_room(pool: VerifierPool) -> None:
    asked = groups("I think that", "Let me see. #### {}")
    for group in asked:
        for rollout in group.rollouts:
            rollout.finish_reason = "length"
    (sentence,) = unread(pool).sentences(asked)
    assert sentence.endswith(r"an answer as `\boxed{}`; 100% are cut at their length limit: raise max_new_tokens")


def test_a_last_number_is_second_best_to_worked_examples(pool: VerifierPool) -> None:
    warning, _ = said(pool, groups("so we get {}", "it is {} then"))
    assert warning.endswith(
        "100% of the replies end with the gold as their last number (0% would by chance): set "
        "data.answer_format=last_number, or better show the model how with prompts.examples (worked examples)"
    )


def test_answers_that_are_all_wrong_are_said_to_be_so(pool: VerifierPool) -> None:
    assert (
        "the gold is in no other format either, but 100% of the replies hold an answer as `The answer is ...`: set "
        "data.answer_format=phrase"
    ) in said(pool, groups("The answer is 1."))[0]


def test_golds_of_a_function_of_the_users_are_found_without_it(pool: VerifierPool) -> None:
    warning, _ = said(pool, groups("#### {}", verifier="no_such_module:function"))
    assert "set data.answer_format=hash" in warning


def test_judges_are_told_of_the_verdict_format(pool: VerifierPool) -> None:
    tasks = [
        replace(question_task(make_example(n)), role=Role.POINTWISE, label="No", verifier="choice") for n in range(3)
    ]
    asked = [make_group(task, ["<answer>Yes</answer>", "<answer>No</answer>", "hm"]) for task in tasks]
    (sentence,) = unread(pool).sentences(asked)
    assert sentence == (
        r"pointwise: no reply holds a verdict as `\boxed{}`; 67% of the replies hold a verdict as "
        "`<answer></answer>`: set prompts.verdict_format=tags"
    )


def test_ready_judge_items_may_have_the_words_of_any_template(pool: VerifierPool) -> None:
    """Such a prompt is of no template, and its label says which words it has."""
    first, *_ = Prompts().templates_for(Role.POINTWISE)
    german = replace(first, name="german", verdicts=("Ja", "Nein"))
    prompts = Prompts(templates=(*Prompts().templates, german))
    task = replace(question_task(make_example(1)), role=Role.POINTWISE, label="Nein", verifier="choice", template=None)
    rows = [rollout_record(make_group(task, ["<answer>Nein</answer>"] * 3))]
    (tags,) = [each for each in unread(pool, prompts).seen(Role.POINTWISE, rows) if each.format.name == "tags"]
    assert tags.golds == 3


def test_before_the_first_step_hardly_any_is_said_at_once_and_some_are_not(pool: VerifierPool) -> None:
    (sentence,) = unread(pool).sentences(groups("#### {}"))
    assert sentence.startswith(r"answer: no reply holds an answer as `\boxed{}`; 100% of the replies hold the gold")
    assert unread(pool).sentences(groups(r"\boxed{{1}}", "#### {}")) == []
    assert unread(pool).sentences(groups("Whatever.", verifier="trl:json:dumps")) == []  # needs no answer
    assert unread(pool).sentences([]) == []


@pytest.mark.parametrize("held_out", ["[]", "{path: embedded:validation, size: 4}"])
def test_a_run_says_it_before_its_first_step_or_in_it_and_at_its_end(
    held_out: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The base writes boxes, whatever it is asked for."""
    overrides = ["data.answer_format=tags", "roles={answer: {share: 1}, pointwise: {share: 0}}", "train.steps=1"]
    overrides += ["roles.pairwise.share=0", "roles.reflection.share=0", "rollout.max_new_tokens=60"]
    trainer = Trainer(small_run(tmp_path / "run", *overrides, f"data.validation={held_out}"))
    summary = trainer.run()
    assert summary is not None
    words = r"answer: no reply holds an answer as `<answer></answer>`; "
    early = "before the first step" if trainer.held_out.items else "step 1"
    shown = capfd.readouterr().err
    assert f"warning, {early}: {words}" in shown and shown.count(words) == 1
    assert shown.split(words)[1].splitlines()[0].endswith(r"as `\boxed{}`: set data.answer_format=boxed")
    assert "since no rollout holds an answer as `<answer></answer>`; " in summary["findings"][0]
