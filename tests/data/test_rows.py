import datetime
import json
from decimal import Decimal
from typing import Any

import pytest
from factories import make_example
from hypothesis import given
from hypothesis import strategies as st

from spark_rl.config import DataConfig, SourceConfig
from spark_rl.data import question_task
from spark_rl.data.rows import MAX_PROMPT_CHARS, RowReader
from spark_rl.prompts import Prompts
from spark_rl.types import Example, Role, Task
from spark_rl.verify import box, grade

USER = {"role": "user", "content": "What is 1+1?"}
DEFAULT = DataConfig()


def read(row: Any, index: int = 0, config: DataConfig = DEFAULT, **source: Any) -> Task:
    return RowReader(SourceConfig(path="set.jsonl", **source), config, "set").task(row, index)


def refusal(row: Any, **keywords: Any) -> str:
    with pytest.raises(ValueError) as caught:
        read(row, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ good rows


def test_the_shortest_row():
    task = read({"prompt": "What is 1+1?", "answer": "2"}, 6)
    assert task.example == Example(
        id="set-7",
        prompt=Prompts().question("What is 1+1?"),
        question="What is 1+1?",
        answer="2",
        verifier="math",
        source="set",
    )
    assert task == question_task(task.example)


def test_the_fullest_row():
    row = {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is pi?"}],
        "answer": 3.14,
        "question": "Say pi.",
        "verifier": "numeric",
        "id": 7,
        "source": "circles",
        "system": "Be kind.",
        "metadata": {"tolerance": 0.01},
        "unused": True,
    }
    example = read(row).example
    assert example == Example(
        id="7",
        prompt=tuple(row["prompt"]),
        question="Say pi.",
        answer="3.14",
        verifier="numeric",
        source="circles",
        metadata={"tolerance": 0.01},
    )
    assert grade("3.15", example.answer, example.verifier, example.metadata).reward == 1


def test_the_config_speaks_where_the_row_does_not_and_the_source_before_it():
    config = DataConfig(system="Be kind.", verifier="exact")
    plain = read({"prompt": "Name a day.", "answer": "Monday"}, config=config)
    own = read({"prompt": "Again.", "answer": "a", "system": "Be harsh.", "verifier": "choice"}, config=config)
    by_source = read({"prompt": "Again.", "answer": "2"}, config=config, verifier="numeric", system="Be quick.")
    assert [task.verifier for task in (plain, own, by_source)] == ["exact", "choice", "numeric"]
    systems = [{"role": "system", "content": text} for text in ("Be kind.", "Be harsh.", "Be quick.")]
    assert [task.messages[0] for task in (plain, own, by_source)] == systems


@pytest.mark.parametrize("key", ["id", "verifier", "source", "system", "metadata", "role", "question"])
def test_null_and_empty_are_the_same_as_nothing(key):
    row = {"prompt": "What is 1?", "answer": 1}
    for nothing in (None, {} if key == "metadata" else ""):
        assert read({**row, key: nothing}) == read(row)


def test_a_conversation_is_quoted_turn_by_turn():
    turns = [("system", "hidden"), ("user", "What is 1+1?"), ("assistant", "2"), ("user", "And plus 1?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    task = read({"prompt": messages, "answer": 3}, config=DataConfig(system="not twice"))
    assert task.example.question == "user: What is 1+1?\n\nassistant: 2\n\nuser: And plus 1?"
    assert task.messages == tuple(messages)


def test_chat_messages_without_a_system_turn_get_the_one_of_the_config():
    task = read({"prompt": [USER], "answer": 2}, config=DataConfig(system="Be kind."))
    assert task.messages == ({"role": "system", "content": "Be kind."}, USER)


@pytest.mark.parametrize(
    ("answer", "text"),
    [(2, "2"), (-0.5, "-0.5"), (10**4000, "1" + "0" * 4000), (Decimal("2.50"), "2.50")],
)
def test_numbers_become_text(answer, text):
    assert read({"prompt": "What?", "answer": answer}).label == text


@pytest.mark.parametrize(("id", "text"), [(1, "1"), ("1", "1"), (1.0, "1.0"), (0, "0")])
def test_ids_are_text(id, text):
    assert read({"prompt": "What?", "answer": 1, "id": id}).example.id == text


def test_a_question_becomes_a_task_of_the_answer_role():
    example = make_example(4)
    task = question_task(example)
    assert (task.id, task.role, task.label, task.verifier) == ("answer-q4", Role.ANSWER, "5", "numeric")
    assert task.messages == example.prompt and task.example is example
    assert (task.depth, task.step, task.shown, task.template) == (0, 0, (), None)


# ------------------------------------------------------------------------------------------------ bad rows


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1, 2], "must be a JSON object with the keys 'prompt' and 'answer'"),
        ("text", "must be a JSON object"),
        ({}, "has no 'prompt'; add it, or say which column holds it: data.columns.prompt=<name>"),
        ({"answer": "2"}, "has no 'prompt'; add it"),
        ({"answer": "2", "problem": "What?", "level": 1}, "has no 'prompt', but problem, level; add it, or say which"),
        ({"answer": "2", "question": "What?"}, "has no 'prompt', but question; add it, or say which column holds it"),
        ({"prompt": "", "answer": "2"}, "'prompt' is empty; fill it in or remove the row"),
        ({"prompt": " \n", "answer": "2"}, "'prompt' is empty"),
        ({"prompt": [], "answer": "2"}, "'prompt' is empty"),
        ({"prompt": "What?"}, "has no 'answer'; add it, or say which column holds it: data.columns.answer=<name>"),
        ({"prompt": "What?", "answer": None}, "'answer' is empty; fill it in or remove the row"),
        ({"prompt": "What?", "answer": "  "}, "'answer' is empty"),
        ({"prompt": "What?", "answer": [2]}, "'answer' must be text or a number, not [2]; change it, or name the col"),
        ({"prompt": "What?", "answer": True}, "'answer' must be text or a number, not true"),
        ({"prompt": "What?", "answer": json.loads("NaN")}, "'answer' must be text or a number, not NaN"),
        ({"prompt": "What?", "answer": 1e999}, "'answer' must be text or a number, not Infinity"),
        ({"prompt": 5, "answer": "2"}, "'prompt' must be text or chat messages, not 5"),
        ({"prompt": ["hi"], "answer": "2"}, "entry 1 of 'prompt' is no chat message with a 'role' and a 'content'"),
        ({"prompt": [USER, {"content": "2"}], "answer": "2"}, "entry 2 of 'prompt' is no chat message"),
        ({"prompt": [{"role": "user"}], "answer": "2"}, "turn 1 of 'prompt' (user) has no content; it must be text or"),
        ({"prompt": [{"role": "user", "content": 5}], "answer": "2"}, "(user) has the content 5; it must be text or a"),
        (
            {
                "prompt": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}, USER],
                "answer": "2",
            },
            "turn 2 of 'prompt' (assistant) calls tools and has no content; tools are not run here, so give it text",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text"}]}], "answer": "2"},
            "has a part of a message that is neither",
        ),
        (
            {"prompt": [USER, {"role": "assistant", "content": "2"}], "answer": "2"},
            "ends with a turn of the role 'assistant'",
        ),
        ({"prompt": "What?", "answer": "2", "id": [1]}, "'id' must be text or a number"),
        ({"prompt": "What?", "answer": "2", "verifier": 5}, "'verifier' must be text, not 5"),
        ({"prompt": "What?", "answer": "2", "source": ["a"]}, "'source' must be text"),
        ({"prompt": "What?", "answer": "2", "system": {"a": 1}}, "'system' must be text"),
        (
            {"prompt": "What?", "answer": "2", "metadata": [1]},
            "'metadata' must be an object, not [1]; change it, or n",
        ),
        ({"prompt": "What?", "answer": "2", "metadata": '{"a": 1}'}, "data.columns.metadata=<name>"),
        ({"prompt": "What?", "answer": "2", "verifier": "maths"}, "did you mean 'math'?"),
        (
            {"prompt": "What?", "answer": "2", "role": "teacher"},
            "'role' is 'teacher'; it must be one of answer, point",
        ),
        ({"prompt": "x" * (MAX_PROMPT_CHARS + 1), "answer": "2"}, "characters, more than 1000000; shorten it"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_row_is_one_sentence(row, words):
    assert words in refusal(row)


@given(
    st.dictionaries(
        st.sampled_from(["prompt", "answer", "role", "id", "metadata", "system", "images", "verifier", "extra"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["role", "content"]), inner),
            max_leaves=4,
        ),
    )
)
def test_whatever_a_row_holds_it_is_a_task_or_a_sentence(row):
    try:
        task = read(row)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert task.label and task.messages[-1]["role"] == "user"
        json.dumps([task.label, task.messages, task.example.metadata])


