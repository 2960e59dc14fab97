"""A real pretrained model, SmolLM2-135M-Instruct, in the places where random weights show little: `make test-real`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from warm import PYTHON

from spark_rl.config import ModelConfig, PromptsConfig, SourceConfig, load_config
from spark_rl.data.sources import open_sources
from spark_rl.models.load import load_model, load_tokenizer
from spark_rl.prompts import ChatRenderer, build_prompts
from spark_rl.rollout.engine import Completion, Request
from spark_rl.rollout.transformers_engine import TransformersEngine
from spark_rl.train.forward import GroupLogProbs, collate
from spark_rl.types import Task

FOLDER = os.environ.get("SPARK_RL_REAL_MODEL", "")
RECIPE = Path(__file__).parents[1] / "recipes" / "smollm2"
EXAMPLES = build_prompts(PromptsConfig(examples=str(RECIPE / "examples.yaml")))

pytestmark = pytest.mark.skipif(not FOLDER, reason="needs the folder of SmolLM2 in SPARK_RL_REAL_MODEL")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig(path=FOLDER))


@pytest.fixture(scope="module")
def model():
    return load_model(ModelConfig(path=FOLDER))


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    source = SourceConfig(path="reasoning_gym:chain_sum", size=24, options={"max_terms": 2, "max_digits": 2})
    (opened,) = open_sources([source], load_config().data, set())
    return [opened.task(i) for i in range(24)]


def replies(engine: TransformersEngine, renderer: ChatRenderer, tasks: list[Task], tokens: int) -> list[Completion]:
    requests = [Request(t.id, tuple(renderer.encode_task(t)), 1, tokens, temperature=0) for t in tasks]
    return [completion for (completion,) in engine.generate(requests)]


def test_two_worked_examples_make_it_state_answers(model, tokenizer, tasks):
    engine, read = TransformersEngine(model, tokenizer), EXAMPLES.answer_format.read
    bare = replies(engine, ChatRenderer(tokenizer), tasks, 32)
    shown = replies(engine, ChatRenderer(tokenizer, prompts=EXAMPLES), tasks, 32)
    assert sum(read(reply.text) is not None for reply in bare) <= 6
    assert sum(read(reply.text) is not None for reply in shown) >= 18


def test_examples_that_are_computed_once_change_no_token(model, tokenizer, tasks):
    renderer = ChatRenderer(tokenizer, prompts=EXAMPLES)
    shared, plain = (TransformersEngine(model, tokenizer, shares=shares) for shares in (True, False))
    assert [r.token_ids for r in replies(shared, renderer, tasks[:6], 12)] == [
        r.token_ids for r in replies(plain, renderer, tasks[:6], 12)
    ]


def test_its_gradient_is_that_of_the_plain_forward(model, tokenizer, tasks):
    renderer = ChatRenderer(tokenizer)
    groups = [(renderer.encode_task(task), [[3, 5, 7], [11, 13]]) for task in tasks[:2]]
    gradients = []
    for implementation in ("shared", "plain"):
        model.zero_grad()
        logps_RT = GroupLogProbs(model, implementation)(collate(groups)).logps_RT
        logps_RT.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad()
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 1e-5


def test_the_recipe_trains_and_its_model_answers_and_judges(tmp_path):
    small = ["train.steps=1", "rollout.groups_per_step=8", "rollout.num_generations=2", "data.validation=[]"]
    run = [f"model.path={FOLDER}", f"train.output={tmp_path / 'run'}", *small, "warm_start={steps: 0, data: []}"]
    spark_rl = [*PYTHON, "-m", "spark_rl.cli"]
    subprocess.run([*spark_rl, "train", RECIPE / "grpo.yaml", *run], check=True, cwd=RECIPE.parents[1])
    final = str(tmp_path / "run" / "final")
    asked = ["--question", "State the final answer to the following arithmetic problem: 12 + 7 ="]
    solve = [*spark_rl, "solve", final, *asked, "--json", "--max-new-tokens", "32"]
    solved = json.loads(subprocess.run(solve, check=True, capture_output=True, text=True).stdout)
    assert solved["answer"] is not None  # the examples of the run stand before it
    judge = [*spark_rl, "judge", final, *asked, "--response", r"\boxed{19}", "--json", "--max-new-tokens", "48"]
    assert "verdict" in json.loads(subprocess.run(judge, check=True, capture_output=True, text=True).stdout)
