"""What a run says of a model that it destroys, and what it leaves."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from factories import make_example, make_group, read_rows, reward_group, small_run
from safetensors.torch import load_file, save_file

from spark_rl.config import HealthConfig, load_config
from spark_rl.data import question_task
from spark_rl.models.folder import resolve_path
from spark_rl.train.checkpoint import RunDirectory
from spark_rl.train.health import Collapsed, Health, HealthState, answers_alike, health_sentences, noise, watch
from spark_rl.train.loop import Trainer
from spark_rl.train.metrics import ALARM, Metrics, warnings
from spark_rl.train.signal import signal_sentences
from spark_rl.types import Group, Role
from spark_rl.verify import box

SLOTS = {Role.ANSWER: 4, Role.POINTWISE: 0, Role.PAIRWISE: 0, Role.REFLECTION: 0}
FINE: Metrics = {
    "answer/groups": 8,
    "answer/accuracy": 0.3,
    "answer/reward": 0.3,
    "answer/entropy": 0.4,
    "answer/truncated_rate": 0.0,
    "answer/parse_rate": 1.0,
    "health/same_answer": 0.1,
    "health/same_gold": 0.1,
    "health/noise": 0.1,
}
BAD: dict[str, Metrics] = {
    "noise": {"health/noise": 0.99},
    "entropy": {"answer/entropy": 1e-4},
    "same": {"health/same_answer": 0.95},
    "truncated": {"answer/truncated_rate": 0.9, "answer/reward": 0.1},
    "unparsed": {"answer/parse_rate": 0.05, "answer/reward": 0.1},
}


def begun() -> HealthState:
    """After one step that is fine."""
    state = HealthState(first_weight=2.0, largest_weight=2.0)
    assert watch(FINE, state, HealthConfig()) == {}
    return state


# ------------------------------------------------------------------------------------------------ alarms


@pytest.mark.parametrize("name", BAD)
def test_each_sign_of_collapse_is_an_alarm_of_its_own(name: str) -> None:
    state = begun()
    found = watch(FINE | BAD[name], state, HealthConfig())
    assert list(found) == state.alarms == [name] and state.steps == 1
    assert watch(FINE, state, HealthConfig()) == {} and state.steps == 0


@pytest.mark.parametrize("name", BAD)
def test_what_was_so_from_the_start_is_no_collapse(name: str) -> None:
    state = HealthState(first_weight=2.0, largest_weight=2.0)
    assert not any(watch(FINE | BAD[name], state, HealthConfig()) for _ in range(20))


@pytest.mark.parametrize(
    "better",
    [
        {"answer/truncated_rate": 0.9, "answer/reward": 0.6},  # it thinks longer, and better
        {"answer/parse_rate": 0.0, "answer/reward": 2.5},  # a reward that wants no box
        {"answer/entropy": 1e-5, "answer/accuracy": 1.0},  # solved
        {"health/same_answer": 0.95, "health/same_gold": 0.9},  # so are the golds
    ],
)
def test_what_is_learnt_is_no_collapse(better: Metrics) -> None:
    assert watch(FINE | better, begun(), HealthConfig()) == {}


def test_weights_that_grow_are_an_alarm_before_they_end_the_run() -> None:
    state = begun()
    state.largest_weight = 25.0
    assert list(watch(FINE, state, HealthConfig())) == ["weights"]
    assert watch(FINE, state, HealthConfig(max_weight_growth=20)) == {}


def test_a_step_without_questions_does_not_end_an_alarm() -> None:
    state = begun()
    watch(FINE | BAD["same"], state, HealthConfig())
    watch({"pointwise/groups": 4, "health/noise": 0.1}, state, HealthConfig())
    assert state.steps == 1 and state.alarms == ["same"]


def answered(answers: list[str], golds: int = 8) -> list[Group]:
    tasks = [question_task(make_example(i % golds, id=str(i))) for i in range(8)]
    return [make_group(task, answers) for task in tasks]


def test_answers_are_alike_across_questions_by_what_they_answer() -> None:
    assert answers_alike(answered(["I think \\boxed{4}", "So \\boxed{4}"])) == {
        "health/same_answer": 1.0,
        "health/same_gold": 1 / 8,
    }
    assert answers_alike(answered(["la la", "la la", box("4")], golds=2))["health/same_answer"] == pytest.approx(2 / 3)
    assert answers_alike(answered(["1"], golds=2))["health/same_gold"] == 0.5
    assert answers_alike(answered(["1"])[:3]) == {}, "three questions say nothing"


def test_noise_is_the_entropy_of_equally_likely_tokens() -> None:
    assert noise({"answer/entropy": math.log(640), "pointwise/entropy": 0.1}, 640) == {"health/noise": 1.0}
    assert noise({}, 640) == {}


# ------------------------------------------------------------------------------------------------ what is said


def test_an_alarm_is_said_when_it_begins_and_stops_the_run_after_so_many_steps(tmp_path: Path) -> None:
    said: list[str] = []
    health = Health(load_config(None, ["health.stop_after=3", "train.learning_rate=0.5"]), said.append, 640)
    health.begin(2.0)
    groups = answered([box("1")])
    for step, metrics in enumerate([FINE, *[FINE | BAD["truncated"]] * 3], start=1):
        health.see_patience(step)
        seen = health.see_rollouts([], metrics, step)
        assert (f"{ALARM}truncated" in seen) == (step > 1)
        health.see_update({"loss": 0.1, "health/largest_weight": 2.0}, step)
    assert said == [
        "ALARM, step 2, the model collapses: 90% of the answers no longer end (0% in the best step); "
        "lower train.learning_rate (now 0.5); after 3 such steps the run stops (health.stop_after)"
    ]
    with pytest.raises(Collapsed, match="the 3 steps up to 4 had alarms"):
        health.see_patience(4)
    again = Health(health.config, said.append, 640)
    again.load_state_dict(json.loads(json.dumps(health.state_dict())))
    assert again.state == health.state
    assert health.see_rollouts(groups, FINE, 5)["health/same_answer"] == 1.0


@pytest.mark.parametrize(
    "update",
    [
        {"loss": math.nan, "health/largest_weight": 2.0},
        {"loss": 0.0, "health/largest_weight": math.nan},
        {"loss": 0.0, "health/largest_weight": math.inf},
        {"loss": 0.0, "health/largest_weight": 1e30},
    ],
)
def test_what_is_beyond_return_ends_a_run_whatever_is_set(update: Metrics) -> None:
    health = Health(load_config(None, ["health.stop_after=0"]), print, 640)
    health.begin(2.0)
    with pytest.raises(Collapsed, match="of step 7"):
        health.see_update(update, 7)


def test_log_probabilities_must_be_finite() -> None:
    group = reward_group([1.0, 0.0])
    group.rollouts[1].logps = [math.nan]
    with pytest.raises(Collapsed, match="in step 2 its log-probabilities are not finite"):
        Health(load_config(None, []), print, 640).see_rollouts([group], {}, 2)


def test_the_last_good_checkpoint_is_the_one_after_which_nothing_rang(tmp_path: Path) -> None:
    health, directory = Health(load_config(None, []), print, 640), RunDirectory(tmp_path)
    health.begin(2.0)
    assert health.way_back(directory).startswith("no good checkpoint was made, so lower train.learning_rate (now ")
    for step, metrics in enumerate([FINE, FINE, FINE | BAD["same"]], start=1):
        health.see_rollouts([], metrics, step)
        directory.checkpoint(step).mkdir(parents=True)
        health.state.last_checkpoint = step
    said = health.way_back(directory)
    assert f"the last good checkpoint is {directory.checkpoint(1)}: remove the later ones, lower train." in said
    directory.prune(1, None, health.state.good_checkpoint)
    assert directory.checkpoints() == [1, 3]


def test_no_signal_for_a_collapse_is_not_blamed_on_the_length_limit() -> None:
    cut = {"zero_variance_rate": 1.0, "parse_rate": 0.0, "truncated_rate": 1.0, "accuracy": 0.0, "groups": 8}
    fine = {f"answer/{name}": value for name, value in cut.items()}
    rung = {**fine, f"{ALARM}truncated": 1.0}
    for step, words, others in (
        (fine, "raise max_new_tokens", "collapsed"),
        (rung, "lower train.learning_rate", "max_new"),
    ):
        (warning,), (sentence,) = warnings([step] * 3, SLOTS), signal_sentences([step] * 8, SLOTS)
        assert words in warning and words in sentence
        assert others not in warning and others not in sentence


def test_the_closing_words_say_when_what_rang() -> None:
    rows = [{"step": step, **({f"{ALARM}same": 1.0} if step in (3, 4, 7) else {})} for step in range(1, 9)]
    assert health_sentences(rows) == [
        "the model collapsed: the answers were all the same, whatever the question in 3 steps from 3 to 7; "
        "lower train.learning_rate"
    ]
    assert health_sentences(rows[:2]) == []


# ------------------------------------------------------------------------------------------------ real runs


def test_an_update_that_destroys_the_model_ends_the_run_and_nothing_that_was_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, often = tmp_path / "run", ("checkpoint.every=1", "checkpoint.keep=1", "train.steps=2")
    assert Trainer(small_run(run, *often, "train.learning_rate=1e30")).run() is None
    said = capsys.readouterr().err
    assert "the update of step 1 took its largest weight to 1e+30" in said and "max_new_tokens" not in said
    assert "no good checkpoint was made, so lower train.learning_rate (now 1e+30) and begin again" in said
    assert not (run / "final").exists() and not any((run / "checkpoints").iterdir())

    assert Trainer(small_run(run, *often, "train.steps=1"), resume=True, allow_changes=True).run() is not None
    saved = run / "checkpoints" / "step-000001"
    before = (saved / "model.safetensors").read_bytes()
    capsys.readouterr()
    destroyed = Trainer(small_run(run, *often, "train.learning_rate=1e30"), resume=True, allow_changes=True)
    assert destroyed.run() is None
    assert f"the last good checkpoint is {saved}: lower train.learning_rate" in " ".join(
        capsys.readouterr().err.split()
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == [saved.name]
    assert (saved / "model.safetensors").read_bytes() == before
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [1]
    assert Trainer(small_run(run, *often), resume=True, allow_changes=True).run() is not None


def test_a_collapse_is_said_in_the_step_where_it_is_seen_and_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    high = ("train.learning_rate=0.1", "rollout.max_new_tokens=32", "train.steps=4")
    summary = Trainer(small_run(run, *high)).run()
    assert summary is not None
    said = capsys.readouterr().err
    assert "ALARM, step 2, the model collapses: " in said and "max_new_tokens" not in said
    assert summary["findings"][0].startswith("the model collapsed: ")
    assert "max_new_tokens" not in " ".join(summary["findings"])
    rows = read_rows(run / "metrics.jsonl")
    assert [any(name.startswith(ALARM) for name in row) for row in rows] == [False, True, True, True]
    stopped = Trainer(small_run(tmp_path / "other", *high, "health.stop_after=2"))
    assert stopped.run() is None and stopped.state.step == 3
    assert not (tmp_path / "other" / "final").exists()


def test_a_model_with_weights_that_are_not_finite_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve_path("embedded"), folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="are not finite"):
        Trainer(small_run(tmp_path / "run", f"model.path={folder}"))
    assert not (tmp_path / "run").exists()
