"""What decides whether `make bench` fails, and what `make bench-real` gives both of its sides."""

from __future__ import annotations

import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import pytest
from factories import make_example, make_group

from spark_rl.data import question_task

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    """The benchmarks as they see each other; their names are too plain to stay among the modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield import_module
    for name in ("run", "harness", "real_step"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def run(scripts):
    return scripts("run")


@pytest.fixture(scope="module")
def real_step(scripts):
    return scripts("real_step")


@pytest.mark.parametrize(
    ("better", "old", "new", "bad"),
    [("higher", 2.0, 1.83, False), ("higher", 2.0, 1.8, True), ("lower", 1.0, 1.09, False), ("lower", 1.0, 1.11, True)],
)
def test_a_tenth_worse_is_a_regression(run, better, old, new, bad):
    result = {"name": "a", "ratio": new, "better": better}
    assert run.regressed(result, {"ratio": old}) == bad
    assert not run.regressed(result, None)


def test_every_stored_result_can_turn_out_worse(run):
    for result in run.read(run.STORED).values():
        much_worse = result["ratio"] * (0.5 if result["better"] == "higher" else 2)
        assert result["ratio"] > 0 and run.regressed(result | {"ratio": much_worse}, result)


def test_the_stored_results_are_those_of_the_readme(run):
    table = run.table(run.read(run.STORED))
    assert table in run.README.read_text(encoding="utf-8")
    assert all(name in table for name in run.TABLE.values())


def test_real_step_gives_both_sides_the_same_rewards_and_all_groups_are_mixed(real_step):
    rows = real_step.rows(16)
    scorer = real_step.Recorded(rows)
    tasks = [question_task(make_example(id=row["id"])) for row in reversed(rows)]
    groups = [make_group(task, ["a reply"] * real_step.GROUP) for task in tasks]
    scorer.score(groups)
    repeated = [row["rewards"] for row in reversed(rows) for _ in range(real_step.GROUP)]
    assert real_step.reward(repeated, prompts=repeated) == [r.reward for g in groups for r in g.rollouts]
    assert all(group.has_signal for group in groups)


def test_real_step_asks_different_questions_after_the_same_two_examples(real_step):
    prompts = [row["prompt"] for row in real_step.rows(16)]
    assert {" ".join(turn["role"] for turn in prompt) for prompt in prompts} == {"user assistant user assistant user"}
    assert all(prompt[:-1] == prompts[0][:-1] for prompt in prompts)
    assert len({prompt[-1]["content"] for prompt in prompts}) > 10


@pytest.mark.parametrize(("batch", "generated", "at_once"), [(4, 128, 64), (2, 8, 8), (16, 32, 32)])
def test_real_step_has_trl_generate_as_many_rows_at_once_as_it_says(real_step, batch, generated, at_once):
    settings = real_step.Choice(batch, generated).settings(num_rows=64)
    assert batch * settings["steps_per_generation"] == at_once


def test_real_step_compares_medians_and_spreads_over_all_pairs(real_step):
    result = real_step.compare("a", [60.0, 90.0], [2.0, 3.0, 4.0], at_least=15.0)
    assert result["ratio"] == 25 and result["spread"] == [15, 45] and result["holds"]


def test_a_stored_step_of_the_real_model_is_a_row_with_its_share_of_mixed_groups(run, real_step):
    args = Namespace(examples=2, threads=1)
    first, natural = real_step.result_name(args), real_step.result_name(args) + "-natural"
    result = {"ratio": 9.0, "spread": [9, 9], "better": "higher", "target": None}
    rows = run.table({first: {"name": first, **result}, natural: {**result, "mixed": 0.5}}).splitlines()[2:]
    assert [row.split("|")[2].strip() for row in rows] == ["9.00", "9.00"]
    assert "two worked examples" in rows[0] and "one thread" in rows[0] and "50%" in rows[1]
