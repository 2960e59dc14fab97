"""`judge` and `solve` with images, through the real command and a tiny vision-language model."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from factories import lines, read_rows
from vision import picture, save_vision_model
from warm import PYTHON


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    save_vision_model("qwen2_5_vl", folder / "model")
    for seed in (1, 2):
        picture(seed).save(folder / f"{seed}.png")
    rows = [
        {"question": "How many?", "response": "3", "images": ["1.png"]},
        {"question": "<image> or <image>?", "a": "3", "b": "4", "images": ["1.png", "2.png"]},
        {"question": "What is <image>?", "response": "3"},
    ]
    (folder / "judge.jsonl").write_text(lines(rows))
    (folder / "solve.jsonl").write_text(
        lines([{"prompt": row["question"], "images": row.get("images", [])} for row in rows])
    )
    return folder


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [*PYTHON, "-m", "spark_rl.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.mark.parametrize("verb", ["judge", "solve"])
def test_rows_with_images(folder, tmp_path, verb):
    """Paths begin at the rows' file, wherever the command is called."""
    out = tmp_path / "out.jsonl"
    done = call(
        verb,
        str(folder / "model"),
        str(folder / f"{verb}.jsonl"),
        "--out",
        str(out),
        "--max-new-tokens=4",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert [row.get("images", []) for row in read_rows(out)] == [["1.png"], ["1.png", "2.png"], []]


@pytest.mark.parametrize("verb", ["judge", "solve", "eval"])
def test_a_picture_in_the_column_image_is_not_overlooked(folder, tmp_path, verb):
    """A model that takes no images says so, where it would answer unseeing if the column were not read."""
    asked = {"prompt": "How many?"} if verb == "solve" else {"question": "How many?", "response": "3", "right": True}
    rows = folder / f"{verb}-image.jsonl"
    rows.write_text(lines([{**asked, "image": "1.png"}]))
    file = ["--suite", str(rows), "engine.max_new_tokens=8"] if verb == "eval" else [str(rows), "--max-new-tokens=8"]
    done = call(verb, "embedded", *file, "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 2 and ("takes no images" in done.stderr or "takes none" in done.stderr), done.stderr


def test_one_question_about_a_picture(folder):
    about = ["--question", "How many?", "--image", "1.png", "--json", "--max-new-tokens=8"]
    words = []
    for image in ("1.png", "2.png"):
        about[3] = image
        done = call("solve", "model", *about, cwd=folder)
        assert done.returncode == 0, done.stderr
        words.append(json.loads(done.stdout)["text"])
    assert words[0] != words[1]
    done = call("judge", "model", *about, "--response", "3", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_an_evaluation_may_leave_out_what_cannot_be_seen(folder, tmp_path):
    """Of a file and of a published set; how many is said, and stands in the results and in the report."""
    rows = [{"question": "How many?", "right": "3", "wrong": "4", "images": f"{name}.png"} for name in (1, "gone", 2)]
    (folder / "mine.jsonl").write_text(lines(rows))
    asked = [{"question": "A cat?", "answer": "yes", "image": f"{name}.png"} for name in (1, "gone", "gone")]
    (folder / "pope.jsonl").write_text(lines(asked))
    for suite, source, bad in ((["mine.jsonl"], "mine.jsonl", 1), (["pope", "--local", "pope=pope.jsonl"], "pope", 2)):
        out = tmp_path / source
        command = ["eval", "model", "--suite", *suite, "--strategies", "greedy", "--out", str(out)]
        refused = call(*command, "engine.max_new_tokens=4", cwd=folder)
        assert refused.returncode == 2 and "row 2" in refused.stderr and "--skip-bad" in refused.stderr
        done = call(*command, "--skip-bad", "engine.max_new_tokens=4", cwd=folder)
        assert done.returncode == 0, done.stderr
        said, _ = done.stderr.splitlines()
        assert said.startswith(f"rows of {source} that are left out: {bad}; the first one: ") and "gone.png" in said
        assert json.loads((out / "results.json").read_text())["skipped"] == {source: bad}
        assert f"- rows of `{source}` left out: {bad}" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["judge", "model", "--question", "q", "--response", "r", "--image", "gone.png"], "gone.png"),
        (["judge", "embedded", "--question", "q", "--response", "r", "--image", "1.png"], "takes no images"),
        (["solve", "embedded", "--question", "q", "--image", "1.png"], "takes no images"),
        (["solve", "model", "--question", "q", "--image", "1.png", "2.png"], "give one --image for each picture"),
        (
            ["judge", "model", "--question", "q", "--image", "1.png", "2.png", "3.png"],
            "give one --image for each picture",
        ),
        (
            ["judge", "model", "--question", "q", "--response", "r", "--image", "http://x/a.png"],
            "spark-rl: the image http://x/a.png is an address, and none is fetched; give a file (or, for a run, set "
            "data.allow_image_urls=true)\n",
        ),
        (["solve", "embedded", "solve.jsonl", "--image", "1.png"], "--image belongs to --question"),
    ],
)
def test_mistakes_are_one_sentence(folder, arguments, sentence):
    done = call(*arguments, cwd=folder)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