# ------------------------------------------------------------------------------------------------ columns

DAPO = {
    "data_source": "math_dapo",
    "prompt": [{"role": "user", "content": "Solve: what is 1+1?"}],
    "ability": "MATH",
    "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "9a9b6eb4-a1cb-49d1-8c1e-62eaf2f74079"},
}
"""A row of BytedTsinghua-SIA/DAPO-Math-17k: features as in the card of its copy
https://huggingface.co/datasets/koajoel/DAPO-Math-17k-dedup (extra_info.index is a string). The same columns, with
further keys in extra_info, are what verl's scripts write: verl-project/verl, examples/data_preprocess/gsm8k.py."""


def test_verl_and_dapo_rows_by_dotted_paths():
    columns = {"answer": "reward_model.ground_truth", "source": "data_source", "id": "extra_info.index"}
    example = read(DAPO, columns=columns).example
    assert (example.answer, example.source, example.id) == ("34", "math_dapo", DAPO["extra_info"]["index"])
    assert example.prompt == tuple(DAPO["prompt"]) and example.question == "Solve: what is 1+1?"
    assert example.metadata == {}
    for style in ({"style": "rule"}, {"style": "rule", "ground_truth": None}):
        said = refusal({**DAPO, "reward_model": style}, columns=columns)
        assert "'reward_model.ground_truth' is empty or missing; fill it in, or say which column holds it" in said
    without = {key: value for key, value in DAPO.items() if key != "reward_model"}
    assert "has no 'reward_model.ground_truth', but data_source, ability, extra_info; add it" in refusal(
        without, columns=columns
    )


