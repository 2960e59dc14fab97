"""A run with worked examples: every prompt holds them, records do not, and they are what a resumed run goes on with."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from factories import SMALL_RUN, read_rows, small_run
from test_loop import assert_same_run
from warm import PYTHON

from spark_rl.config import Config, load_config, load_inference
from spark_rl.data import load_data
from spark_rl.infer import ChatModel
from spark_rl.models.prompts import prompts_for
from spark_rl.prompts.build import prompts_from_json
from spark_rl.train.dry_run import figures
from spark_rl.train.loop import Trainer
from spark_rl.train.preflight import check_lengths
from spark_rl.types import Role

SHOT = {"question": "What is 40+2?", "reply": "40+2=42", "answer": 42}


def settings(run: Path, *overrides: str) -> Config:
    examples = f"prompts.examples={{answer: {run.parent / 'shots.jsonl'}, pointwise: ready, reflection: ready}}"
    held_out = ("data.validation={path: embedded:validation, size: 40}", "validation.items=4")
    return small_run(run, "train.steps=2", "checkpoint.every=1", examples, *held_out, *overrides)


def write_shots(folder: Path, **changes: Any) -> None:
    (folder / "shots.jsonl").write_text(json.dumps(SHOT | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """A run, not to be written to, and all prompts that its engine was given."""
    run = tmp_path_factory.mktemp("worked") / "run"
    write_shots(run.parent)
    trainer, prompts = Trainer(settings(run)), []
    generate = trainer.engine.generate

    def seen(requests: Any, *rest: Any) -> Any:
        prompts.extend(trainer.tokenizer.decode(request.prompt_ids) for request in requests)
        return generate(requests, *rest)

    trainer.engine.generate = seen  # type: ignore[method-assign]
    assert trainer.run() is not None
    yield run, prompts


KINDS = {
    Role.POINTWISE: ("A response to it", "Someone responded", "Proposed solution"),
    Role.PAIRWISE: ("Response A", "Two people responded"),
    Role.REFLECTION: ("An earlier response", "Your first attempt"),
}
TURNS = {Role.ANSWER: 2, Role.POINTWISE: 5, Role.PAIRWISE: 1, Role.REFLECTION: 3}
"""Of users: the worked ones and the prompt's own."""
FIRST = {Role.ANSWER: "40+2=42", Role.POINTWISE: "What is 5 + 7?", Role.REFLECTION: "What is 8 + 15?"}


def test_every_prompt_of_training_and_validation_holds_its_examples_once(finished: tuple[Path, list[str]]) -> None:
    seen = Counter[Role]()
    for prompt in finished[1]:
        last = prompt.rpartition("<|im_start|>user")[2]
        role = next((role for role, words in KINDS.items() if any(each in last for each in words)), Role.ANSWER)
        assert [other for other, words in FIRST.items() if words in prompt] == [role] * (role in FIRST)
        assert prompt.count(FIRST.get(role, last)) == 1
        assert prompt.count("<|im_start|>user") == TURNS[role]
        seen[role] += 1
    assert set(seen) == set(Role)


def test_records_pool_and_checkpoints_keep_the_bare_prompt(finished: tuple[Path, list[str]]) -> None:
    run, _ = finished
    kept = [*(run / "rollouts").iterdir(), *run.glob("checkpoints/*/trainer.json"), run / "validation" / "items.json"]
    assert len(kept) >= 4
    for path in kept:
        text = path.read_text()
        assert "40+2" not in text and "8 + 15" not in text and "5 + 7" not in text
    prompts = prompts_from_json(json.loads((run / "prompts.json").read_text()))
    assert set(prompts.examples) == {Role.ANSWER, Role.POINTWISE, Role.REFLECTION}
    assert prompts_for(load_inference(model={"path": str(run / "final")})).examples == prompts.examples
    card = (run / "final" / "README.md").read_text()
    assert "40+2=42" in card and "worked examples before prompts | answer 1, pointwise 4, reflection 2" in card


