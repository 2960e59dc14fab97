import json
import resource

import pytest
from data_files import examples, opened, sums, tasks, write, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_rl.config import SourceConfig
from spark_rl.data.sources import HELD_OUT_SEED
from spark_rl.embedded.pictures import KINDS
from spark_rl.embedded.tasks import FAMILIES, TRANSFER
from spark_rl.prompts import Prompts
from spark_rl.types import IMAGE, Example, Role
from spark_rl.verify import Check, VerifierPool, box, grade


def refusal(*sources, **settings) -> str:
    with pytest.raises(ValueError) as caught:
        opened(*sources, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ files


def test_sources_are_opened_in_order(tmp_path):
    first = write(tmp_path, {"prompt": "one", "answer": 1}, {"prompt": "two", "answer": 2}, name="first.jsonl")
    second = write(tmp_path, {"prompt": "three", "answer": 3}, name="second.jsonl")
    made = tasks(opened(second, first))
    assert [task.example.question for task in made] == ["three", "one", "two"]
    assert [task.example.id for task in made] == ["second-1", "first-1", "first-2"]
    assert {task.role for task in made} == {Role.ANSWER}


def test_files_with_one_stem_are_told_apart(tmp_path):
    paths = [write(tmp_path, *sums(1, i), name=f"{folder}/test.jsonl") for i, folder in enumerate("abc")]
    made = examples(*paths)
    assert [e.source for e in made] == ["test", "test~2", "test~3"]
    assert [e.id for e in made] == ["test-1", "test~2-1", "test~3-1"]


@pytest.mark.parametrize(("size", "num_rows"), [(None, [3, 3, 3]), (100, [3, 3, 3]), (7, [3, 3, 1]), (3, [3])])
def test_size_and_weight_are_those_of_all_files_of_a_pattern(tmp_path, size, num_rows):
    for i in range(3):
        write(tmp_path, *sums(3, 3 * i), name=f"part-{i}.jsonl")
    sources = opened(SourceConfig(path=f"{tmp_path}/*.jsonl", size=size, weight=2))
    assert [s.num_rows for s in sources] == num_rows
    assert sum(s.weight for s in sources) == pytest.approx(2)
    assert sources[0].weight == pytest.approx(2 * 3 / sum(num_rows))
    assert len({task.example.id for task in tasks(sources)}) == sum(num_rows)


def test_held_out_questions_come_from_the_test_split(hub):
    write_parquet(hub / "owner/set/train.parquet", [{"prompt": "a", "answer": "1"}])
    write_parquet(hub / "owner/set/test.parquet", [{"prompt": "b", "answer": "2"}])
    for keywords, place in (({}, "train"), ({"held_out": True}, "test")):
        (source,) = opened("owner/set", **keywords)
        assert (source.path, source.where(0)) == (f"owner/set ({place})", f"owner/set ({place}), row 1")
    chosen = opened(SourceConfig(path="owner/set", split="train"), held_out=True)
    assert [e.example.id for e in tasks(chosen)] == ["set-1"]
    assert 'Unknown split "validation"' in refusal(SourceConfig(path="owner/set", split="validation"))


def test_the_same_rows_from_every_format_are_the_same_tasks(hub):
    rows = [{"prompt": f"What is {i}, then?", "answer": f"{i}", "id": f"q{i}"} for i in range(4)]
    csv = 'prompt,answer,id\n"' + '\n"'.join(f'{r["prompt"]}",{r["answer"]},{r["id"]}' for r in rows) + "\n"
    (hub / "set.csv").write_text(csv)
    (hub / "set.json").write_text(json.dumps(rows))
    write(hub, *rows)
    write_parquet(hub / "set.parquet", rows)
    write(hub, *rows, name="owner/set/train.jsonl")
    made = [examples(f"{hub}/set.{suffix}") for suffix in ("jsonl", "json", "csv", "parquet")]
    assert len(made[0]) == 4 and all(each == made[0] for each in [*made, examples("owner/set")])


@pytest.mark.parametrize("weight", [0, -1])
def test_a_weight_that_asks_nothing_is_refused_by_the_config(weight):
    with pytest.raises(ValueError, match="greater than 0"):
        SourceConfig(path="a.jsonl", weight=weight)


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (SourceConfig(path="a.jsonl", options={"seed": 1}), "options"),
        (SourceConfig(path="data/a.parquet", split="test"), "split"),
        (SourceConfig(path="data/*.jsonl", subset="main"), "subset"),
        (SourceConfig(path="reasoning_gym:leg_counting", verifier="math"), "verifier"),
        (SourceConfig(path="embedded:train", columns={"prompt": "problem"}), "columns"),
    ],
    ids=str,
)
def test_a_setting_that_would_do_nothing_is_refused(source, key):
    assert refusal(source) == f"data: {source.path} makes no use of {key!r}; remove it"