def test_gsm8k_rows_by_an_answer_pattern():
    # The columns and the form of the answer are those of openai/gsm8k:
    # https://huggingface.co/datasets/openai/gsm8k/blob/refs%2Fpr%2F3/README.md (dataset_info), and
    # verl-project/verl, examples/data_preprocess/gsm8k.py (extract_solution).
    row = {
        "question": "Ann has 500 pens and buys 750. How many has she?",
        "answer": "She has 500+750 = <<500+750=1250>>1250.\n#### 1,250",
    }
    given = {"columns": {"prompt": "question"}, "answer_pattern": r"####\s*(.+)"}
    task = read(row, **given)
    assert task.label == "1,250"
    assert task.example.question == row["question"] and task.messages == Prompts().question(row["question"])
    assert grade("1250", task.label, "numeric").reward == 1
    words = "data.answer_pattern finds no answer in 'It is 5.'"
    assert words in refusal({**row, "answer": "It is 5."}, **given)


def test_math_500_rows_by_column_names():
    # Features of HuggingFaceH4/MATH-500 as in the card of its copy
    # https://huggingface.co/datasets/macabdul9/MATH-500/blob/main/README.md.
    row = {
        "problem": r"Convert $(0,3)$ to polar coordinates.",
        "solution": r"We have \boxed{\left( 3, \frac{\pi}{2} \right)}.",
        "answer": r"\left( 3, \frac{\pi}{2} \right)",
        "subject": "Precalculus",
        "level": 2,
        "unique_id": "test/precalculus/807.json",
    }
    example = read(row, columns={"prompt": "problem", "id": "unique_id", "source": "subject"}).example
    assert (example.id, example.source, example.answer) == (row["unique_id"], "Precalculus", row["answer"])
    assert grade(r"(3, \frac{\pi}{2})", example.answer, example.verifier).reward == 1


def test_columns_of_a_source_go_before_those_of_the_data():
    config = DataConfig(columns={"prompt": "problem", "answer": "solution"})
    row = {"problem": "What?", "solution": "1", "final": "2"}
    assert read(row, config=config).label == "1"
    assert read(row, config=config, columns={"answer": "final"}).label == "2"


def test_two_fields_may_be_read_from_one_column():
    example = read({"text": "What?", "answer": 1}, columns={"prompt": "text", "id": "text"}).example
    assert (example.id, example.question) == ("What?", "What?")


