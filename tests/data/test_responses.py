"""Rows with responses, for a warm start."""

from __future__ import annotations

import json
from pathlib import Path

from data_files import write

from spark_rl.config import config_from
from spark_rl.data import load_data
from spark_rl.data.load import Data
from spark_rl.types import Role

ROWS = [
    {"prompt": "What is 1+1?", "answer": 2, "response": r"It is \boxed{2}."},
    {"prompt": "What is 1+2?", "answer": 3, "response": [r"\boxed{4}", r"\boxed{3}"]},
    {"prompt": "What is 1+3?", "answer": 4, "response": [{"role": "assistant", "content": r"\boxed{4}"}]},
    {"prompt": "Is 1+1=3?", "role": "pointwise", "answer": "No", "response": r"\boxed{No}"},
    {"prompt": "What is 1+4?", "answer": 5, "response": "#### 5"},
    {"prompt": "What is 1+5?", "answer": 6, "response": r"\boxed{5}"},
]


def loaded(rows: Path | str, **sections: object) -> Data:
    return load_data(config_from({"warm_start": {"steps": 1, "data": [str(rows)]}, **sections}))


def test_rows_with_a_right_response_are_learnt_and_the_others_counted(tmp_path: Path) -> None:
    path = write(tmp_path, *ROWS)
    data = loaded(path)
    assert data.warm_start is not None and data.warm_start.num_rows == 4
    tasks = {task.example.question: task for task in data.warm_start.draw(4)[0]}
    assert [tasks[str(row["prompt"])].responses for row in ROWS[:3]] == [
        (r"It is \boxed{2}.",),
        (r"\boxed{4}", r"\boxed{3}"),
        (r"\boxed{4}",),
    ]
    assert tasks["Is 1+1=3?"].role is Role.POINTWISE
    assert data.report["warm_start"][0]["skipped"] == {"no_right_response": 2}
    (said,) = data.messages
    assert said.startswith(f"2 of the 6 rows of {path} are left out of the warm start (no right response)")
    assert said.endswith("row 5: its response is graded 'unparsed', but the responses hold the gold as `#### ...`: "
                         "set data.answer_format=hash")  # fmt: skip


def test_the_same_rows_without_a_warm_start_carry_no_responses(tmp_path: Path) -> None:
    data = load_data(config_from({"data": {"train": [str(write(tmp_path, *ROWS[:3]))]}}))
    assert data.warm_start is None and "warm_start" not in data.report
    assert all(not task.responses for task in data.train.draw(3)[0])


def test_what_is_held_out_is_not_learnt_and_other_responses_are_other_data(tmp_path: Path) -> None:
    held_out = write(tmp_path, {"prompt": "What is 1+1?", "answer": 2}, name="held_out.jsonl")
    path = write(tmp_path, *ROWS[:3])
    data = loaded(path, data={"validation": [str(held_out)]})
    (report,) = data.report["warm_start"]
    assert report["skipped"] == {"held_out": 1}
    write(tmp_path, *ROWS[:2], {**ROWS[2], "response": r"So \boxed{4}"})
    again = loaded(path, data={"validation": [str(held_out)]}).report["warm_start"][0]
    assert again["fingerprint"] != report["fingerprint"] and json.dumps(again)


def test_responses_may_have_a_column_of_another_name(tmp_path: Path) -> None:
    rows = [{"problem": r["prompt"], "answer": r["answer"], "solution": {"text": r["response"]}} for r in ROWS[:2]]
    columns = {"prompt": "problem", "response": "solution.text"}
    train = write(tmp_path, *({"problem": row["prompt"], "answer": row["answer"]} for row in ROWS[:2]), name="t.jsonl")
    data = loaded(write(tmp_path, *rows), data={"train": [str(train)], "columns": columns})
    assert data.warm_start is not None and data.warm_start.num_rows == 2
