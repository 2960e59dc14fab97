"""Rows with images: where they stand in the texts, what is refused, and what makes two questions one."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from data_files import USER, examples, loaded, opened, sums, tasks, write, write_parquet
from hypothesis import given
from hypothesis import strategies as st
from image_files import BAD, png

from spark_rl.config import DataConfig, SourceConfig
from spark_rl.data.check import question_key
from spark_rl.data.row_images import written_columns
from spark_rl.data.rows import RowReader
from spark_rl.images import open_image, reference
from spark_rl.prompts import Prompts
from spark_rl.types import IMAGE, Role, Task

ASKED = "How many discs are there?"
NUMBERS = "abc"
DATA_URL = f"data:image/png;base64,{base64.b64encode(png(1)).decode()}"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """`a.png`, `b.png` and `c.png` are good images."""
    monkeypatch.setenv("SPARK_RL_CACHE", str(tmp_path / "cache"))
    for seed, name in enumerate(NUMBERS):
        (tmp_path / f"{name}.png").write_bytes(png(seed))
    return tmp_path


def read(row: dict[str, Any], folder: Path, **config: Any) -> Task:
    task = RowReader(SourceConfig(path="set.jsonl"), DataConfig(**config), "set", folder).task({"answer": 1, **row}, 0)
    images = len(task.example.images)
    assert sum(m["content"].count(IMAGE) for m in task.messages) == task.example.question.count(IMAGE) == images
    return task


def refusal(row: dict[str, Any], folder: Path, **config: Any) -> str:
    with pytest.raises(ValueError) as caught:
        read(row, folder, **config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(task: Task) -> str:
    """The images of a task by their names."""
    by_content = {reference(png(seed), Path()).sha256: name for seed, name in enumerate(NUMBERS)}
    return "".join(by_content[image.sha256] for image in task.example.images)


def chat(*contents: Any) -> list[dict[str, Any]]:
    """Turns of a user and an assistant."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


# ------------------------------------------------------------------------------------------------ places


@pytest.mark.parametrize(
    ("row", "question", "found"),
    [
        ({"prompt": ASKED, "images": "a.png"}, f"{IMAGE}\n{ASKED}", "a"),
        ({"prompt": ASKED, "images": ["b.png", "a.png"]}, f"{IMAGE}\n{IMAGE}\n{ASKED}", "ba"),
        (
            {"prompt": "Is <image> as large as <image>?", "images": ["a.png", "b.png"]},
            f"Is {IMAGE} as large as {IMAGE}?",
            "ab",
        ),
        ({"prompt": "Is <image> it?", "images": ["c.png"]}, f"Is {IMAGE} it?", "c"),
        ({"prompt": f"Is {IMAGE} it?", "images": ["c.png"]}, f"{IMAGE}\nIs \ufffd it?", "c"),
        ({"prompt": ASKED, "images": ["a.png", "a.png"]}, f"{IMAGE}\n{IMAGE}\n{ASKED}", "aa"),
    ],
)
def test_images_of_a_text_stand_at_its_markers_or_first(folder, row, question, found):
    task = read(row, folder)
    assert task.example.question == question and task.messages == Prompts().question(question) and names(task) == found


@pytest.mark.parametrize("nothing", [{}, {"images": None}, {"images": []}, {"images": ""}])
def test_without_images_a_marker_is_text_and_a_character_is_no_image(folder, nothing):
    prompt = f"What does <image> mean in HTML, and {IMAGE}?"
    task = read({"prompt": prompt, "question": prompt, **nothing}, folder, system=f"Be kind. {IMAGE}")
    assert task.example.images == () and task.example.question == "What does <image> mean in HTML, and \ufffd?"
    assert task.messages == Prompts().question(task.example.question, "Be kind. \ufffd")
    assert read({"prompt": chat(f"<image>{IMAGE}")}, folder).messages == tuple(chat("<image>\ufffd"))


def test_images_of_a_chat_stand_before_the_last_users_turn_or_at_the_markers(folder):
    messages = [{"role": "system", "content": "Be brief."}, *chat("Hello.", "Hello.", ASKED)]
    task = read({"prompt": messages, "images": ["a.png"]}, folder)
    assert [m["content"] for m in task.messages] == ["Be brief.", "Hello.", "Hello.", f"{IMAGE}\n{ASKED}"]
    assert task.example.question == f"user: Hello.\n\nassistant: Hello.\n\nuser: {IMAGE}\n{ASKED}"
    task = read({"prompt": chat("See <image>.", "I see.", "And <image>?"), "images": ["a.png", "b.png"]}, folder)
    assert [m["content"] for m in task.messages] == [f"See {IMAGE}.", "I see.", f"And {IMAGE}?"] and names(task) == "ab"