def test_too_many_files_to_hold_open_say_so(tmp_path):
    for i in range(60):
        write(tmp_path, *sums(1, i), name=f"{i}.jsonl")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, hard))
    try:
        assert refusal(f"{tmp_path}/*.jsonl").endswith(
            "(Too many open files); join files, or raise the limit with ulimit -n"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ------------------------------------------------------------------------------------------------ reasoning-gym


def generated(task: str = "leg_counting", **values) -> SourceConfig:
    return SourceConfig(path=f"reasoning_gym:{task}", **values)


def test_generated_questions_are_the_same_in_every_run_and_held_out_ones_are_others():
    sizes = {"size": 20}
    train, again = examples(generated(**sizes)), examples(generated(**sizes))
    held_out = [task.example for task in tasks(opened(generated(**sizes), held_out=True))]
    assert train == again
    assert {e.question for e in train}.isdisjoint(e.question for e in held_out)
    assert [e.id for e in train[:2]] == ["leg_counting-0", "leg_counting-1"]
    assert held_out[0].id == f"leg_counting-{HELD_OUT_SEED}"
    assert [opened(generated(), held_out=h)[0].num_rows for h in (False, True)] == [2000, 500]


def test_seeds_and_options_reach_the_generator():
    start, shifted = (examples(generated(size=5, options={"seed": seed})) for seed in (0, 2))
    assert [e.id for e in shifted] == [f"leg_counting-{i}" for i in range(2, 7)]
    assert shifted[0].question == start[2].question, "question i comes from seed + i"
    few = examples(generated("basic_arithmetic", size=5, options={"min_terms": 2, "max_terms": 2}))
    assert all(e.metadata["entry"]["metadata"]["num_terms"] == 2 for e in few)
    (source,) = opened(generated(size=5, options={"seed": 7}))
    assert source.where(1) == "reasoning_gym:leg_counting, seed 8"


def test_several_tasks_and_one_task_twice_are_sources_of_their_own():
    sources = opened(generated("leg_counting+basic_arithmetic", size=4, weight=3), generated(size=4))
    assert [s.path.partition(":")[2] for s in sources] == ["leg_counting", "basic_arithmetic", "leg_counting"]
    assert [s.weight for s in sources] == [1.5, 1.5, None]
    made = tasks(sources)
    assert len({task.id for task in made}) == 12
    assert {task.example.source for task in made} == {"leg_counting", "basic_arithmetic", "leg_counting~2"}
    assert made[-1].example.metadata["dataset"] == "leg_counting"


@pytest.mark.parametrize("name", ["arc_agi", "rearc"])
def test_grids_are_graded_although_json_knows_no_tuples(name):
    for example in examples(generated(name, size=2)):
        metadata = json.loads(json.dumps(example.metadata))
        assert grade(example.answer, example.answer, "reasoning_gym", metadata).reward == 1
        assert grade("1 2", example.answer, "reasoning_gym", metadata).reward < 1


@settings(max_examples=10)
@given(
    st.sampled_from(["leg_counting", "graph_color", "rubiks_cube", "countdown", "number_sorting"]), st.integers(0, 50)
)
def test_a_generated_task_survives_json_as_checkpoints_keep_it(name, seed):
    (example,) = examples(generated(name, size=1, options={"seed": seed}))
    assert json.loads(json.dumps(example.metadata)) == example.metadata


def test_tasks_without_a_single_gold_are_graded_by_their_scorer():
    made = examples(generated("graph_color", size=3))
    assert all(example.answer == "" for example in made)
    entry = made[0].metadata["entry"]["metadata"]["puzzle"]
    colors = {}
    for vertex in entry["vertices"]:
        near = {colors.get(b if a == vertex else a) for a, b in entry["edges"] if vertex in (a, b)}
        colors[vertex] = next((c for c in entry["color_options"] if c not in near), entry["color_options"][0])
    valid = all(colors[a] != colors[b] for a, b in entry["edges"])
    answers = [json.dumps({str(vertex): color for vertex, color in colors.items()}), "{}"]
    with VerifierPool() as pool:
        right, wrong = pool.verify([Check(box(a), "", "reasoning_gym", made[0].metadata) for a in answers])
    assert (right.reward == 1) == valid and wrong.reward < 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (generated("leg_count"), "reasoning-gym has no task 'leg_count'; did you mean 'leg_counting'?"),
        (generated("leg_counting+"), "reasoning-gym has no task ''"),
        (generated("composite"), "reasoning-gym has no task 'composite'"),
        (generated(options={"legs": 4}), "reasoning_gym:leg_counting has no option 'legs'; known are min_animals, "),
        (generated(options={"size": 4}), "has no option 'size'"),
        (
            generated(options={"min_animals": -1}),
            "reasoning_gym:leg_counting refuses its options {'min_animals': -1} (",
        ),
        (generated(options={"min_animals": "a"}), "refuses its options {'min_animals': 'a'} ("),
        (generated(options={"seed": "a"}), "the seed is 'a'; make it a whole number from 0 to 999998000"),
        (generated(options={"seed": HELD_OUT_SEED}), "the seed is 1000000000; make it"),
    ],
    ids=str,
)
def test_a_bad_generator_is_named(source, words):
    assert words in refusal(source)


