import json
from pathlib import Path
from typing import Any

import pytest

from spark_rl.config import DataConfig
from spark_rl.data import load_examples, load_tasks
from spark_rl.embedded.tasks import FAMILIES, TRANSFER
from spark_rl.prompts import answer_prompt
from spark_rl.types import Example, Role
from spark_rl.verify import box, grade

CONFIG = DataConfig()


def write(folder: Path, *rows: Any, name: str = "set.jsonl") -> str:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return str(path)


def load(folder: Path, *rows: Any, config: DataConfig = CONFIG) -> list[Example]:
    return load_examples([write(folder, *rows)], config)


# ------------------------------------------------------------------------------------------------ good rows


def test_the_shortest_row(tmp_path):
    (example,) = load(tmp_path, {"prompt": "What is 1+1?", "answer": "2"})
    assert example == Example(
        id="set-1",
        prompt=answer_prompt("What is 1+1?"),
        question="What is 1+1?",
        answer="2",
        verifier="math",
        source="set",
    )


def test_the_fullest_row(tmp_path):
    row = {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is pi?"}],
        "answer": 3.14,
        "verifier": "numeric",
        "id": 7,
        "source": "circles",
        "metadata": {"tolerance": 0.01},
        "unused": True,
    }
    (example,) = load(tmp_path, row)
    assert example == Example(
        id="7",
        prompt=tuple(row["prompt"]),
        question="What is pi?",
        answer="3.14",
        verifier="numeric",
        source="circles",
        metadata={"tolerance": 0.01},
    )
    assert grade("3.15", example.answer, example.verifier, example.metadata).reward == 1


def test_the_config_speaks_where_the_row_does_not(tmp_path):
    config = DataConfig(system="Be kind.", verifier="exact")
    rows = [{"prompt": "Name a day.", "answer": "Monday"}, {"prompt": "Again.", "answer": "a", "system": "Be harsh."}]
    plain, own = load(tmp_path, *rows, {"prompt": "A number.", "answer": 0, "verifier": "numeric"}, config=config)[:2]
    assert plain.verifier == "exact"
    assert plain.prompt[0] == {"role": "system", "content": "Be kind."}
    assert own.prompt[0] == {"role": "system", "content": "Be harsh."}


@pytest.mark.parametrize("key", ["id", "verifier", "source", "system", "metadata"])
def test_null_is_the_same_as_nothing(tmp_path, key):
    rows = [{"prompt": f"What is {i}?", "answer": i, key: None} for i in range(2)]
    assert load(tmp_path, *rows) == load(tmp_path, *({k: v for k, v in row.items() if k != key} for row in rows))


