"""Every broken model folder gets its sentence, and nothing is refused that loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import make_config, make_example

from spark_rl.config import Config, ModelConfig, load_config
from spark_rl.data import load_data, question_task
from spark_rl.data.sources import Source
from spark_rl.models.folder import check_folder, model_folder
from spark_rl.models.load import load_tokenizer
from spark_rl.prompts import ChatRenderer
from spark_rl.train import preflight
from spark_rl.train.preflight import check_lengths, check_model, check_processes, check_prompts
from spark_rl.types import Task

BASE = model_folder("embedded")
assert BASE is not None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BASE, tmp_path / "model"))


def config_for(path: Path | str, **sections: Any) -> Config:
    return make_config(model={"path": str(path), **sections.pop("model", {})}, **sections)


def source(*tasks: Task, path: str = "questions.jsonl") -> Source:
    return Source(path, len(tasks), tasks.__getitem__, str)


def refusal(check: Callable[[], None]) -> str:
    with pytest.raises(ValueError) as caught:
        check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def shard(folder: Path, *names: str) -> None:
    """Weights under an index that names these files; the first is the whole."""
    (folder / "model.safetensors").rename(folder / names[0])
    index = {"weight_map": {f"weight-{i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config cut": (lambda f: cut(f / "config.json", 40), "config.json is not valid JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "does not hold a JSON object"),
    "masked LM": (lambda f: edit(f / "config.json", architectures=["BertForMaskedLM"]), "BertForMaskedLM"),
    "reward model": (
        lambda f: edit(f / "config.json", architectures=["Qwen3ForSequenceClassification"]),
        "not a causal LM",
    ),
    "encoder-decoder": (lambda f: edit(f / "config.json", is_encoder_decoder=True), "not a causal LM"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "weights cut": (lambda f: cut(f / "model.safetensors", 100_000), "100000 bytes where its header tells of"),
    "weights longer": (lambda f: (f / "model.safetensors").open("ab").write(b"x"), "where its header tells of"),
    "weights empty": (lambda f: cut(f / "model.safetensors", 0), "cut short or no safetensors file (0 bytes)"),
    "header cut": (lambda f: cut(f / "model.safetensors", 50), "cut short"),
    "git lfs pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
    "header is no JSON": (
        lambda f: (f / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"{{{{"),
        "no readable safetensors header",
    ),
    "shards missing": (lambda f: shard(f, "a.safetensors", "b.safetensors", "c.safetensors"), "lacks 2 of the 3 files"),
    "shard cut": (
        lambda f: (shard(f, "a.safetensors"), cut(f / "a.safetensors", 9_000)),
        "a.safetensors has 9000 bytes",
    ),
    "index is no JSON": (
        lambda f: (shard(f, "a.safetensors"), cut(f / "model.safetensors.index.json", 5)),
        "index.json is not valid JSON",
    ),
    "index without map": (
        lambda f: (shard(f, "a.safetensors"), (f / "model.safetensors.index.json").write_text("{}")),
        "has no weight_map",
    ),
    "no tokenizer": (no_tokenizer, "has no tokenizer files"),
    "tokenizer cut": (lambda f: cut(f / "tokenizer.json", 500), "tokenizer.json is not valid JSON"),
    "no chat template": (no_template, "has no chat template; set model.chat_template"),
    "short context": (lambda f: edit(f / "config.json", max_position_embeddings=768), "a context of 768 tokens"),
    "short inner context": (
        lambda f: edit(f / "config.json", text_config={"max_position_embeddings": 512}),
        "a context of 512 tokens",
    ),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_broken_folder_gets_a_sentence_that_names_it(folder: Path, mistake: str) -> None:
    damage, message = BROKEN[mistake]
    damage(folder)
    said = refusal(lambda: check_model(config_for(folder)))
    assert message in said
    assert str(folder) in said


SURELY_FAILS = [
    "no config", "config cut", "no weights", "weights cut", "weights longer", "weights empty", "header cut",
    "git lfs pointer", "header is no JSON", "shards missing", "shard cut", "index is no JSON",
]  # fmt: skip


@pytest.mark.parametrize("mistake", SURELY_FAILS)
def test_what_is_refused_does_not_load_either(folder: Path, mistake: str) -> None:
    from safetensors import SafetensorError

    from spark_rl.config import ModelConfig
    from spark_rl.models.load import load_model

    BROKEN[mistake][0](folder)
    with pytest.raises((ValueError, OSError, SafetensorError)):
        load_model(ModelConfig(path=str(folder)))


def old_template(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", chat_template=(folder / "chat_template.jinja").read_text())
    (folder / "chat_template.jinja").unlink()


def named_template(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").rename(folder / "additional_chat_templates" / "rag.jinja")


SOUND: dict[str, Callable[[Path], Any]] = {
    "as it is": lambda f: None,
    "one shard": lambda f: shard(f, "a.safetensors"),
    "torch weights": lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
    "template in the tokenizer's config": old_template,
    "named templates": named_template,
    "no architectures": lambda f: edit(f / "config.json", architectures=None),
    "a vision-language model": lambda f: edit(f / "config.json", architectures=["Gemma3ForConditionalGeneration"]),
    "remote code": lambda f: edit(f / "config.json", architectures=["XForMaskedLM"], auto_map={"AutoConfig": "x.X"}),
    "sentencepiece": lambda f: (f / "tokenizer.json").rename(f / "tokenizer.model"),
    "no context given": lambda f: edit(f / "config.json", max_position_embeddings=None),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_may_load_is_left_alone(folder: Path, name: str) -> None:
    SOUND[name](folder)
    check_model(config_for(folder))


def test_an_adapter_may_judge_but_is_not_trained_further(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "config.json").rename(folder / "adapter_config.json")
    config = config_for(folder)
    assert check_folder(config.model) == folder
    with pytest.raises(ValueError, match="holds an adapter"):
        check_model(config)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharded_models_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    check_processes(config, 1)
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=f"set to {name}"):
        check_processes(config, 1)


@pytest.mark.parametrize("path", ["embedded", "Qwen/Qwen3-0.6B", "gpt2", "org_1/name.v2-it", "org/name@v1"])
def test_hub_ids_and_the_embedded_base_pass(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(preflight, "check_hub", lambda id, revision: asked.append((id, revision)))
    check_model(config_for(path))
    id, _, revision = path.partition("@")
    assert asked == [(id, revision or None)] * (path != "embedded")
    check_lengths(config_for(path), [source(question_task(make_example()))])


@pytest.mark.parametrize(
    "path", ["/no/such/model", "./model", "../model", "runs/quickstart/final", "models/qwen/", "."]
)
def test_a_local_path_that_is_not_there_is_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal(lambda: check_model(config_for(path)))
    assert path in said
    assert ("has no config.json" if path == "." else "there is no folder") in said


def test_the_first_missing_part_of_a_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    said = refusal(lambda: check_model(config_for(tmp_path / "runs" / "quickstrat" / "final")))
    assert f"({tmp_path / 'runs'} has no 'quickstrat')" in said


def test_a_file_and_a_tilde_are_refused(folder: Path) -> None:
    assert "is a file" in refusal(lambda: check_model(config_for(folder / "model.safetensors")))
    assert "~ is not expanded" in refusal(lambda: check_model(config_for("~/models/qwen")))


# ------------------------------------------------------------------------------------------------ chat template


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"\xff\xfe", "not UTF-8"),
        (b"{% for m in messages %}\n{{ m }", "line 2"),
        (b"{% for m in messages %}", "endfor"),
    ],
)
def test_an_unusable_template_file_is_refused_even_for_a_hub_id(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    template = tmp_path / "chat.jinja"
    if content is not None:
        template.write_bytes(content)
    said = refusal(lambda: check_model(config_for("org/name", model={"chat_template": template})))
    assert said.startswith(f"model.chat_template: {template}")
    assert message in said


def test_a_template_file_stands_in_for_a_missing_one_and_may_use_what_transformers_adds(folder: Path) -> None:
    no_template(folder)
    template = folder / "mine.jinja"
    template.write_text(
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    check_model(config_for(folder, model={"chat_template": template}))


# ------------------------------------------------------------------------------------------------ lengths

LONG: dict[str, Any] = {"prompt": ({"role": "user", "content": "seven eight " * 400},)}


def test_questions_are_refused_only_if_none_fits() -> None:
    short = question_task(make_example(2))
    long = question_task(make_example(3, **LONG))
    config = make_config(rollout={"max_new_tokens": 100})
    check_lengths(config, [source(long, short), source(short)])
    said = refusal(lambda: check_lengths(config, [source(short), source(long, long, path="long.jsonl")]))
    assert said.startswith("long.jsonl: every question is longer than 924 tokens")
    tight = make_config(data={"max_prompt_tokens": 3})
    assert "max_new_tokens" in refusal(lambda: check_lengths(tight, [source(short)]))


def test_a_row_that_is_left_out_does_not_count() -> None:
    short, long = (question_task(make_example(i, **changes)) for i, changes in ((2, {}), (3, LONG)))
    both = source(short, long)
    both.left_out[0] = "bad_gold"
    assert "every question" in refusal(lambda: check_lengths(make_config(), [both]))


def test_of_generated_questions_only_the_first_are_made() -> None:
    made: list[int] = []

    def read(i: int) -> Task:
        made.append(i)
        return question_task(make_example(i, **LONG))

    generated = Source("reasoning_gym:x", 2000, read, str, generator="x")
    assert "reasoning_gym:x" in refusal(lambda: check_lengths(make_config(), [generated]))
    assert made == list(range(64))


def test_it_stops_at_the_first_question_that_fits() -> None:
    def read(i: int) -> Task:
        assert i == 0, "read on"
        return question_task(make_example(1))

    check_lengths(make_config(), [Source("x.jsonl", 2, read, str)])


def test_the_count_is_a_lower_bound_of_the_rendered_prompt() -> None:
    from tokenizers import Tokenizer

    from spark_rl.train.preflight import _at_least

    renderer = ChatRenderer(load_tokenizer(ModelConfig()))
    bare = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    tasks, _ = load_data(make_config()).train.draw(50)
    assert all(0 < _at_least(bare, task.messages) <= len(renderer.encode(task.messages)) for task in tasks)


NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)


def renderer_of(tmp_path: Path, template: str) -> ChatRenderer:
    """The embedded tokenizer with this before its own template."""
    (tmp_path / "template.jinja").write_text(template + (BASE / "chat_template.jinja").read_text())
    tokenizer = load_tokenizer(ModelConfig(chat_template=tmp_path / "template.jinja"))
    return ChatRenderer(tokenizer)


def questions(path: Path, *systems: int, count: int = 40, start: int = 0) -> str:
    """A file of questions, some of them (counted from 1) with a system turn."""
    rows = [
        {
            "prompt": f"What is {start + i}+1?",
            "answer": start + i + 1,
            **({"system": "Be brief."} if i in systems else {}),
        }
        for i in range(1, count + 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_row_that_the_template_refuses_is_named_before_the_first_step(tmp_path: Path) -> None:
    renderer, train = renderer_of(tmp_path, NO_SYSTEM), questions(tmp_path / "train.jsonl", 17)
    config = make_config(data={"train": [train]})
    said = refusal(lambda: check_prompts(config, load_data(config), renderer))
    assert said.startswith(
        f"{train}, row 17: the tokenizer's chat template cannot be rendered for the turns system, user"
    )
    assert "no system" in said and said.endswith("(or leave such rows out: data.bad_rows=skip)")


def test_rows_that_the_template_refuses_are_skipped_in_every_part_and_counted(tmp_path: Path) -> None:
    renderer = renderer_of(tmp_path, NO_SYSTEM)
    parts = {
        "train": questions(tmp_path / "train.jsonl", 1, 2, 17),
        "validation": questions(tmp_path / "validation.jsonl", 3, count=5, start=100),
        "monitor": questions(tmp_path / "monitor.jsonl", 1, count=2, start=200),
    }
    config = make_config(data={"bad_rows": "skip", **{part: [path] for part, path in parts.items()}})
    data = load_data(config)
    before = data.report
    check_prompts(config, data, renderer)
    assert {part: reports[0]["skipped"] for part, reports in data.report.items()} == {
        "train": {"bad_prompt": 3},
        "validation": {"bad_prompt": 1},
        "monitor": {"bad_prompt": 1},
    }
    assert all(data.report[part] != before[part] for part in parts), "a resumed run must see that the same are left out"
    assert data.messages[-1].startswith(
        f"3 of the 40 rows of {parts['train']} are left out of training (bad prompt); the first one is "
        f"{parts['train']}, row 1: "
    )
    assert (len(data.validation), len(data.monitor), data.train.num_rows) == (4, 1, 37)
    drawn, _ = data.train.draw(2 * 37)
    for task in [*drawn, *data.validation, *data.monitor]:
        renderer.encode(task.messages)
    assert len({task.id for task in drawn}) == 37


def test_a_source_that_the_template_refuses_as_a_whole_is_named(tmp_path: Path) -> None:
    train = questions(tmp_path / "train.jsonl", 1, 2, count=2)
    config = make_config(data={"train": [train], "bad_rows": "skip"})
    said = refusal(lambda: check_prompts(config, load_data(config), renderer_of(tmp_path, NO_SYSTEM)))
    assert said.startswith(f"{train}: no row is usable; the first one: {train}, row 1: ")


@pytest.mark.parametrize(("preset", "refused"), [("spark", True), ("grpo", False)])
def test_a_template_that_refuses_recycled_prompts_is_refused_where_there_are_such(
    tmp_path: Path, preset: str, refused: bool
) -> None:
    template = "{% if 'A response to it' in messages[0]['content'] %}{{ raise_exception('no judging') }}{% endif %}"
    renderer = renderer_of(tmp_path, template)
    train = questions(tmp_path / "train.jsonl")
    config = load_config(None, [f"preset={preset}", f"data.train={train}"])
    if refused:
        said = refusal(lambda: check_prompts(config, load_data(config), renderer))
        assert said.startswith("prompts of the role pointwise (one turn of the user): ") and "no judging" in said
    else:
        check_prompts(config, load_data(config), renderer)


def test_it_takes_a_moment_and_no_heavy_library() -> None:
    code = (
        "import sys, time\n"
        "from spark_rl.config import load_config\n"
        "from factories import make_example\n"
        "from spark_rl.data import question_task\n"
        "from spark_rl.data.sources import Source\n"
        "config, task = load_config(), question_task(make_example())\n"
        "start = time.process_time()\n"
        "from spark_rl.train.preflight import check_lengths, check_model\n"
        "check_model(config); check_lengths(config, [Source('x', 1, [task].__getitem__, str)])\n"
        "done = time.process_time()\n"
        "assert not {'torch', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "import torch\n"
        "print((done - start) / (time.process_time() - done))\n"
    )
    tests = Path(__file__).parent.parent
    shown = subprocess.run([sys.executable, "-c", code], cwd=tests, capture_output=True, text=True, check=True)
    assert float(shown.stdout) < 0.7  # 0.1, of what torch alone takes to be imported
