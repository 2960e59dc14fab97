"""Rows of a run's own data as worked examples: which become some, what they show, and that they are not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factories import lines

from spark_rl.config import load_config
from spark_rl.data import Data, load_data
from spark_rl.types import Role


def loaded(folder: Path, rows: list[dict[str, Any]], *overrides: str, num: int = 2) -> Data:
    (folder / "train.jsonl").write_text(lines(rows))
    taken = f"prompts.examples={{answer: {{num: {num}, from: data.train}}}}"
    return load_data(load_config(None, [f"data.train={folder / 'train.jsonl'}", taken, *overrides]))


def sums(count: int = 30, **columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {i}+1?", "answer": i + 1} | columns for i in range(count)]


def asked(data: Data) -> list[str]:
    turns = data.prompts.examples[Role.ANSWER]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    return [turn["content"].partition("\n")[0] for turn in turns[::2]]


def test_the_seed_chooses_and_what_is_chosen_is_left_out(tmp_path: Path) -> None:
    data = loaded(tmp_path, sums())
    assert asked(data) == asked(loaded(tmp_path, sums())) != asked(loaded(tmp_path, sums(), "train.seed=1"))
    assert [turn["content"] for turn in data.prompts.examples[Role.ANSWER][1::2]] == [
        rf"\boxed{{{int(question.split('+')[0][8:]) + 1}}}" for question in asked(data)
    ]
    assert data.report["train"][0]["skipped"] == {"example": 2} and data.train.num_rows == 28
    drawn, _ = data.train.draw(56)
    assert len({task.id for task in drawn}) == 28
    assert not {task.example.question for task in drawn} & set(asked(data))
    assert any("are left out of training (example)" in message for message in data.messages)


def test_rows_without_work_are_said_and_those_with_some_come_first(tmp_path: Path) -> None:
    (said,) = [message for message in loaded(tmp_path, sums()).messages if "worked response" in message]
    assert said.startswith("prompts.examples: 2 of the 2 rows taken from data.train have no worked response")
    rows = sums()
    rows[7]["response"], rows[21]["response"] = "7+1 = 8.", r"I add: \boxed{22}"
    data = loaded(tmp_path, rows)
    turns = data.prompts.examples[Role.ANSWER]
    assert {turn["content"] for turn in turns[1::2]} == {"7+1 = 8.\n\\boxed{8}", r"I add: \boxed{22}"}
    assert not any("worked response" in message for message in data.messages)


def test_another_column_may_hold_the_work(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i}+1?", "answer": f"{i}+1 = {i + 1}\n#### {i + 1}"} for i in range(5)]
    columns = ("data.columns={response: answer}", r"data.answer_pattern='####\s*(.+)'", "data.answer_format=hash")
    data = loaded(tmp_path, rows, *columns)
    for question, reply in zip(asked(data), data.prompts.examples[Role.ANSWER][1::2], strict=True):
        assert reply["content"].startswith(f"{question[8:-1]} = ") and "\n#### " in reply["content"]


def test_a_row_whose_response_is_wrong_is_no_example_but_a_question(tmp_path: Path) -> None:
    rows = [row | {"response": r"\boxed{99}"} for row in sums(10)]
    rows[3]["response"] = r"\boxed{4}"
    data = loaded(tmp_path, rows, num=1)
    assert asked(data) == ["What is 3+1?"] and data.train.num_rows == 9
    with pytest.raises(ValueError, match=r"asks for 2 rows of data\.train, and 1 of 10 that were looked at can be"):
        loaded(tmp_path, rows, num=2)


def test_neither_held_out_questions_nor_rows_of_other_kinds_become_examples(tmp_path: Path) -> None:
    rows = [
        *sums(4),
        {"prompt": "Judge this.", "answer": "Yes", "role": "pointwise"},
        {"prompt": "What is your name?", "verifier": "self"},
    ]
    (tmp_path / "held_out.jsonl").write_text(lines(sums(2)))
    held_out = (f"data.validation={tmp_path / 'held_out.jsonl'}", "self_reward.enabled=true", "validation.every=1")
    data = loaded(tmp_path, rows, *held_out, "train.steps=2")
    assert sorted(asked(data)) == ["What is 2+1?", "What is 3+1?"]
    assert data.report["train"][0]["skipped"] == {"held_out": 2, "example": 2}


def test_the_same_question_elsewhere_is_left_out_too_however_examples_are_given(tmp_path: Path) -> None:
    rows = [*sums(4), {"prompt": " what is 2+1? ", "answer": 3}]
    given = "prompts.examples={answer: [{question: 'What is 2+1?', answer: 3}]}"
    data = loaded(tmp_path, rows, given)
    assert data.report["train"][0]["skipped"] == {"example": 2}
    (tmp_path / "held_out.jsonl").write_text(lines(sums(3)[2:]))
    with pytest.raises(ValueError, match=r"the question 'What is 2\+1\?' is held out as well; take another one"):
        loaded(tmp_path, rows, given, f"data.validation={tmp_path / 'held_out.jsonl'}")


def test_generated_questions_can_be_examples_and_then_are_never_drawn() -> None:
    source = "data.train={path: reasoning_gym:chain_sum, size: 12, options: {min_digits: 1, max_digits: 1}}"
    config = load_config(None, [source, "prompts.examples={num: 2, from: data.train}"])
    data = load_data(config)
    examples = {turn["content"].partition("\n\n")[0] for turn in data.prompts.examples[Role.ANSWER][::2]}
    drawn, passed = data.train.draw(30)
    assert len(examples) == 2 and not examples & {task.example.question for task in drawn}
    assert passed["held_out"] >= 4 and set(data.prompts.examples) == set(Role)
