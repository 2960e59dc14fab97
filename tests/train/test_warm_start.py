"""The warm start: what is learnt of graded groups, its loss against torch's cross-entropy, and whole runs of it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import lines, make_config, make_example, make_group, question_group, read_rows, reward_group, small_run
from test_loop import assert_same_run
from torch.nn.functional import cross_entropy

from spark_rl.config import Config
from spark_rl.data import question_task
from spark_rl.embedded.tasks import FAMILIES, problems
from spark_rl.prompts import saved_prompts
from spark_rl.train.batches import micro_batches, supervised_groups, to_tensors
from spark_rl.train.forward import GroupLogProbs
from spark_rl.train.health import Health
from spark_rl.train.loop import Trainer, _Clock
from spark_rl.train.loss import likelihood_loss, policy_loss
from spark_rl.train.warm_start import lessons
from spark_rl.types import Group, Response, Role
from spark_rl.verify import box

# ------------------------------------------------------------------------------------------------ what is learnt


def learnt(groups: Sequence[Group], **warm_start: Any) -> tuple[list[list[str]], dict[str, int]]:
    found, counts = lessons(groups, make_config(warm_start={"steps": 1, "from_rollouts": True, **warm_start}))
    return [[rollout.text for rollout in group.rollouts] for group in found], dict(counts)


def test_right_rollouts_are_learnt_each_text_once_and_few_of_a_group() -> None:
    right = [box("3"), "So \\boxed{3}", box("3"), "Hence \\boxed{3}"]
    group = make_group(question_task(make_example(2)), [box("4"), *right, "no idea"])
    assert learnt([group]) == ([[right[0], right[1], right[3]]], {"repeated": 1})
    assert learnt([group], max_per_prompt=2) == ([[right[0], right[1]]], {"repeated": 1, "over_max_per_prompt": 1})
    assert learnt([question_group(2, [None, 4])]) == ([], {})


def test_what_has_not_ended_or_was_not_graded_is_not_learnt() -> None:
    group = make_group(question_task(make_example(2)), [box("3"), "So \\boxed{3}", "Oh \\boxed{3}"], [1.0, 1.0, None])
    group.rollouts[0].finish_reason = "length"
    assert learnt([group]) == ([["So \\boxed{3}"]], {"cut": 1})


def judged(number: int, label: str, verdict: str, num: int = 1) -> Group:
    task = question_task(make_example(number, answer=label, verifier="choice"), Role.POINTWISE)
    return make_group(task, [f"{i} times {box(verdict)}" if i else box(verdict) for i in range(num)])


def reflected(number: int, shown_reward: float) -> Group:
    task = question_task(make_example(number), Role.REFLECTION)
    shown = (Response("r", "It is 1.", "1", shown_reward),)
    return make_group(replace(task, shown=shown), [box(str(number + 1))])


def test_of_verdicts_and_reflections_as_many_of_either_kind_are_learnt() -> None:
    """A judge that says Yes to all is right about a half, as is a reflection that keeps all: nothing to learn."""
    always_yes = [judged(i, label, "Yes") for i, label in enumerate(["Yes", "No"] * 3)]
    always_kept = [reflected(i, 1.0) for i in range(3)]
    assert learnt([*always_yes, *always_kept]) == ([], {"unbalanced": 6})
    mixed = [*always_yes, judged(7, "No", "No"), *always_kept, reflected(8, 0.0), question_group(5, [6])]
    texts, counts = learnt(mixed)
    assert texts == [[box("Yes")], [box("No")], [box("1")], [box("9")], ["Attempt 0: it must be so.\n\\boxed{6}"]]
    assert counts == {"unbalanced": 4}


def test_what_is_balanced_are_rollouts_since_a_habit_makes_many_right_ones_of_a_prompt() -> None:
    groups = [judged(i, label, label, num) for i, (label, num) in enumerate([("Yes", 8), ("No", 1)] * 2)]
    texts, counts = learnt(groups, max_per_prompt=4)
    assert texts == [[box("Yes")], [box("No")]] * 2  # of either prompt one, not two of the first
    assert counts == {"over_max_per_prompt": 8, "unbalanced": 6}
    uneven, _ = learnt([judged(1, "Yes", "Yes", 2), judged(2, "Yes", "Yes"), judged(3, "No", "No", 2)])
    assert list(map(len, uneven)) == [1, 1, 2]


def test_a_role_without_weight_learns_nothing() -> None:
    config = make_config(roles={"answer": {"share": 0.5, "weight": 0}, "reflection": {"share": 0.5}})
    assert lessons([question_group(2, [3])], config) == ([], {})


# ------------------------------------------------------------------------------------------------ its loss


def ragged(rng: random.Random) -> list[Group]:
    """Groups of all roles, some of whose prompts begin with the same long text."""
    beginning = [rng.randrange(2, 64) for _ in range(20)]
    groups = []
    for i, role in enumerate([Role.ANSWER, Role.POINTWISE, Role.ANSWER, Role.REFLECTION]):
        lengths = [rng.randrange(1, 9) for _ in range(rng.randrange(1, 4))]
        group = reward_group([1.0] * len(lengths), role, lengths)
        group.prompt_ids = beginning * (i != 1) + [rng.randrange(2, 64) for _ in range(rng.randrange(1, 7))]
        for rollout in group.rollouts:
            rollout.token_ids = [rng.randrange(2, 64) for _ in rollout.token_ids]
        groups.append(group)
    return groups


def by_torch(model: Any, groups: Sequence[Group]) -> torch.Tensor:
    """The mean cross-entropy of all completion tokens, a row at a time."""
    sums, count = torch.zeros(()), 0
    for group in groups:
        for rollout in group.rollouts:
            ids = torch.tensor([*group.prompt_ids, *rollout.token_ids])
            logits = model(ids[None]).logits[0, len(group.prompt_ids) - 1 : -1]
            sums = sums + cross_entropy(logits, ids[len(group.prompt_ids) :], reduction="sum")
            count += len(rollout.token_ids)
    return sums / count


def gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("implementation", ["plain", "shared"])
def test_the_loss_is_torchs_cross_entropy_however_a_step_is_cut(implementation: Any, tiny_model: Any) -> None:
    groups, model = ragged(random.Random(3)), tiny_model()
    expected = by_torch(model, groups)
    expected.backward()
    wanted = gradient(model)
    config = make_config(rollout={"temperature": 0.5}, loss={"aggregation": "dr_grpo"})  # of RL alone
    for max_tokens in (30, 1000):
        model.zero_grad()
        total = torch.zeros(())
        for micro in micro_batches(supervised_groups(groups, config), max_tokens):
            batch = to_tensors(micro, 0, torch.device("cpu"))
            logps_RT = GroupLogProbs(model, implementation)(batch.batch, batch.temperature_R).logps_RT
            loss = likelihood_loss(logps_RT, batch.batch.completion_mask_RT, batch.scale_R).loss
            loss.backward()
            total += loss.detach()
        torch.testing.assert_close(total, expected.detach(), atol=1e-5, rtol=1e-5)
        assert (gradient(model) - wanted).norm() <= 1e-5 * wanted.norm()


def test_the_loss_has_the_gradient_of_the_policy_loss_with_every_advantage_1() -> None:
    logps_RT = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask_RT, scale_R = torch.ones(3, 5), torch.tensor([0.1, 0.0, 0.3])
    (mine,) = torch.autograd.grad(likelihood_loss(logps_RT, mask_RT, scale_R).loss, logps_RT)
    clip = {"clip_low": 0.2, "clip_high": 0.2}
    policy = policy_loss(logps_RT, logps_RT.detach(), mask_RT, torch.ones(3), scale_R, **clip)
    (theirs,) = torch.autograd.grad(policy.loss, logps_RT)
    torch.testing.assert_close(mine, theirs)


def test_roles_of_more_weight_weigh_more_in_a_mean_that_stays_one() -> None:
    groups = [reward_group([1.0], Role.ANSWER, [4]), reward_group([1.0], Role.POINTWISE, [2])]
    config = make_config(roles={"answer": {"share": 0.5}, "pointwise": {"share": 0.5, "weight": 3}})
    answer, verdict = supervised_groups(groups, config)
    assert verdict.scales[0] == pytest.approx(3 * answer.scales[0])
    assert 4 * answer.scales[0] + 2 * verdict.scales[0] == pytest.approx(1)


# ------------------------------------------------------------------------------------------------ whole runs


def rows_with_responses(path: Path) -> Path:
    rows = []
    for problem in islice(problems(FAMILIES, "train", 0), 30):
        steps, answer = problem.work()
        rows.append({"prompt": problem.question, "answer": answer, "response": "\n".join([*steps, box(str(answer))])})
    path.write_text(lines(rows))
    return path


EXAMPLE = 'prompts.examples={answer: [{question: "What is 2+2?", reply: 2+2=4, answer: 4}]}'
WARM = ["warm_start.steps=2", "warm_start.from_rollouts=true", "warm_start.learning_rate=1e-3", "train.steps=2"]
RUN = [*WARM, EXAMPLE, "rollout.max_new_tokens=24", "checkpoint.every=1", "checkpoint.keep=9"]
HELD_OUT = ["data.validation={path: embedded:validation, size: 40}", "validation.items=4"]


def train(config: Config, **options: Any) -> dict[str, Any] | None:
    return Trainer(config, **options).run()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that begins with rows and with rollouts, not to be written to."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = rows_with_responses(folder / "rows.jsonl")
    assert train(small_run(folder / "run", *RUN, *HELD_OUT, f"warm_start.data={rows}")) is not None
    return folder


def test_a_warm_start_comes_before_rl_in_the_same_run(mixed: Path) -> None:
    run = mixed / "run"
    steps = read_rows(run / "metrics.jsonl")
    assert (
        [row["step"] for row in steps]
        == [1, 2, 3, 4]
        == [int(p.stem[-6:]) for p in sorted((run / "rollouts").iterdir())]
    )
    warm, rl = steps[:2], steps[2:]
    for row in warm:
        assert row["loss"] == row["warm_start/nll"] > 0
        assert row["warm_start/trained"] >= row["warm_start/trained_answer"] > 0
        assert 0 <= row["warm_start/right_rate"] < 1 and row["answer/groups"] > 0
        assert row["learning_rate"] == pytest.approx(1e-3)
    assert not any(name.startswith("warm_start/") for row in rl for name in row)
    assert rl[0]["learning_rate"] == pytest.approx(1e-3) and rl[1]["learning_rate"] < 1e-3  # a schedule of its own
    assert warm[0]["recycle/made_reflection"] > 0 and warm[1]["reflection/groups"] > 0  # of the first step's rollouts
    assert "validation/answer_accuracy" in warm[1]  # measured at its end, whatever `validation.every`


def test_what_a_run_with_a_warm_start_leaves(mixed: Path) -> None:
    summary = json.loads((mixed / "run" / "summary.json").read_text())
    assert summary["after_warm_start"].keys() == summary["before"].keys()
    assert summary["warm_start"]["steps"] == 2 and summary["warm_start"]["trained"] > 0
    assert summary["steps"] == 2 and summary["final_from_step"] == 4
    assert sum(sentence.startswith("warm start alone, answer accuracy: ") for sentence in summary["findings"]) == 1
    of_rl = sum(row["answer/groups"] for row in read_rows(mixed / "run" / "metrics.jsonl")[2:])
    assert summary["signal"]["answer"]["groups"] == of_rl
    left = saved_prompts(mixed / "run" / "final")
    assert left is not None and not left.examples
    assert "| warm start | 2 supervised steps" in (mixed / "run" / "final" / "README.md").read_text()


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_run_that_died_in_or_after_its_warm_start_goes_on_bit_for_bit(mixed: Path, tmp_path: Path, step: int) -> None:
    run = shutil.copytree(mixed / "run", tmp_path / "run")
    for later in range(step + 1, 5):
        shutil.rmtree(run / "checkpoints" / f"step-{later:06d}")
    shutil.rmtree(run / "final")
    (run / "summary.json").unlink()
    settings = [*RUN, *HELD_OUT, f"warm_start.data={mixed / 'rows.jsonl'}"]
    summary = train(small_run(run, *settings), resume=True)
    assert_same_run(mixed / "run", run)
    assert summary is not None
    before = json.loads((mixed / "run" / "summary.json").read_text())
    assert all(summary[name] == before[name] for name in ("before", "after_warm_start", "after", "warm_start"))


def test_the_model_is_rolled_out_with_examples_and_trained_and_evaluated_without(tmp_path: Path) -> None:
    rows = rows_with_responses(tmp_path / "rows.jsonl")
    config = small_run(tmp_path / "run", *RUN, *HELD_OUT, f"warm_start.data={rows}")
    trainer = Trainer(config)
    shown: list[tuple[str, bool]] = []
    generate, imitate = trainer.engine.generate, trainer.updater.imitate

    def has_example(prompt_ids: Sequence[int]) -> bool:
        return trainer.tokenizer.decode(prompt_ids).count("2+2=4") > 0

    def generates(requests: Sequence[Any], progress: Any = None) -> Any:
        answers = {has_example(r.prompt_ids) for r in requests if r.id.startswith("answer-")}
        shown.extend(("generate", has) for has in answers)
        return generate(requests, progress)

    def imitates(groups: Sequence[Group], progress: Any) -> Any:
        shown.extend(("imitate", has) for has in {has_example(g.prompt_ids) for g in groups})
        return imitate(groups, progress)

    trainer.engine.generate, trainer.updater.imitate = generates, imitates  # type: ignore[method-assign]
    trainer.run()
    making, before, step, update = ("generate", True), ("generate", False), ("generate", True), ("imitate", False)
    rl = evaluation = ("generate", False)
    assert shown == [making, before, step, update, step, update, evaluation, rl, rl, evaluation]


def test_rows_alone_are_trained_on_without_generation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"What is {i}+1?", "answer": i + 1, "response": f"#### {i + 1}"} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text(lines([*rows, {**rows[0], "response": "#### 7"}]))
    settings = [f"warm_start.data={tmp_path / 'rows.jsonl'}", "warm_start.steps=8", "warm_start.learning_rate=3e-3"]
    run = Trainer(small_run(tmp_path / "run", *settings, "train.steps=1", "data.answer_format=hash"))
    assert "1 of the 10 rows of" in run.data.messages[0] and "graded 'wrong'" in run.data.messages[0]
    assert run.run() is not None
    *warm, rl = read_rows(tmp_path / "run" / "metrics.jsonl")
    losses = [row["warm_start/nll"] for row in warm]
    assert losses[-1] < losses[0] / 4
    assert all(row["rollout_tokens"] == 0 and row["warm_start/trained"] == 12 for row in warm)
    assert rl["rollout_tokens"] > 0
    said = capsys.readouterr().err
    assert f"warm start 8/8  trained on 12 responses, mean NLL {losses[-1]:.3f} nats a token" in said
    assert "step 9/9  accuracy" in said


def test_no_score_of_fewer_items_is_compared_with_those_after_the_warm_start(tmp_path: Path) -> None:
    """A model that states nothing gives judges no items; its mean is of other roles than those of later models."""
    run = Trainer(small_run(tmp_path / "run", *RUN, *HELD_OUT, "warm_start.steps=1"))
    run.run_directory.unlock()
    run.held_out.begin(run.run_directory, is_main=True)
    run.held_out.items = [task for task in run.held_out.items if task.role is Role.ANSWER]
    run.state.best_step, run.state.best_score = 0, 1.0
    run.step()
    assert {task.role for task in run.held_out.items} > {Role.ANSWER}
    assert run.state.best_step == 1 and run.state.best_score is not None and run.state.best_score < 1


def test_a_row_of_data_trains_what_the_model_would_write_itself(tmp_path: Path) -> None:
    """Responses are rollouts to the last token: its own, as text, come back as the ids that were sampled."""
    rows = rows_with_responses(tmp_path / "rows.jsonl")
    trainer = Trainer(small_run(tmp_path / "run", f"warm_start.data={rows}", "warm_start.steps=1"))
    tasks, _ = trainer.data.train.draw(8)
    groups = trainer._ask(tasks, 1, _Clock())
    ended = [r for g in groups for r in g.rollouts if r.finish_reason == "stop" and r.text]
    same = [trainer.renderer.encode_reply(r.text, trainer.engine.eos_ids()) == r.token_ids for r in ended]
    assert len(ended) > 9 and all(same)
    for group in trainer.warm_start.given(1):
        assert group.prompt_ids == trainer.renderer.encode_task(group.task)
        assert [r.text for r in group.rollouts] == list(group.task.responses)


def test_a_warm_start_that_finds_nothing_right_stops_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hopeless = tmp_path / "hopeless.jsonl"
    hopeless.write_text(lines([{"prompt": f"What is {i}+1?", "answer": 10**9 + i} for i in range(20)]))
    settings = [*RUN, f"data.train={hopeless}"]
    for resume in (False, True):
        assert train(small_run(tmp_path / "run", *settings), resume=resume) is None
        said = capsys.readouterr().err
        assert (
            "stopped: no response of the warm start's 2 steps could be learnt from, since no rollout is right" in said
        )
        assert "(prompts.examples)" in said and "--resume" not in said
    assert len(read_rows(tmp_path / "run" / "metrics.jsonl")) == 2


def test_a_warm_start_of_long_responses_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_with_responses(tmp_path / "rows.jsonl")
    settings = [f"warm_start.data={rows}", "warm_start.steps=1", "rollout.max_new_tokens=4"]
    assert Trainer(small_run(tmp_path / "run", *settings)).run() is None
    assert "the 12 right ones do not end within max_new_tokens: raise it" in capsys.readouterr().err


def test_alarms_of_rl_are_not_raised_against_the_warm_starts_prompts() -> None:
    said: list[str] = []
    config = make_config(warm_start={"steps": 1, "from_rollouts": True, "learning_rate": 3e-4})
    health = Health(config, said.append, 100)
    health.begin(1.0)
    parsed = {"answer/groups": 4.0, "answer/parse_rate": 1.0, "answer/reward": 0.5}
    unparsed = {**parsed, "answer/parse_rate": 0.1}
    health.see_rollouts([], parsed, 1)
    health.begin_anew()
    assert "health/alarm_unparsed" not in health.see_rollouts([], unparsed, 2) and not said
    assert health.state.first_weight == 1.0
    health.see_rollouts([], parsed, 1)
    assert "health/alarm_unparsed" in health.see_rollouts([], unparsed, 1)
    assert "lower warm_start.learning_rate (now 0.0003)" in said[0]


def test_a_run_cannot_change_its_warm_start_on_its_way(mixed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(mixed / "run", tmp_path / "run")
    settings = [*RUN, *HELD_OUT, f"warm_start.data={mixed / 'rows.jsonl'}", "warm_start.steps=3"]
    with pytest.raises(ValueError, match=r"warm_start\.steps was 2 and is 3, which no run can change on its way"):
        train(small_run(run, *settings), resume=True, allow_changes=True)
