"""A trained model that is trained on keeps the prompts that it was trained with, and the run says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from factories import small_run
from test_loop import assert_same_run

from spark_rl.config import Config, PromptsConfig, load_config
from spark_rl.data import load_data
from spark_rl.evaluate.patient import Patient
from spark_rl.models.folder import resolve_path
from spark_rl.progress import Shown
from spark_rl.prompts import Prompts, build_prompts, save_prompts, saved_prompts
from spark_rl.prompts.build import prompts_from_json
from spark_rl.train.dry_run import figures
from spark_rl.train.loop import Trainer
from spark_rl.types import Role

EXAMPLES = {"answer": [{"question": "What is 40+2?", "reply": "40+2=42", "answer": 42}], "pointwise": "ready"}


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, as a run with hashes, tags and worked examples would leave it."""
    folder = tmp_path_factory.mktemp("trained") / "final"
    shutil.copytree(resolve_path("embedded"), folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    save_prompts(build_prompts(PromptsConfig(examples=EXAMPLES, verdict_format="tags"), "hash"), folder)
    return folder


def settings(final: Path, run: Path, *overrides: str) -> Config:
    return small_run(run, f"model.path={final}", "train.steps=2", "checkpoint.every=1", *overrides)


def test_its_prompts_hold_and_the_run_says_so_and_can_be_resumed(final: Path, tmp_path: Path) -> None:
    run, saved = tmp_path / "run", saved_prompts(final)
    trainer = Trainer(settings(final, run))
    assert trainer.data.prompts == saved
    (note,) = trainer.data.messages
    assert note == (
        f"{final} goes on with prompts that it was trained with, since these settings name no others: answers as hash, "
        "verdicts as tags, worked examples of the role answer (1), worked examples of the role pointwise (4)"
    )
    assert trainer.run() is not None
    used = load_config(run / "config.yaml")
    assert (used.data.answer_format, used.prompts.verdict_format) == ("hash", "tags")
    assert prompts_from_json(json.loads((run / "prompts.json").read_text())) == saved == saved_prompts(run / "final")

    for number, again in enumerate((settings(final, tmp_path / "0"), used)):
        copy = shutil.copytree(run, tmp_path / str(number))
        shutil.rmtree(copy / "checkpoints" / "step-000002")
        moved = again.model_copy(update={"train": again.train.model_copy(update={"output": copy})})
        assert Trainer(moved, resume=True).run() is not None
        assert_same_run(run, copy)


def test_a_run_is_not_resumed_with_prompts_that_its_model_no_longer_has(final: Path, tmp_path: Path) -> None:
    base, run = shutil.copytree(final, tmp_path / "base"), tmp_path / "run"
    Trainer(settings(base, run)).run_directory.unlock()
    save_prompts(Prompts(), base)
    with pytest.raises(ValueError, match=r"data\.answer_format was 'hash' and is 'boxed'"):
        Trainer(settings(base, run), resume=True)


def test_what_the_config_names_goes_before(final: Path, tmp_path: Path) -> None:
    def asked(*overrides: str) -> Any:
        data = load_data(settings(final, tmp_path, *overrides))
        return data.prompts, data.messages

    boxed = asked("data.answer_format=boxed", "prompts={verdict_format: boxed, examples: none}")
    assert boxed == (Prompts(), [])
    others, (note,) = asked("prompts.examples={answer: none}")
    assert set(others.examples) == {Role.POINTWISE} and "role answer" not in note
    taken, _ = asked("prompts.examples={num: 2, from: data.train}", "data.train=embedded:train")
    assert len(taken.examples[Role.ANSWER]) == 4 and taken.answer_format.name == "hash"


def test_a_dry_run_and_doctor_ask_as_the_run_would(final: Path, tmp_path: Path) -> None:
    config = figures(settings(final, tmp_path))["config"]
    assert (config["data"]["answer_format"], config["prompts"]["verdict_format"]) == ("hash", "tags")
    data = Patient(str(final), "embedded:train", []).data(Shown())
    assert data.prompts == saved_prompts(final) and "goes on with prompts" in data.messages[0]
