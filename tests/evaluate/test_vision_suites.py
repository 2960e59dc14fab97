"""Questions and pairs with images, on a tiny random vision-language model: what it is shown changes its words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vision import image_file, picture, save_vision_model

from spark_rl.config import load_inference
from spark_rl.evaluate.published_rows import BestOfItem, PairItem
from spark_rl.evaluate.runner import Runner, Samples
from spark_rl.evaluate.suites import PointItem, Suite, open_suite
from spark_rl.infer import ChatModel
from spark_rl.types import IMAGE
from spark_rl.verify import VerifierPool

STRATEGIES = ["greedy", "reflect", "best-of-2", "tournament@2"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = save_vision_model("qwen2_5_vl", tmp_path_factory.mktemp("model"))
    return load_inference(["engine.max_new_tokens=12"], model={"path": str(folder)})


@pytest.fixture(scope="module")
def model(settings):
    return ChatModel.open(settings)


def run(folder: Path, seed: int, model, settings) -> list[dict]:
    """Rows of `samples.jsonl` of a question each of POPE and a pair of VL-RewardBench, about a picture of this seed."""
    folder.mkdir()
    picture(seed).save(folder / "1.png")
    question = {"question": "Is there a cat?", "answer": "yes", "image": "1.png"}
    (folder / "pope.jsonl").write_text(json.dumps(question) + "\n")
    pair = {"id": "RLAIF-V-1", "query": "What is it?", "response": ["A cat.", "A dog."], "human_ranking": [0, 1]}
    (folder / "pairs.jsonl").write_text(json.dumps({**pair, "image": "1.png"}) + "\n")
    samples = Samples(folder / "samples.jsonl")
    with VerifierPool() as pool:
        for name, file in (("pope", "pope.jsonl"), ("vl-reward-bench", "pairs.jsonl")):
            suite = open_suite(name, pool, None, {name: folder / file})
            Runner("model", model, settings, pool, samples).run(suite, STRATEGIES, seeds=1)
    return [json.loads(line) for line in samples.path.read_text().splitlines()]


class Recorded:
    """An engine, and what it was asked."""

    def __init__(self, engine):
        self.engine, self.requests = engine, []

    def generate(self, requests, progress=None):
        self.requests += requests
        return self.engine.generate(requests, progress)


def said(rows: list[dict]) -> dict[tuple[str, str], object]:
    return {(row["part"], row["strategy"]): row.get("texts") or row["text"] for row in rows}


def test_the_model_sees_what_it_answers_and_judges(tmp_path, model, settings):
    first, again, other = (run(tmp_path / name, seed, model, settings) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert set(said(first)) == {*(("answer", name) for name in STRATEGIES), ("pairwise", "judge")}
    assert said(first) == said(again)
    for part in (("answer", "greedy"), ("pairwise", "judge")):
        assert said(first)[part] != said(other)[part]
    assert [row["source"] for row in first if row["part"] == "pairwise"] == ["hallucination"]


def test_every_judged_part_is_shown_its_images(tmp_path, model, settings):
    """Responses to score, pairs to compare, and responses to choose among."""
    said = []
    for seed in (1, 1, 2):
        image = image_file(tmp_path, seed)
        question = f"{IMAGE}What is it?"
        suite = Suite(
            "mine",
            [],
            points=[PointItem("point", question, "A cat.", True, (image,))],
            pairs=[PairItem("pair", question, "A cat.", "A dog.", images=(image,))],
            best_of=[BestOfItem("best", question, ("A cat.", "A dog."), 1, "Focus", (image,))],
        )
        samples = Samples(tmp_path / f"{len(said)}.jsonl")
        shown = Recorded(model.engine)
        with VerifierPool() as pool:
            Runner("model", ChatModel(shown, "m", renderer=model.renderer), settings, pool, samples).run(suite, [], 1)
        assert [row["part"] for row in samples.rows] == ["pointwise", "pairwise", "best_of"]
        assert [request.images for request in shown.requests] == [(image,)] * 5
        asked = {key: samples.rows[0][key] for key in ("question", "images")}
        assert asked == {"question": "<image>What is it?", "images": [image.path]}
        assert all(samples.rows[1][key] == asked[key] for key in asked), "and so of the pair"
        said.append([row.get("texts") or row.get("text") for row in samples.rows])
    assert said[0] == said[1] != said[2]
