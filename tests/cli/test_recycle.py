"""`spark-rl recycle`, the real command in a subprocess: its contract, and that its output trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from factories import make_example, make_group, question_group
from hypothesis import given
from hypothesis import strategies as st
from image_files import png
from warm import PYTHON

from spark_rl.cli.recycle import GROUPS_PER_STEP, _group
from spark_rl.config import DataConfig, RecycleConfig, SourceConfig, load_config
from spark_rl.data import question_task
from spark_rl.data.rows import RowReader
from spark_rl.images import reference
from spark_rl.recycle import recycle
from spark_rl.types import IMAGE, Group, Role
from spark_rl.verify import box

COMMAND = [*PYTHON, "-m", "spark_rl.cli", "recycle"]
READER = RowReader(SourceConfig(path="rows"), DataConfig(verifier="numeric"), "rows")


def run(*arguments: Any, rows: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, input=rows, capture_output=True, text=True, timeout=120, cwd=cwd)


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n") if line]


def row(number: int = 2, answers: tuple[int | None, ...] = (3, 4, None, 3), **changes: Any) -> dict[str, Any]:
    group = question_group(number, answers)
    rollouts = [{"text": r.text, "reward": r.reward} for r in group.rollouts]
    question = group.task.example.question
    return {"id": f"q{number}", "prompt": question, "answer": number + 1, "rollouts": rollouts} | changes


def test_judge_and_reflection_items_come_out() -> None:
    command = [sys.executable, "-m", "spark_rl.cli", "recycle", "--verifier", "numeric"]
    done = subprocess.run(command, input=lines(row()), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    items = parsed(done.stdout)
    assert {item["role"] for item in items} == {"pointwise", "pairwise", "reflection"}
    for item in items:
        assert list(item) == [
            *("id", "role", "messages", "label", "verifier", "template", "parents"),
            *("question_id", "question", "source"),
        ]
        assert item["question_id"] == "q2" and item["question"] == "What is 2 plus one?"
        assert [message["role"] for message in item["messages"]] == ["user"]
        rewards = [(1, 0, 0, 1)[int(parent.removeprefix("q2:"))] for parent in item["parents"]]
        match item["role"]:
            case "pointwise":
                assert item["label"] == ("Yes" if rewards == [1] else "No")
            case "pairwise":
                assert item["label"] == ("A" if rewards == [1, 0] else "B")
            case "reflection":
                assert item["label"] == "3"
        assert item["verifier"] == ("numeric" if item["role"] == "reflection" else "choice")
    assert len({item["id"] for item in items}) == len(items)
    assert done.stderr.startswith(f"1 row with 4 rollouts gave {len(items)} items: ")
    assert len(done.stderr.splitlines()) == 1


def test_it_makes_what_a_run_makes_of_the_same_rollouts() -> None:
    groups = [question_group(number, (number + 1, number, None, number + 1)) for number in range(70)]
    rows = [row(number, (number + 1, number, None, number + 1)) for number in range(70)]
    done = run("recycle.reasoning_view=0", "--verifier", "numeric", "--seed", 3, rows=lines(*rows))
    config = load_config(overrides=["preset=spark", "recycle.reasoning_view=0"]).recycle
    made = [
        task
        for step, start in enumerate(range(0, 70, GROUPS_PER_STEP), start=1)
        for bundle in recycle(groups[start : start + GROUPS_PER_STEP], config, seed=3, step=step).bundles
        for task in bundle
    ]
    items = parsed(done.stdout)
    assert [item["id"] for item in items] == [f"{task.id}-{i}" for i, task in enumerate(made)]
    assert [item["messages"] for item in items] == [list(task.messages) for task in made]
    assert [item["label"] for item in items] == [task.label for task in made]


def a_runs_row(group: Group) -> dict[str, Any]:
    from spark_rl.train.records import rollout_record

    return json.loads(json.dumps(rollout_record(group)))


def test_what_a_run_writes_is_read() -> None:
    group = question_group(2, (3, 4))
    judged = recycle([group], RecycleConfig(), seed=0, step=1).bundles
    judge_groups = [make_group(task, [box("Yes")]) for task in (bundle[0] for bundle in judged)]
    done = run(rows=lines(*map(a_runs_row, [group, *judge_groups])))
    assert done.returncode == 0, done.stderr
    items = parsed(done.stdout)
    assert {item["question"] for item in items} == {"What is 2 plus one?"}, "not with the instruction to box the answer"
    assert {item["question_id"] for item in items} == {"q2"}
    assert {parent for item in items for parent in item["parents"]} == {"answer-q2:0", "answer-q2:1"}
    assert {item["source"] for item in items} == {"successor"}
    for role in {str(group.task.role) for group in judge_groups}:
        assert f"skipped {role}" in done.stderr


def test_rollouts_without_a_reward_are_graded_on_request(tmp_path: Path) -> None:
    rollouts = [{"text": box("3")}, {"text": box("4"), "reward": None}, {"text": "no idea"}]
    rows = lines(row(rollouts=rollouts))
    ungraded = run("--out", "out.jsonl", "--json", rows=rows, cwd=tmp_path)
    assert json.loads(ungraded.stdout) == {"rows": 1, "rollouts": 3, "made": 0, "ungraded": 3, "unmixed_groups": 1}
    graded = run("--out", "out.jsonl", "--json", "--verify", rows=rows, cwd=tmp_path)
    summary = json.loads(graded.stdout)
    assert summary["made"] == len(parsed((tmp_path / "out.jsonl").read_text())) > 0
    assert "ungraded" not in summary
    function = (
        "def never_four(completions, **kwargs):\n    return [float('4' not in c[0]['content']) for c in completions]"
    )
    (tmp_path / "rewards.py").write_text(function)
    trl = run("--verify", "--verifier", "trl:rewards:never_four", rows=rows, cwd=tmp_path)
    labels = {item["parents"][0]: item["label"] for item in parsed(trl.stdout) if item["role"] == "pointwise"}
    assert labels["q2:1"] == "No" and set(labels.values()) == {"Yes", "No"}


def test_settings_and_presets() -> None:
    rows = lines(row())
    one_order = parsed(run("recycle.both_orders=false", "recycle.items_per_group=1", rows=rows).stdout)
    assert [item["role"] for item in one_order].count("pairwise") == 1
    paper = parsed(run("--preset", "paper", rows=rows).stdout)
    assert len([item for item in paper if item["role"] != "reflection"]) == 1
    assert run("--seed", 1, rows=rows).stdout != run("--seed", 2, rows=rows).stdout
    assert run("--seed", 1, rows=rows).stdout == run("--seed", 1, rows=rows).stdout


def test_its_output_trains(tmp_path: Path) -> None:
    rows = [row(number, (number + 1, number), metadata={"tolerance": 0.5}) for number in range(8)]
    made = run("--verifier", "numeric", "--out", "items.jsonl", rows=lines(*rows), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    columns = {"prompt": "messages", "answer": "label"}
    reader = RowReader(SourceConfig(path="items", columns=columns), DataConfig(), "items")
    items = parsed((tmp_path / "items.jsonl").read_text())
    tasks = [reader.task(item, i) for i, item in enumerate(items)]
    assert {task.role for task in tasks} == set(Role) - {Role.ANSWER}
    for item, task in zip(items, tasks, strict=True):
        assert list(task.messages) == item["messages"]
        assert (task.label, task.verifier) == (item["label"], item["verifier"])
        assert task.example.question == item["question"]
        assert task.example.metadata == ({"tolerance": 0.5} if task.role is Role.REFLECTION else {})


def test_images_go_with_the_question_into_what_trains(tmp_path: Path) -> None:
    """From a file, and from what a run writes of the same questions; whatever was typed or written stays text."""
    for seed, name in enumerate("ab"):
        (tmp_path / f"{name}.png").write_bytes(png(seed))
    images = [reference(f"{name}.png", tmp_path) for name in "ab"]
    rollouts = [{"text": f"<image>{IMAGE} {box(str(number))}", "reward": int(number == 3)} for number in (3, 4)]
    content = [{"type": "image"}, {"type": "text", "text": "<image> or "}, {"type": "image"}]
    given = {"prompt": [{"role": "user", "content": content}], "images": ["a.png", "b.png"], "answer": 3}
    (tmp_path / "rows.jsonl").write_text(lines(given | {"rollouts": rollouts}))
    run_row = a_runs_row(make_group(RowReader(SourceConfig(path="rows"), DataConfig(), "rows", tmp_path).task(given, 0),
                                    [r["text"] for r in rollouts]))  # fmt: skip
    columns = {"prompt": "messages", "answer": "label"}
    reader = RowReader(SourceConfig(path="items", columns=columns), DataConfig(), "items")
    of_file = run(tmp_path / "rows.jsonl")
    for done in (of_file, run(rows=lines(run_row))):
        assert done.returncode == 0, done.stderr
        tasks = [reader.task(item, i) for i, item in enumerate(parsed(done.stdout))]
        assert {task.role for task in tasks} == set(Role) - {Role.ANSWER}
        for task in tasks:
            assert task.example.images == tuple(images)
            assert task.example.question == f"{IMAGE}<image> or {IMAGE}"
            assert f"```\n{IMAGE}<image> or {IMAGE}\n```" in task.messages[0]["content"]
            assert task.messages[0]["content"].count(IMAGE) == 2


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (["missing.jsonl"], {}, "missing.jsonl: cannot be read"),
        ([], {"prompt": None}, "standard input, row 1: has no 'prompt'"),
        ([], {"prompt": 3}, "'prompt' must be text or a list, not 3"),
        ([], {"prompt": [{"role": "assistant", "content": "hi"}]}, "end with a user's turn"),
        ([], {"answer": None}, "row 1: 'answer' is empty"),
        (
            [],
            {"images": "a.png"},
            "a.png cannot be read (No such file or directory); check the path (--skip-bad leaves",
        ),
        (
            [],
            {"images": ["/", "/"], "prompt": "<image>"},
            "the number of images is 2, and that of <image> in 'prompt' is",
        ),
        ([], {"rollouts": None}, "row 1: has no 'rollouts'; add it (--skip-bad leaves such rows out)"),
        ([], {"rollouts": {}}, "'rollouts' must be a list"),
        ([], {"rollouts": ["text"]}, "row 1: rollout 0: must be an object with a 'text' and a 'reward'"),
        ([], {"rollouts": [{"text": "x"}, {"reward": 1}]}, "row 1: rollout 1: has no 'text'"),
        ([], {"rollouts": [{"text": "x", "reward": "1"}]}, "'reward' must be a number, not \"1\""),
        ([], {"rollouts": [{"text": "x", "reward": True}]}, "'reward' must be a number, not true"),
        ([], {"role": "referee"}, "'role' is 'referee'"),
        ([], {"verifier": "os:abort"}, "row 1: 'verifier' names the function 'os:abort'; to trust it, give --verifier"),
        ([], {"verifier": "mth"}, "did you mean 'math'?"),
        (["--verifier", "mth"], {}, "did you mean 'math'?"),
        (["--preset", "sprak"], {}, "choose one of grpo, paper, spark"),
        (["recycle.right_att=1"], {}, "unknown key 'recycle.right_att'; did you mean 'right_at'?"),
        (["recycle.right_at=0"], {}, "recycle.wrong_at is 0.05, which is not below recycle.right_at"),
        (["-", "train.seed=1"], {}, "'train.seed=1' is no setting of recycling; give recycle.key=value"),
        (["verify.cpu_seconds=1"], {}, "'verify.cpu_seconds=1' is about grading, which is not asked for; add --verify"),
        (["--json"], {}, "name a file for them with --out"),
        (["--workers", "0"], {}, "--workers must be at least 1"),
        (["--out", "/dev/full"], {}, "--out /dev/full: cannot be written (No space left on device)"),
    ],
)
def test_a_mistake_gets_one_line_and_code_2(
    tmp_path: Path, arguments: list[str], changes: dict[str, Any], message: str
) -> None:
    if "--out" not in arguments and "--json" not in arguments:
        arguments = [*arguments, "--out", "out.jsonl"]
    done = run(*arguments, rows=lines(row(**changes)), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_bad_rows_are_left_out_on_request(tmp_path: Path) -> None:
    done = run("--skip-bad", "--out", "o", "--json", rows=lines(row(), row(prompt=3), row(4)), cwd=tmp_path)
    assert json.loads(done.stdout)["rows"] == 2
    assert json.loads(done.stdout)["bad_rows"] == 1


@given(
    texts=st.lists(st.text()),
    rewards=st.lists(st.none() | st.integers(-2, 2) | st.floats(-2, 2), min_size=9),
    number=st.integers(0, 9),
)
def test_a_runs_row_holds_the_group(texts: list[str], rewards: list[float | None], number: int) -> None:
    group = make_group(question_task(make_example(number)), texts[:9], rewards[: len(texts[:9])])
    read = _group(a_runs_row(group), READER, 1)
    assert read.task.id == group.task.id
    assert read.task.messages == group.task.messages
    assert read.task.label == group.task.label
    assert read.task.example.question == group.task.example.question
    facts = [[(r.id, r.text, r.reward, r.extracted, r.reason) for r in g.rollouts] for g in (read, group)]
    assert facts[0] == facts[1]


def test_it_needs_no_torch() -> None:
    code = "import sys; from spark_rl.cli.recycle import recycle; recycle('-', verify=True)"
    check = f"{code}; assert not {{'torch', 'transformers', 'datasets'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], input=lines(row()), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
