"""Rows in the published schemas, written by hand after the loader or card that `PublishedSet.schema_source` names.

They prove how a row of that form is read, not that the data on the Hub still has it.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pytest

from spark_rl.evaluate.published import in_suite, load
from spark_rl.evaluate.published_rows import IN_THE_IMAGE, LETTER, BestOfItem, PairItem, placed
from spark_rl.evaluate.published_sets import PUBLISHED
from spark_rl.evaluate.suites import open_suite
from spark_rl.types import IMAGE, Example, Image
from spark_rl.verify import VerifierPool, check_gold, grade
from spark_rl.verify.pool import Check


def png(width: int = 8) -> bytes:
    """A picture, another one for each width."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, 8), "red").save(file, "PNG")
    return file.getvalue()


PNG = png()
PICTURE = {"bytes": PNG, "path": None}


@dataclass(frozen=True)
class Case:
    """A row, and what it is to become."""

    row: dict[str, Any]
    question: str
    """As it stands in the data, with our instruction: `shown` puts the images into it."""
    gold: str
    right: tuple[str, ...]
    """Answers that must be graded 1; the gold itself always is."""
    wrong: tuple[str, ...]


CASES: dict[str, list[Case]] = {
    # lm-evaluation-harness aime/aime24.yaml: Problem, Answer
    "aime24": [
        Case(
            {"ID": "2024-I-4", "Problem": "Find $m+n$.", "Solution": "...", "Answer": 116},
            "Find $m+n$.",
            "116",
            ("116.0",),
            ("117",),
        ),
        Case({"ID": "2024-I-5", "Problem": "Find $k$.", "Answer": "033"}, "Find $k$.", "033", ("33",), ("330",)),
    ],
    # lm-evaluation-harness aime/aime25.yaml: problem, answer
    "aime25": [
        Case({"id": "0", "problem": "Find $b$.", "answer": "70"}, "Find $b$.", "70", (), ("71", "seventy")),
        Case(
            {"id": "1", "problem": "Sum of arcs?", "answer": r"336^\circ"},
            "Sum of arcs?",
            r"336^\circ",
            ("336",),
            ("33",),
        ),
    ],
    "amc23": [
        Case({"id": 0, "question": "How far?", "answer": "27.0", "url": ""}, "How far?", "27.0", ("27",), ("28",)),
    ],
    # lm-evaluation-harness gsm8k/gsm8k.yaml: question, answer with #### before the number
    "gsm8k": [
        Case(
            {"question": "How many eggs?", "answer": "She has 9 <<3*3=9>>9.\n#### 9"},
            "How many eggs?",
            "9",
            ("9.0",),
            ("3",),
        ),
        Case(
            {"question": "How much?", "answer": "It is $1,080.\n#### 1,080"}, "How much?", "1,080", ("1080",), ("108",)
        ),
    ],
    "math-500": [
        Case(
            {
                "problem": "Convert to polar.",
                "solution": "...",
                "answer": r"\left( 3, \frac{\pi}{2} \right)",
                "subject": "Precalculus",
                "level": 2,
                "unique_id": "test/precalculus/807.json",
            },
            "Convert to polar.",
            r"\left( 3, \frac{\pi}{2} \right)",
            (r"(3, \pi/2)",),
            (r"(3, \pi)",),
        ),
    ],
    # lm-evaluation-harness mmlu/default/_default_template_yaml: question, choices, answer as an index, subject
    "mmlu-stem": [
        Case(
            {"question": "2+2?", "subject": "abstract_algebra", "choices": ["3", "4", "5", "6"], "answer": 1},
            f"2+2?\nA. 3\nB. 4\nC. 5\nD. 6\n{LETTER}",
            "B",
            ("(B)", "b"),
            ("A", "4"),
        ),
    ],
    # MathVista's card and lmms-eval mathvista_evals.py
    "mathvista": [
        Case(
            {
                "pid": "1",
                "question": "How long is AB?",
                "image": "images/1.jpg",
                "decoded_image": PICTURE,
                "choices": ["3 cm", "4 cm"],
                "unit": None,
                "precision": None,
                "answer": "4 cm",
                "question_type": "multi_choice",
                "answer_type": "text",
            },
            f"How long is AB?\nA. 3 cm\nB. 4 cm\n{LETTER}",
            "B",
            ("B",),
            ("A",),
        ),
        Case(
            {
                "pid": "2",
                "question": "How far?",
                "image": "images/2.jpg",
                "decoded_image": PICTURE,
                "choices": None,
                "unit": "m",
                "precision": 1.0,
                "answer": "1.2",
                "question_type": "free_form",
                "answer_type": "float",
            },
            "How far? (Unit: m)\nAnswer with a number of 1 decimal place.",
            "1.2",
            ("1.20", "1.24"),
            ("1.3", "12"),
        ),
        Case(
            {
                "pid": "3",
                "question": "When?",
                "image": "images/3.jpg",
                "decoded_image": PICTURE,
                "choices": None,
                "unit": None,
                "precision": None,
                "answer": "[2007, 2008]",
                "question_type": "free_form",
                "answer_type": "list",
            },
            "When?\nAnswer with a list, such as [1, 2].",
            "[2007, 2008]",
            ("[2007,2008]",),
            ("[2007, 2009]",),
        ),
        Case(
            {
                "pid": "4",
                "question": "How many?",
                "image": "images/4.jpg",
                "decoded_image": PICTURE,
                "choices": None,
                "unit": None,
                "precision": None,
                "answer": "14",
                "question_type": "free_form",
                "answer_type": "integer",
            },
            "How many?\nAnswer with a whole number.",
            "14",
            ("14.0",),
            ("4",),
        ),
    ],
    # lmms-eval mathvision/utils.py
    "mathvision": [
        Case(
            {
                "id": "4",
                "question": "Which one? <image1>",
                "options": ["A", "B", "C", "D", "E"],
                "image": "images/4.jpg",
                "decoded_image": PICTURE,
                "answer": "D",
                "solution": None,
                "level": 2,
                "subject": "combinatorics",
            },
            f"Which one? <image1>\n{LETTER}",
            "D",
            (),
            ("E",),
        ),
        Case(
            {
                "id": "5",
                "question": "How many? <image1>",
                "options": [],
                "image": "images/5.jpg",
                "decoded_image": PICTURE,
                "answer": r"\frac{3}{2}",
                "solution": None,
                "level": 5,
                "subject": "algebra",
            },
            "How many? <image1>",
            r"\frac{3}{2}",
            ("1.5",),
            ("3",),
        ),
        Case(
            {
                "id": "6",
                "question": "How big? <image1>",
                "options": ["$30$", "$35$"],
                "image": "images/6.jpg",
                "decoded_image": PICTURE,
                "answer": "B",
                "solution": None,
                "level": 3,
                "subject": "metric geometry - angle",
            },
            f"How big? <image1>\nA. $30$\nB. $35$\n{LETTER}",
            "B",
            (),
            ("A",),
        ),
    ],
    # lmms-eval wemath/reasoning/utils.py; options as the README of We-Math prints them
    "wemath": [
        Case(
            {
                "ID": "3steps_165",
                "split": "testmini",
                "knowledge concept": "Area of Circles",
                "question": "What is the area (  ) m²?",
                "option": "A. 200.96;B. 3215.36; C. 6280; D. No correct answer",
                "answer": "B",
                "image_path": PICTURE,
                "key": "3steps_3",
                "question number": 1575,
                "knowledge concept description": "...",
            },
            f"What is the area (  ) m²?\nA. 200.96\nB. 3215.36\nC. 6280\nD. No correct answer\n{LETTER}",
            "B",
            (),
            ("C",),
        ),
    ],
    # lmms-eval mathverse/utils.py; a question of the version Vision Only is empty
    "mathverse": [
        Case(
            {
                "sample_index": "1",
                "problem_index": "1",
                "problem_version": "Text Dominant",
                "question": "Find x.\nChoices:\nA:40°\nB:50°",
                "image": PICTURE,
                "answer": "B",
                "question_type": "multi-choice",
                "metadata": {"split": "testmini", "subject": "Plane Geometry"},
                "query_wo": "...",
                "query_cot": "...",
                "question_for_eval": "Find x.\nChoices:\nA:40°\nB:50°",
            },
            f"Find x.\nChoices:\nA:40°\nB:50°\n{LETTER}",
            "B",
            (),
            ("A",),
        ),
        Case(
            {
                "sample_index": "5",
                "problem_index": "2",
                "problem_version": "Vision Only",
                "question": "",
                "image": PICTURE,
                "answer": "x=-1",
                "question_type": "free-form",
                "metadata": {"split": "testmini", "subject": "Functions"},
                "query_wo": "...",
                "query_cot": "...",
                "question_for_eval": "Find x.",
            },
            IN_THE_IMAGE,
            "x=-1",
            ("-1",),
            ("1",),
        ),
    ],
    # VLMEvalKit dynamath.py; columns as scripts that load DynaMath_Sample read them
    "dynamath": [
        Case(
            {
                "id": "1",
                "question": "Which? Choices: (A) up (B) down",
                "image": "images/1.jpg",
                "decoded_image": PICTURE,
                "ground_truth": "A",
                "answer_type": "multiple choice",
                "subject": "analytic geometry",
                "knowledge_level": "high school",
            },
            f"Which? Choices: (A) up (B) down\n{LETTER}",
            "A",
            (),
            ("B",),
        ),
        Case(
            {
                "id": "2",
                "question": "What is the limit?",
                "image": "images/2.jpg",
                "decoded_image": PICTURE,
                "ground_truth": "2.333",
                "answer_type": "float",
                "subject": "algebra",
                "knowledge_level": "undergraduate",
            },
            "What is the limit?\nAnswer with a number of three decimal places.",
            "2.333",
            ("2.334",),
            ("2.335",),
        ),
        Case(
            {
                "id": "3",
                "question": "What is the name?",
                "image": "images/3.jpg",
                "decoded_image": PICTURE,
                "ground_truth": "Mark",
                "answer_type": "text",
                "subject": "puzzle test",
                "knowledge_level": "elementary school",
            },
            "What is the name?",
            "Mark",
            ("mark",),
            ("Kram",),
        ),
    ],
    # lmms-eval logicvista/reasoning/utils.py; LogicVista data/README.md
    "logicvista": [
        Case(
            {
                "id": "v1_0",
                "question": "Which choice (A, B or C)?",
                "answer": "C",
                "image": PICTURE,
                "skill": ["inductive"],
            },
            "Which choice (A, B or C)?\nAnswer with the letter, or with all letters if several are right.",
            "C",
            ("c",),
            ("A", "A, C"),
        ),
        Case(
            {"id": "v1_1", "question": "Select two.", "answer": "A, C", "image": PICTURE, "skill": ["spatial"]},
            "Select two.\nAnswer with the letter, or with all letters if several are right.",
            "A, C",
            ("C, A", "AC", "A and C"),
            ("A", "A, B, C"),
        ),
    ],
    "mmk12": [
        Case(
            {
                "id": "94cc06dc",
                "question": "What is the length?\nA. $$10.5$$\nB. $$12$$",
                "answer": "A",
                "subject": "math",
                "image": PICTURE,
            },
            f"What is the length?\nA. $$10.5$$\nB. $$12$$\n{LETTER}",
            "A",
            (),
            ("B",),
        ),
    ],
    # lmms-eval mmbench/en_utils.py: absent options are None or "nan"
    "mmbench": [
        Case(
            {
                "index": 241,
                "question": "Which is the main topic?",
                "hint": "nan",
                "answer": "B",
                "A": "a cat",
                "B": "a dog",
                "C": "nan",
                "D": None,
                "category": "image_topic",
                "image": PICTURE,
                "source": "LLaVA",
                "L2-category": "coarse_perception",
                "comment": "nan",
                "split": "dev",
            },
            f"Which is the main topic?\nA. a cat\nB. a dog\n{LETTER}",
            "B",
            (),
            ("A",),
        ),
        Case(
            {
                "index": 242,
                "question": "Which is it?",
                "hint": "Look at the left.",
                "answer": "A",
                "A": "red",
                "B": "blue",
                "C": "green",
                "D": "grey",
                "category": "color",
                "image": PICTURE,
                "source": "x",
                "L2-category": "y",
                "comment": "nan",
                "split": "dev",
            },
            f"Look at the left.\nWhich is it?\nA. red\nB. blue\nC. green\nD. grey\n{LETTER}",
            "A",
            (),
            ("D",),
        ),
    ],
    # lmms-eval mmstar/utils.py
    "mmstar": [
        Case(
            {
                "index": 0,
                "question": "Which option?\nOptions: A: one, B: two, C: three, D: four",
                "image": PICTURE,
                "answer": "A",
                "category": "coarse perception",
                "l2_category": "image scene and topic",
                "meta_info": {"source": "MMBench"},
            },
            f"Which option?\nOptions: A: one, B: two, C: three, D: four\n{LETTER}",
            "A",
            (),
            ("C",),
        ),
    ],
    # lmms-eval mmmu/utils.py: options are the text of a list
    "mmmu": [
        Case(
            {
                "id": "validation_Accounting_1",
                "question": "<image 1> Baxter earns what?",
                "options": "['$1,000', \"$2,000\"]",
                "explanation": "",
                **{f"image_{i}": PICTURE if i == 1 else None for i in range(1, 8)},
                "img_type": "['Tables']",
                "answer": "B",
                "topic_difficulty": "Medium",
                "question_type": "multiple-choice",
                "subfield": "Managerial Accounting",
            },
            f"<image 1> Baxter earns what?\nA. $1,000\nB. $2,000\n{LETTER}",
            "B",
            (),
            ("A",),
        ),
        Case(
            {
                "id": "validation_Math_5",
                "question": "<image 1> and <image 2>?",
                "options": "[]",
                "explanation": "",
                **{f"image_{i}": PICTURE if i < 3 else None for i in range(1, 8)},
                "img_type": "['Diagrams']",
                "answer": "['24/7', '3.429']",
                "topic_difficulty": "Hard",
                "question_type": "open",
                "subfield": "Geometry",
            },
            "<image 1> and <image 2>?\nAnswer with a word, a phrase or a number.",
            "24/7",
            ("3.43", "24/7"),
            ("3.5", "24"),
        ),
    ],
    # lmms-eval mmvet/utils.py
    "mmvet": [
        Case(
            {
                "question_id": "v1_0",
                "image": PICTURE,
                "question": "What is x in the equation?",
                "answer": "-1<AND>-5",
                "image_source": "web",
                "capability": "ocr,math",
            },
            "What is x in the equation?",
            "-1<AND>-5",
            ("x = -5 or x = -1.",),
            ("x = 5 or 15", "-10"),
        ),
        Case(
            {
                "question_id": "v1_1",
                "image": PICTURE,
                "question": "Which car?",
                "answer": "a Beetle<OR>Volkswagen",
                "image_source": "web",
                "capability": "rec",
            },
            "Which car?",
            "a Beetle<OR>Volkswagen",
            ("It is a volkswagen",),
            ("a Golf",),
        ),
    ],
    # lmms-eval scienceqa/utils.py
    "scienceqa": [
        Case(
            {
                "image": PICTURE,
                "question": "Which is an animal?",
                "choices": ["rock", "newt"],
                "answer": 1,
                "hint": "Animals move.",
                "task": "closed choice",
                "grade": "grade2",
                "subject": "natural science",
                "topic": "biology",
                "category": "x",
                "skill": "x",
                "lecture": "",
                "solution": "",
            },
            f"Animals move.\nWhich is an animal?\nA. rock\nB. newt\n{LETTER}",
            "B",
            (),
            ("A",),
        ),
    ],
    # lmms-eval pope/utils.py
    "pope": [
        Case(
            {
                "id": "0",
                "question_id": "1",
                "question": "Is there a snowboard in the image?",
                "answer": "yes",
                "image_source": "COCO_val2014_000000310196",
                "image": PICTURE,
                "category": "adversarial",
            },
            "Is there a snowboard in the image?\nAnswer Yes or No.",
            "yes",
            ("Yes", "Yes."),
            ("No", "Yes and no"),
        ),
    ],
    # lmms-eval seedbench/utils.py: image is a list
    "seedbench": [
        Case(
            {
                "question_id": "101669",
                "question_type_id": 1,
                "question": "How many towels?",
                "choice_a": "One",
                "choice_b": "Two",
                "choice_c": "Three",
                "choice_d": "Four",
                "answer": "A",
                "data_id": "1454426_2591111986",
                "data_type": "image",
                "image": [PICTURE],
            },
            f"How many towels?\nA. One\nB. Two\nC. Three\nD. Four\n{LETTER}",
            "A",
            (),
            ("B",),
        ),
    ],
    # lmms-eval realworldqa/utils.py
    "realworldqa": [
        Case(
            {
                "image": PICTURE,
                "question": "Which side?\n\nA. Left\nB. Right\n\n"
                "Please answer directly with only the letter of the correct option and nothing else.",
                "answer": "B",
            },
            f"Which side?\n\nA. Left\nB. Right\n{LETTER}",
            "B",
            (),
            ("A",),
        ),
        Case(
            {
                "image": PICTURE,
                "question": "Uphill or downhill? Please answer directly with a single word or number.",
                "answer": "Downhill",
            },
            "Uphill or downhill?\nAnswer with a single word or number.",
            "Downhill",
            ("downhill",),
            ("Uphill",),
        ),
    ],
}
QUESTION_SETS = [name for name, each in PUBLISHED.items() if each.suite != "paper-reward"]


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("SPARK_RL_CACHE", str(tmp_path / "images"))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As the Hub holds it: columns of images are typed as such."""
    dataset = datasets.Dataset.from_list(rows)
    for column, value in rows[0].items():
        if value == PICTURE or value == [PICTURE]:
            typed = datasets.List(datasets.Image()) if isinstance(value, list) else datasets.Image()
            dataset = dataset.cast_column(column, typed)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(path)
    return path


def write(name: str, folder: Path) -> Path:
    """The rows of a set's cases in the first split's file."""
    published = PUBLISHED[name]
    rows = [case.row for case in CASES[name]]
    start = (published.files or published.splits)[0]
    if published.has_images:
        return write_parquet(folder / "data" / f"{start}-00000-of-00001.parquet", rows)
    return write_jsonl(folder / f"{start}.jsonl", rows)


def shown(name: str, case: Case) -> str:
    """A question with its images in the places of their markers, or before it."""
    if not PUBLISHED[name].has_images:
        return case.question
    placed, count = re.subn(r"<image ?\d>", IMAGE, case.question)
    return placed if count else f"{IMAGE}\n{placed}"


def test_every_set_of_questions_has_rows_here():
    assert sorted(CASES) == sorted(QUESTION_SETS)
    sizes = {suite: len(in_suite(f"paper-{suite}")) for suite in ("text", "vision", "reward", "general")}
    assert sizes == {"text": 6, "vision": 7, "reward": 2, "general": 8}


@pytest.mark.parametrize("name", QUESTION_SETS)
def test_rows_become_questions(name, tmp_path):
    items = load(name, write(name, tmp_path))
    assert [item.question for item in items] == [shown(name, case) for case in CASES[name]]
    assert [item.answer for item in items] == [case.gold for case in CASES[name]]
    for number, item in enumerate(items, start=1):
        assert isinstance(item, Example)
        assert (item.id, item.source) == (f"{name}-{number}", name)
        assert item.verifier in PUBLISHED[name].verifiers
        (turn,) = item.prompt
        assert turn["content"].startswith(item.question) and "boxed" in turn["content"]
        json.dumps(dict(item.metadata))  # results are written down


@pytest.mark.parametrize("name", QUESTION_SETS)
def test_answers_are_graded(name, tmp_path):
    for item, case in zip(load(name, write(name, tmp_path)), CASES[name], strict=True):
        assert check_gold(item.answer, item.verifier, item.metadata) is None
        assert all(grade(each, item.answer, item.verifier, item.metadata).reward == 1 for each in case.right), (
            case.right
        )
        assert all(grade(each, item.answer, item.verifier, item.metadata).reward == 0 for each in case.wrong), (
            case.wrong
        )


@pytest.mark.parametrize(("name", "column"), [("mathverse", "problem_index"), ("dynamath", "id")])
def test_variants_say_of_which_problem_they_are(name, column, tmp_path):
    problems = [item.metadata["variant_of"] for item in load(name, write(name, tmp_path))]
    assert problems == [case.row[column] for case in CASES[name]]


def test_own_rules_run_in_a_worker(tmp_path):
    (half,) = load("mmvet", write("mmvet", tmp_path))[:1]
    with VerifierPool(workers=1) as pool:
        (verdict,) = pool.verify([Check(r"\boxed{x = -1}", half.answer, half.verifier, half.metadata)])
    assert (verdict.reward, verdict.reason) == (0.5, "partial")


@pytest.mark.parametrize("name", [name for name in QUESTION_SETS if PUBLISHED[name].has_images])
def test_questions_have_their_images(name, tmp_path):
    for item in load(name, write(name, tmp_path)):
        assert {Path(image.path).read_bytes() for image in item.images} == {PNG}
        assert {image.sha256 for image in item.images} == {hashlib.sha256(PNG).hexdigest()}
        assert [text.count(IMAGE) for text in (item.question, item.prompt[0]["content"])] == [len(item.images)] * 2


def test_several_images(tmp_path):
    two = {**CASES["mmmu"][1].row, **{f"image_{i}": {"bytes": png(8 + i), "path": None} for i in (1, 2)}}
    rows = [{**two, "question": "Is <image 2> or <image 1> larger?"}, {**two, "question": "Is <image 2> large?"}]
    first, second = load("mmmu", write_parquet(tmp_path / "validation.parquet", rows))
    digests = [hashlib.sha256(png(8 + i)).hexdigest() for i in (1, 2)]
    assert first.question.startswith(f"Is {IMAGE} or {IMAGE} larger?\n")
    assert [image.sha256 for image in first.images] == digests[::-1]
    assert second.question.startswith(f"{IMAGE}\nIs {IMAGE} large?\n")
    assert [image.sha256 for image in second.images] == digests


def pictures(count: int) -> list[Image]:
    return [Image(f"/{i}.png", str(i)) for i in range(1, count + 1)]


@pytest.mark.parametrize(
    ("question", "count", "text", "order"),
    [
        ("Which?", 0, "Which?", ""),
        ("Is <image 1> one?", 0, "Is <image 1> one?", ""),
        ("Which?", 2, "@\n@\nWhich?", "12"),
        ("<image1>, <image 2>, <image_3>", 3, "@, @, @", "123"),
        ("<image> or <image>?", 2, "@ or @?", "12"),
        ("<image> or <image 1>?", 2, "@ or @?", "21"),
        ("Is <image 1> like <image 1>?", 1, "Is @ like @?", "11"),
        ("<image 1>: A. <image 2> B. <image 3>", 1, "@: A. image 2 B. image 3", "1"),
        ("<image> and <image>", 1, "@ and image", "1"),
        ("<image 0>", 1, "@\nimage 0", "1"),
        ("What is \ufffc?", 1, "@\nWhat is \ufffd?", "1"),
    ],
)
def test_markers(question, count, text, order):
    written, images = placed(question, pictures(count))
    assert (written, "".join(image.sha256 for image in images)) == (text.replace("@", IMAGE), order)


def test_images_that_are_files(tmp_path):
    """Their paths begin where the row's file is, or at the top of the copy."""
    row = CASES["pope"][0].row
    rows = [{**row, "image": "val2014/1.png"}, {**row, "image": "top/2.png"}]
    path = write_jsonl(tmp_path / "copy" / "data" / "test.jsonl", rows)
    files = [path.parent / "val2014" / "1.png", tmp_path / "copy" / "top" / "2.png"]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(PNG)
    assert [item.images[0].path for item in load("pope", tmp_path / "copy")] == [str(file) for file in files]
    files[1].unlink()
    with pytest.raises(ValueError, match=r"^pope, row 2: 'image': .*top/2.png.*; check the path \(--skip-bad leaves"):
        load("pope", tmp_path / "copy")
    assert len(load("pope", tmp_path / "copy", 1)) == 1, "what is not asked for is not looked at"
    (tmp_path / "words.jsonl").write_text(json.dumps({**row, "image": str(path)}) + "\n")
    with pytest.raises(ValueError, match=r"^pope, row 1: 'image': .*test.jsonl"):
        load("pope", tmp_path / "words.jsonl")


