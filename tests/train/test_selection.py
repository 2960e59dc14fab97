"""What a step asks, on the embedded questions and tokenizer, with groups graded by hand."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from factories import make_group

from spark_rl.config import load_config
from spark_rl.data import load_data
from spark_rl.models.load import load_tokenizer
from spark_rl.prompts import ChatRenderer
from spark_rl.train.selection import Selection
from spark_rl.types import Group, Role, Task
from spark_rl.verify import box


def selection(*overrides: str, max_prompt_tokens: int = 10_000) -> Selection:
    few = ["data.train={path: embedded:train, size: 400}", "data.check_golds=false"]
    config = load_config(None, ["preset=spark", "rollout.groups_per_step=16", *few, *overrides])
    renderer = ChatRenderer(load_tokenizer(config.model))
    return Selection(config, load_data(config).train, renderer, max_prompt_tokens)


def mixed(task: Task) -> Group:
    """Two right and two wrong responses, all different."""
    texts = [f"Try {i}. {box(answer)}" for i, answer in enumerate([task.label, task.label, "999", "-999"])]
    return make_group(task, texts)


def roles(tasks: list[Task]) -> Counter[Role]:
    return Counter(task.role for task in tasks)


def test_the_first_step_asks_questions_and_later_ones_every_role():
    chosen = selection()
    first, _ = chosen.select(1)
    assert roles(first) == {Role.ANSWER: 16}
    counts = chosen.recycle([mixed(task) for task in first], 1)
    assert counts["recycle/made_pointwise"] > 0
    second, _ = chosen.select(2)
    assert roles(second) == Counter(chosen.config.slots())
    assert not {task.id for task in first} & {task.id for task in second}


def test_a_roles_missing_prompts_go_to_questions_and_off_roles_are_not_kept():
    chosen = selection("roles.answer.share=0.75", "roles.pairwise.share=0", "roles.reflection.share=0")
    first, _ = chosen.select(1)
    counts = chosen.recycle([mixed(first[0])], 1)
    assert counts["recycle/role_off"] > 0
    second, _ = chosen.select(2)
    assert roles(second) == {Role.ANSWER: 12, Role.POINTWISE: 4}
    assert roles(chosen.select(3)[0]) == {Role.ANSWER: 16}, "what was taken is gone"


@pytest.mark.parametrize("max_age", [1, 64])
def test_alternating_steps_hold_one_kind_and_are_full(max_age):
    """Also where items expire: they do not count as waiting."""
    chosen = selection("recycle.schedule=alternating", f"recycle.max_age={max_age}")
    step = 1
    kinds = []
    while step < 12:
        tasks, _ = chosen.select(step)
        assert len(tasks) == 16
        recycled = [task for task in tasks if task.role.is_recycled]
        assert len(recycled) in (0, 16)
        kinds.append(bool(recycled))
        chosen.recycle([mixed(task) for task in tasks if task.role is Role.ANSWER], step)
        step += 1
    assert kinds[0] is False and True in kinds


def test_the_roles_shares_hold_over_alternating_steps():
    """Though more could be recycled: every question here gives items of all roles."""
    shares = ["roles.answer.share=0.8", "roles.pointwise.share=0.1", "roles.reflection.share=0.1"]
    chosen = selection("recycle.schedule=alternating", "roles.pairwise.share=0", *shares)
    asked: Counter[Role] = Counter()
    for step in range(1, 41):
        tasks, _ = chosen.select(step)
        asked += roles(tasks)
        chosen.recycle([mixed(task) for task in tasks], step)
    assert asked[Role.ANSWER] / asked.total() == pytest.approx(0.8, abs=0.03)
    assert asked[Role.POINTWISE] == pytest.approx(asked[Role.REFLECTION], abs=16)


def test_replacements_are_of_the_same_roles_while_there_are_any():
    chosen = selection()
    first, _ = chosen.select(1)
    chosen.recycle([mixed(task) for task in first], 1)
    tasks, _ = chosen.select(2)
    dead = [make_group(task, ["no"] * 2) for task in tasks if task.role in (Role.POINTWISE, Role.ANSWER)][:6]
    fresh, _ = chosen.replace(dead, 2)
    assert len(fresh) == len(dead)
    assert roles(fresh)[Role.POINTWISE] <= roles([g.task for g in dead])[Role.POINTWISE]
    assert not {task.id for task in fresh} & {task.id for task in [*first, *tasks]}
    chosen.pool.load_state_dict({role.value: [] for role in Role if role.is_recycled}, {})
    assert roles(chosen.replace(dead, 2)[0]) == {Role.ANSWER: len(dead)}


def test_a_recycled_step_of_the_alternating_schedule_is_not_refilled_with_questions():
    chosen = selection("recycle.schedule=alternating")
    question = chosen.select(1)[0][0]
    pointwise = Task("p", Role.POINTWISE, question.messages, "Yes", "choice", question.example)
    assert chosen.replace([make_group(pointwise, ["no"])], 2)[0] == []


def test_a_question_that_comes_twice_in_a_step_makes_two_groups(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"prompt": "What is 1+1?", "answer": "2", "id": "q"}\n')
    chosen = selection(f"data.train={tmp_path / 'one.jsonl'}", "rollout.groups_per_step=12")
    assert [task.id for task in chosen.select(1)[0]][:3] == ["answer-q", "answer-q#2", "answer-q#3"]
    tasks, _ = chosen.select(2)
    fresh, _ = chosen.replace([make_group(tasks[0], ["no"])], 2)
    assert fresh[0].id == "answer-q#13", "replacements too"


def test_the_state_is_all_there_is_to_resume():
    run, resumed = selection(), selection()
    for step in (1, 2):
        tasks, _ = run.select(step)
        run.recycle([mixed(task) for task in tasks if task.role is Role.ANSWER], step)
    resumed.load_state_dict(run.state_dict(), {})
    assert run.select(3) == resumed.select(3)


def test_long_prompts_are_passed_over_and_counted():
    chosen = selection()
    lengths = sorted(len(chosen.renderer.encode(chosen.questions.sources[0].read(i).messages)) for i in range(300))
    chosen.max_prompt_tokens = lengths[150]
    tasks, counts = chosen.select(1)
    assert all(chosen.fits(task) for task in tasks) and counts["questions/too_long"] > 0
    chosen.recycle([mixed(task) for task in tasks], 1)
    again, counts = chosen.select(2)
    assert roles(again) == {Role.ANSWER: 16} and counts["pool/too_long"] > 0 and len(chosen.pool) == 0


def test_a_source_of_which_nothing_fits_is_refused_and_looking_costs_no_question(tmp_path):
    with pytest.raises(ValueError, match=r"embedded:train: every question is longer than 3 tokens"):
        selection(max_prompt_tokens=3).require_one()
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "What is this? " * 100, "answer": "2"}))
    both = f"data.train=[embedded:train, {{path: {tmp_path / 'long.jsonl'}, weight: 1}}]"
    with pytest.raises(ValueError, match=r"long\.jsonl: every question is longer than 100 tokens"):
        selection(both, max_prompt_tokens=100).require_one()
    chosen = selection()
    chosen.require_one()
    assert chosen.state_dict() == selection().state_dict()