def test_a_conversation_is_quoted_turn_by_turn(tmp_path):
    turns = [("system", "hidden"), ("user", "What is 1+1?"), ("assistant", "2"), ("user", "And plus 1?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (example,) = load(tmp_path, {"prompt": messages, "answer": 3})
    assert example.question == "user: What is 1+1?\n\nassistant: 2\n\nuser: And plus 1?"
    assert example.prompt == tuple(messages)


def test_empty_lines_are_skipped_but_counted(tmp_path):
    row = '{"prompt": "What is 1+1?", "answer": "2"}'
    assert [e.id for e in load(tmp_path, row, "", "  ", row)] == ["set-1", "set-4"]


def test_sources_are_loaded_in_order_and_become_tasks(tmp_path):
    first = write(tmp_path, {"prompt": "one", "answer": 1}, {"prompt": "two", "answer": 2}, name="first.jsonl")
    second = write(tmp_path, {"prompt": "three", "answer": 3}, name="second.jsonl")
    tasks = load_tasks([second, first], CONFIG)
    assert [task.example.question for task in tasks] == ["three", "one", "two"]
    assert {task.role for task in tasks} == {Role.ANSWER}


# ------------------------------------------------------------------------------------------------ bad rows

USER = {"role": "user", "content": "What is 1+1?"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{not json", "not valid JSON"),
        ("[1, 2]", "must be a JSON object with the keys 'prompt' and 'answer'"),
        ({"answer": "2"}, "has no 'prompt'"),
        ({"prompt": "", "answer": "2"}, "has no 'prompt'"),
        ({"prompt": " \n", "answer": "2"}, "has no 'prompt'"),
        ({"prompt": [], "answer": "2"}, "has no 'prompt'"),
        ({"prompt": "What?"}, "has no 'answer'"),
        ({"prompt": "What?", "answer": None}, "has no 'answer'"),
        ({"prompt": "What?", "answer": "  "}, "has no 'answer'"),
        ({"prompt": "What?", "answer": [2]}, "'answer' must be text or a number, not [2]"),
        ({"prompt": "What?", "answer": True}, "'answer' must be text or a number, not true"),
        ({"prompt": 5, "answer": "2"}, "'prompt' must be text or chat messages, not 5"),
        ({"prompt": ["hi"], "answer": "2"}, "chat messages (role, content)"),
        ({"prompt": [{"role": "user"}], "answer": "2"}, "chat messages (role, content)"),
        ({"prompt": [USER, {"role": "assistant", "content": "2"}], "answer": "2"}, "end with a user's turn"),
        ({"prompt": "What?", "answer": "2", "id": [1]}, "'id' must be text or a number"),
        ({"prompt": "What?", "answer": "2", "verifier": 5}, "'verifier' must be text, not 5"),
        ({"prompt": "What?", "answer": "2", "source": ["a"]}, "'source' must be text"),
        ({"prompt": "What?", "answer": "2", "system": {"a": 1}}, "'system' must be text"),
        ({"prompt": "What?", "answer": "2", "metadata": [1]}, "'metadata' must be an object"),
        ({"prompt": "What?", "answer": "2", "verifier": "maths"}, "did you mean 'math'?"),
        ({"prompt": "What?", "answer": "two", "verifier": "numeric"}, "cannot read the gold"),
        ({"prompt": "What?", "answer": "}{"}, "its braces do not balance"),
        ({"prompt": "What?", "answer": "2", "verifier": "numeric", "metadata": {"tolerance": "x"}}, "failed on the"),
        ('{"prompt": "half a \\ud83d smiley", "answer": "2"}', "surrogate pair"),
        ('{"prompt": "What?", "answer": "2", "metadata": {"note": "\\udc00"}}', "surrogate pair"),
    ],
)
def test_a_bad_row_is_one_sentence_that_names_file_and_row(tmp_path, row, words):
    good = {"prompt": "What is 1+1?", "answer": "2"}
    with pytest.raises(ValueError) as caught:
        load(tmp_path, good, "", row, good)
    assert str(caught.value).startswith(f"{tmp_path / 'set.jsonl'}, row 3: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_rows_with_one_id_are_both_named(tmp_path):
    first = write(tmp_path, {"prompt": "one", "answer": 1}, {"prompt": "two", "answer": 2, "id": "x"}, name="a.jsonl")
    second = write(tmp_path, {"prompt": "three", "answer": 3, "id": "x", "source": "elsewhere"}, name="b.jsonl")
    with pytest.raises(ValueError) as caught:
        load_examples([first, second], CONFIG)
    assert f"{second}, row 1: its id 'x' is also that of {first}, row 2" in str(caught.value)


def test_an_embedded_set_given_twice_is_refused():
    with pytest.raises(ValueError, match=r"embedded:retention: its id .* is also that of embedded:retention"):
        load_examples(["embedded:retention"] * 2, CONFIG)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.jsonl", "nowhere.jsonl: cannot be read"),
        (".", ".: cannot be read"),
        ("embedded:exam", "there is no 'embedded:exam'; the embedded sets are train, validation"),
        ("embedded", "embedded"),
    ],
)
def test_a_bad_source_is_named(tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        load_examples([source], CONFIG)
    assert words in str(caught.value)


def test_empty_and_binary_files_are_refused(tmp_path):
    path = tmp_path / "set.jsonl"
    for content, words in ((b"", "holds no rows"), (b"\n\n", "holds no rows"), (b"\xff\xfe", "is not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            load_examples([str(path)], CONFIG)
        assert f"{path}: {words}" in str(caught.value)


# ------------------------------------------------------------------------------------------------ embedded sets

SIZES = {"train": 4096, "validation": 700, "test": 700, "transfer": 200, "retention": 38}


@pytest.fixture(scope="module")
def embedded() -> dict[str, list[Example]]:
    return {name: load_examples([f"embedded:{name}"], CONFIG) for name in SIZES}


def test_embedded_sets_have_their_sizes_and_are_always_the_same(embedded):
    assert {name: len(examples) for name, examples in embedded.items()} == SIZES
    assert load_examples(["embedded:validation"], CONFIG) == embedded["validation"]


def test_no_embedded_question_is_in_two_sets_or_twice_in_one(embedded):
    questions = [example.question for examples in embedded.values() for example in examples]
    assert len(set(questions)) == len(questions)


def test_embedded_golds_are_accepted_by_their_verifiers_and_others_are_not(embedded):
    for example in (e for examples in embedded.values() for e in examples):
        assert grade(example.answer, example.answer, example.verifier).reward == 1
        assert grade(f"{example.answer}1", example.answer, example.verifier).reward == 0
    assert {e.verifier for e in embedded["train"]} == {"numeric"}
    assert {e.verifier for e in embedded["retention"]} == {"choice"}


def test_embedded_sets_are_broken_down_by_family(embedded):
    for name in ("train", "validation", "test"):
        assert {example.source for example in embedded[name]} == {family.name for family in FAMILIES}
    assert {example.source for example in embedded["transfer"]} == {family.name for family in TRANSFER}
    assert {example.source for example in embedded["retention"]} == {"retention"}


def test_embedded_prompts_take_the_system_message():
    config = DataConfig(system="Be kind.")
    for name in ("validation", "retention"):
        example = load_examples([f"embedded:{name}"], config)[0]
        assert example.prompt == answer_prompt(example.question, "Be kind.")
        assert box("") in example.prompt[-1]["content"]
