"""Self-reward: the judge's own figures as rewards, when they count and when no longer, and never as labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from factories import make_config, make_example, make_group, make_rollout, read_rows, reward_group, small_run
from ranks import train_on_ranks
from safetensors.torch import load_file
from test_loop import assert_same_run

from spark_rl.config import Config, SelfRewardConfig, load_config
from spark_rl.data import load_data, question_task
from spark_rl.infer import ChatModel, Judge
from spark_rl.models.load import load_for_inference, load_tokenizer
from spark_rl.prompts import ChatRenderer
from spark_rl.rollout.scoring import RuleScorer
from spark_rl.rollout.transformers_engine import TransformersEngine
from spark_rl.train.advantages import advantages
from spark_rl.train.batches import keeps
from spark_rl.train.loop import Trainer
from spark_rl.train.selection import Selection
from spark_rl.train.self_reward import SelfRewardScorer, Switch
from spark_rl.types import Group, Task
from spark_rl.verify import SELF, VerifierPool, box

HELD_OUT = {"validation": "embedded:validation"}


def config_of(**self_reward: Any) -> Config:
    return make_config(
        data=HELD_OUT, validation={"every": 1}, self_reward={"enabled": True, **self_reward}, rollout=ROLLOUT
    )


ROLLOUT = {"max_new_tokens": 40}


def open_task(number: int = 4) -> Task:
    """A question without an answer."""
    return question_task(make_example(number, answer="", verifier=SELF))


# ------------------------------------------------------------------------------------------------ rewards


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    settings = load_config().model
    return TransformersEngine(load_for_inference(settings), load_tokenizer(settings))


@pytest.fixture(scope="module")
def renderer() -> ChatRenderer:
    return ChatRenderer(load_tokenizer(load_config().model))


def scored(engine: TransformersEngine, renderer: ChatRenderer, config: Config, *groups: Group, on: bool = True) -> None:
    """Score in place, at the step after self-reward was switched on."""
    switch = Switch(config.self_reward)
    switch.state.is_on = on
    with VerifierPool() as pool:
        SelfRewardScorer(config, RuleScorer(pool, config.loss.truncated), switch, renderer, 1024).score(groups, engine)


def ungraded(task: Task, texts: Sequence[str]) -> Group:
    return make_group(task, texts, [None] * len(texts))


TEXTS = ["4+1=5\n" + box("5"), box("6"), "Surely " + box("5"), "I cannot say."]


def test_the_reward_is_the_judges_probability(engine: TransformersEngine, renderer: ChatRenderer) -> None:
    group, ruled = ungraded(open_task(), TEXTS), ungraded(question_task(make_example(7)), [box("8"), box("9")])
    config = config_of(ramp_steps=4)
    scored(engine, renderer, config, group, ruled)
    judge = Judge(ChatModel(engine, "base", renderer=renderer, max_new_tokens=40))
    alone = [judge.score(group.task.example.question, text).probability for text in TEXTS[:3]]
    assert group.rewards == pytest.approx([*(p for p in alone if p is not None), 0.0], abs=2e-6)
    assert None not in alone and group.rewards[0] == group.rewards[2] != group.rewards[1]
    assert [r.reason for r in group.rollouts] == ["judged", "judged", "judged", "unparsed"]
    assert group.weight == 1 / 4, "the first step of four in which the weight rises"
    assert (ruled.rewards, ruled.weight) == ([1.0, 0.0], 1.0)


def test_the_win_rate_is_of_both_orders(engine: TransformersEngine, renderer: ChatRenderer) -> None:
    texts = [box("5"), box("6"), box("5"), box("7")]
    group, alike = ungraded(open_task(), texts), ungraded(open_task(5), [box("6"), box("6")])
    scored(engine, renderer, config_of(kind="pairwise"), group, alike)
    judge = Judge(ChatModel(engine, "base", renderer=renderer, max_new_tokens=40))

    def wins(a: int, b: int) -> float:
        preference = judge.compare(group.task.example.question, texts[a], texts[b])
        assert preference.consistent is not None and preference.probability is not None
        return preference.probability

    five_six, five_seven, six_seven = wins(0, 1), wins(0, 3), wins(1, 3)
    expected = [
        fmean([five_six, five_seven]),
        fmean([1 - five_six, 1 - five_six, six_seven]),
        fmean([five_six, five_seven]),
        fmean([1 - five_seven, 1 - six_seven, 1 - five_seven]),
    ]
    assert group.rewards == pytest.approx(expected, abs=1e-5)
    assert alike.rewards == [0.5, 0.5]


def test_what_cannot_be_judged_trains_nothing(engine: TransformersEngine, renderer: ChatRenderer) -> None:
    mute = ungraded(open_task(), TEXTS[:2])
    scored(engine, renderer, config_of(max_new_tokens=1), mute)
    assert [(r.reward, r.reason) for r in mute.rollouts] == [(None, "no_verdict")] * 2
    off = ungraded(open_task(), TEXTS)
    scored(engine, renderer, config_of(), off, on=False)
    assert off.rewards == [] and off.weight == 1


@pytest.mark.parametrize(("truncated", "reward"), [("zero", 0.0), ("mask", None)])
def test_cut_rollouts_are_not_judged(
    engine: TransformersEngine, renderer: ChatRenderer, truncated: Any, reward: float | None
) -> None:
    group = ungraded(open_task(), [box("5")])
    group.rollouts.append(make_rollout(box("6") + " and", None, "cut", finish_reason="length"))
    config = config_of().model_copy(update={"loss": make_config(loss={"truncated": truncated}).loss})
    scored(engine, renderer, config, group)
    assert (group.rollouts[1].reward, group.rollouts[1].reason) == (reward, "truncated")
    assert group.rollouts[0].reason == "judged"


def self_rewarded(rewards: Sequence[float | None], weight: float = 1.0) -> Group:
    group = reward_group(rewards)
    group.task, group.weight = replace(group.task, verifier=SELF), weight
    return group


def test_verdicts_that_hardly_differ_teach_hardly_anything() -> None:
    config = config_of()
    sure, unsure = self_rewarded([1.0, 0.0, None]), self_rewarded([0.02, 0.01], weight=0.5)
    ruled = reward_group([1.0, 0.0])
    found = advantages([sure, unsure, ruled], config)
    assert found[0] == [pytest.approx(1, abs=1e-4), pytest.approx(-1, abs=1e-4), None]
    assert found[1] == [pytest.approx(0.005, abs=1e-4), pytest.approx(-0.005, abs=1e-4)]
    by_role = make_config(loss={"advantage_scale": "role"})
    assert advantages([sure, unsure, ruled], by_role)[2] == advantages([ruled], by_role)[0]
    assert keeps(sure, config) and not keeps(self_rewarded([1.0, 0.0], weight=0.0), config)


# ------------------------------------------------------------------------------------------------ the switch


def result(judge: float, answers: float = 0.8) -> dict[str, float]:
    return {"pointwise_balanced_accuracy": judge, "pairwise_accuracy": 0.0, "answer_accuracy": answers}


def test_verdicts_count_from_the_threshold_on_by_degrees() -> None:
    switch = Switch(SelfRewardConfig(enabled=True, threshold=0.8, hysteresis=0.1, ramp_steps=4, weight=2.0))
    assert switch.evaluated(result(0.79)) is None and not switch.is_on and switch.weight == 0
    assert switch.watch([])["self_reward/on"] == 0
    said = switch.evaluated(result(0.8))
    assert said and "is on" in said and "80.0%" in said and switch.is_on
    weights = [switch.watch([self_rewarded([0.9, 0.1])])["self_reward/weight"] for _ in range(6)]
    assert weights == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert switch.evaluated(result(0.71)) is None and switch.is_on, "within the hysteresis"
    said = switch.evaluated(result(0.69))
    assert said and "until the judge is better" in said and switch.weight == 0
    assert switch.evaluated(result(0.75)) is None and not switch.is_on
    assert switch.evaluated(result(0.85)) and switch.weight == 0.5, "and from the bottom again"


@pytest.mark.parametrize("rewards", [[0.99, 0.98, 1.0], [0.6, 0.6, 0.6]], ids=["saturated", "without spread"])
def test_a_collapse_switches_off_for_good(rewards: list[float]) -> None:
    switch = Switch(SelfRewardConfig(enabled=True, threshold=0.7))
    switch.evaluated(result(0.9, answers=0.6))
    switch.watch([self_rewarded(rewards)])
    assert switch.evaluated(result(0.9, answers=0.8)) is None, "all is well while answers get better"
    switch.watch([self_rewarded(rewards)])
    said = switch.evaluated(result(0.9, answers=0.76))
    assert said and "off for good" in said and "80.0% to 76.0%" in said
    assert switch.evaluated(result(0.95)) is None and not switch.is_on


def test_worse_answers_alone_are_no_collapse() -> None:
    switch = Switch(SelfRewardConfig(enabled=True, threshold=0.7))
    switch.evaluated(result(0.9, answers=0.8))
    switch.watch([self_rewarded([0.9, 0.1])])
    assert switch.evaluated(result(0.9, answers=0.5)) is None and switch.is_on


def test_the_switch_is_saved_whole_and_off_by_default() -> None:
    switch, other = (Switch(SelfRewardConfig(enabled=True, threshold=0.0)) for _ in range(2))
    switch.evaluated(result(0.1))
    switch.watch([self_rewarded([0.9, 0.1])])
    other.load_state_dict(json.loads(json.dumps(switch.state_dict())))
    assert other.state == switch.state and other.weight == switch.weight
    off = Switch(SelfRewardConfig())
    assert off.evaluated(result(1.0)) is None and not off.is_on and off.watch([]) == {}


def test_the_metrics_of_a_step() -> None:
    switch = Switch(SelfRewardConfig(enabled=True, threshold=0.5))
    switch.evaluated(result(0.75))
    group = self_rewarded([0.9, 0.5, None])
    for rollout, reason in zip(group.rollouts, ["judged", "unparsed", "no_verdict"], strict=True):
        rollout.reason = reason
    metrics = switch.watch([group, reward_group([1.0, 0.0])])
    assert metrics == {
        "self_reward/on": 1.0,
        "self_reward/weight": 0.1,
        "self_reward/held_out_accuracy": 0.75,
        "self_reward/groups": 1,
        "self_reward/mean": pytest.approx(0.7),
        "self_reward/std": pytest.approx(0.2),
        "self_reward/parse_rate": 0.5,
    }


# ------------------------------------------------------------------------------------------------ data and config


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


RULED = [{"prompt": f"What is {i}+1?", "answer": i + 1, "verifier": "numeric"} for i in range(20)]
OPEN = [{"prompt": f"What is {i}+2?", "verifier": "self"} for i in range(20)]


def data_config(train: str, on: bool = True, **data: Any) -> Config:
    extra = {"self_reward": {"enabled": True}, "validation": {"every": 1}} if on else {}
    return make_config(data={"train": train, **(HELD_OUT if on else {}), **data}, **extra)


def test_rows_without_an_answer_are_read_and_an_answer_is_not_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *RULED, *OPEN, {"prompt": "Why?", "answer": "{", "verifier": "self"})
    (source,) = load_data(data_config(path, answer_pattern="(.+)")).train.sources
    tasks = [source.task(i) for i in range(source.num_rows)]
    assert [task.verifier for task in tasks] == ["numeric"] * 20 + [SELF] * 21
    assert {task.label for task in tasks[20:]} == {""}


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        (OPEN[:1] + RULED, {"on": False}, ["a.jsonl, row 1", "set self_reward.enabled=true", "bad_rows=skip"]),
        (OPEN, {}, ["data.train", "every row has the verifier 'self'", "add some"]),
        ([*RULED, {**RULED[0], "role": "reflection", "verifier": "self"}], {}, ["row 21", "reflection", "name a rule"]),
        ([*RULED, {"prompt": "Why?"}], {}, ["row 21", "no 'answer'", "'verifier': 'self'"]),
        (RULED, {"validation": "{open}"}, ["open.jsonl, row 1", "held-out questions need an answer and a rule"]),
        (RULED, {"monitor": "{open}"}, ["open.jsonl, row 1", "held-out questions need an answer and a rule"]),
    ],
    ids=["disabled", "nothing else", "reflection", "no verifier", "held out", "monitored"],
)
def test_misplaced_rows_are_refused(
    tmp_path: Path, rows: list[Any], settings: dict[str, Any], words: list[str]
) -> None:
    train, unverified = write(tmp_path / "a.jsonl", *rows), write(tmp_path / "open.jsonl", *OPEN)
    settings = {key: unverified if value == "{open}" else value for key, value in settings.items()}
    with pytest.raises(ValueError) as caught:
        load_data(data_config(train, **settings))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_a_run_without_self_reward_can_leave_them_out(tmp_path: Path) -> None:
    data = load_data(data_config(write(tmp_path / "a.jsonl", *OPEN, *RULED), on=False, bad_rows="skip"))
    assert data.report["train"][0]["skipped"] == {"unverified": 20}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({}, "self_reward.enabled needs held-out questions; set data.validation"),
        ({"data": HELD_OUT}, "self_reward.enabled needs the judge measured again and again; set validation.every"),
    ],
)
def test_the_judge_must_be_measured(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_config(self_reward={"enabled": True}, **sections)


def test_unverified_questions_are_passed_over_while_off_and_never_recycled(
    tmp_path: Path, renderer: ChatRenderer
) -> None:
    config = load_config(
        None,
        [
            "preset=spark",
            "rollout.groups_per_step=16",
            f"data.train={write(tmp_path / 'a.jsonl', *OPEN, *RULED)}",
            "data.validation=embedded:validation",
            "validation.every=1",
            "self_reward.enabled=true",
        ],
    )
    is_on = False
    selection = Selection(config, load_data(config).train, renderer, 1000, lambda: is_on)
    tasks, counts = selection.select(1)
    assert len(tasks) == 16 and {task.verifier for task in tasks} == {"numeric"} and counts["questions/unverified"] > 0
    is_on = True
    tasks = selection.select(2)[0] + selection.select(3)[0]
    unverified = [task for task in tasks if task.verifier == SELF]
    assert 0 < len(unverified) < len(tasks)
    groups = [make_group(task, [box("1"), box("2")], [1.0, 0.0]) for task in unverified]
    assert not selection.recycle(groups, 3)["recycle/made_pointwise"] and len(selection.pool) == 0
    selection.recycle([make_group(tasks[0], [box("1"), box("2")], [1.0, 0.0]), *groups], 3)
    assert {task.example.verifier for task in selection.select(4)[0] if task.shown} <= {"numeric"}


# ------------------------------------------------------------------------------------------------ runs


def overrides(tmp_path: Path) -> list[str]:
    """A run whose verdicts count from the first step."""
    embedded = load_data(load_config(None, ["data.train={path: embedded:train, size: 120}"])).train.sources[0]
    examples = [embedded.task(i).example for i in range(120)]
    rows = [{"prompt": e.question, "answer": e.answer, "verifier": "numeric"} for e in examples[:60]]
    rows += [{"prompt": e.question, "verifier": "self"} for e in examples[60:]]
    return [
        f"data.train={write(tmp_path / 'mixed.jsonl', *rows)}",
        "data.validation=embedded:validation",
        "validation.items=8",
        "validation.every=1",
        "checkpoint.every=2",
        "train.steps=4",
        "self_reward.enabled=true",
        "self_reward.threshold=0",
        "self_reward.ramp_steps=5",
    ]


def test_a_run_trains_on_verdicts_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    Trainer(small_run(whole, *overrides(tmp_path))).run()

    trainer = Trainer(small_run(killed, *overrides(tmp_path)))
    step = trainer.step

    def dies_in_step_4() -> Any:
        if trainer.state.step == 3:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(trainer, "step", dies_in_step_4)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    Trainer(small_run(killed, *overrides(tmp_path)), resume=True).run()
    assert_same_run(whole, killed)

    metrics = read_rows(whole / "metrics.jsonl")
    assert [row["self_reward/weight"] for row in metrics] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    rows = [row for path in sorted((whole / "rollouts").iterdir()) for row in read_rows(path)]
    of_self = {row["question_id"] for row in rows if row["verifier"] == SELF}
    judged = [r for row in rows if row["verifier"] == SELF for r in row["rollouts"] if r["reason"] == "judged"]
    assert judged and all(0 <= r["reward"] <= 1 for r in judged)
    recycled = [row for row in rows if row["parents"]]
    assert recycled and not of_self & {row["question_id"] for row in recycled}


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("{}")
    finals = []
    for world in (1, 2):
        config = small_run(tmp_path / str(world), *overrides(tmp_path), "train.steps=2", "train.learning_rate=1e-4")
        (tmp_path / "run.yaml").write_text(config.dump())
        train_on_ranks(world, tmp_path / "run.yaml")
        run = tmp_path / str(world)
        finals.append((load_file(run / "final" / "model.safetensors"), read_rows(run / "metrics.jsonl")))
    (one, one_metrics), (two, two_metrics) = finals
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-5)
    for mine, theirs in zip(one_metrics, two_metrics, strict=True):
        for key in ("self_reward/mean", "self_reward/groups", "trained_tokens"):
            assert mine.get(key) == pytest.approx(theirs.get(key), abs=1e-5), key
