"""`spark-rl data convert`: files in, files out, and nothing half-written.

The schemas of the rows are those of `tests/data/test_convert.py`, which cites where they are published.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pytest

from spark_rl.cli.image_folder import ImageFolder
from spark_rl.cli.rows import Output
from spark_rl.config import DataConfig, SourceConfig
from spark_rl.data.sources import open_sources
from spark_rl.jsonl import MAX_ROW_BYTES
from spark_rl.types import IMAGE


def png() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


PNG = png()
OTHER = PNG + b"more"


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    monkeypatch.chdir(tmp_path)


def spark(path: str = "file:///data/ViRL39K/images/a.png", answer: str = "$3$") -> dict[str, str]:
    content = [{"type": "image", "image": path}, {"type": "text", "text": "How long is AB?"}]
    return {"message": json.dumps([{"role": "user", "content": content}]), "answer": answer}


def geometry(*images: bytes, problem: str = "<image>Find x.") -> dict[str, Any]:
    return {"images": [{"bytes": each, "path": None} for each in images], "problem": problem, "answer": "3"}


def write_json(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As the Hub holds it: the column of images is typed as such."""
    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
    dataset.to_parquet(path)
    return path


def write_image(path: Path, content: bytes = PNG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".cache"}


def test_paths_are_looked_for_from_the_input(tmp_path, spark_rl):
    """Those of another machine by their end; they come out relative to the output where they lie below it."""
    write_image(tmp_path / "in" / "images" / "a.png")
    source = write_json(tmp_path / "in" / "infer_data_ViRL_19k.json", [spark()])
    done = spark_rl("data", "convert", source, tmp_path / "out.jsonl")
    assert (done.code, done.out, done.err) == (0, "", "1 row of 1 (spark)\n")
    assert read(tmp_path / "out.jsonl") == [
        {
            "id": "infer_data_ViRL_19k-1",
            "prompt": "<image>\nHow long is AB?",
            "answer": "3",
            "images": ["in/images/a.png"],
            "source": "infer_data_ViRL_19k",
        }
    ]
    (tmp_path / "elsewhere").mkdir()
    spark_rl("data", "convert", "in/infer_data_ViRL_19k.json", "elsewhere/out.jsonl")
    assert read(tmp_path / "elsewhere" / "out.jsonl")[0]["images"] == [str(tmp_path / "in" / "images" / "a.png")]


def test_bytes_become_files(tmp_path, spark_rl):
    """Each once; and shards are read together."""
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [geometry(PNG), geometry(PNG, OTHER, problem="Which?")])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [geometry(PNG)])
    done = spark_rl("data", "convert", "train-*.parquet", "out.jsonl")
    assert (done.code, done.err) == (0, "3 rows of 3 (easyr1), 2 images written to out_images\n")
    rows = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == [f"train-0000{i}-of-00002-{n}" for i, n in ((0, 1), (0, 2), (1, 1))]
    assert [[(tmp_path / image).read_bytes() for image in row["images"]] for row in rows] == [
        [PNG],
        [PNG, OTHER],
        [PNG],
    ]
    assert all(image.startswith("out_images/") and image.endswith(".png") for row in rows for image in row["images"])
    assert visible(tmp_path / "out_images") == {Path(image).name for row in rows for image in row["images"]}
    assert not [name for name in visible(tmp_path) if name.startswith(".")]


def test_what_comes_out_trains(tmp_path, spark_rl):
    write_parquet(
        tmp_path / "a.parquet", [geometry(PNG), geometry(PNG, PNG, problem="Which?"), geometry(problem="1+1?")]
    )
    assert spark_rl("data", "convert", "a.parquet", "out.jsonl").code == 0
    (source,) = open_sources([SourceConfig(path="out.jsonl")], DataConfig(), set(), held_out=False)
    examples = [source.task(index).example for index in range(source.num_rows)]
    assert [example.question for example in examples] == [f"{IMAGE}Find x.", f"{IMAGE}\n{IMAGE}\nWhich?", "1+1?"]
    assert [[Path(image.path).read_bytes() for image in each.images] for each in examples] == [[PNG], [PNG] * 2, []]
    assert [(example.answer, example.verifier) for example in examples] == [("3", "math")] * 3


