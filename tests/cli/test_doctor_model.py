"""`spark-rl doctor MODEL --data FILE`, the real command: the models that it is asked about, and the config it gives."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import lines
from rollout.openai_server import Answer, completion, serving

from spark_rl.models.folder import model_folder

FEW = ["--questions", "6", "--samples", "4", "rollout.max_new_tokens=40"]


def sums(folder: Path, count: int = 60) -> Path:
    path = folder / "sums.jsonl"
    path.write_text(lines([{"prompt": f"What is {i}+2+{i % 4}?", "answer": i + 2 + i % 4} for i in range(count)]))
    return path


@pytest.fixture
def random_model(tmp_path: Path) -> Path:
    """The embedded base's shape and tokenizer with weights that nobody trained."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path / "random"
    base = model_folder("embedded")
    assert base is not None
    shutil.copytree(base, folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)).save_pretrained(folder)
    return folder


def test_the_base_can_learn_and_its_config_trains_as_it_is(tmp_path: Path, spark_rl: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    done = spark_rl("doctor", "embedded", "--data", sums(tmp_path), *FEW)
    assert done.code == 0, done.err
    assert "at most 40 tokens: up to" in done.err and "judge: 100% of" in done.err
    assert done.err.splitlines()[-1].startswith("RL can learn here: pass@1 ")
    assert done.out.startswith("# spark-rl doctor: RL can learn here: pass@1 ")
    (tmp_path / "run.yaml").write_text(done.out)
    shorter = ["train.steps=1", "rollout.groups_per_step=16", "rollout.num_generations=2", "validation.items=2"]
    trained = spark_rl("train", "run.yaml", *shorter)
    assert trained.code == 0, trained.err
    assert (tmp_path / "runs" / "embedded" / "final" / "config.json").exists()


def test_what_it_finds_is_json_on_request_and_the_config_goes_where_it_is_told(tmp_path: Path, spark_rl: Any) -> None:
    out = tmp_path / "new" / "run.yaml"
    asked = ["data.answer_format=tags", "--json", "--out", out]  # the base writes boxes all the same
    done = spark_rl("doctor", "embedded", "--data", "embedded:train", *FEW, *asked)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    first = found["trials"][0]
    assert first["answer_format"] == "boxed" and first["formats"][0] == {
        "format": "tags",
        "answers": 0,
        "golds": 0,
        "by_chance": 0,
    }
    assert (first["questions"], first["replies"], found["max_new_tokens"]) == (6, 24, 40)
    assert found["verdict"]["text"].endswith("(with data.answer_format=boxed)")
    assert found["config"]["data"]["answer_format"] == "boxed"
    assert found["step"]["measured_generation_seconds"] > 0 < found["step"]["estimated_update_seconds"]
    assert 0 < found["memory"]["peak"] < found["memory"]["available"]
    assert found["yaml"] in out.read_text()


def test_a_model_that_nobody_trained_writes_noise(random_model: Path, spark_rl: Any) -> None:
    done = spark_rl("doctor", random_model, "--data", "embedded:train", *FEW)
    assert done.code == 0, done.err
    assert "this model writes noise" in done.err.splitlines()[-1] and "judge: not tried" in done.err
    assert done.out.startswith("# spark-rl doctor: this model writes noise")


def test_a_vision_model_is_shown_the_pictures(spark_rl: Any) -> None:
    done = spark_rl("doctor", "embedded-vision", "--data", "embedded:vision-train", *FEW, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["trials"][0]["parse_rate"] > 0.5 and found["config"]["model"]["freeze_vision"]
    assert found["config"]["data"]["validation"] == ["embedded:vision-validation"]


def saying(text: str, body: dict[str, Any]) -> Answer:
    answered = completion(body)
    for choice in answered["choices"]:
        choice["message"]["content"] = text
    return 200, answered, {}


def always_nine(body: dict[str, Any]) -> Answer:
    return saying("I add.\n#### 9", body)


def if_shown_how(body: dict[str, Any]) -> Answer:
    """A model that states answers and verdicts only after worked examples; without it merely gets them right."""
    asked = body["messages"][-1]["content"]
    if len(body["messages"]) == 1:
        return saying(f"So we get {2 + int(asked[8])}" if asked.startswith("What") else "I cannot say.", body)
    return saying("\\boxed{Yes}" if "response" in asked else "\\boxed{9}", body)


def test_a_server_is_asked_and_cannot_be_trained(tmp_path: Path, spark_rl: Any) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(lines([{"prompt": f"What is {i}+2?", "answer": i + 2} for i in (5, 6, 7, 7)]))
    with serving(answer=always_nine) as (address, state):
        done = spark_rl("doctor", f"{address}/v1", "--data", rows, *FEW, "engine.concurrency=2")
        assert state.most_at_once <= 2
    assert done.code == 0 and done.out == "", done.err
    assert "asked as set: answers (of them the gold) are stated as hash 100% (50%)" in done.err
    assert "cannot be trained over HTTP" in done.err and "memory (" not in done.err
    assert done.err.splitlines()[-1].endswith("(with data.answer_format=hash)")


def test_a_model_that_states_nothing_is_shown_worked_examples(tmp_path: Path, spark_rl: Any) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(lines([{"prompt": f"What is {i}+2?", "answer": i + 2} for i in (5, 6, 7)]))
    with serving(answer=if_shown_how) as (address, _):
        asked = ["doctor", f"{address}/v1", "--data", rows, *FEW, "--json"]
        found, given = (json.loads(spark_rl(*asked, *more).out) for more in ([], ["prompts.examples={answer: ready}"]))
    formats = [trial["answer_format"] for trial in found["trials"]]
    assert formats == ["last_number", "boxed", "boxed"] and found["best"] == 1  # the last number is weak evidence
    assert found["trials"][1]["name"] == "with the worked examples of the package"
    assert found["verdict"]["text"].endswith("(with prompts.examples=ready)")
    assert found["judge"]["parse_rate"] == 1 and found["judge"]["settings"] == {}
    assert [trial["name"] for trial in given["trials"]] == ["", "without worked examples"] and given["best"] == 0
    assert given["judge"]["parse_rate"] == 1
    assert given["judge"]["settings"] == {
        "prompts.examples": {"answer": "ready", "pointwise": "ready", "pairwise": "ready"}
    }


def test_a_run_config_is_looked_at_with_its_own_model_and_settings(tmp_path: Path, spark_rl: Any) -> None:
    (tmp_path / "run.yaml").write_text(
        "preset: grpo\nmodel: {path: embedded}\ndata: {train: [embedded:train]}\nrollout: {max_new_tokens: 24}\n"
        "train: {learning_rate: 0.001, output: runs/mine}\n"
    )
    done = spark_rl("doctor", "--data", tmp_path / "run.yaml", *FEW[:4], "--json")
    assert done.code == 0, done.err
    config = json.loads(done.out)["config"]
    assert (config["preset"], config["train"]["learning_rate"], config["train"]["output"]) == (
        "grpo",
        0.001,
        "runs/mine",
    )
    assert config["rollout"]["max_new_tokens"] == 24


def needs(role: str, body: dict[str, Any]) -> Answer:
    """A model that states nothing of one role unless it is shown how, and boxes else."""
    is_judge = "Yes" in body["messages"][-1]["content"]
    if is_judge == (role == "judge") and len(body["messages"]) == 1:
        return saying("I cannot say.", body)
    return saying("\\boxed{Yes}" if is_judge else "\\boxed{9}", body)


def test_examples_of_ones_own_stay_where_those_of_other_roles_are_added(tmp_path: Path, spark_rl: Any) -> None:
    """Answers of a file, for all roles or one, and judges that need examples; and the other way round."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(lines([{"prompt": f"What is {i}+2?", "answer": i + 2} for i in (5, 6, 7)]))
    answers, judges = tmp_path / "answers.yaml", tmp_path / "judges.yaml"
    answers.write_text("answer:\n- {question: 'Add 1, 1', answer: 2}\n")
    judges.write_text("pointwise:\n- {question: 'Add 1, 1', response: 'It is 2.', right: true}\n")
    with serving(answer=partial(needs, "judge")) as (address, _):
        asked = ["doctor", f"{address}/v1", "--data", rows, *FEW, "--json"]
        found = json.loads(spark_rl(*asked, f"prompts.examples={answers}").out)
    assert found["judge"]["settings"]["prompts.examples"]["answer"] == str(answers)
    with serving(answer=partial(needs, "answer")) as (address, _):
        asked = ["doctor", f"{address}/v1", "--data", rows, *FEW, "--json"]
        found = json.loads(spark_rl(*asked, f"prompts.examples={{pointwise: {judges}}}").out)
    assert f'"pointwise": "{judges}"' in found["verdict"]["text"] and '"answer": "ready"' in found["verdict"]["text"]


def test_a_format_that_own_templates_do_not_ask_for_is_said_and_not_set(tmp_path: Path, spark_rl: Any) -> None:
    """The base writes boxes, whatever it is asked for."""
    (tmp_path / "own.yaml").write_text("answer:\n- {name: mine, text: '{question} End with #### and the answer.'}\n")
    asked = ["data.answer_format=hash", f"prompts.templates={tmp_path / 'own.yaml'}", "--json"]
    done = spark_rl("doctor", "embedded", "--data", "embedded:train", *FEW, *asked)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["trials"][0]["answer_format"] == "boxed" and found["config"]["data"]["answer_format"] == "hash"
    assert found["verdict"]["text"].endswith(
        "once your templates, or responses of warm_start.data, have `\\boxed{}`, which is data.answer_format=boxed"
    )