def test_rows_that_a_set_leaves_out(tmp_path):
    law = {**CASES["mmlu-stem"][0].row, "subject": "international_law"}
    rows = [law, CASES["mmlu-stem"][0].row]
    assert [item.id for item in load("mmlu-stem", write_jsonl(tmp_path / "a.jsonl", rows))] == ["mmlu-stem-1"]
    with pytest.raises(ValueError, match=r"mmlu-stem: no row of .*a.jsonl belongs to the set"):
        load("mmlu-stem", write_jsonl(tmp_path / "a.jsonl", [law]))
    video = {**CASES["seedbench"][0].row, "data_type": "video", "image": ["1.mp4"]}
    image = {**CASES["seedbench"][0].row, "image": ["1.png"]}
    (tmp_path / "1.png").write_bytes(PNG)
    assert len(load("seedbench", write_jsonl(tmp_path / "b.jsonl", [video, image]))) == 1
    question = {**CASES["mmbench"][0].row, "image": "1.png"}
    rows = [question, *({**question, "index": copy * 10**6 + 241} for copy in (1, 2, 3))]
    (once,) = load("mmbench", write_jsonl(tmp_path / "c.jsonl", rows))
    assert once.metadata["id"] == 241, "its copies with rotated options are no questions of their own"


# ------------------------------------------------------------------------------------------------ items to judge

