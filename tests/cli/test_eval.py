"""The real command: complete, resumable, and nothing written for what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
from factories import lines, read_rows
from typer.testing import CliRunner
from warm import PYTHON, kill

from spark_rl.cli import app
from spark_rl.cli.model import open_model
from spark_rl.images.drawn import drawing
from spark_rl.models.folder import resolve_path
from spark_rl.prompts import Prompts, save_prompts
from spark_rl.verify import format_of

VERB = ["eval", "embedded", "engine.max_new_tokens=32", "--limit", "3"]
COMMAND = [*PYTHON, "-m", "spark_rl.cli", *VERB]
QUICK = ["--strategies", "greedy,majority@2"]


def call(*arguments):
    return subprocess.run([*COMMAND, *QUICK, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("eval") / "whole"
    command = [sys.executable, "-m", "spark_rl.cli", *VERB, *QUICK, "--out", str(out), "--json"]
    return out, subprocess.run(command, capture_output=True, text=True, timeout=120)


def rows(out):
    return sorted((out / "samples.jsonl").read_text().splitlines())


def test_it_writes_results_samples_and_a_report(done):
    out, finished = done
    assert finished.returncode == 0, finished.stderr
    results = json.loads((out / "results.json").read_text())
    assert json.loads(finished.stdout) == results
    assert results["suite"] == "embedded:validation"
    measured = results["models_measured"]["model"]
    assert set(measured) == {"strategies", "by_source", "pointwise", "own", "pairwise", "probes"}
    assert (out / "report.md").read_text().startswith("# Evaluation on `embedded:validation`")
    assert len(finished.stderr.splitlines()) == 1, finished.stderr


def test_an_item_that_the_chat_template_refuses_is_named_or_skipped(tmp_path):
    questions = [{"prompt": f"What is {i}+1?", "answer": i + 1} for i in range(3)]
    judged = {"question": "What is 1+1?", "response": "no way", "right": False}
    (tmp_path / "suite.jsonl").write_text(lines([*questions, {**questions[0], "system": "Be brief."}, judged]))
    own = (Path(resolve_path("embedded")) / "chat_template.jinja").read_text()
    refusing = (
        "{% if messages[0]['role'] == 'system' or 'no way' in messages[0]['content'] %}{{ nothing.here }}{% endif %}"
    )
    (tmp_path / "refusing.jinja").write_text(refusing + own)
    arguments = ["eval", "embedded", "--suite", str(tmp_path / "suite.jsonl"), "--strategies", "greedy"]
    arguments += [f"model.chat_template={tmp_path / 'refusing.jinja'}", "judge.view=reasoning"]
    arguments += ["engine.max_new_tokens=8", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith(
        "suite.jsonl, suite-4: the tokenizer's chat template cannot be rendered for"
    )
    assert not (tmp_path / "out" / "samples.jsonl").exists()
    result = CliRunner().invoke(app, [*arguments, "--skip-bad", "--json"])
    assert result.exit_code == 0, result.exception
    assert json.loads((tmp_path / "out" / "results.json").read_text())["skipped"] == {"suite.jsonl (embedded)": 2}
    assert "suite.jsonl, suite-4: " in result.stderr


def test_killed_and_called_again_it_comes_to_the_same(done, tmp_path):
    out = tmp_path / "killed"
    process = subprocess.Popen([*COMMAND, *QUICK, "--out", str(out)], stdout=subprocess.DEVNULL)
    while not (out / "samples.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    kill(process)
    assert not (out / "results.json").exists()
    again = call("--out", out)
    assert again.returncode == 0, again.stderr
    assert rows(out) == rows(done[0])


def test_another_evaluation_needs_another_folder(done):
    before = rows(done[0])
    other = CliRunner().invoke(app, [*VERB, "judge.samples=2", *QUICK, "--out", str(done[0])])
    assert isinstance(other.exception, ValueError)
    assert "holds another evaluation, where settings.judge.samples was 1;" in str(other.exception)
    assert rows(done[0]) == before


def test_settings_that_change_no_result_do_not_keep_it_from_going_on(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "copy")
    pace = ["verify.workers=2", "engine.retries=9", "serve.max_queue=2000"]
    again = CliRunner().invoke(app, [*VERB, *pace, *QUICK, "--out", str(tmp_path / "copy")])
    assert again.exit_code == 0, again.exception
    assert rows(tmp_path / "copy") == rows(done[0])


def test_a_verifier_of_yours_grades_and_what_makes_it_crash_is_wrong(spark_rl, tmp_path, monkeypatch):
    (tmp_path / "eval_graders.py").write_text(
        "import os\n\n"
        "def touchy(answer, gold, metadata):\n"
        "    return 1.0 if gold == answer or metadata['kind'] == 'any' else os._exit(1)\n"
    )
    asked = [{"prompt": "What is 1+1?", "answer": "977", "kind": kind} for kind in ("any", "one")]
    (tmp_path / "mine.jsonl").write_text(lines(asked))
    monkeypatch.chdir(tmp_path)
    command = [
        "eval",
        "embedded",
        "--suite",
        "mine.jsonl",
        "--verifier",
        "eval_graders:touchy",
        "--strategies",
        "greedy",
    ]
    done = spark_rl(*command, "--out", "out", "engine.max_new_tokens=64")
    assert done.code == 0, done.err
    graded = [(row["reward"], row["reason"], row["metadata"]) for row in read_rows(tmp_path / "out" / "samples.jsonl")]
    assert graded == [(1, "correct", {"kind": "any"}), (None, "crash", {"kind": "one"})]
    greedy = json.loads((tmp_path / "out" / "results.json").read_text())["models_measured"]["model"]["strategies"][
        "greedy"
    ]
    assert (greedy["accuracy"]["value"], greedy["ungraded"], greedy["verifier_failed"]) == (0.5, 0, 1)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    refused = CliRunner().invoke(app, [*VERB, "--out", str(tmp_path)])
    assert isinstance(refused.exception, ValueError)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_was_asked_of_other_weights_or_other_rows_is_not_taken_for_this(tmp_path):
    model, suite, out = tmp_path / "model", tmp_path / "suite.jsonl", tmp_path / "eval"
    shutil.copytree(resolve_path("embedded"), model)
    suite.write_text('{"prompt": "What is 1+1?", "answer": "2"}\n')
    command = ["eval", str(model), "--suite", str(suite), "--out", str(out), "engine.max_new_tokens=32"]
    assert CliRunner().invoke(app, command).exit_code == 0
    suite.write_text('{"prompt": "What is 1+2?", "answer": "3"}\n')
    other_rows = CliRunner().invoke(app, command)
    assert other_rows.exit_code != 0 and "where items was" in str(other_rows.exception)
    suite.write_text('{"prompt": "What is 1+1?", "answer": "2"}\n')
    os.utime(model / "model.safetensors", (1, 1))
    other_weights = CliRunner().invoke(app, command)
    assert other_weights.exit_code != 0 and "where weights.model was" in str(other_weights.exception)


def test_a_blind_model_cannot_tell_pictures_apart(spark_rl, tmp_path):
    """The same question about 1, 4, 8 and 12 discs: seen, answers differ; painted white, they are one."""
    discs = [("disc", 16 * (k % 4) + 3, 16 * (k // 4) + 3, 10, "red") for k in range(12)]
    pictures = [drawing(64, 64, discs[:count]) for count in (1, 4, 8, 12)]
    asked = [{"prompt": "How many red shapes are there?", "answer": "4", "images": each} for each in pictures]
    (tmp_path / "discs.jsonl").write_text(lines(asked))
    command = ["eval", "embedded-vision", "--suite", tmp_path / "discs.jsonl", "--strategies", "greedy"]
    for blind in (False, True):
        out = tmp_path / f"{blind}"
        done = spark_rl(*command, *["--blind"] * blind, "--out", out, "engine.max_new_tokens=64")
        assert done.code == 0, done.err
        results = json.loads((out / "results.json").read_text())
        assert results["suite"] == "discs.jsonl" + ", blind" * blind
        assert results["models_measured"]["model"]["strategies"]["greedy"]["accuracy"]["n"] == 4
        texts = {row["text"] for row in read_rows(out / "samples.jsonl")}
        assert (len(texts) == 1) is blind, texts


def test_a_model_is_gone_before_the_baseline_is_loaded(tmp_path, monkeypatch):
    """There may be room for one only."""
    opened: list[weakref.ref] = []

    def opening(settings, prompts):
        assert all(model() is None for model in opened)
        chat = open_model(settings, prompts)
        opened.append(weakref.ref(chat.engine.model))
        return chat

    monkeypatch.setattr("spark_rl.cli.eval.open_model", opening)
    shutil.copytree(resolve_path("embedded"), tmp_path / "base")
    done = CliRunner().invoke(
        app, [*VERB, *QUICK, "--baseline", f"{tmp_path / 'base'}", "--out", f"{tmp_path / 'out'}"]
    )
    assert done.exit_code == 0 and len(opened) == 2, done.exception
    assert json.loads((tmp_path / "out" / "results.json").read_text())["notes"] == []


def test_a_baseline_with_other_prompts_is_asked_in_those_of_the_model_which_is_said(tmp_path):
    trained, out = tmp_path / "trained", tmp_path / "out"
    shutil.copytree(resolve_path("embedded"), trained)
    save_prompts(Prompts(verdict_format=format_of("tags")), trained)
    (tmp_path / "suite.jsonl").write_text(lines([{"prompt": "What is 1+1?", "answer": 2}]))
    command = ["eval", str(trained), "--suite", str(tmp_path / "suite.jsonl"), "--baseline", "embedded"]
    done = CliRunner().invoke(app, [*command, "engine.max_new_tokens=32", "--strategies", "greedy", "--out", str(out)])
    assert done.exit_code == 0, done.exception
    (note,) = json.loads((out / "results.json").read_text())["notes"]
    assert note == (
        f"baseline: embedded is asked in the prompts of {trained}, which are not its own; how it does in its own is "
        "told by an evaluation of it alone"
    )
    assert f"- {note}\n" in (out / "report.md").read_text()


def test_answers_in_another_format_are_told_of_it(spark_rl, tmp_path):
    """The base writes boxes, whatever it is asked for."""
    settings = ["data.answer_format=tags", "engine.max_new_tokens=60", "--strategies", "greedy", "--limit", "4"]
    done = spark_rl("eval", "embedded", "--suite", "embedded:validation", *settings, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    (note,) = json.loads((tmp_path / "out" / "results.json").read_text())["notes"]
    assert note.startswith("model: 0 of 4 greedy answers are stated as `<answer></answer>`; ")
    assert note.endswith(r"as `\boxed{}`: set data.answer_format=boxed")
    assert f"- {note}\n" in (tmp_path / "out" / "report.md").read_text()
