import json

import pytest
from data_files import loaded, sums, write, write_parquet
from image_files import png

from spark_rl.config import SourceConfig
from spark_rl.prompts import Prompts
from spark_rl.types import Role


def refusal(*sources, **settings) -> str:
    with pytest.raises(ValueError) as caught:
        loaded(*sources, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_training_leaves_out_what_is_held_out(tmp_path):
    path = write(tmp_path, *sums(6))
    validation = write(tmp_path, *sums(1, start=2), name="validation.jsonl")
    monitor = write(tmp_path, {"prompt": [{"role": "user", "content": "What is 4+1?"}], "answer": 5}, name="m.jsonl")
    data = loaded(path, validation=validation, monitor=monitor)
    assert [task.example.question for task in data.validation + data.monitor] == ["What is 2+1?", "What is 4+1?"]
    drawn, _ = data.train.draw(4)
    assert sorted(task.example.question for task in drawn) == [f"What is {i}+1?" for i in (0, 1, 3, 5)]
    assert data.train.num_rows == 4
    assert [data.report[part][0]["skipped"] for part in ("train", "validation", "monitor")] == [{"held_out": 2}, {}, {}]
    assert data.report["train"][0].keys() == {"source", "rows", "skipped", "fingerprint"}
    assert [m.partition(";")[0] for m in data.messages] == [
        f"2 of the 6 rows of {path} are left out of training (held out)"
    ]
    json.dumps(data.report)


PICTURES = [{**row, "prompt": f"<image>{row['prompt']}", "picture": "0.png"} for row in sums(3)]


@pytest.mark.parametrize("field", ["images", "verifier", "source"])
def test_a_column_that_no_row_has_is_refused(tmp_path, field):
    path, there = write(tmp_path, *PICTURES), "columns there: prompt, answer, picture; name one of them"
    said = f"no row has the column 'pictur', which is to hold the {field}; {there}"
    assert refusal(path, columns={field: "pictur"}) == f"data.columns: {said}"
    assert refusal(SourceConfig(path=path, columns={field: "pictur"})) == f"columns of {path}: {said}"
    assert "the column 'picture.path'" in refusal(path, columns={field: "picture.path"})


def test_a_column_that_one_of_the_sources_has_or_that_names_another_away_is_none_to_refuse(tmp_path):
    text, named = (
        write(tmp_path, *sums(3)),
        write(tmp_path, *({**row, "uid": "x"} for row in sums(1, 5)), name="b.json"),
    )
    columns = {"id": "uid"}
    loaded(text, validation=named, columns=columns)
    loaded({"path": f"{tmp_path}/*.json*", "columns": columns})
    assert "the column 'uid'" in refusal(named, {"path": text, "columns": columns})
    away = write(tmp_path, *({**row, "role": "teacher"} for row in sums(3)), name="away.jsonl")
    loaded(away, columns={"role": "none"})


def test_rows_that_say_image_and_have_none_are_told(tmp_path):
    (tmp_path / "0.png").write_bytes(png(0))
    path = write(tmp_path, *PICTURES, *sums(1, 7))
    (message,) = loaded(path).messages
    assert message == (
        f"3 of 4 rows of {path} say <image> and have no images; columns there: prompt, answer, picture; if one of "
        "them holds the images, name it: data.columns.images=<name>"
    )
    assert loaded(path, columns={"images": "picture"}).messages == []
    seen = {**PICTURES[0], "prompt": "How many?", "images": "0.png"}
    assert loaded(write(tmp_path, *PICTURES[1:], seen, name="typed.jsonl")).messages == []


def test_held_out_files_of_one_name_are_told_apart(tmp_path):
    paths = [write(tmp_path, *sums(2, start), name=f"{start}/test.jsonl") for start in (0, 5)]
    data = loaded("embedded:train", validation=paths[0], monitor=paths[1])
    assert [task.id for task in data.validation] == ["answer-test-1", "answer-test-2"]
    assert [task.id for task in data.monitor] == ["answer-test~2-1", "answer-test~2-2"]
    assert {task.example.source for task in data.monitor} == {"test~2"}


def test_an_id_may_not_be_in_two_held_out_sets(tmp_path):
    one, two = (write(tmp_path, {**sums(1)[0], "id": 7}, name=f"{name}.jsonl") for name in "ab")
    assert f"{two}, row 1: its id '7' is also that of {one}, row 1" in refusal(
        "embedded:train", validation=one, monitor=two
    )


@pytest.mark.parametrize("part", ["validation", "monitor"])
def test_judge_rows_train_but_cannot_be_held_out(tmp_path, part):
    path = write(tmp_path, *sums(1), {"prompt": "Is it 5?", "answer": "Yes", "role": "pointwise"})
    drawn, _ = loaded(path).train.draw(2)
    assert {task.role for task in drawn} == {Role.ANSWER, Role.POINTWISE}
    said = refusal("embedded:train", **{part: path})
    assert said.startswith(f"{path}, row 2: has the role 'pointwise', but only questions can be held out; remove")


def test_everything_is_opened_before_anything_is_read(tmp_path):
    bad = write(tmp_path, "{")
    assert refusal(f"{tmp_path}/none.jsonl", validation=bad).startswith(f"{tmp_path}/none.jsonl: cannot be read")


def test_skipped_held_out_rows_are_counted_and_not_asked(tmp_path):
    path = write(tmp_path, *sums(2), "{", {"prompt": "?", "answer": "}{"})
    data = loaded("embedded:train", validation=path, bad_rows="skip")
    assert data.report["validation"][0]["skipped"] == {"bad_row": 1, "bad_gold": 1}
    assert len(data.validation) == 2
    said = f"1 of the 4 rows of {path} are left out of the held-out questions"
    assert [m.partition(";")[0] for m in data.messages] == [f"{said} (bad row)", f"{said} (bad gold)"]


def test_progress_is_shown_for_every_pass(tmp_path):
    from factories import make_config

    from spark_rl.data import load_data

    path, seen = write(tmp_path, *sums(3)), {}

    def track(items, name, total):
        for item in items:
            seen[name] = seen.get(name, 0) + 1
            yield item
        assert seen[name] == total

    load_data(make_config(data={"train": [path], "validation": ["embedded:retention"]}), track)
    assert seen == {
        "reading embedded:retention": 38,
        "checking the golds of embedded:retention": 38,
        "loading embedded:retention": 38,
        f"reading {path}": 3,
        f"checking the golds of {path}": 3,
    }


def test_a_mixture_of_everything_resumes_exactly(hub):
    rows = [{"question": f"What is {i}+2?", "answer": f"So it is\n#### {i + 2}"} for i in range(20)]
    write_parquet(hub / "owner/gsm8k/train.parquet", rows)
    (hub / "set.csv").write_text("prompt,answer\n" + "".join(f'"What is {i}+3?",{i + 3}\n' for i in range(7)))
    sources = [
        SourceConfig(path="owner/gsm8k", columns={"prompt": "question"}, answer_pattern=r"####\s*(.+)", weight=2),
        SourceConfig(path="reasoning_gym:leg_counting", weight=1, size=30),
        SourceConfig(path="set.csv", weight=1),
    ]
    at_once, piecewise = (loaded(*sources, check_golds=False).train for _ in range(2))
    whole = at_once.draw(48)[0]
    assert at_once.drawn == [24, 12, 12]
    made = []
    for count in (1, 0, 5, 17, 25):
        resumed = loaded(*sources, check_golds=False).train
        resumed.load_state_dict(json.loads(json.dumps(piecewise.state_dict())))
        made += resumed.draw(count)[0]
        piecewise = resumed
    assert made == whole


def test_a_file_that_was_overwritten_during_the_run_is_named(tmp_path):
    path = write(tmp_path, *sums(3))
    data = loaded(path)
    write(tmp_path, *sums(1, start=10**9))
    with pytest.raises(ValueError, match="it was good when the run began, so the file was changed") as caught:
        data.train.draw(3)
    assert str(caught.value).startswith(f"{path}, row ")


def test_a_generated_question_is_held_out_once_and_never_trained_on():
    source = SourceConfig(path="reasoning_gym:count_bits", options={"min_n": 1, "max_n": 30}, size=60)
    data = loaded(source, validation=source.model_copy(update={"size": 20}))
    held_out = {task.example.question for task in data.validation}
    assert len(held_out) == len(data.validation) < 20
    assert data.report["validation"][0]["skipped"] == {"repeated": 20 - len(held_out)}
    drawn, passed = data.train.draw(60)
    assert not held_out & {task.example.question for task in drawn} and passed["held_out"] > 0


def test_repeated_questions_of_a_generator_are_part_of_its_fingerprint():
    """Which ones repeat hangs on how questions are compared, and not only on the generator."""
    source = SourceConfig(path="reasoning_gym:count_bits", options={"min_n": 1, "max_n": 30}, size=20)
    (held_out,) = loaded("embedded:train", validation=source, check_golds=False).report["validation"]
    (trained,) = loaded(source, validation=[], check_golds=False).report["train"]
    (other,) = loaded(source, monitor=source, validation=[], check_golds=False).report["monitor"]
    assert held_out["skipped"] and not trained["skipped"]
    assert held_out["fingerprint"] == other["fingerprint"] != trained["fingerprint"]


def test_training_leaves_out_what_is_held_out_in_another_spelling(tmp_path):
    path = write(tmp_path, *sums(3))
    prompt = [{"role": "user", "content": Prompts().question("what is 1+1? ")[0]["content"]}]
    validation = write(tmp_path, {"prompt": prompt, "answer": 2}, name="validation.jsonl")
    assert loaded(path, validation=validation).report["train"][0]["skipped"] == {"held_out": 1}