# reward-bench-2's card; reward-bench rewardbench/utils.py, where the id of a tie says what belongs together
BEST_OF = {
    "id": "17",
    "prompt": "Who wrote it?",
    "chosen": ["Ada."],
    "rejected": ["Bob.", "Cy.", "Di."],
    "num_correct": 1,
    "num_incorrect": 3,
    "total_completions": 4,
    "models": ["human", "a", "b", "c"],
    "subset": "Factuality",
    "additional_metadata": {"category": None},
}
TIES = {
    **BEST_OF,
    "id": "tied:3",
    "prompt": "Name a colour of the rainbow.",
    "chosen": ["Red", "Blue"],
    "rejected": ["Brown"],
    "num_correct": 2,
    "num_incorrect": 1,
    "total_completions": 3,
    "subset": "Ties",
}
# VL-RewardBench's card; lmms-eval vl_rewardbench/utils.py
PAIR = {
    "id": "RLAIF-V-11",
    "query": "What is in the image?",
    "response": ["A cat.", "A dog."],
    "image": PICTURE,
    "human_ranking": [0, 1],
    "models": ["a", "b"],
    "judge": None,
    "rationale": None,
    "query_source": "RLAIF-V",
    "ground_truth": None,
}


def test_reward_bench_2(tmp_path):
    items = load("reward-bench-2", write_jsonl(tmp_path / "test.jsonl", [BEST_OF, TIES]))
    assert items == [
        BestOfItem("Factuality/17", "Who wrote it?", ("Ada.", "Bob.", "Cy.", "Di."), 1, "Factuality"),
        BestOfItem("Ties/tied:3", "Name a colour of the rainbow.", ("Red", "Blue", "Brown"), 2, "Ties"),
    ]