def test_a_column_of_another_meaning_can_be_named_away():
    row = {"prompt": "What?", "answer": 1, "metadata": "from the web", "role": "teacher"}
    assert read(row, columns={"metadata": "none", "role": "none"}).example.metadata == {}


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("(", "is no regular expression"), ("a", "exactly one group"), ("(a)(b)", "one group")],
)
def test_a_bad_answer_pattern_is_refused(pattern, words):
    assert words in refusal({}, answer_pattern=pattern)


def test_the_last_match_of_the_answer_pattern_counts():
    row = {"prompt": "What?", "answer": "#### 1 and then #### 2"}
    assert read(row, answer_pattern=r"#### (\d)").label == "2"


# ------------------------------------------------------------------------------------------------ judge rows


@pytest.mark.parametrize("role", [role for role in Role if role.is_judge])
def test_a_ready_judge_row(role):
    for label in role.verdicts:
        task = read({"role": role.value, "prompt": "Is it 5?", "answer": f" {label.lower()} ", "id": 3})
        assert (task.role, task.label, task.verifier, task.id) == (role, label, "choice", f"{role}-3")
        assert task.messages[-1]["content"].startswith("Is it 5?\n\nEnd with ")
        assert box(label) in task.messages[-1]["content"]
    said = refusal({"role": role.value, "prompt": "Is it 5?", "answer": "maybe"})
    assert f"the answer of a {role} row must be {' or '.join(role.verdicts)}, not 'maybe'" in said


def test_a_pattern_for_golds_is_not_for_verdicts():
    config = DataConfig(answer_pattern=r"####\s*(.+)", verifier="numeric")
    task = read({"role": "pointwise", "prompt": "Is it 5?", "answer": "Yes"}, config=config)
    assert (task.label, task.verifier) == ("Yes", "choice")


def test_rows_that_the_recycle_verb_writes():
    # Contract in the design: rows {"role", "messages", "label", "verifier", "template", "parents"} out.
    judge = {
        "role": "pairwise",
        "messages": [{"role": "user", "content": "Which of the two?"}],
        "label": "A",
        "verifier": "choice",
        "template": "pairwise-1",
        "parents": ["q1:0", "q1:1"],
    }
    reflection = {**judge, "role": "reflection", "label": "42", "verifier": "math"}
    columns = {"prompt": "messages", "answer": "label"}
    for row in (judge, reflection):
        task = read(row, columns=columns)
        assert (task.role, task.label, task.verifier) == (row["role"], row["label"], row["verifier"])
        assert task.messages == tuple(judge["messages"])
        assert task.id == f"{row['role']}-set-1"


# ------------------------------------------------------------------------------------------------ metadata


def test_extra_columns_are_for_functions_of_yours_only():
    row = {"prompt": "What?", "answer": "2", "level": 3, "tests": ["a"], "metadata": {"level": 4, "own": 1}}
    assert read(row).example.metadata == {"level": 4, "own": 1}
    for verifier in ("graders:mine", "trl:rewards:mine"):
        assert read(row, verifier=verifier).example.metadata == {"level": 4, "tests": ["a"], "own": 1}


def test_metadata_is_json_whatever_the_file_held():
    row = {"prompt": "What?", "answer": "2", "when": datetime.date(2020, 1, 2), "price": Decimal("1.5"), "raw": b"x"}
    metadata = read(row, verifier="graders:mine").example.metadata
    assert metadata == {"when": "2020-01-02", "price": "1.5", "raw": "b'x'"} == json.loads(json.dumps(metadata))
    assert read({**row, "metadata": {"when": row["when"]}}).example.metadata == {"when": "2020-01-02"}


@pytest.mark.parametrize("verifier", ["trl:subprocess:Popen", "os:system"])
def test_data_cannot_choose_a_function_to_call(verifier):
    row = {"prompt": "What?", "answer": "2", "verifier": verifier, "metadata": {"args": "touch x", "shell": True}}
    assert f"names the function '{verifier}', which a row may only do if the config does" in refusal(row)


def test_a_row_may_name_the_function_that_the_config_names():
    row = {"prompt": "What?", "answer": "2", "verifier": "graders:mine"}
    assert read(row, config=DataConfig(verifier="graders:mine"), verifier="exact").verifier == "graders:mine"
    assert read(row, verifier="graders:mine").verifier == "graders:mine"