@pytest.mark.parametrize(
    ("part", "column", "found"),
    [
        ({"type": "image"}, ["b.png"], "ab"),
        ({"type": "image", "image": None}, ["b.png"], "ab"),
        ({"type": "image", "image": "c.png"}, [], "ac"),
        ({"type": "image", "path": "c.png"}, [], "ac"),
        ({"type": "image", "image": {"path": "c.png"}}, [], "ac"),
        ({"type": "image", "image": {"bytes": png(2), "path": "x.png"}}, [], "ac"),
        ({"type": "image_url", "image_url": "c.png"}, [], "ac"),
        ({"type": "image_url", "image_url": {"url": "c.png", "detail": "low"}}, [], "ac"),
        ({"type": "image_url", "image_url": {"url": DATA_URL}}, [], "ab"),
    ],
)
def test_parts_of_a_message_say_where_images_stand(folder, part, column, found):
    content = [text("Is <image> "), {"type": "image", "image": "a.png"}, text(f" like {IMAGE} "), part, text("?")]
    task = read({"prompt": chat(content), "images": column}, folder)
    assert task.messages == tuple(chat(f"Is <image> {IMAGE} like \ufffd {IMAGE}?")) and names(task) == found


def test_the_column_fills_the_parts_that_have_no_image_of_their_own(folder):
    prompt = chat([{"type": "image"}, {"type": "image", "image": "c.png"}], "I see.", [{"type": "image"}, text("And?")])
    assert names(read({"prompt": prompt, "images": ["a.png", "b.png"]}, folder)) == "acb"


def test_parts_of_text_alone_are_a_text(folder):
    assert read({"prompt": chat([text("What is "), text("1+1?")])}, folder) == read({"prompt": [USER]}, folder)
    task = read({"prompt": chat([text("Is <image> it?")]), "images": "a.png"}, folder)
    assert task.messages == tuple(chat(f"Is {IMAGE} it?"))


@pytest.mark.parametrize(
    ("question", "placed"),
    [
        ("Which is larger?", f"{IMAGE}\n{IMAGE}\nWhich is larger?"),
        ("<image> or <image>?", f"{IMAGE} or {IMAGE}?"),
        ([{"type": "image"}, text(" or <image> "), {"type": "image"}], f"{IMAGE} or <image> {IMAGE}"),
    ],
)
def test_a_bare_question_of_its_own_is_about_the_same_images(folder, question, placed):
    task = read({"prompt": chat("<image><image> Say."), "question": question, "images": ["a.png", "b.png"]}, folder)
    assert task.example.question == placed and task.messages == tuple(chat(f"{IMAGE}{IMAGE} Say."))


@pytest.mark.parametrize("role", ["pointwise", "pairwise", "reflection"])
def test_ready_items_have_images_too(folder, role):
    answer = {"pointwise": "Yes", "pairwise": "A", "reflection": "5"}[role]
    task = read({"role": role, "prompt": "<image> Is it 5?", "answer": answer, "images": ["b.png"]}, folder)
    assert task.role is Role(role) and names(task) == "b"
    assert task.messages[-1]["content"].startswith(f"{IMAGE} Is it 5?")


@given(
    before=st.lists(st.text("a \n", max_size=3) | st.sampled_from(["<image>", IMAGE]), max_size=4),
    after=st.lists(st.text("a \n", max_size=3) | st.sampled_from(["<image>", IMAGE]), max_size=4),
)
def test_what_is_written_reads_back_as_the_same(tmp_path_factory, before, after):
    path = tmp_path_factory.getbasetemp() / "any.png"
    path.write_bytes(png())
    prompt, question = chat("".join(before), "", "".join(["Q", *after])), "".join(["Q", *before, *after])
    images = [reference(path, Path())] * question.count(IMAGE)
    row = json.loads(json.dumps(written_columns(prompt, question, images)))
    task = read(row, Path())
    assert task.messages == tuple(prompt) and task.example.question == question
    assert task.example.images == tuple(images)