def test_vl_reward_bench(tmp_path):
    swapped = {**PAIR, "id": "mathverse_8", "human_ranking": [1, 0]}
    other = {**PAIR, "id": "wildvision-battle-5"}
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [PAIR, swapped, other])
    first, second, third = load("vl-reward-bench", tmp_path)
    (image,) = first.images
    assert Path(image.path).read_bytes() == PNG
    question = f"{IMAGE}\nWhat is in the image?"
    assert first == PairItem("RLAIF-V-11", question, "A cat.", "A dog.", "hallucination", (image,))
    assert (second.right, second.wrong, second.source) == ("A dog.", "A cat.", "reasoning")
    assert third.source == "general"


# ------------------------------------------------------------------------------------------------ places


def test_a_folder_as_a_download_leaves_it(tmp_path):
    """Files of other splits and subsets lie beside those of the set; splits come in order."""
    row, *others = (case.row for case in CASES["gsm8k"])
    write_jsonl(tmp_path / "main" / "test-00000-of-00001.jsonl", [row])
    write_jsonl(tmp_path / "main" / "train-00000-of-00001.jsonl", others)
    write_jsonl(tmp_path / "socratic" / "test-00000-of-00001.jsonl", others)
    assert [item.question for item in load("gsm8k", tmp_path)] == ["How many eggs?"]
    variants = [case.row for case in CASES["dynamath"]]
    for number, row in ((10, variants[2]), (2, variants[1]), (1, variants[0])):
        write_parquet(tmp_path / "dynamath" / "data" / f"sample{number}-00000-of-00001.parquet", [row])
    assert [item.metadata["variant_of"] for item in load("dynamath", tmp_path / "dynamath")] == ["1", "2", "3"]