def test_a_generator_that_no_two_processes_agree_on_needs_a_hash_seed(monkeypatch):
    for value in (None, "random"):
        monkeypatch.delenv("PYTHONHASHSEED", raising=False)
        if value:
            monkeypatch.setenv("PYTHONHASHSEED", value)
        assert "set the environment variable PYTHONHASHSEED=0" in refusal(generated("word_ladder"))
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert opened(generated("word_ladder", size=2))[0].num_rows == 2


@pytest.mark.parametrize("size", [1, 20])
def test_a_generator_that_does_not_repeat_itself_is_refused(monkeypatch, size):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    said = refusal(generated("list_functions", size=size))
    assert said.startswith("data: reasoning_gym:list_functions makes another question each time")


# ------------------------------------------------------------------------------------------------ embedded sets

SIZES = {"train": 4096, "validation": 700, "test": 700, "transfer": 200, "retention": 38}


@pytest.fixture(scope="module")
def embedded() -> dict[str, list[Example]]:
    return {name: examples(f"embedded:{name}") for name in SIZES}


def test_embedded_sets_have_their_sizes_and_are_always_the_same(embedded):
    assert {name: len(each) for name, each in embedded.items()} == SIZES
    assert examples("embedded:validation") == embedded["validation"]
    assert examples(SourceConfig(path="embedded:validation", size=9)) == embedded["validation"][:9]


def test_no_embedded_question_is_in_two_sets_or_twice_in_one(embedded):
    questions = [example.question for each in embedded.values() for example in each]
    assert len(set(questions)) == len(questions)


def test_embedded_golds_are_accepted_by_their_verifiers_and_others_are_not(embedded):
    for example in (e for each in embedded.values() for e in each):
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
    for name in ("validation", "retention"):
        example = examples(f"embedded:{name}", system="Be kind.")[0]
        assert example.prompt == Prompts().question(example.question, "Be kind.")
        assert box("") in example.prompt[-1]["content"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("embedded:exam", "there is no 'embedded:exam'; the embedded sets are train, validation"),
        ("embedded", "embedded: cannot be read"),
    ],
)
def test_a_bad_embedded_set_is_named(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    assert words in refusal(path)


# ------------------------------------------------------------------------------------------------ embedded pictures


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_embedded_picture_questions_carry_their_image_and_are_gradable(split):
    made = examples(SourceConfig(path=f"embedded:vision-{split}", size=40))
    assert len({example.id for example in made}) == 40
    assert {example.source for example in made} == set(KINDS)
    for example in made:
        assert len(example.images) == example.question.count(IMAGE) == example.prompt[-1]["content"].count(IMAGE) == 1
        assert grade(example.answer, example.answer, example.verifier).reward == 1


def test_no_picture_is_in_two_embedded_sets():
    paths = [{e.images[0].path for e in examples(f"embedded:vision-{split}")} for split in ("train", "validation")]
    assert not paths[0] & paths[1]


def test_a_revision_goes_to_the_library_that_asks_the_hub(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*arguments, **keywords):
        asked.append((arguments, keywords))
        return datasets.Dataset.from_list([{"prompt": "What is 1+1?", "answer": "2"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    opened({"path": "org/set", "revision": "v1", "subset": "main"}, "org/set")
    assert asked == [
        (("org/set",), {"name": "main", "split": "train", "revision": "v1"}),
        (("org/set",), {"name": None, "split": "train", "revision": None}),
    ]
