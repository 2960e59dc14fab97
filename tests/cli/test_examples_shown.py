"""Worked examples stand before the prompts of every verb and integration, as a server of the protocol sees them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from factories import lines
from rollout.openai_server import completion, serving
from warm import PYTHON, kill

from spark_rl.config import PromptsConfig
from spark_rl.infer import Judge
from spark_rl.integrations.trl import reward_function
from spark_rl.prompts import build_prompts
from spark_rl.types import Role

ROWS: dict[str, list[dict[str, Any]]] = {
    "answer": [{"question": "What is 2 + 2?", "reply": "2 + 2 = 4.", "answer": 4}],
    "pointwise": [{"question": "2 + 2?", "response": {"answer": a}, "right": a == 4, "reply": "Four."} for a in (5, 4)],
    "pairwise": [
        {"question": "2 + 2?", "right": {"answer": 4}, "wrong": {"answer": 5}, "first": first}
        for first in ("right", "wrong")
    ],
    "reflection": [{"question": "2 + 2?", "response": {"answer": 5}, "reply": "2 + 2 = 4.", "answer": 4}],
}
EXPECTED = build_prompts(PromptsConfig(examples=ROWS), whole=0.0).examples
KINDS = {"A response to it": Role.POINTWISE, "Response A": Role.PAIRWISE, "An earlier response": Role.REFLECTION}


@pytest.fixture
def settings(tmp_path: Path) -> str:
    (tmp_path / "shots.yaml").write_text(yaml.safe_dump(ROWS))
    return f"prompts.examples={tmp_path / 'shots.yaml'}"


def written(folder: Path, *rows: Any) -> str:
    (folder / "rows.jsonl").write_text(lines(rows))
    return str(folder / "rows.jsonl")


def run(*arguments: str) -> None:
    done = subprocess.run([*PYTHON, "-m", "spark_rl.cli", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def roles(bodies: Iterable[dict[str, Any]]) -> set[Role]:
    """The roles that were asked, each of whose prompts begins with its examples."""
    seen = set()
    for body in bodies:
        *before, last = body["messages"]
        role = next((role for words, role in KINDS.items() if words in last["content"]), Role.ANSWER)
        assert tuple(before) == EXPECTED[role]
        seen.add(role)
    return seen


def test_solve_asks_every_role_with_its_examples(tmp_path: Path, settings: str) -> None:
    def wrong(body: dict[str, Any]) -> tuple[int, dict[str, Any], dict[str, str]]:
        return 200, completion({**body, "messages": [{"content": r"\boxed{No}"}]}), {}

    with serving(answer=wrong) as (address, state):
        rows = written(tmp_path, {"prompt": "Is 7 even?"})
        run("solve", address, rows, settings, "--strategy", "reflect", "--out", str(tmp_path / "out"))
        assert roles(state.bodies) == {Role.ANSWER, Role.POINTWISE, Role.REFLECTION}


def test_judge_asks_both_kinds_with_their_examples(tmp_path: Path, settings: str) -> None:
    item = {"question": "1+1?", "response": r"\boxed{2}"}
    rows = written(tmp_path, item, {"question": "1+1?", "a": r"\boxed{2}", "b": r"\boxed{3}"})
    with serving() as (address, state):
        run("judge", address, rows, settings, "--out", str(tmp_path / "out"))
        assert roles(state.bodies) == {Role.POINTWISE, Role.PAIRWISE}


def test_eval_asks_with_them(tmp_path: Path, settings: str) -> None:
    item = {"question": "1+1?", "response": r"\boxed{2}", "right": True}
    suite = written(tmp_path, {"prompt": "1+1?", "answer": "2"}, item)
    with serving() as (address, state):
        run("eval", address, "--suite", suite, "--strategies", "greedy", settings, "--out", str(tmp_path / "out"))
        assert {Role.ANSWER, Role.POINTWISE} <= roles(state.bodies)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["prompts"]["examples"].keys() == EXPECTED.keys()


def test_a_served_judge_asks_with_them(settings: str) -> None:
    httpx = pytest.importorskip("httpx")
    with serving() as (address, state):
        command = [*PYTHON, "-m", "spark_rl.cli", "serve", address, settings, "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                url = process.stderr.readline().split("serving ")[1].split(" at ")[1].split(";")[0]
                while not httpx.get(f"{url}/health", timeout=60).json()["ready"]:
                    pass
                body = {"question": "1+1?", "response": r"\boxed{2}"}
                assert httpx.post(f"{url}/score", json=body, timeout=60).status_code == 200
            finally:
                kill(process)
        assert roles(state.bodies) == {Role.POINTWISE}


def test_the_reward_function_of_trl_asks_with_them(settings: str) -> None:
    with serving() as (address, state):
        reward_function(Judge.open(address, settings))(["1+1?"], [r"\boxed{2}"])
        assert roles(state.bodies) == {Role.POINTWISE}


def test_lm_eval_asks_with_them(settings: str) -> None:
    instance = pytest.importorskip("lm_eval.api.instance")
    from spark_rl.integrations.lm_eval import StrategyLM

    with serving() as (address, state):
        key, _, value = settings.partition("=")
        model = StrategyLM(address, "greedy", **{key: value})
        model.generate_until([instance.Instance("generate_until", {}, ("1+1?", {}), 0)])
        assert roles(state.bodies) == {Role.ANSWER}


@pytest.mark.parametrize("verb", ["solve", "judge"])
def test_a_file_of_examples_that_changed_meanwhile_is_noticed(
    verb: str, tmp_path: Path, settings: str, spark_rl: Callable[..., Any]
) -> None:
    row = {"prompt": "1+1?"} if verb == "solve" else {"question": "1+1?", "response": r"\boxed{2}"}
    with serving() as (address, _):
        command = [verb, address, written(tmp_path, row), settings, "--out", tmp_path / "out"]
        assert spark_rl(*command).code == 0
        assert spark_rl(*command, "--resume").code == 0
        changed = {role: rows[::-1] + rows for role, rows in ROWS.items()}
        (tmp_path / "shots.yaml").write_text(yaml.safe_dump(changed))
        again = spark_rl(*command, "--resume")
    assert again.code == 2 and "was made by" in again.err
