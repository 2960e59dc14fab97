"""The held-out items: which questions they come from, what is left out, and that they are made once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from factories import make_group, reward_group
from image_files import png

from spark_rl.config import Config, load_config
from spark_rl.data import load_data
from spark_rl.images import reference
from spark_rl.train.checkpoint import RunDirectory
from spark_rl.train.validation import HeldOut, validation_metrics
from spark_rl.types import IMAGE, Group, Role, Task
from spark_rl.verify import box


def answer_half(tasks: list[Task], sampling: object, name: str) -> list[Group]:
    """A model whose every other rollout is right."""
    return [make_group(task, [f"So {box(task.label)}", f"Or {box('999')}"]) for task in tasks]


def write(folder: Path, name: str, count: int, question: str) -> str:
    path = folder / f"{name}.jsonl"
    rows = ({"prompt": question.format(i), "answer": i} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def held_out(config: Config, warnings: list[str], longest: int = 10**6) -> HeldOut:
    def fits(task: Task) -> bool:
        return sum(len(m["content"]) for m in task.messages) <= longest

    return HeldOut(config, load_data(config), answer_half, fits, warnings.append)


def test_every_source_is_among_the_items_and_they_are_read_back(tmp_path: Path) -> None:
    many, few = write(tmp_path, "many", 90, "What is {}+0?"), write(tmp_path, "few", 30, "What is {}-0?")
    config = load_config(None, [f"data.validation=[{many}, {few}]", "validation.items=20"])
    made, directory = held_out(config, []), RunDirectory(tmp_path / "run")
    directory.create(resume=False)
    before = made.begin(directory, is_main=True)
    answers = [task for task in made.items if task.role is Role.ANSWER]
    assert Counter(task.example.source for task in answers) == {"many": 15, "few": 5}
    assert before["n_answer"] == 20 and before["n_pointwise"] == 20
    again = held_out(config, [])
    assert again.begin(directory, is_main=True) == before and again.items == made.items


def test_items_that_the_starting_model_gives_none_of_are_made_later(tmp_path: Path) -> None:
    """A model that states nothing gives no response to judge; what it gives at first stays as it is."""
    says = ["I am not sure.", "Who knows?"]

    def answer(tasks: list[Task], sampling: object, name: str) -> list[Group]:
        return [make_group(task, says) for task in tasks] if says else answer_half(tasks, sampling, name)

    config = load_config(None, [f"data.validation={write(tmp_path, 'few', 30, 'What is {}-0?')}", "validation.items=6"])
    made, directory = (
        HeldOut(config, load_data(config), answer, lambda task: True, print),
        RunDirectory(tmp_path / "run"),
    )
    directory.create(resume=False)
    before = made.begin(directory, is_main=True)
    first = list(made.items)
    assert {task.role for task in first} == {Role.ANSWER, Role.REFLECTION}
    says.clear()
    made.complete()
    assert made.items[: len(first)] == first
    assert Counter(task.role for task in made.items[len(first) :]) == {Role.POINTWISE: 6, Role.PAIRWISE: 6}
    assert "pairwise_accuracy" not in before and "pairwise_accuracy" in made.measure()


def test_only_the_roles_that_are_named_are_measured(tmp_path: Path) -> None:
    source = write(tmp_path, "few", 30, "What is {}-0?")
    config = load_config(None, [f"data.validation={source}", "validation.items=6", "validation.roles=pointwise"])
    made, directory = held_out(config, []), RunDirectory(tmp_path / "run")
    directory.create(resume=False)
    before = made.begin(directory, is_main=True)
    made.complete()
    assert Counter(task.role for task in made.items) == {Role.ANSWER: 6, Role.POINTWISE: 6}
    assert "answer_accuracy" in before and "pairwise_accuracy" not in before


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["validation.best=pairwise_accuracy"], "validation.best is pairwise_accuracy, .* add pairwise to validation"),
        (["self_reward.enabled=true", "validation.every=2"], "self_reward.kind is pointwise, .* add pointwise to"),
    ],
)
def test_a_role_that_decides_something_has_to_be_measured(tmp_path: Path, settings: list[str], sentence: str) -> None:
    source = write(tmp_path, "few", 30, "What is {}-0?")
    with pytest.raises(ValueError, match=sentence):
        load_config(None, [f"data.validation={source}", "validation.roles=reflection", *settings])


def test_items_keep_their_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    rows = [{"prompt": f"<image> What is {i}+0?", "answer": i, "images": ["a.png"]} for i in range(6)]
    (tmp_path / "seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(None, [f"data.validation={tmp_path / 'seen.jsonl'}"])
    made, directory = held_out(config, []), RunDirectory(tmp_path / "run")
    directory.create(resume=False)
    made.begin(directory, is_main=True)
    again = held_out(config, [])
    again.begin(directory, is_main=True)
    assert {task.role for task in again.items} > {Role.ANSWER, Role.POINTWISE} and again.items == made.items
    for task in again.items:
        assert task.example.images == (reference("a.png", tmp_path),)
        assert sum(m["content"].count(IMAGE) for m in task.messages) == 1


def test_long_questions_and_items_are_left_out_and_said(tmp_path: Path) -> None:
    short, long = write(tmp_path, "short", 8, "What is {}+0?"), write(tmp_path, "long", 3, "What is {}" + "+0" * 100)
    warnings: list[str] = []
    config = load_config(None, [f"data.validation=[{short}]", f"data.monitor=[{long}]"])
    items = held_out(config, warnings, longest=160)
    assert warnings == ["3 held-out questions are longer than prompts may be and are left out"]
    directory = RunDirectory(tmp_path / "run")
    directory.create(resume=False)
    items.begin(directory, is_main=True)
    assert items.monitored == [] and {task.role for task in items.items} == {Role.ANSWER}, "judge prompts are longer"


def test_held_out_accuracy_is_a_share_whatever_the_rewards_are() -> None:
    groups = [reward_group([reward]) for reward in (5.0, 2.0, -1.0, -1.0)]
    metrics, by_source = validation_metrics(groups, {"t"}, right_at=2)
    assert metrics == {
        "answer_accuracy": 0.5,
        "n_answer": 4,
        "answer_reward": 1.25,
        "answer_reward_std": pytest.approx(2.487, abs=1e-3),
    }
    assert by_source == {Role.ANSWER: {"successor": 0.5}}
