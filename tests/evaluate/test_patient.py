"""A run's settings and questions, as they are looked at before it."""

from __future__ import annotations

from pathlib import Path

from factories import lines

from spark_rl.data import load_data
from spark_rl.evaluate.patient import Patient
from spark_rl.progress import Shown


def test_examples_are_taken_from_the_rows_that_the_run_takes_them_from(tmp_path: Path) -> None:
    """Of a file that is longer than what is looked at, and of which the run holds the first rows out."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(lines([{"prompt": f"What is {i}+1?", "answer": i + 1, "verifier": "numeric"} for i in range(600)]))
    patient = Patient("embedded", str(rows), [f"data.validation={{path: {rows}, size: 300}}"])
    with Shown() as shown:
        assert patient.data(shown).train.num_rows == 512
        config = patient.with_settings({"prompts.examples": {"num": 4, "from": "data.train"}})
        assert config is not None
        assert patient.data(shown, config).prompts == load_data(config).prompts


def test_a_format_that_responses_to_learn_from_do_not_have_is_not_set(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(lines([{"prompt": "What is 1+1?", "answer": 2, "response": "#### 2"}]))
    patient = Patient("embedded", "embedded:train", ["data.answer_format=hash"])
    assert patient.with_settings({"data.answer_format": "boxed"}) is not None
    learns = ["data.answer_format=hash", f"warm_start={{steps: 2, data: [{rows}]}}"]
    patient = Patient("embedded", "embedded:train", learns)
    assert patient.with_settings({"data.answer_format": "boxed"}) is None
    assert patient.with_settings({"train.steps": 3}) is not None
