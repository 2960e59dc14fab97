"""An evaluation on the real embedded base: complete, resumable, and the same however often it was killed."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from spark_rl.config import load_inference
from spark_rl.evaluate.report import markdown
from spark_rl.evaluate.runner import KEYS, Runner, Samples
from spark_rl.evaluate.suites import Suite, open_suite
from spark_rl.evaluate.summary import summarise
from spark_rl.infer import ChatModel
from spark_rl.jsonl import MAX_ROW_BYTES
from spark_rl.prompts import Prompts
from spark_rl.types import Example
from spark_rl.verify import VerifierPool

SETTINGS = load_inference(["engine.max_new_tokens=40"], model={"path": "embedded"})
STRATEGIES = ["greedy", "reflect", "majority@4", "best-of-2"]


@pytest.fixture(scope="module")
def pool():
    with VerifierPool() as pool:
        yield pool


@pytest.fixture(scope="module")
def model():
    return ChatModel.open(SETTINGS)


def run(path, model, pool, labels=("model",), seeds=2):
    samples = Samples(path)
    suite = open_suite("embedded", pool, limit=6)
    for label in labels:
        Runner(label, model, SETTINGS, pool, samples).run(suite, STRATEGIES, seeds)
    return samples


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, pool):
    return run(tmp_path_factory.mktemp("eval") / "samples.jsonl", model, pool, ("model", "baseline"))


def keys(rows):
    return Counter(tuple(row[key] for key in KEYS) for row in rows)


def test_every_item_is_asked_once(whole):
    counted = keys(whole.rows)
    assert set(counted.values()) == {1}
    per_part = Counter((row["part"], row["strategy"], row["seed"]) for row in whole.rows if row["model"] == "model")
    assert per_part["answer", "greedy", 0] == 6
    assert ("answer", "greedy", 1) not in per_part, "what samples nothing is run once"
    assert per_part["answer", "majority@4", 1] == 6
    assert per_part["pointwise", "judge", 0] == 12
    assert per_part["pairwise", "judge", 0] == 6


def test_tokens_and_rewards_are_those_of_the_steps(whole):
    for row in whole.rows:
        if row["part"] == "answer" and row["strategy"] == "majority@4":
            assert len(row["steps"]) == 4
            assert row["reward"] in [step["reward"] for step in row["steps"]]
        if row["part"] == "answer":
            assert row["prompt_tokens"] > 0
            assert 0 < row["generated_tokens"] <= 40 * max(4, len(row["steps"]))


def test_a_killed_evaluation_goes_on_and_comes_to_the_same(whole, tmp_path, model, pool):
    path = tmp_path / "samples.jsonl"
    lines = whole.path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:40]) + lines[40][:30])
    again = run(path, model, pool, ("model", "baseline"))
    assert path.read_bytes().splitlines(keepends=True)[:40] == lines[:40]
    assert keys(again.rows) == keys(whole.rows)
    key = lambda row: json.dumps([row[k] for k in KEYS])  # noqa: E731
    same = [{**row, "texts": list(row.get("texts", []))} for row in sorted(again.rows, key=key)]
    assert same == [{**row, "texts": list(row.get("texts", []))} for row in sorted(whole.rows, key=key)]


def test_the_summary_and_the_report_hold_all_parts(whole):
    results = {"suite": "embedded:validation", "models": {"model": "m", "baseline": "b"}, **summarise(whole.rows)}
    measured = results["models_measured"]["model"]
    assert set(measured["strategies"]) == set(STRATEGIES)
    json.loads(json.dumps(results, allow_nan=False))
    difference = results["comparison"]["differences"]["greedy"]
    assert difference["value"] == 0, "the baseline is the same model"
    page = markdown(results)
    for part in ("## model", "majority@4", "false accept", "baseline, with reflection", "right in both orders"):
        assert part in page


def test_own_rows_are_read_again_however_long_they_are(tmp_path):
    row = {**dict.fromkeys(KEYS, "a"), "text": "x" * MAX_ROW_BYTES}
    Samples(tmp_path / "samples.jsonl").add([row])
    assert Samples(tmp_path / "samples.jsonl").rows == [row]


def test_a_damaged_row_is_named(tmp_path):
    samples = Samples(tmp_path / "samples.jsonl")
    samples.add([dict.fromkeys(KEYS, "a")])
    with samples.path.open("a") as file:
        file.write("{]\n")
    with pytest.raises(
        ValueError, match=r"samples\.jsonl, row 2: not valid JSON .* \(remove it to have it asked again\)"
    ):
        Samples(samples.path)


def test_rows_say_what_breakdowns_need(tmp_path, model, pool):
    """Which problem they are variants of, and the metadata but for the gold."""

    def example(id, **metadata):
        return Example(id, Prompts().question("What is 1+1?"), "What is 1+1?", "2", "numeric", "sums", metadata)

    accepting = example("c", category="easy", accepted=["2", "two"])
    questions = [example("a", variant_of="7"), example("b", variant_of="7"), accepting, example("d")]
    samples = Samples(tmp_path / "samples.jsonl")
    Runner("model", model, SETTINGS, pool, samples).run(Suite("mine", questions), ["greedy"], 1)
    assert [row["group"] for row in samples.rows] == ["sums, 7", "sums, 7", "c", "d"]
    known = [row.get("metadata") for row in samples.rows]
    assert known == [{"variant_of": "7"}, {"variant_of": "7"}, {"category": "easy"}, None]
    assert {row["reason"] for row in samples.rows} <= {"correct", "wrong", "unparsed"}


def test_answers_on_which_the_verifier_failed_are_no_labels_for_the_judge(tmp_path, model, pool):
    graded = {"a": (1, "correct"), "b": (0.0, "timeout"), "c": (None, "bad_gold"), "d": (0.0, "error: KeyError")}
    base = {"model": "model", "part": "own answer", "strategy": "sample", "seed": 0, "text": "2"}
    samples = Samples(tmp_path / "samples.jsonl")
    samples.add([{**base, "id": id, "reward": reward, "reason": reason} for id, (reward, reason) in graded.items()])
    questions = [Example(id, Prompts().question("What is 1+1?"), "What is 1+1?", "2") for id in graded]
    Runner("model", model, SETTINGS, pool, samples)._own(questions)
    assert [(row["id"], row["label"]) for row in samples.rows if row["part"] == "own"] == [("a", "right")]