def test_what_is_written_is_easy_to_read_where_nobody_typed_a_marker(folder):
    images = [reference("a.png", folder)]
    row = written_columns(chat(f"Is {IMAGE} it?"), f"Is {IMAGE} it?", images)
    assert row == {"prompt": chat("Is <image> it?"), "question": "Is <image> it?", "images": [images[0].path]}
    assert written_columns(chat("<image>"), "<image>", []) == {"prompt": chat("<image>"), "question": "<image>"}


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"prompt": "<image> or <image>?", "images": "a.png"},
            "the number of images is 1, and that of <image> in 'prompt' is 2; write it once",
        ),
        (
            {"prompt": "Is it <image>?", "images": ["a.png", "b.png"]},
            "the number of images is 2, and that of <image> in 'prompt' is 1",
        ),
        ({"prompt": chat("<image>", "So?", "<image>"), "images": "a.png"}, "that of <image> in 'prompt' is 2"),
        ({"prompt": ASKED, "question": "<image><image>?", "images": "a.png"}, "that of <image> in 'question' is 2"),
        ({"prompt": ASKED, "question": [{"type": "image"}]}, "is 0, and that of image parts in 'question' is 1; give"),
        (
            {"prompt": ASKED, "question": [{"type": "image", "image": "a.png"}], "images": "a.png"},
            "each as {'type': 'image'} al",
        ),
        (
            {"prompt": chat([{"type": "image"}])},
            "in the column is 0, and that of image parts without an image of their own is 1",
        ),
        (
            {"prompt": chat([{"type": "image", "image": "a.png"}]), "images": "b.png"},
            "in the column is 1, and that of image parts without an image of their own is 0",
        ),
        (
            {"prompt": chat([{"type": "video"}])},
            "a part of a message that is neither {'type': 'text', 'text': ...} nor {'type': 'image'}",
        ),
        ({"prompt": chat([{"type": "text"}])}, "has a part of a message that is neither"),
        ({"prompt": chat(["<image>"])}, "has a part of a message that is neither"),
        (
            {"prompt": [{"role": "system", "content": "<image>"}, USER], "images": "a.png"},
            "has an image in its system message",
        ),
        ({"prompt": ASKED, "question": 5}, "'question' must be text or parts of a message, not 5"),
        ({"prompt": ASKED, "images": 5}, "an image must be a path, bytes, a mapping of 'bytes' or 'path', or"),
        ({"prompt": ASKED, "images": ["a.png", None]}, "an image must be a path"),
        ({"prompt": ASKED, "images": {"no": "path"}}, "an image must be a path"),
        ({"prompt": ASKED, "images": "d.png"}, "d.png cannot be read (No such file or directory); check the path"),
        (
            {"prompt": ASKED, "images": "https://example.org/a.png"},
            "give a file (or, for a run, set data.allow_image_urls=true)",
        ),
        ({"prompt": "", "images": "a.png"}, "'prompt' is empty"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_bad_row_is_one_sentence(folder, row, words):
    assert words in refusal(row, folder)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused_or_counted(folder, name):
    (folder / name).write_bytes(BAD[name][0])
    rows = [{"prompt": ASKED, "answer": 1, "images": [each]} for each in ("a.png", name, name)]
    path = write(folder, *rows)
    with pytest.raises(ValueError) as caught:
        loaded(path)
    assert str(caught.value).startswith(f"{path}, row 2: the image {folder / name} {BAD[name][1]}")
    assert str(caught.value).endswith(" (or leave such rows out: data.bad_rows=skip)")
    data = loaded(path, bad_rows="skip")
    assert data.report["train"][0]["skipped"] == {"bad_image": 2} and data.train.num_rows == 1


def test_the_place_of_the_first_image_that_is_asked_about_is_known(folder):
    """A model that takes none is not refused for what is left out."""
    good, pictured = {"prompt": ASKED, "answer": 1}, {"prompt": ASKED, "answer": 1, "images": "a.png"}
    path = write(folder, good, "", {**pictured, "answer": "}{"}, {**pictured, "id": "set-1"}, good)
    data = loaded(path, bad_rows="skip")
    assert data.train.num_rows == 2 and data.with_images is None
    data.refuse_images()
    other = write(folder, *sums(2), pictured, pictured, name="other.jsonl")
    for data in (loaded(path, other, bad_rows="skip"), loaded(path, validation=[other], bad_rows="skip")):
        assert data.with_images == f"{other}, row 3"
        with pytest.raises(ValueError, match=r"other\.jsonl, row 3: has images, and the model takes none; name"):
            data.refuse_images()


def test_a_wrong_number_of_markers_is_a_bad_row_and_not_a_bad_image(folder):
    rows = [{"prompt": f"{marker} {ASKED}", "answer": 1, "images": ["a.png"]} for marker in ("", "<image><image>")]
    assert loaded(write(folder, *rows), bad_rows="skip").report["train"][0]["skipped"] == {"bad_row": 1}


def test_an_image_that_is_changed_during_a_run_is_named(folder):
    path = write(folder, {"prompt": ASKED, "answer": 1, "images": "a.png"})
    data = loaded(path)
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.png is empty; .* it was good when the run began") as caught:
        data.train.draw(1)
    assert str(caught.value).startswith(f"{path}, row 1: ")


# ------------------------------------------------------------------------------------------------ sources


def test_paths_are_relative_to_the_file_or_to_the_folder_that_the_config_names(folder, monkeypatch):
    monkeypatch.chdir("/")
    row = {"prompt": ASKED, "answer": 1, "images": ["a.png"]}
    (folder / "data").mkdir()
    (folder / "data" / "set.csv").write_text(f"prompt,answer,images\n{ASKED},1,../a.png\n")
    (folder / "data" / "set.json").write_text(json.dumps([{**row, "images": "../a.png"}]))
    found = [
        *examples(write(folder, row)),
        *examples(str(folder / "data" / "set.csv")),
        *examples(str(folder / "data" / "set.json")),
        *examples(write_parquet(folder / "set.parquet", [row])),
        *examples(write(folder / "data", row), image_folder=folder),
    ]
    assert {example.images for example in found} == {(reference("a.png", folder),)}
    with pytest.raises(ValueError, match=r"/data/a\.png cannot be read"):
        examples(write(folder / "data", row))


def test_a_column_image_is_read_unless_the_config_says_otherwise(folder):
    row = {"prompt": ASKED, "image": "a.png"}
    assert names(read(row, folder)) == "a"
    assert refusal({**row, "images": ["b.png"]}, folder) == "has both 'images' and 'image'; keep one"
    assert [names(read({**row, "images": same}, folder)) for same in (["a.png"], [], None)] == ["a"] * 3
    assert names(read({**row, "photo": "c.png"}, folder, columns={"images": "photo"})) == "c"
    assert names(read(row, folder, columns={"images": "photo"})) == names(read({**row, "image": None}, folder)) == ""


@pytest.mark.parametrize("column", ["image", "images"])
def test_a_function_of_yours_gets_no_bytes_of_images(folder, column):
    """Checkpoints would keep them with the question, as text."""
    task = read({"prompt": ASKED, column: {"bytes": png()}, "level": 3}, folder, verifier="graders:mine")
    assert task.example.metadata == {"level": 3} and names(task) == "a"


def test_the_column_of_images_has_any_name(folder):
    path = write(folder, {"prompt": ASKED, "answer": 1, "extra": {"pictures": ["a.png"]}})
    columns = {"images": "extra.pictures"}
    (example,) = examples(path, columns=columns)
    assert example.images == (reference("a.png", folder),)
    assert examples(SourceConfig(path=path, columns=columns)) == [example]


IMAGE_ROWS = [
    {"prompt": ASKED, "answer": "1", "images": {"bytes": png(0), "path": None}},
    {"prompt": ASKED, "answer": "2", "images": {"bytes": png(1), "path": "b.png"}},
]


def test_parquet_holds_bytes(folder):
    path = write_parquet(folder / "set.parquet", IMAGE_ROWS)
    assert list(map(names, tasks(opened(path)))) == ["a", "b"]
    lists = [{**row, "images": [row["images"], IMAGE_ROWS[0]["images"]]} for row in IMAGE_ROWS]
    assert list(map(names, tasks(opened(write_parquet(folder / "lists.parquet", lists))))) == ["aa", "ba"]


@pytest.mark.parametrize("nested", ["column", "list", "parts"])
def test_images_of_the_hub_are_not_decoded_to_be_read(hub, folder, monkeypatch, nested):
    import datasets

    def of(seed: int) -> dict[str, Any]:
        image = {"bytes": png(seed), "path": None}
        if nested == "parts":
            return {"prompt": chat([{"type": "image", "image": image, "text": None}, {**text(ASKED), "image": None}])}
        return {"prompt": ASKED, "images": [image] if nested == "list" else image}

    rows = [{**of(seed), "answer": seed} for seed in range(2)]
    string, one = datasets.Value("string"), datasets.Image()
    part = {"type": string, "text": string, "image": one}
    columns = {
        "column": {"prompt": string, "images": one},
        "list": {"prompt": string, "images": datasets.List(one)},
        "parts": {"prompt": datasets.List({"role": string, "content": datasets.List(part)})},
    }
    features = datasets.Features({**columns[nested], "answer": datasets.Value("int64")})
    (hub / "owner/discs").mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(hub / "owner/discs/train.parquet")
    monkeypatch.setattr(datasets.Image, "decode_example", None)
    for path in ("owner/discs", str(hub / "owner/discs/train.parquet")):
        assert list(map(names, tasks(opened(path)))) == ["a", "b"]


def test_reading_a_row_again_costs_no_decoding(folder, monkeypatch):
    path, stored = (
        write(folder, {"prompt": ASKED, "answer": 1, "images": "a.png"}),
        write_parquet(folder / "set.parquet", IMAGE_ROWS),
    )
    sources = opened(path, stored)
    first = tasks(sources)
    for place in ("read", "cache"):
        monkeypatch.setattr(f"spark_rl.images.{place}.decoded", None)
    assert tasks(sources) == first


# ------------------------------------------------------------------------------------------------ sameness


def test_a_question_is_its_text_and_its_images(folder):
    def key(**row: Any) -> int:
        return question_key(read(row, folder))

    same = [
        key(prompt=ASKED, images="a.png"),
        key(prompt=f"{ASKED.upper()} <image>", images=["a.png"]),
        key(prompt=chat([{"type": "image", "image": png(0)}, text(ASKED)])),
        key(prompt=chat([{"type": "image", "image": "a.png"}, text(Prompts().question(ASKED)[0]["content"])])),
    ]
    others = [
        key(prompt=ASKED),
        key(prompt=ASKED, images="b.png"),
        key(prompt=ASKED, images=["a.png", "a.png"]),
        key(prompt=ASKED, images=["a.png", "b.png"]),
        key(prompt=ASKED, images=["b.png", "a.png"]),
        key(prompt="How many squares?", images="a.png"),
    ]
    assert len(set(same)) == 1 and len({*same, *others}) == 1 + len(others)


def test_training_leaves_out_what_is_held_out_with_the_same_image(folder):
    rows = [{"prompt": ASKED, "answer": 1, "images": [f"{name}.png"]} for name in "abc"]
    (folder / "held").mkdir()
    (folder / "held" / "copy.png").write_bytes(png(1))
    held = write(folder / "held", {"prompt": chat(f"{ASKED} <image>"), "answer": 1, "images": "copy.png"})
    data = loaded(write(folder, *rows), validation=held)
    assert data.report["train"][0]["skipped"] == {"held_out": 1}
    assert sorted(map(names, data.train.draw(2)[0])) == ["a", "c"]


def test_the_fingerprint_hangs_on_the_images_and_not_on_their_place(folder):
    def fingerprint(**row: Any) -> str:
        path = write(folder, {"id": "1", "prompt": ASKED, "answer": 1, **row})
        (report,) = loaded(path, check_golds=False).report["train"]
        return report["fingerprint"]

    first = fingerprint(images="a.png")
    (folder / "moved.png").write_bytes(png(0))
    assert fingerprint(images=["moved.png"]) == first
    assert len({first, fingerprint(images="b.png"), fingerprint(images=["a.png", "b.png"]), fingerprint()}) == 4
    (folder / "a.png").write_bytes(png(2))
    os.utime(folder / "a.png", ns=(1, 1))
    assert fingerprint(images="a.png") != first


def test_the_picture_behind_a_row_is_the_one_that_was_given(folder):
    (task,) = tasks(opened(write(folder, {"prompt": ASKED, "answer": 1, "images": "b.png"})))
    assert open_image(task.example.images[0]).size == (50, 40)