def test_files_of_one_name_share_no_id(tmp_path, spark_rl):
    for folder in ("algebra", "geometry"):
        (tmp_path / folder).mkdir()
        write_parquet(tmp_path / folder / "train.parquet", [geometry(PNG, problem=f"<image>{folder}?")])
    assert spark_rl("data", "convert", "*/train.parquet", "out.jsonl").code == 0
    rows = [(row["id"], row["source"], row["prompt"]) for row in read(tmp_path / "out.jsonl")]
    assert rows == [("train-1", "train", "<image>algebra?"), ("train~2-1", "train~2", "<image>geometry?")]


def test_images_may_join_a_folder_that_is_there(tmp_path, spark_rl):
    write_image(tmp_path / "pictures" / "mine.png")
    write_parquet(tmp_path / "a.parquet", [geometry(PNG)])
    for name in ("out.jsonl", "again.jsonl"):
        assert spark_rl("data", "convert", "a.parquet", name, "--images", "pictures").code == 0
    assert len(visible(tmp_path / "pictures")) == 2
    assert visible(tmp_path) == {"a.parquet", "out.jsonl", "again.jsonl", "pictures"}


def test_the_folders_of_the_output_are_made(tmp_path, spark_rl):
    write_parquet(tmp_path / "a.parquet", [geometry(PNG)])
    assert spark_rl("data", "convert", "a.parquet", "to/here/out.jsonl", "--images", "and/pictures").code == 0
    (row,) = read(tmp_path / "to" / "here" / "out.jsonl")
    assert [Path(image).read_bytes() for image in row["images"]] == [PNG]


def test_rows_that_are_left_out_are_counted_with_an_example(tmp_path, spark_rl):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "cut.png", PNG[:45])
    write_image(tmp_path / "pointer.png", b"version https://git-lfs.github.com/spec/v1")
    row = {"qid": "1", "question": "<image>Which?", "answer": r"\boxed{B}", "image": ["a.png"]}
    rows = [
        {**row, "image": ["b.png"]},
        row,
        {**row, "image": ["c.png"]},
        {**row, "image": ["pointer.png"]},
        {**row, "answer": ""},
        {**row, "image": ["cut.png"]},
        [],
    ]
    source = write_jsonl(tmp_path / "virl.jsonl", rows)
    source.write_text(source.read_text() + "{\n" + json.dumps({**row, "question": "x" * MAX_ROW_BYTES}) + "\n")
    done = spark_rl("data", "convert", "virl.jsonl", "out.jsonl", "--json")
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert (report["format"], report["rows"], report["images_written"]) == ("virl39k", 1, 0)
    counted = {each["reason"]: (each["rows"], each["first"]) for each in report["left_out"]}
    assert counted["an image that is not there"] == (2, "virl.jsonl, row 1: b.png")
    count, first = counted["an image that cannot be used"]
    assert count == 2 and first.startswith(f"virl.jsonl, row 4: the image {tmp_path / 'pointer.png'} is no image")
    assert counted["no 'answer'"] == (1, "virl.jsonl, row 5")
    assert counted["text that is no row"][0] == 3
    done = spark_rl("data", "convert", "virl.jsonl", "again.jsonl")
    assert done.out == ""
    assert done.err.startswith("1 row of 9 (virl39k); 8 left out: 3 with text that is no row (first virl.jsonl, row 7")
    assert "2 with an image that is not there (first virl.jsonl, row 1: b.png)" in done.err
    assert read(tmp_path / "out.jsonl") == [
        {
            "id": "1",
            "prompt": "<image>Which?",
            "answer": "B",
            "images": ["a.png"],
            "source": "virl",
            "verifier": "choice",
        }
    ]


