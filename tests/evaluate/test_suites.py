"""Suites are fixed, graded, and refuse what is wrong in a file with row and field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from image_files import png

from spark_rl.evaluate.suites import EMBEDDED, blinded, open_suite
from spark_rl.images import open_image
from spark_rl.prompts import Prompts
from spark_rl.types import IMAGE
from spark_rl.verify import VerifierPool, extract_answer, format_of


@pytest.fixture(scope="module")
def pool():
    with VerifierPool() as pool:
        yield pool


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_embedded_suite_has_every_part(pool, split):
    suite = open_suite(f"embedded:{split}", pool)
    assert len(suite.questions) == 500
    assert {e.source for e in suite.further} == {"mixed", "product-minus", "retention"}
    assert len(suite.pairs) == 250
    assert len(suite.points) == 500
    assert len(suite.probes) > 1000
    assert {item.right for item in suite.points} == {True, False}


def test_the_splits_share_no_question(pool):
    validation, test = (open_suite(f"embedded:{split}", pool) for split in ("validation", "test"))
    for part in ("questions", "pairs"):
        asked = [{item.question for item in getattr(suite, part)} for suite in (validation, test)]
        assert not asked[0] & asked[1]


@pytest.mark.parametrize("name", EMBEDDED[1:])
def test_the_labels_of_the_judge_sets_are_true(pool, name):
    gold = {(e.question, e.images): e.answer for e in _all(name)}
    pairs = open_suite(name, pool).pairs
    assert len(pairs) == 250
    for pair in pairs:
        answer = gold[pair.question, pair.images]
        assert extract_answer(pair.right) == answer
        assert extract_answer(pair.wrong) not in (None, answer)


@pytest.mark.parametrize("name", ["tags", "hash", "phrase", "last_number", "json:answer"])
def test_what_is_judged_states_its_answers_in_the_format_of_the_prompts(pool, name):
    stated = format_of(name)
    boxed, other = open_suite("embedded", pool, 20), open_suite("embedded", pool, 20, prompts=Prompts(stated))
    assert [stated.read(p.response) for p in other.points] == [extract_answer(p.response) for p in boxed.points]
    assert [stated.read(p.wrong) for p in other.pairs] == [extract_answer(p.wrong) for p in boxed.pairs]
    assert not [p for p in [*other.points, *other.probes] if "boxed" in p.response]


def test_a_blinded_suite_asks_the_same_of_white_pictures_of_the_same_size(pool):
    suite = open_suite("embedded:vision-test", pool, limit=8)
    blind = blinded(suite)
    assert blind.has_images and blind.name == "embedded:vision-test, blind"
    for part in ("questions", "points", "pairs", "probes"):
        for item, unseen in zip(getattr(suite, part), getattr(blind, part), strict=True):
            assert replace(unseen, images=item.images) == item
            (before,), (after,) = map(open_image, item.images), map(open_image, unseen.images)
            assert after.size == before.size
            assert {colour for _, colour in after.getcolors()} == {(255, 255, 255)} != before.getcolors()


def _all(path):
    from spark_rl.evaluate.suites import embedded_examples

    return embedded_examples(path)


def test_the_same_name_is_the_same_suite(pool):
    assert open_suite("embedded", pool) == open_suite("embedded:validation", pool)


def test_a_file_of_yours_is_a_suite(pool, tmp_path):
    name = written(
        tmp_path / "mine.jsonl",
        {"prompt": "What is 2+2?", "answer": "4"},
        {"question": "What is 2+2?", "response": r"\boxed{5}", "right": False},
        {"question": "What is 2+2?", "right": r"\boxed{4}", "wrong": r"\boxed{5}"},
    )
    suite = open_suite(name, pool)
    assert [e.answer for e in suite.questions] == ["4"]
    assert [(item.response, item.right) for item in suite.points] == [(r"\boxed{5}", False)]
    assert [item.wrong for item in suite.pairs] == [r"\boxed{5}"]


def test_rows_of_every_kind_have_images(pool, tmp_path):
    """Paths begin at the file's folder; an image without a marker comes first."""
    for seed in range(2):
        (tmp_path / f"{seed}.png").write_bytes(png(seed))
    name = written(
        tmp_path / "mine.jsonl",
        {"prompt": "How many?", "answer": "4", "images": ["0.png"]},
        {"question": "Is <image> <image>?", "response": "yes", "right": True, "images": ["0.png", "1.png"]},
        {"question": "How many?", "right": "4", "wrong": f"5 {IMAGE}", "images": "1.png"},
        {"question": f"{IMAGE} <image>?", "response": "yes", "right": True},
        {"question": "Is <image> red?", "response": "yes", "right": True, "image": "1.png"},
    )
    suite = open_suite(name, pool)
    assert suite.has_images
    (question,), (point, plain, one), (pair,) = suite.questions, suite.points, suite.pairs
    assert question.question == pair.question == f"{IMAGE}\nHow many?"
    assert point.question == f"Is {IMAGE} {IMAGE}?" and plain.question == "\ufffd <image>?"
    assert one.question == f"Is {IMAGE} red?"
    files = [[Path(image.path).name for image in each.images] for each in (question, point, plain, one, pair)]
    assert files == [["0.png"], ["0.png", "1.png"], [], ["1.png"], ["1.png"]]