def test_resumed_it_is_the_same_run(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    whole = finished[0]
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-000002")
    write_shots(tmp_path)
    assert Trainer(settings(run), resume=True).run() is not None
    assert_same_run(whole, run)
    assert (run / "prompts.json").read_bytes() == (whole / "prompts.json").read_bytes()


def test_another_place_for_the_same_examples_changes_nothing_and_other_ones_are_refused(
    finished: tuple[Path, list[str]], tmp_path: Path
) -> None:
    run = shutil.copytree(finished[0], tmp_path / "run")
    given = json.dumps([SHOT])
    moved = f"prompts.examples={{answer: {given}, pointwise: ready, reflection: ready}}"
    Trainer(settings(run, moved), resume=True).run_directory.unlock()
    write_shots(tmp_path, reply="40 and 2 are 42")
    with pytest.raises(ValueError, match=r"prompts\.examples\.answer was '2 turns \w{8}' and is .*--allow-changes"):
        Trainer(settings(run), resume=True)
    with pytest.raises(ValueError, match=r"prompts\.examples\.reflection was .* and is None"):
        Trainer(settings(run, f"prompts.examples={{answer: {given}, reflection: none}}"), resume=True)
    going_on = settings(run, "train.steps=3")
    assert Trainer(going_on, resume=True, allow_changes=True).run() is not None
    (resumed,) = read_rows(run / "resumes.jsonl")
    assert resumed["changes"].keys() - {"train.output"} == {"prompts.examples.answer", "train.steps"}


def test_changed_rows_that_examples_were_taken_from_are_refused(tmp_path: Path) -> None:
    def rows(offset: int) -> None:
        made = ({"prompt": f"What is {i}+1?", "answer": i + 1, "response": f"{i}+{offset}"} for i in range(30))
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))

    overrides = (f"data.train={tmp_path / 'data.jsonl'}", "prompts.examples={answer: {num: 2, from: data.train}}")
    few = ("preset=grpo", "rollout.groups_per_step=4", "train.steps=1")
    config = small_run(tmp_path / "run", *few, *overrides)
    rows(1)
    assert Trainer(config).run() is not None
    Trainer(config, resume=True).run_directory.unlock()
    rows(2)  # what the questions are is the same
    with pytest.raises(ValueError, match=r"prompts\.examples\.answer was '4 turns"):
        Trainer(config, resume=True)


# ------------------------------------------------------------------------------------------------ lengths


def test_the_command_shows_them_once_with_their_tokens(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("{}")
    write_shots(tmp_path)
    command = [*PYTHON, "-m", "spark_rl.cli", "train", "run.yaml", *SMALL_RUN, "--dry-run"]
    shots = ["prompts.examples={answer: shots.jsonl, pairwise: ready}"]

    done = subprocess.run([*command, *shots], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert said.count("40+2=42") == 1 and "worked examples included" in said
    assert re.search(r"# answer examples \(1 worked, \d\d tokens; they stand before each prompt\)", said)
    assert "# pairwise examples (4 worked, " in said and "# pointwise examples" not in said
    given = f"prompts.examples={{answer: {tmp_path / 'shots.jsonl'}, pairwise: ready}}"
    with_them, without = (figures(load_config(None, [*SMALL_RUN, *each]))["roles"] for each in ([given], []))
    for role in Role:
        added = with_them[role]["example_tokens"]
        assert (added > 0) == (role in (Role.ANSWER, Role.PAIRWISE)) and without[role]["example_tokens"] == 0
        assert with_them[role]["prompt_longest"] == without[role]["prompt_longest"] + added


def test_examples_that_leave_no_room_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    shots = [{"question": "What is 1+1? " * 90, "answer": 2}] * 2
    config = load_config(None, [*SMALL_RUN, f"prompts.examples={{answer: {json.dumps(shots)}}}"])
    data = load_data(config)
    with pytest.raises(ValueError, match=r"prompts\.examples\.answer: the worked examples take \d+ tokens, and a"):
        check_lengths(config, data.train.sources, data.prompts)
    with pytest.raises(ValueError, match=r"prompts\.examples\.answer: the worked examples take \d+ tokens, and a"):
        Trainer(config.model_copy(update={"train": config.train.model_copy(update={"output": tmp_path / "run"})}))
    test_time = load_inference(prompts={"examples": {"answer": shots}}, engine={"max_new_tokens": 24})
    with pytest.raises(ValueError, match=r"the worked examples take \d+ tokens, and the model embedded has a context"):
        ChatModel.open(test_time)


def test_a_question_that_fits_only_without_them_is_passed_over(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i}+1? " + "again " * 60 * (i % 2), "answer": i + 1} for i in range(12)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = [f"data.train={tmp_path / 'data.jsonl'}", "data.max_prompt_tokens=240", "rollout.groups_per_step=4"]
    grpo = ["preset=grpo", "train.steps=1", *few]

    def passed(*more: str) -> Any:
        trainer = Trainer(small_run(tmp_path / f"run{len(more)}", *grpo, *more))
        trainer.run_directory.unlock()
        return trainer.selection.select(1)[1]["questions/too_long"]

    assert passed() == 0 and passed("prompts.examples={answer: ready}") > 0
