"""Whole runs of a tiny vision-language model: it trains, recycles with images, and resumes bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from factories import lines, read_rows, small_run
from safetensors.torch import load_file
from vision import picture, save_vision_model

from spark_rl.config import Config
from spark_rl.train.dry_run import describe
from spark_rl.train.forward import GroupBatch, GroupLogProbs
from spark_rl.train.loop import Trainer, _Clock
from spark_rl.train.plan import make_plan
from spark_rl.types import Role

ROLES = "roles={answer: {share: 0.25}, pointwise: {share: 0.25}, pairwise: {share: 0.25}, reflection: {share: 0.25}}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vision_model("qwen2_5_vl", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions without, with one and with two images, which any text answers half of the time."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(24):
        names = [f"{i}-{k}.png" for k in range(i % 3)]
        for k, name in enumerate(names):
            picture(10 * i + k, 24, 16 + 8 * k).save(folder / name)
        prompt = f"Number {i}: " + " and ".join(["<image>"] * len(names)) + " right?"
        rows.append({"prompt": prompt, "answer": "Yes", "images": names, "id": f"q{i}"})
    path = folder / "questions.jsonl"
    path.write_text(lines(rows))
    return path


def run_config(model: Path, questions: Path, output: Path, *overrides: str) -> Config:
    return small_run(
        output,
        f"model.path={model}",
        f"data.train={questions}",
        "data.verifier=trl:tests_of_vision:even_length",
        "data.check_golds=false",
        "rollout.groups_per_step=8",
        "rollout.max_new_tokens=6",
        "checkpoint.every=1",
        ROLES,
        *overrides,
    )


@pytest.fixture(autouse=True)
def grader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier of the user's, so that a random model is right now and then."""
    (tmp_path / "tests_of_vision.py").write_text(
        "def even_length(completions, **kwargs):\n"
        "    return [float(len(completion[0]['content']) % 2 == 0) for completion in completions]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")


def test_images_go_round(model, questions, tmp_path):
    summary = Trainer(run_config(model, questions, tmp_path / "run")).run()
    assert summary is not None
    rows = [row for path in sorted((tmp_path / "run" / "rollouts").glob("*.jsonl")) for row in read_rows(path)]
    roles = {row["role"] for row in rows if row.get("images")}
    assert {"answer", "pointwise", "pairwise", "reflection"} == roles
    for row in rows:
        assert sum(m["content"].count("<image>") for m in row["prompt"]) == len(row.get("images", []))
    final = tmp_path / "run" / "final"
    assert (final / "preprocessor_config.json").exists()
    before, after = load_file(model / "model.safetensors"), load_file(final / "model.safetensors")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert any("visual" in name for name in changed)
    assert any("model.layers" in name for name in changed)


def test_the_dry_run_counts_the_patches_of_a_step(model, questions, tmp_path):
    config = run_config(model, questions, tmp_path / "run")
    plan, text = make_plan(config), describe(config)
    images = [image for task in plan.prompts[Role.ANSWER] for image in task.example.images]
    patches = sum(plan.renderer.images.prepare(image).tensors["pixel_values"].shape[0] for image in images)
    assert plan.roles[Role.ANSWER].patches_mean == patches / len(plan.prompts[Role.ANSWER]) > 0
    assert "patches a step go through the vision tower" in text and "those of the vision tower" in text
    frozen = describe(run_config(model, questions, tmp_path / "run", "model.freeze_vision=true"))
    assert "those of the vision tower" not in frozen and "frozen ones" in frozen
    assert "images: none" not in text
    assert "images: none" in describe(run_config(model, Path("embedded:train"), tmp_path / "run"))


def test_a_frozen_vision_tower_stays_what_it_was(model, questions, tmp_path):
    Trainer(run_config(model, questions, tmp_path / "run", "model.freeze_vision=true", "train.steps=1")).run()
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "run" / "final"))
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed and not any("visual" in name for name in changed)


def stop_after_a_step(trainer: Trainer) -> None:
    step = trainer.step

    def stop_after_one() -> object:
        trainer._stop = True
        return step()

    trainer.step = stop_after_one  # type: ignore[method-assign]


def test_a_stopped_run_goes_on_as_if_it_had_not_been(model, questions, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Trainer(run_config(model, questions, whole)).run()
    stopped = Trainer(run_config(model, questions, parts))
    stop_after_a_step(stopped)
    assert stopped.run() is None
    assert json.loads((parts / "checkpoints" / "step-000001" / "trainer.json").read_text())
    Trainer(run_config(model, questions, parts), resume=True).run()
    ends = [load_file(folder / "final" / "model.safetensors") for folder in (whole, parts)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_run_goes_on_when_its_images_have_moved(model, questions, tmp_path):
    """Recycled prompts that wait and held-out items find theirs where they are now."""
    rows = read_rows(questions)
    for name, part in (("train", rows[:18]), ("held", rows[18:])):
        (tmp_path / f"{name}.jsonl").write_text(lines(part))
    old, new = (shutil.copytree(questions.parent, tmp_path / name) for name in ("old", "new"))

    def trainer(name: str, folder: Path, **options: bool) -> Trainer:
        paths = [f"data.image_folder={folder}", f"data.validation={tmp_path / 'held.jsonl'}", "validation.items=4"]
        return Trainer(run_config(model, tmp_path / "train.jsonl", tmp_path / name, *paths), **options)

    trainer("whole", old).run()
    stopped = trainer("parts", old)
    stop_after_a_step(stopped)
    assert stopped.run() is None
    assert any(
        len(bundle[0].example.images) for waiting in stopped.selection.pool._waiting.values() for bundle in waiting
    )
    shutil.rmtree(old)
    trainer("parts", new, resume=True, allow_changes=True).run()
    ends = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    afters = [json.loads((tmp_path / name / "summary.json").read_text())["after"] for name in ("whole", "parts")]
    assert afters[0] == afters[1] and afters[0]["n_pointwise"]


def test_the_forward_is_checked_again_at_the_first_step_with_images(model, questions, tmp_path, monkeypatch):
    checked: list[bool] = []
    self_check = GroupLogProbs.self_check

    def noted(module: GroupLogProbs, batch: GroupBatch) -> str | None:
        checked.append(batch.images is not None)
        return self_check(module, batch)

    monkeypatch.setattr(GroupLogProbs, "self_check", noted)
    trainer = Trainer(run_config(model, questions, tmp_path / "run"))
    tasks, _ = trainer.selection.select(1)
    groups = trainer._ask(tasks, 1, _Clock())
    text = [group for group in groups if not group.task.example.images]
    assert 0 < len(text) < len(groups)
    for step in (text, text, groups, text, groups):
        trainer.updater.update(step)
    assert checked == [False, True]


def test_a_language_model_is_given_no_images(questions, tmp_path):
    """Not even one in a hundred, which might be drawn in the last step: it is refused before anything is written."""
    rows = [{"prompt": f"What is {i}+1?", "answer": i + 1} for i in range(99)]
    rows.insert(70, {"prompt": "How many?", "answer": 1, "images": str(questions.parent / "1-0.png")})
    path = tmp_path / "questions.jsonl"
    path.write_text(lines(rows))
    for part in ("train", "validation", "monitor"):
        config = small_run(tmp_path / "run", f"data.{part}={path}")
        for begin in (Trainer, make_plan):
            with pytest.raises(ValueError, match=r"questions\.jsonl, row 71: has images, and the model takes none"):
                begin(config)
    assert not (tmp_path / "run").exists()