def test_bad_rows_are_left_out_and_told_if_they_may_be(pool, tmp_path):
    pair = {"question": "What is 2+2?", "right": "4", "wrong": "5", "id": "a"}
    bad = [{**pair, "id": "b", "images": "gone.png"}, {**pair, "wrong": "6"}, {"prompt": "What is 2+2?"}]
    name = written(tmp_path / "mine.jsonl", pair, *bad, {**pair, "id": "c"})
    suite = open_suite(name, pool, skip_bad=True)
    assert [each.id for each in suite.pairs] == ["a", "c"] and not suite.questions
    image, id, gold = suite.skipped["mine.jsonl"]
    assert "row 2: the image " in image and "gone.png cannot be read" in image
    assert "row 3: the id 'a' was given before, in row 1" in id and "row 4: has no 'answer'" in gold
    with pytest.raises(ValueError, match=r"row 2: .*gone\.png cannot be read .* \(--skip-bad leaves such rows out\)"):
        open_suite(name, pool)
    with pytest.raises(ValueError, match=r"no row is usable; the first one: .*mine\.jsonl, row 1: has no 'answer'"):
        open_suite(written(tmp_path / "mine.jsonl", bad[-1]), pool, skip_bad=True)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"question": "<image>", "response": "r", "right": True, "images": ["a.png", "b.png"]},
            "row 2: .*a.png cannot be read",
        ),
        (
            {"question": "<image> <image>", "right": "r", "wrong": "w", "images": 'drawn:{"size":[9,9],"marks":[]}'},
            "row 2: the number of images is 1, and that of <image> in 'question' is 2",
        ),
        ({"prompt": "What is 2+2?"}, "row 2: has no 'answer'"),
        ({"prompt": "What is 2+2?", "answer": "4", "verifier": "nope"}, "row 2: unknown verifier"),
        (
            {"prompt": "What is 2+2?", "answer": "4", "verifier": "os:abort"},
            r"row 2: 'verifier' names the function 'os:abort'; to trust it, give --verifier os:abort \(--skip-bad",
        ),
        ({"answer": "4"}, r"row 2: has no 'prompt'; add it \(--skip-bad"),
        ({"prompt": "What is 2+2?", "answer": "four!?", "verifier": "numeric"}, "row 2: 'answer'"),
        ({"question": "q", "response": "r"}, "row 2: 'right' must be true or false"),
        ({"question": "q", "wrong": "r"}, "row 2: has no 'right'"),
        ({"question": 3, "right": "r", "wrong": "w"}, "row 2: 'question' must be text"),
    ],
)
def test_a_wrong_row_is_named(pool, tmp_path, row, sentence):
    name = written(tmp_path / "mine.jsonl", {"prompt": "What is 2+2?", "answer": "4"}, row)
    with pytest.raises(ValueError, match=sentence):
        open_suite(name, pool)


def test_the_verifier_of_a_file(pool, tmp_path, monkeypatch):
    """Of rows that name none, and the one function that they may name."""
    (tmp_path / "suite_graders.py").write_text("def alike(answer, gold, metadata):\n    return answer[0] == gold[0]\n")
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "Name a red fruit.", "answer": "apple"}
    name = written(
        tmp_path / "mine.jsonl", row, {**row, "verifier": "suite_graders:alike"}, {**row, "verifier": "exact"}
    )
    with VerifierPool() as own:
        suite = open_suite(name, own, verifier="suite_graders:alike")
    assert [each.verifier for each in suite.questions] == ["suite_graders:alike", "suite_graders:alike", "exact"]
    with pytest.raises(ValueError, match="unknown verifier 'mth'"):
        open_suite(name, pool, verifier="mth")
    for fixed in ("embedded:test", "gsm8k"):
        with pytest.raises(ValueError, match=f"--verifier exact: {fixed} says itself how its answers are graded"):
            open_suite(fixed, pool, verifier="exact")


def test_unknown_and_missing_suites(pool, tmp_path):
    with pytest.raises(ValueError, match="unknown suite 'embeded'"):
        open_suite("embeded", pool)
    with pytest.raises(ValueError, match="cannot be read"):
        open_suite(str(tmp_path / "none.jsonl"), pool)
