r"""Rows in the published schemas, written by hand: they prove how such a row is read, not that the data still has it.

spark    after InternLM/Spark README.md and Lmm_XC (LMM-R1's format), whose instruction the README prints
virl39k  after the card of TIGER-Lab/ViRL39K
easyr1   after the card of hiyouga/geometry3k, which hiyouga/EasyR1 trains on
verl     after volcengine/verl examples/data_preprocess/geo3k.py
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from spark_rl.data.convert import FORMATS, Unusable, detect, picture
from spark_rl.data.rows import MAX_PROMPT_CHARS
from spark_rl.types import IMAGE

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 20
USER = {"role": "user"}
ASKED = r" Please first conduct reasoning, and then answer the question. Repeat the final answer using a '\boxed{}'."


def spark(*parts: Any, answer: str = "$3$") -> dict[str, Any]:
    return {"message": json.dumps([{**USER, "content": list(parts)}]), "answer": answer}


def image(path: str = "file:///data/ViRL39K/images/a%20b.png") -> dict[str, str]:
    return {"type": "image", "image": path}


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


SPARK = spark(image(), text("How long is AB?" + ASKED))
VIRL = {
    "question": "<image>Which one?\nA. 1\nB. 2",
    "answer": r"\boxed{B}",
    "PassRate_32BTrained": 0.5,
    "category": "(GradeSchool) Geometric",
    "source": "Processed",
    "qid": "Processed-1-0",
    "image": ["images/Processed-1-0.jpg"],
}
EASYR1 = {"images": [{"bytes": PNG, "path": None}], "problem": "<image>Find x.", "answer": r"\frac{1}{2}"}
VERL = {
    "data_source": "hiyouga/geometry3k",
    "prompt": [{**USER, "content": r"<image>Find x. The final answer MUST BE put in \boxed{}."}],
    "images": [{"bytes": PNG}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "3"},
    "extra_info": {"split": "train", "index": 0, "answer": "3", "question": "<image>Find x."},
}
ROWS = {"spark": SPARK, "virl39k": VIRL, "easyr1": EASYR1, "verl": VERL}


def converted(format: str, row: dict[str, Any]) -> dict[str, Any]:
    question = FORMATS[format].question(row)
    return question.row("set-1", "set", [str(each) for each in question.images])


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_known_by_its_columns(name):
    assert detect(ROWS[name]) == name


def test_other_columns_are_no_format():
    assert detect(["prompt", "answer"]) is None and detect([]) is None


def test_spark():
    assert converted("spark", SPARK) == {
        "id": "set-1",
        "prompt": "<image>\nHow long is AB?",
        "answer": "3",
        "images": ["/data/ViRL39K/images/a b.png"],
        "source": "set",
    }


def test_virl39k():
    assert converted("virl39k", VIRL) == {
        "id": "Processed-1-0",
        "prompt": VIRL["question"],
        "answer": "B",
        "images": ["images/Processed-1-0.jpg"],
        "source": "Processed",
        "verifier": "choice",
    }


def test_easyr1():
    question = FORMATS["easyr1"].question(EASYR1)
    assert (question.prompt, question.answer, question.images) == ("<image>Find x.", r"\frac{1}{2}", (PNG,))
    plain = FORMATS["easyr1"].question({"problem": "What is 1+1?", "answer": 2})
    assert (plain.prompt, plain.answer, plain.images) == ("What is 1+1?", "2", ())


def test_verl():
    question = FORMATS["verl"].question(VERL)
    assert question.prompt == VERL["prompt"], "its own instruction asks for the box"
    assert (question.answer, question.images, question.source) == ("3", (PNG,), "hiyouga/geometry3k")
    bare = FORMATS["verl"].question({**VERL, "prompt": [{**USER, "content": "<image>Find x."}]})
    assert bare.prompt == "<image>Find x."
    system = {"role": "system", "content": "Think."}
    assert isinstance(FORMATS["verl"].question({**VERL, "prompt": [system, *VERL["prompt"]]}).prompt, list)


@pytest.mark.parametrize("written", [ASKED, ASKED.replace("\\b", "\\\\b"), ASKED.replace("\\b", "\b"), ASKED + "\n"])
def test_the_instruction_of_spark_is_taken_off(written):
    assert converted("spark", spark(image(), text("How long?" + written)))["prompt"] == "<image>\nHow long?"
    within = f"Say{written} twice."
    assert str(converted("spark", spark(image(), text(within)))["prompt"]).find("conduct reasoning") > 0


@pytest.mark.parametrize(
    ("parts", "prompt"),
    [
        ((text("Is "), image(), text("larger than "), image("b.png"), text("?")), "Is <image>\nlarger than <image>\n?"),
        ((image(), image("b.png"), text("<image> or <image>?")), "<image> or <image>?"),
        ((text("One word."),), "One word."),
    ],
)
def test_markers_stand_where_the_images_stood(parts, prompt):
    assert converted("spark", spark(*parts))["prompt"] == prompt


def test_images_without_a_marker_come_first():
    row = {**VIRL, "question": "Which?", "image": ["a.png", "b.png"]}
    assert converted("virl39k", row)["prompt"] == "<image>\n<image>\nWhich?"
    turns = [{"role": "system", "content": "Think."}, {**USER, "content": "Which?"}]
    assert converted("verl", {**VERL, "prompt": turns})["prompt"][1]["content"] == "<image>\nWhich?"


def test_what_stands_for_an_image_elsewhere_is_no_image():
    assert IMAGE not in converted("virl39k", {**VIRL, "question": f"<image>{IMAGE}?"})["prompt"]


@pytest.mark.parametrize(
    ("given", "gold"),
    [
        ("$3$", "3"),
        ("$$3$$", "3"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"$\boxed{x}$", "x"),
        (r"$x$ and $y$", r"$x$ and $y$"),
        (r"\$5", r"\$5"),
    ],
)
def test_answers_are_bare(given, gold):
    assert converted("virl39k", {**VIRL, "answer": given})["answer"] == gold


@pytest.mark.parametrize(("gold", "rule"), [("B", "choice"), ("(B)", "choice"), ("Yes", "choice"), ("no", "choice")])
def test_options_are_not_mathematics(gold, rule):
    assert converted("virl39k", {**VIRL, "answer": gold})["verifier"] == rule


@pytest.mark.parametrize("gold", ["x", "AB", "3", "A+B"])
def test_other_answers_are(gold):
    assert "verifier" not in converted("virl39k", {**VIRL, "answer": gold})


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("spark", {"message": "[{", "answer": "3"}, "a 'message' that is no JSON", "[{"),
    ("spark", {"message": "[]", "answer": "3"}, "a 'message' that holds no chat messages", "[]"),
    ("spark", {"message": "3", "answer": "3"}, "a 'message' that holds no chat messages", "3"),
    ("spark", {"answer": "3"}, "no 'message'", ""),
    ("spark", spark(image(), text("Q?"), answer=" "), "no 'answer'", ""),
    ("spark", spark({"type": "video"}), "parts of messages that are neither text nor image", "video"),
    ("spark", {"message": json.dumps([{**USER, "content": 3}]), "answer": "3"}, "messages without content", "3"),
    ("spark", spark(image(), text("<image> <image>")), "another number of images than of <image>", "1 and 2"),
    ("virl39k", {**VIRL, "question": None}, "no 'question'", ""),
    ("virl39k", {**VIRL, "answer": [1]}, "'answer' that is no text", "[1]"),
    ("virl39k", {**VIRL, "answer": r"\boxed{3"}, "an answer whose box has no end", "3"),
    ("virl39k", {**VIRL, "image": []}, "another number of images than of <image>", "0 and 1"),
    ("virl39k", {**VIRL, "image": [7]}, "an image that is neither path nor bytes", "7"),
    ("virl39k", {**VIRL, "image": ["https://x/a.png"]}, "an image that is an address", "https://x/a.png"),
    ("virl39k", {**VIRL, "question": "x" * (MAX_PROMPT_CHARS + 1)}, "a prompt that is too long", "characters"),
    ("verl", {**VERL, "reward_model": None}, "no 'reward_model'", ""),
    ("verl", {**VERL, "reward_model": {"style": "rule"}}, "no 'ground_truth'", ""),
    ("verl", {**VERL, "prompt": "Find x."}, "a 'prompt' that holds no chat messages", "Find x."),
    (
        "verl",
        {**VERL, "prompt": [*VERL["prompt"], {"role": "assistant", "content": "3"}]},
        "messages that do not end with a user's turn",
        "assistant",
    ),
]


@pytest.mark.parametrize(("name", "row", "kind", "detail"), BAD)
def test_rows_that_cannot_be_converted(name, row, kind, detail):
    with pytest.raises(Unusable) as caught:
        FORMATS[name].question(row)
    assert caught.value.kind == kind
    assert detail in caught.value.detail


def test_pictures():
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert {picture(each) for each in (url, PNG, {"bytes": PNG, "path": "a.png"}, {"image": url})} == {PNG}
    assert [picture(each) for each in ("a.png", {"bytes": None, "path": "a.png"}, "file:///a.png")] == [
        "a.png",
        "a.png",
        "/a.png",
    ]
    with pytest.raises(Unusable, match="a data URL that cannot be decoded"):
        picture("data:image/png;base64,?")