def test_the_only_file_of_a_folder_may_have_any_name(tmp_path):
    write_parquet(tmp_path / "mmstar.parquet", [CASES["mmstar"][0].row])
    assert len(load("mmstar", tmp_path)) == 1
    with pytest.raises(ValueError, match=r"mmstar: .* holds no file whose name begins with 'val'"):
        (tmp_path / "more.jsonl").write_text("{}\n")
        load("mmstar", tmp_path)


def test_the_hub(tmp_path, monkeypatch):
    """`datasets` looks for a folder of that name before it asks the Hub."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "HuggingFaceH4" / "MATH-500" / "test.jsonl", [CASES["math-500"][0].row])
    assert len(load("math-500")) == 1
    with pytest.raises(ValueError, match=r"math-ai/aime25: cannot be loaded .*check the name, the split"):
        load("aime25")


def test_unknown_sets():
    with pytest.raises(ValueError, match="unknown set 'mathvsta'; did you mean 'mathvista'"):
        load("mathvsta")


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("gsm8k", {"question": "q", "solution": "s"}, "has no 'answer', but question, solution"),
    ("gsm8k", {"question": "q", "answer": "nine"}, "'answer' must end with '####' and a number, not 'nine'"),
    ("aime24", {"Problem": "p", "Answer": None}, "'Answer' is empty"),
    ("aime24", {"Problem": "p", "Answer": " "}, "'Answer' is empty"),
    ("aime24", {"Problem": ["p"], "Answer": 1}, r"'Problem' must be text, not \[\"p\"\]"),
    ("mmlu-stem", {**CASES["mmlu-stem"][0].row, "answer": 7}, "'answer' must be an index below 4, not 7"),
    ("mmlu-stem", {**CASES["mmlu-stem"][0].row, "answer": "B"}, "'answer' must be a whole number"),
    ("mmlu-stem", {**CASES["mmlu-stem"][0].row, "choices": "3, 4"}, "'choices' must be a list of texts"),
    ("pope", {**CASES["pope"][0].row, "image": None}, "'image' is empty"),
    ("pope", {**CASES["pope"][0].row, "image": []}, "'image' is empty"),
    ("pope", {"question": "q", "answer": "yes"}, "has no 'image'"),
    ("pope", {"question": "q", "answer": "maybe", "image": "a"}, "'answer' must be yes or no"),
    ("mmk12", {"question": "q", "answer": "AB", "image": "a"}, "'answer' must be the letter of an option"),
    (
        "mathvista",
        {**CASES["mathvista"][0].row, "answer": "5", "decoded_image": "a"},
        "'answer' must be one of 'choices'",
    ),
    ("mathvista", {**CASES["mathvista"][1].row, "answer_type": "text", "decoded_image": "a"}, "'answer_type' must be"),
    ("mathverse", {**CASES["mathverse"][0].row, "question_type": "open", "image": "a"}, "'question_type' must be"),
    (
        "mmmu",
        {**CASES["mmmu"][0].row, "options": "A, B", **{f"image_{i}": "a" for i in range(1, 8)}},
        "'options' must be",
    ),
    ("mmbench", {"index": 1, "question": "q", "answer": "A", "A": "one", "image": "a"}, "has fewer than two options"),
    ("reward-bench-2", {**BEST_OF, "num_correct": 2}, "'chosen' holds 1 responses where 'num_correct' says 2"),
    ("reward-bench-2", {**BEST_OF, "rejected": []}, "'rejected' is empty"),
    (
        "vl-reward-bench",
        {**PAIR, "image": "a", "human_ranking": [1, 1]},
        r"'human_ranking' must be \[0, 1\] or \[1, 0\]",
    ),
    ("vl-reward-bench", {**PAIR, "image": "a", "response": ["one"]}, "'response' holds 1 texts"),
]


@pytest.mark.parametrize(("name", "row", "reason"), WRONG)
def test_a_wrong_schema_is_one_sentence(name, row, reason, tmp_path):
    path = write_jsonl(tmp_path / "test.jsonl", [row])
    with pytest.raises(ValueError, match=f"^{name}, row 1: {reason}.*; compare .*test.jsonl with ") as caught:
        load(name, path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(PUBLISHED[name].place)


def test_the_row_is_named(tmp_path):
    rows = [*(case.row for case in CASES["gsm8k"]), {"question": "q"}]
    with pytest.raises(ValueError, match="gsm8k, row 3: has no 'answer', but question; compare "):
        load("gsm8k", write_jsonl(tmp_path / "test.jsonl", rows))
    path = tmp_path / "test.jsonl"
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="gsm8k, row 1: must be an object"):
        load("gsm8k", path)


def test_rows_that_are_skipped_are_told_and_leave_the_others_their_ids(tmp_path):
    row = {**CASES["pope"][0].row, "image": "1.png"}
    (tmp_path / "1.png").write_bytes(PNG)
    rows = [row, {**row, "image": "gone.png"}, {**row, "answer": "maybe"}, row]
    path, skipped = write_jsonl(tmp_path / "test.jsonl", rows), []
    assert [item.id for item in load("pope", path, skipped=skipped)] == ["pope-1", "pope-4"]
    image, answer = skipped
    assert image.startswith("pope, row 2: 'image': the image ") and "gone.png cannot be read" in image
    assert answer == "pope, row 3: 'answer' must be yes or no, not \"maybe\""
    with pytest.raises(ValueError, match=r"no row is usable; the first one: pope, row 1: 'image': .*gone\.png"):
        load("pope", write_jsonl(tmp_path / "bad.jsonl", rows[1:3]), skipped=[])


@pytest.mark.parametrize("name", PUBLISHED)
def test_entries_say_where_they_come_from(name):
    published = PUBLISHED[name]
    assert published.hub_id.count("/") == 1
    assert all((published.rule, published.licence, published.citation, published.schema_source, published.unverified))
    assert published.rule.endswith(".") and published.unverified.endswith(".")
    assert not published.files or len(published.files) == len(published.splits)


# ------------------------------------------------------------------------------------------------ as suites


@pytest.fixture(scope="module")
def pool():
    with VerifierPool() as pool:
        yield pool


def test_a_collection_is_all_its_sets(tmp_path, pool):
    names = [each.name for each in in_suite("paper-text")]
    local = {name: write(name, tmp_path / name) for name in names}
    suite = open_suite("paper-text", pool, None, local)
    assert list(dict.fromkeys(question.source for question in suite.questions)) == names
    assert len({question.id for question in suite.questions}) == len(suite.questions)
    limited = open_suite("paper-text", pool, 1, local)
    assert [question.source for question in limited.questions] == names, "the limit is of each set"
    assert not (suite.points or suite.pairs or suite.probes or suite.best_of)


def test_a_set_is_a_suite_too(tmp_path, pool):
    path = write_jsonl(tmp_path / "test.jsonl", [BEST_OF, TIES])
    suite = open_suite("reward-bench-2", pool, None, {"reward-bench-2": path})
    assert [len(item.responses) for item in suite.best_of] == [4, 3]


def test_sets_with_images_are_suites(tmp_path, pool):
    local = {each.name: write(each.name, tmp_path / each.name) for each in in_suite("paper-vision")}
    suite = open_suite("paper-vision", pool, 1, local)
    assert [question.source for question in suite.questions] == list(local)
    assert all(question.images for question in suite.questions)
    reward = {
        "reward-bench-2": write_jsonl(tmp_path / "best.jsonl", [BEST_OF]),
        "vl-reward-bench": write_parquet(tmp_path / "pairs.parquet", [PAIR]),
    }
    suite = open_suite("paper-reward", pool, None, reward)
    assert (len(suite.best_of), suite.questions, suite.points) == (1, [], [])
    (pair,) = suite.pairs
    assert (pair.id, pair.right, pair.wrong, pair.source) == ("RLAIF-V-11", "A cat.", "A dog.", "hallucination")
    assert pair.question.count(IMAGE) == len(pair.images) == 1


def test_unknown_suites(pool):
    with pytest.raises(ValueError, match="unknown suite 'gsm9k'; did you mean 'gsm8k'"):
        open_suite("gsm9k", pool)


def test_a_copy_of_something_else(tmp_path, pool):
    with pytest.raises(ValueError, match="--local pope: gsm8k holds no such set; it holds gsm8k"):
        open_suite("gsm8k", pool, None, {"pope": tmp_path})
    with pytest.raises(ValueError, match="--local gsm8k: embedded holds no such set; it is no published set"):
        open_suite("embedded", pool, None, {"gsm8k": tmp_path})


def test_a_set_that_cannot_be_reached_says_how_to_give_a_copy(pool):
    with pytest.raises(ValueError, match=r"openai/gsm8k.*--local gsm8k="):
        open_suite("gsm8k", pool)