BAD: list[tuple[list[str], str]] = [
    (["none.json", "out.jsonl"], "none.json: cannot be read"),
    (["rows.json", "out.json"], "out.json: rows are written as JSON lines; name a file that ends with .jsonl"),
    (["rows.json", "out.jsonl", "--format", "trl"], "--format trl: is none; known are spark, virl39k, easyr1, verl"),
    (["rows.json", "rows.json/no/out.jsonl"], "rows.json/no/out.jsonl: cannot be written (Not a directory)"),
    (["cut.parquet", "out.jsonl"], "cut.parquet: no row could be converted as easyr1: 1 with an image that cannot be"),
    (["rows.json", "out.jsonl", "--format", "verl"], "rows.json: no row could be converted as verl: 1 with"),
    (["other.jsonl", "out.jsonl"], "other.jsonl: cannot tell its format from the columns prompt, gold; name it"),
    (["other.jsonl", "./other.jsonl"], "other.jsonl: is there already; name another file"),
    (["lists.jsonl", "out.jsonl"], "lists.jsonl: cannot tell its format from rows that are no objects"),
    (["bytes.parquet", "out.jsonl", "--images", "rows.json"], "--images rows.json: is a file; name a folder"),
    (["bytes.parquet", "out.jsonl", "--images", "rows.json/no"], "--images rows.json/no: cannot be written"),
    (["nothing.jsonl", "out.jsonl"], "nothing.jsonl: holds no rows"),
]


@pytest.mark.parametrize(("arguments", "reason"), BAD)
def test_mistakes_are_one_sentence_and_leave_nothing(arguments, reason, tmp_path, spark_rl):
    write_image(tmp_path / "images" / "a.png")
    write_json(tmp_path / "rows.json", [spark()])
    write_jsonl(tmp_path / "other.jsonl", [{"prompt": "What?", "gold": 3}])
    write_jsonl(tmp_path / "lists.jsonl", [[1]])
    write_jsonl(tmp_path / "nothing.jsonl", [])
    write_parquet(tmp_path / "bytes.parquet", [geometry(PNG)])
    write_parquet(tmp_path / "cut.parquet", [geometry(PNG[:45])])
    before = visible(tmp_path)
    done = spark_rl("data", "convert", *arguments)
    assert done.code == 2 and done.out == ""
    assert done.err.startswith(f"spark-rl: {reason}") and done.err.count("\n") == 1
    assert visible(tmp_path) == before


@pytest.mark.parametrize("is_there", [False, True])
def test_images_go_if_the_rows_cannot_be_written(is_there, tmp_path):
    """The last thing that can fail is the renaming of the rows."""
    folder = tmp_path / "pictures"
    if is_there:
        write_image(folder / "mine.png")
    with (
        pytest.raises(ValueError, match="cannot be written"),
        ImageFolder(folder, tmp_path) as images,
        Output(tmp_path / "out.jsonl", None, option="") as output,
    ):
        output.write({"images": [images.path_of(PNG, tmp_path)]})
        images.publish()
        assert len(visible(folder)) == 1 + is_there
        (tmp_path / "out.jsonl").mkdir()
    assert visible(tmp_path) == {"out.jsonl", *(["pictures"] if is_there else [])}
    assert not is_there or visible(folder) == {"mine.png"}


def test_an_interrupt_leaves_what_was_there(tmp_path):
    count = 3000
    write_parquet(tmp_path / "rows.parquet", [geometry(PNG + bytes(str(i), "ascii")) for i in range(count)])
    command = [sys.executable, "-m", "spark_rl.cli", "data", "convert", "rows.parquet", "out.jsonl"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / ".cache"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".out_images.*")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "interrupted" in said and "Traceback" not in said
    assert visible(tmp_path) == {"rows.parquet"}
