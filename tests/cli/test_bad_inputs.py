"""The table of mistakes, each through the real command: one line that says what to change, code 2, nothing written.

Every case starts from a folder with a good config, good data and a good model, and spoils one thing. There must be
exactly one line on stderr with the words of the case, nothing on stdout, and the folder must hold what it held before.
Each is quick: what is asserted is CPU time, measured by that of a loop beside it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from clock import step
from image_files import BAD, png
from warm import PYTHON

from spark_rl.models.folder import resolve_path

LIMIT = 7e7
"""Steps of CPU time (`clock`); the slowest takes a third of it."""
TIMED = (
    "import atexit, os, sys\n"
    "from spark_rl.cli import main\n"
    "atexit.register(lambda: open(sys.argv[1], 'w').write(str(sum(os.times()[:2]))))\n"
    "main(sys.argv[2:])"
)
"""The command, which leaves its CPU time in a file; that of a verifier has a limit of its own."""
TRAIN = ["train", "run.yaml"]
GOOD = "".join(json.dumps({"prompt": f"What is {i}+1?", "answer": i + 1}) + "\n" for i in range(4))
ROLLOUTS = {"id": "q", "prompt": "1+1?", "answer": "2", "rollouts": [{"text": r"\boxed{2}", "reward": 1}]}


@dataclass(frozen=True)
class Case:
    name: str
    arguments: list[str]
    words: list[str]
    spoil: Callable[[Path], object] = lambda folder: None
    environment: tuple[tuple[str, str], ...] = ()
    shell: str = ""
    """Where given: runs the command as `$COMMAND` in a mount namespace of its own."""


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def rows(*values: object, name: str = "data.jsonl") -> Callable[[Path], object]:
    return write(name, "".join(json.dumps(value) + "\n" for value in values))


def edited(name: str, **changes: object) -> Callable[[Path], object]:
    """Change keys of a JSON file; None removes one."""

    def spoil(folder: Path) -> None:
        values = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return spoil


def removed(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1000])


def train(name: str, *overrides: str, words: list[str], spoil: Callable[[Path], object] = lambda f: None) -> Case:
    return Case(name, [*TRAIN, *overrides], words, spoil)


def a_run(folder: Path) -> None:
    (folder / "out" / "rollouts").mkdir(parents=True)
    (folder / "out" / "checkpoints").mkdir()
    (folder / "out" / "config.yaml").write_text("preset: spark")
    (folder / "out" / "metrics.jsonl").write_text('{"step": 1}\n')


Q = {"prompt": "What is 1+1?", "answer": "2"}
SELF_REWARD = ["self_reward.enabled=true", "validation.every=1", "data.validation=embedded:validation"]
CONFIG = [
    Case("no config", ["train", "nowhere.yaml"], ["nowhere.yaml", "cannot be read", "give the path"]),
    Case("config is a folder", ["train", "model"], ["model", "cannot be read"]),
    train("config is not YAML", words=["run.yaml", "not valid YAML"], spoil=write("run.yaml", "train: [")),
    train(
        "config nested 3,000 levels deep",
        words=["run.yaml: is nested more than 100 levels deep", "not closed"],
        spoil=write("run.yaml", "train: " + "{a: " * 3000 + "}" * 3000),
    ),
    train(
        "override nested deeply", "train.steps=" + "[" * 3000, words=["override train.steps: is nested more than 100"]
    ),
    train("config is a list", words=["run.yaml", "must hold a mapping"], spoil=write("run.yaml", "- train")),
    train("config is not UTF-8", words=["run.yaml", "not valid YAML"], spoil=write("run.yaml", b"model: {path: \xe9}")),
    train(
        "key given twice", words=["run.yaml", "'train' is given twice"], spoil=write("run.yaml", "train: {}\ntrain: {}")
    ),
    train(
        "unknown section", words=["unknown key 'trian'", "did you mean 'train'"], spoil=write("run.yaml", "trian: {}")
    ),
    train("unknown key", "train.learning_rte=1", words=["train.learning_rte", "did you mean 'learning_rate'"]),
    train("unknown key of a source", "data.train=[{pth: a}]", words=["data.train.0.pth", "did you mean 'path'"]),
    train("unknown preset", "preset=sparc", words=["'sparc'", "grpo, paper, spark"]),
    train("wrong type", "train.steps=many", words=["train.steps", "'many'", "integer"]),
    train("negative number", "train.learning_rate=-1", words=["train.learning_rate", "greater than 0", "-1"]),
    train("zero steps", "train.steps=0", words=["train.steps", "greater than or equal to 1"]),
    train("shares do not add up", "roles.answer.share=0.9", words=["shares", "add up to 1.4", "make them"]),
    train(
        "too few groups for a share",
        "rollout.groups_per_step=2",
        words=["roles.", "share", "raise rollout.groups_per_step to 16"],
    ),
    train("right below wrong", "recycle.wrong_at=1", words=["recycle.wrong_at", "recycle.right_at", "lower it"]),
    train("validation of nothing", "validation.every=5", words=["validation.every", "set data.validation"]),
    train("best of nothing", "checkpoint.final=best", words=["checkpoint.final", "set data.validation"]),
    train(
        "best of one",
        *("checkpoint.final=best", "data.validation={path: data.jsonl, size: 1}"),
        words=["checkpoint.final is best", "validation.every is 0"],
    ),
    train("unknown tracker", "train.trackers=[mlflow]", words=["train.trackers", "'tensorboard'", "mlflow"]),
    train("bad Hub id", "train.push_to_hub=my model!", words=["train.push_to_hub", "my model!"]),
    train("override without =", "train.steps", words=["'train.steps'", "section.key=value"]),
    train(
        "revision of a folder", "model.revision=v1", words=["model.revision is 'v1'", "local folder", "leave it out"]
    ),
    train(
        "revision of a file",
        "data.train={path: data.jsonl, revision: v1}",
        words=["data.jsonl makes no use of 'revision'", "remove it"],
    ),
    Case(
        "revision of a folder, given twice",
        ["solve", "model", "--question", "1+1?", "model.revision=v1"],
        ["model.revision is 'v1'", "local folder"],
    ),
    Case(
        "batch that does not divide",
        [*TRAIN, "rollout.groups_per_step=9", "preset=grpo"],
        ["rollout.groups_per_step is 9", "2 processes", "multiple"],
        environment=(("WORLD_SIZE", "2"),),
    ),
]
DATA = [
    train("no data file", "data.train=no.jsonl", words=["no.jsonl", "cannot be read", "No such file"]),
    train("data is a folder", "data.train=model", words=["model", "folder"]),
    train(
        "unknown format", "data.train=data.txt", words=["data.txt", ".jsonl", ".parquet"], spoil=write("data.txt", GOOD)
    ),
    train("pattern without a match", "data.train=no/*.jsonl", words=["no/*.jsonl", "no file matches"]),
    train("empty file", words=["data.jsonl", "holds no rows"], spoil=write("data.jsonl", "")),
    train("malformed row", words=["data.jsonl, row 5", "not valid JSON"], spoil=write("data.jsonl", GOOD + "{\n")),
    train(
        "nested row",
        words=["data.jsonl, row 2", "nested too deeply"],
        spoil=write(
            "data.jsonl",
            json.dumps(Q) + '\n{"prompt": "1+1?", "answer": 2, "metadata": {"a": ' + "[" * 3000 + "]" * 3000 + "}}\n",
        ),
    ),
    train("row is no object", words=["data.jsonl, row 5", "JSON object"], spoil=write("data.jsonl", GOOD + "[1]\n")),
    train(
        "wrong type in a row", words=["data.jsonl, row 2", "'prompt' must be text"], spoil=rows(Q, {**Q, "prompt": 3})
    ),
    train(
        "missing column",
        words=["data.jsonl, row 1", "no 'prompt'", "question", "data.columns.prompt"],
        spoil=rows({"question": "What is 1+1?", "answer": "2"}),
    ),
    train("no answer", words=["data.jsonl, row 2", "'answer'"], spoil=rows(Q, {"prompt": "What is 1+1?"})),
    train(
        "duplicate ids",
        words=["data.jsonl, row 2", "'x'", "row 1", "an 'id' of its own"],
        spoil=rows({**Q, "id": "x"}, {**Q, "id": "x"}),
    ),
    train(
        "gold that is no number",
        "data.verifier=numeric",
        words=["data.jsonl, row 1", "numeric", "gold"],
        spoil=rows({**Q, "answer": "about two"}),
    ),
    train("gold with an open brace", words=["data.jsonl, row 1", "braces"], spoil=rows({**Q, "answer": r"\frac{1}{2"})),
    train("huge row", words=["data.jsonl, row 1", "MiB", "shorten"], spoil=rows({**Q, "note": "x" * 5_000_000})),
    train(
        "huge prompt",
        words=["data.jsonl, row 1", "characters", "shorten"],
        spoil=rows({**Q, "prompt": "x" * 2_000_000}),
    ),
    train(
        "data is not UTF-8",
        words=["data.jsonl, row 1", "not UTF-8", "convert"],
        spoil=write("data.jsonl", '{"prompt": "Où?", "answer": "2"}\n'.encode("latin-1")),
    ),
    train("data is UTF-16", words=["data.jsonl, row 1", "not UTF-8"], spoil=write("data.jsonl", GOOD.encode("utf-16"))),
    train(
        "CSV with a comma too many",
        "data.train=data.csv",
        words=["data.csv, row 1", "3 fields", "quotes"],
        spoil=write("data.csv", "prompt,answer\nWhat, is 1+1?,2\n"),
    ),
    train(
        "corrupt Parquet",
        "data.train=data.parquet",
        words=["data.parquet", "cannot be loaded"],
        spoil=write("data.parquet", "PAR1 nonsense"),
    ),
    train("unknown verifier", "data.verifier=mth", words=["'mth'", "did you mean 'math'"]),
    train(
        "unknown verifier in a row", words=["data.jsonl, row 1", "'mth'", "math"], spoil=rows({**Q, "verifier": "mth"})
    ),
    train("verifier module missing", "data.verifier=nowhere:grade", words=["nowhere", "row 1"]),
    train(
        "verifier function missing",
        "data.verifier=mine:grade",
        words=["mine:grade", "row 1"],
        spoil=write("mine.py", ""),
    ),
    train(
        "verifier that raises",
        "data.verifier=mine:grade",
        words=["mine:grade", "row 1", "ZeroDivisionError"],
        spoil=write("mine.py", "def grade(answer, gold, metadata):\n    return 1 / 0\n"),
    ),
    train(
        "verifier that never ends",
        "data.verifier=mine:grade",
        "verify.cpu_seconds=1",
        words=["mine:grade", "row 1", "timeout"],
        spoil=write("mine.py", "def grade(answer, gold, metadata):\n    while True:\n        pass\n"),
    ),
    train("unknown embedded set", "data.train=embedded:exam", words=["embedded:exam", "train, validation"]),
    train("unknown reasoning-gym task", "data.train=reasoning_gym:chain_sums", words=["'chain_sums'", "'chain_sum'"]),
    train(
        "unknown reasoning-gym option",
        "data.train=[{path: reasoning_gym:gcd, options: {max: 3}}]",
        words=["reasoning_gym:gcd", "'max'", "max_value"],
    ),
    train("trained on and held out", "data.validation=data.jsonl", words=["data.jsonl", "trained on and held out"]),
    train(
        "every question held out",
        "data.validation=same.jsonl",
        words=["data.jsonl", "held out"],
        spoil=write("same.jsonl", GOOD),
    ),
    train(
        "row that the chat template refuses",
        "model.chat_template=no_system.jinja",
        words=["data.jsonl, row 2", "chat template", "system, user", "no system turn here", "data.bad_rows=skip"],
        spoil=lambda folder: [
            rows(Q, {**Q, "prompt": "What is 2+1?", "system": "Be brief."})(folder),
            write(
                "no_system.jinja",
                "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
                "{{ messages[-1]['content'] }}",
            )(folder),
        ],
    ),
    train("unknown role", words=["data.jsonl, row 1", "'role'", "pointwise"], spoil=rows({**Q, "role": "judge"})),
    train(
        "judge row without a verdict", words=["data.jsonl, row 1", "Yes or No"], spoil=rows({**Q, "role": "pointwise"})
    ),
    train("pattern that is no pattern", "data.answer_pattern='('", words=["data.answer_pattern", "regular expression"]),
    train(
        "pattern that finds nothing",
        "data.answer_pattern='### (.)'",
        words=["data.jsonl, row 1", "data.answer_pattern"],
    ),
    train("self-reward unmeasured", "self_reward.enabled=true", words=["self_reward.enabled", "set data.validation"]),
    train(
        "self-reward measured but once",
        "self_reward.enabled=true",
        "data.validation=embedded:validation",
        words=["self_reward.enabled", "set validation.every"],
    ),
    train(
        "row without an answer while self-reward is off",
        words=["data.jsonl, row 2", "'self'", "self_reward.enabled=true"],
        spoil=rows(Q, {"prompt": "Why?", "verifier": "self"}),
    ),
    train(
        "held-out row without an answer",
        "data.validation=held.jsonl",
        words=["held.jsonl, row 1", "'self'", "move it to data.train"],
        spoil=rows({"prompt": "Why?", "verifier": "self"}, name="held.jsonl"),
    ),
    train(
        "no row with a rule",
        *SELF_REWARD,
        words=["data.train", "every row", "'self'", "add some"],
        spoil=rows({"prompt": "Why?", "verifier": "self"}),
    ),
    train(
        "judge row without a rule",
        *SELF_REWARD,
        words=["data.jsonl, row 2", "pointwise", "'self'", "name a rule"],
        spoil=rows(Q, {**Q, "answer": "Yes", "role": "pointwise", "verifier": "self"}),
    ),
]
ANSWERS = 'answer: {name: mine, text: "{question} Use <answer></answer>."}'
FORMATS = [
    train("unknown answer format", "data.answer_format=boxd", words=["data.answer_format", "did you mean 'boxed'"]),
    train(
        "answer format that is no expression", "data.answer_format=(a", words=["data.answer_format: '(a'", "missing )"]
    ),
    train(
        "answer format that cannot be written",
        r"data.answer_format=\w+: (\d+)",
        words=["data.answer_format", "not clear how to write", "put plain text around the group"],
    ),
    train(
        "gold that the answer format cannot state",
        "data.answer_format=last_number",
        words=["data.jsonl, row 2", "cannot be stated in the format last_number", "data.answer_format"],
        spoil=rows(Q, {**Q, "answer": "B", "verifier": "choice"}),
    ),
    train(
        "gold of which the answer format states a part",
        "data.answer_format=last_number",
        words=["data.jsonl, row 1", "exact verifier", "stated in the format last_number"],
        spoil=rows({**Q, "answer": "2 apples", "verifier": "exact"}),
    ),
    train("verdicts in a format for answers", "prompts.verdict_format=hash", words=["prompts.verdict_format: 'hash'"]),
    train(
        "verdicts in a format for numbers",
        r"prompts.verdict_format=Result: (\d+)",
        words=["'Yes'", "cannot state", "prompts.verdict_format"],
    ),
    train("no file of templates", "prompts.templates=no.yaml", words=["prompts.templates: no.yaml", "cannot be read"]),
    train(
        "template that asks for another format",
        *("prompts.templates=mine.yaml", "data.answer_format=####(.+)"),
        words=["prompts.templates: the answer template 'mine' asks for <answer></answer>", "{give_answer}"],
        spoil=write("mine.yaml", ANSWERS),
    ),
    Case(
        "verify: unknown format",
        ["verify", "data.jsonl", "--format", "tag"],
        ["--format: 'tag'", "did you mean 'tags'"],
    ),
    Case(
        "recycle: unknown format",
        ["recycle", "data.jsonl", "--format", "jsonn"],
        ["--format: 'jsonn'", "did you mean 'json'"],
        rows(ROLLOUTS),
    ),
    Case(
        "judge: template that is none",
        ["judge", "model", "--question", "1+1?", "--response", "2", "prompts.templates=mine.yaml"],
        ["prompts.templates", "no {question}"],
        write("mine.yaml", "pointwise: {name: mine, text: '{yes} or {no}?'}"),
    ),
    Case(
        "saved prompts that were spoilt",
        ["solve", "model", "--question", "1+1?"],
        ["spark_rl_prompts.json is damaged, or no file of prompts", "mend or remove it"],
        write("model/spark_rl_prompts.json", "{}"),
    ),
]
DISCS = {"prompt": "How many discs are there?", "answer": 3}


def seen(*images: str, prompt: str = DISCS["prompt"]) -> Callable[[Path], object]:
    """A good row and one with these images, of which `good.png` is good."""

    def spoil(folder: Path) -> None:
        (folder / "good.png").write_bytes(png())
        for name in set(images) & set(BAD):
            (folder / name).write_bytes(BAD[name][0])
        rows(Q, {**DISCS, "prompt": prompt, "images": images})(folder)

    return spoil


IMAGES = [
    *(
        train(
            f"image {name}", "--dry-run", words=["data.jsonl, row 2", name, *BAD[name][1].split("; ")], spoil=seen(name)
        )
        for name in ("truncated.jpg", "text.png", "empty.png", "pixel.png", "huge.png", "moving.gif", "float.tif")
    ),
    train("no image", "--dry-run", words=["data.jsonl, row 2", "no.png", "check the path"], spoil=seen("no.png")),
    train("image is a folder", "--dry-run", words=["data.jsonl, row 2", "model is a folder"], spoil=seen("model")),
    train(
        "image of the web",
        "--dry-run",
        words=["data.jsonl, row 2", "https://example.org/a.png", "data.allow_image_urls=true"],
        spoil=seen("https://example.org/a.png"),
    ),
    train(
        "images and markers",
        "--dry-run",
        words=["data.jsonl, row 2", "images is 1", "<image> in 'prompt' is 2", "write it once"],
        spoil=seen("good.png", prompt="Is <image> like <image>?"),
    ),
    train(
        "no row with a good image",
        "--dry-run",
        "data.train=seen.jsonl",
        "data.bad_rows=skip",
        words=["seen.jsonl", "no row is usable", "row 1", "no.png"],
        spoil=rows({**DISCS, "images": "no.png"}, name="seen.jsonl"),
    ),
    Case(
        "recycle: bad image",
        ["recycle", "data.jsonl", "--out", "made.jsonl"],
        ["data.jsonl, row 1", "no.png", "--skip-bad"],
        rows({**ROLLOUTS, "images": ["no.png"]}),
    ),
]
MODEL = [
    train("no model folder", "model.path=./nowhere", words=["model.path", "nowhere"]),
    train("model is a file", "model.path=run.yaml", words=["model.path", "run.yaml", "folder"]),
    train("no config.json", words=["model", "config.json"], spoil=removed("model/config.json")),
    train(
        "not a causal LM",
        words=["model", "BertForMaskedLM", "causal LM"],
        spoil=edited("model/config.json", architectures=["BertForMaskedLM"], model_type="bert"),
    ),
    train("no weights", words=["model", "weights"], spoil=removed("model/model.safetensors")),
    train("truncated weights", words=["model.safetensors", "download"], spoil=cut("model/model.safetensors")),
    train(
        "no tokenizer",
        words=["model", "tokenizer"],
        spoil=removed("model/tokenizer.json", "model/tokenizer_config.json"),
    ),
    train(
        "no chat template", words=["chat template", "model.chat_template"], spoil=removed("model/chat_template.jinja")
    ),
    train("no such chat template", "model.chat_template=no.jinja", words=["model.chat_template", "no.jinja"]),
    train(
        "chat template that is no Jinja",
        "model.chat_template=bad.jinja",
        words=["model.chat_template", "bad.jinja"],
        spoil=write("bad.jinja", "{% for m in messages %}{{ m.content }}"),
    ),
    train(
        "prompt longer than the context",
        words=["longer than", "context"],
        spoil=rows({**Q, "prompt": "What is this? " * 2000}),
    ),
    train(
        "rollouts longer than the context",
        "rollout.max_new_tokens=4000",
        words=["max_new_tokens is 4000", "1024", "lower"],
    ),
]
NO_HUB = (("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_CACHE", "no-cache"))
FULL = "mount -t tmpfs -o size=256k tmpfs out && head -c 300k /dev/zero > out/filler; $COMMAND"
READ_ONLY = "mount --bind out out && mount -o remount,ro,bind out; $COMMAND"
OUTPUT = [
    train("output of another run", words=["out", "not empty", "--resume"], spoil=a_run),
    Case(
        "resume of something else",
        [*TRAIN, "--resume"],
        ["out", "holds no run"],
        lambda f: [(f / "out").mkdir(), (f / "out" / "thesis.tex").write_text("mine")],
    ),
    train("output below a file", "train.output=data.jsonl/out", words=["data.jsonl/out", "cannot be written"]),
    Case(
        "read-only folder",
        [*TRAIN, "train.output=out/new"],
        ["out", "cannot be written", "Read-only"],
        lambda f: (f / "out").mkdir(),
        shell=READ_ONLY,
    ),
    Case(
        "full disk",
        [*TRAIN, "train.output=out/new"],
        ["out", "cannot be written", "No space"],
        lambda f: (f / "out").mkdir(),
        shell=FULL,
    ),
]
VERBS = [
    Case("verify: no file", ["verify", "no.jsonl"], ["no.jsonl", "cannot be read"]),
    Case(
        "verify: malformed row",
        ["verify", "data.jsonl", "--out", "graded.jsonl"],
        ["data.jsonl, row 2", "JSON"],
        write("data.jsonl", '{"answer": "2", "gold": "2"}\n{'),
    ),
    Case(
        "verify: no gold",
        ["verify", "data.jsonl", "--out", "graded.jsonl"],
        ["data.jsonl, row 1", "'gold'"],
        rows({"answer": "2"}),
    ),
    Case(
        "verify: unknown verifier",
        ["verify", "data.jsonl", "--verifier", "mth"],
        ["'mth'", "'math'"],
        rows({"answer": "2", "gold": "2"}),
    ),
    Case(
        "verify: full disk",
        ["verify", "data.jsonl", "--out", "/dev/full"],
        ["/dev/full"],
        rows({"answer": "2", "gold": "2"}),
    ),
    Case(
        "verify: huge row",
        ["verify", "data.jsonl", "--out", "graded.jsonl"],
        ["data.jsonl, row 1", "MiB"],
        rows({"answer": "2" * 5_000_000, "gold": "2"}),
    ),
    Case("verify: output is input", ["verify", "data.jsonl", "--out", "data.jsonl"], ["data.jsonl"]),
    Case("recycle: no rollouts", ["recycle", "data.jsonl", "--out", "made.jsonl"], ["data.jsonl, row 1", "'rollouts'"]),
    Case(
        "recycle: reward is text",
        ["recycle", "data.jsonl", "--out", "made.jsonl"],
        ["data.jsonl, row 1", "reward"],
        rows({**ROLLOUTS, "rollouts": [{"text": "2", "reward": "good"}]}),
    ),
    Case(
        "recycle: unknown setting",
        ["recycle", "data.jsonl", "recycle.both_order=true"],
        ["both_order", "'both_orders'"],
        rows(ROLLOUTS),
    ),
    Case(
        "recycle: not UTF-8",
        ["recycle", "data.jsonl", "--out", "made.jsonl"],
        ["data.jsonl", "UTF-8"],
        write("data.jsonl", b'{"id": "\xe9"}\n'),
    ),
]
TAKEN = socket.create_server(("127.0.0.1", 0))
PORT = str(TAKEN.getsockname()[1])
SERVE = [
    Case("serve: port taken", ["serve", "embedded", "--port", PORT], [f"--port {PORT}", "in use", "choose another"]),
    Case("serve: public without a token", ["serve", "embedded", "--host", "0.0.0.0"], ["0.0.0.0", "--token-env"]),
    Case("serve: unknown host", ["serve", "embedded", "--host", "no.invalid"], ["no.invalid", "choose another"]),
    Case("serve: token not set", ["serve", "embedded", "--token-env", "NO_SUCH"], ["NO_SUCH is not set", "export"]),
    Case("serve: no model", ["serve", "./nowhere", "--port", "0"], ["./nowhere"]),
    Case("serve: unknown setting", ["serve", "embedded", "serve.max_bath=1"], ["serve.max_bath", "'max_batch'"]),
    Case(
        "serve: requests that never fit",
        ["serve", "embedded", "serve.max_queue=8"],
        ["serve.max_items is 256", "raise serve.max_queue"],
    ),
]
ENGINES = [
    Case("no server", ["solve", "http://127.0.0.1:9/v1", "data.jsonl"], ["no server answers at http://127.0.0.1:9/v1"]),
    Case("server for a folder", ["solve", "./model", "data.jsonl", "engine.kind=endpoint"], ["give an address"]),
    Case("vllm is not there", ["solve", "./model", "data.jsonl", "engine.kind=vllm"], ["pip install 'spark-rl[vllm]'"]),
    Case("folder for an address", ["eval", "http://127.0.0.1:9", "engine.kind=vllm"], ["give an address to endpoint"]),
]
QUESTION = {"prompt": "1+1?", "answer": "2"}
EVAL = [
    Case("embedded mistyped", ["solve", "embedded-vison", "--question", "1+1?"], ["did you mean 'embedded-vision'?"]),
    Case(
        "no network for a Hub id",
        ["solve", "gpt2", "--question", "1+1?"],
        ["no folder gpt2", "Hub cannot be asked", "give an existing folder"],
        environment=NO_HUB,
    ),
    Case(
        "no network for what was meant as a folder",
        ["judge", "runs/quickstart", "--question", "1+1?", "--response", "2"],
        ["no folder runs/quickstart", "Hub cannot be asked"],
        environment=NO_HUB,
    ),
    Case(
        "eval: no network for a Hub id",
        ["eval", "org/name", "--suite", "embedded:vision-test"],
        ["no folder org/name", "Hub cannot be asked"],
        environment=NO_HUB,
    ),
    Case(
        "the folder of a run",
        ["solve", "out", "--question", "1+1?"],
        ["out has no config.json; name out/final"],
        lambda folder: [a_run(folder), shutil.copytree(folder / "model", folder / "out" / "final")],
    ),
    Case("eval: unknown suite", ["eval", "embedded", "--suite", "gsm9k"], ["'gsm9k'", "did you mean 'gsm8k'"]),
    Case("eval: unknown strategy", ["eval", "embedded", "--strategies", "vote@8"], ["'vote@8'", "majority@8"]),
    Case("eval: blind without images", ["eval", "embedded", "--blind"], ["--blind", "embedded", "no images"]),
    Case("eval: k is missing", ["eval", "embedded", "--strategies", "majority"], ["'majority'", "majority@8"]),
    Case("eval: no baseline", ["eval", "embedded", "--baseline", "./nowhere"], ["./nowhere"]),
    Case(
        "eval: no server", ["eval", "http://127.0.0.1:9/v1"], ["no server answers at http://127.0.0.1:9/v1", "start it"]
    ),
    Case("eval: no room", ["eval", "embedded", "engine.max_new_tokens=4000"], ["context of 1024 tokens", "lower it"]),
    *(
        Case(
            f"eval: images, {name}",
            ["eval", *models, "--suite", "pope", "--local", "pope=data.jsonl", "--out", "out"],
            ["--suite pope", "embedded takes none", "vision-language model", "paper-text"],
            lambda folder: [
                (folder / "a.png").write_bytes(png()),
                rows({"question": "Is it red?", "answer": "yes", "image": "a.png"})(folder),
            ],
        )
        for name, models in (
            ("model", ["embedded"]),
            ("baseline", ["embedded-vision", "--baseline", "embedded"]),
        )
    ),
    Case(
        "eval: no copy", ["eval", "embedded", "--suite", "gsm8k", "--local", "gsm8k=nowhere"], ["there is no nowhere"]
    ),
    Case("eval: copy without a name", ["eval", "embedded", "--suite", "gsm8k", "--local", "x"], ["NAME=PATH"]),
    Case(
        "eval: copy of another schema",
        ["eval", "embedded", "--suite", "gsm8k", "--local", "gsm8k=data.jsonl"],
        ["gsm8k, row 1", "'answer' must end with"],
    ),
    Case(
        "eval: missing gold",
        ["eval", "embedded", "--suite", "suite.jsonl"],
        ["suite.jsonl, row 2", "'answer'"],
        rows(QUESTION, {"prompt": "2+2?"}, name="suite.jsonl"),
    ),
    Case(
        "eval: a pair without its wrong half",
        ["eval", "embedded", "--suite", "suite.jsonl"],
        ["suite.jsonl, row 1", "'right' must be text"],
        rows({"question": "1+1?", "right": 3, "wrong": "3"}, name="suite.jsonl"),
    ),
    Case(
        "eval: the same id twice",
        ["eval", "embedded", "--suite", "suite.jsonl"],
        ["suite.jsonl, row 2", "'7' was given before, in row 1"],
        rows(
            {"prompt": "1+1?", "answer": "2", "id": 7}, {"prompt": "2+2?", "answer": "4", "id": 7}, name="suite.jsonl"
        ),
    ),
    Case("eval: folder in use", ["eval", "embedded", "--out", "."], ["--out .", "name another"]),
]
ITEM = {"question": "What is 1+1?", "response": r"\boxed{2}"}
JUDGE = ["judge", "model", "data.jsonl", "--out", "judged.jsonl"]
INFER = [
    Case("judge: missing field", JUDGE, ["data.jsonl, row 2", "'response'"], rows(ITEM, {"question": "What is 1+1?"})),
    Case("judge: unknown setting", [*JUDGE, "judge.sampels=2"], ["judge.sampels", "'samples'"], rows(ITEM)),
    Case(
        "judge: output is there",
        JUDGE,
        ["judged.jsonl", "is there already", "--resume"],
        lambda folder: [rows(ITEM)(folder), write("judged.jsonl", "mine\n")(folder)],
    ),
    Case(
        "judge: resume of another model",
        [*JUDGE, "--resume"],
        ["judged.jsonl, row 1", "'other judge 0'", "name another file"],
        lambda folder: [rows(ITEM)(folder), rows({**ITEM, "by": "other judge 0"}, name="judged.jsonl")(folder)],
    ),
    Case(
        "judge: row longer than the context",
        [*JUDGE, "judge.view=reasoning"],
        ["data.jsonl, row 1", "no room", "shorten"],
        rows({**ITEM, "response": "1+1=2. " * 1000}),
    ),
    Case(
        "solve: unknown strategy",
        ["solve", "model", "data.jsonl", "--strategy", "majorty@8"],
        ["'majorty@8'", "did you mean 'majority@8'"],
    ),
    Case(
        "solve: missing field",
        ["solve", "model", "data.jsonl", "--out", "solved.jsonl"],
        ["data.jsonl, row 2", "'prompt'"],
        rows(Q, {"question": "What is 1+1?"}),
    ),
    Case(
        "solve: replies longer than the context",
        ["solve", "model", "data.jsonl", "--max-new-tokens", "2000"],
        ["engine.max_new_tokens is 2000", "1024", "lower"],
    ),
]
TO_LEARN = ["warm_start.steps=2", "warm_start.data=learn.jsonl"]
LEARN = {**Q, "response": r"1+1=2 \boxed{2}"}
WARM_START = [
    train("warm start of nothing", "warm_start.steps=2", words=["warm_start.steps is 2", "nothing to train on"]),
    train("warm start without steps", TO_LEARN[1], words=["warm_start.data is set", "warm_start.steps is 0", "10"]),
    train(
        "warm start from rollouts without steps",
        "warm_start.from_rollouts=true",
        words=["warm_start.from_rollouts is set", "warm_start.steps is 0"],
    ),
    train(
        "warm start from rollouts without examples",
        "warm_start.steps=2",
        "warm_start.from_rollouts=true",
        words=["warm_start.from_rollouts", "worked examples", "there are none", "set prompts.examples"],
    ),
    train(
        "warm start and a penalty for what it does",
        *TO_LEARN,
        "loss.kl_coef=0.001",
        words=["loss.kl_coef is 0.001", "before the warm start", "set loss.kl_coef to 0"],
        spoil=rows(LEARN, name="learn.jsonl"),
    ),
    train(
        "warm start on generated questions",
        "warm_start.steps=2",
        "warm_start.data=embedded:train",
        words=["warm_start.data: embedded:train", "no responses", "warm_start.from_rollouts"],
    ),
    train(
        "warm start on rows without responses",
        *TO_LEARN,
        words=["learn.jsonl, row 2", "has no 'response'", "data.columns.response=<name>"],
        spoil=rows(LEARN, {**Q, "completion": "2"}, name="learn.jsonl"),
    ),
    train(
        "a response that is no text",
        *TO_LEARN,
        words=["learn.jsonl, row 1", "'response' must be text or a list of texts, not", "3"],
        spoil=rows({**Q, "response": ["2", 3]}, name="learn.jsonl"),
    ),
    train(
        "responses in another format",
        *TO_LEARN,
        words=["learn.jsonl: no row is usable", "graded 'unparsed'", "#### ...", "set data.answer_format=hash"],
        spoil=rows({**Q, "response": "1+1=2\n#### 2"}, name="learn.jsonl"),
    ),
    train(
        "verdicts in another format",
        *TO_LEARN,
        words=["learn.jsonl: no row is usable", "set prompts.verdict_format=phrase"],
        spoil=rows({**Q, "role": "pointwise", "answer": "Yes", "response": "The answer is Yes."}, name="learn.jsonl"),
    ),
    train(
        "wrong responses",
        *TO_LEARN,
        words=["learn.jsonl: no row is usable", "learn.jsonl, row 1: its response is graded 'wrong'"],
        spoil=rows({**Q, "response": r"\boxed{3}"}, name="learn.jsonl"),
    ),
    train(
        "warm start on rows that are all too long",
        *TO_LEARN,
        words=["learn.jsonl: every question is longer than", "leave it out of warm_start.data"],
        spoil=rows({**LEARN, "prompt": "What is 1+1? " * 400}, name="learn.jsonl"),
    ),
    train(
        "warm start on rows that the chat template makes too long",
        *TO_LEARN,
        "data.max_prompt_tokens=60",
        words=["learn.jsonl: every prompt is longer than 60 tokens", "leave it out of warm_start.data"],
        spoil=rows({**LEARN, "prompt": "What is 1+1? " * 5}, name="learn.jsonl"),
    ),
    train(
        "warm start on what is held out",
        *TO_LEARN,
        "data.validation=learn.jsonl",
        words=["learn.jsonl is both trained on and held out"],
        spoil=rows(LEARN, name="learn.jsonl"),
    ),
]
SHOT = {"question": "What is 2+2?", "reply": "2+2 = 4.", "answer": 4}
OF_A_FILE = "prompts.examples={answer: shots.jsonl}"


def shots(*values: object) -> Callable[[Path], object]:
    return rows(*values, name="shots.jsonl")


EXAMPLES = [
    train("examples: no such file", OF_A_FILE, words=["shots.jsonl cannot be read (No such file", "give the path"]),
    train("examples: no such YAML", "prompts.examples=shots.yaml", words=["shots.yaml: cannot be read", "YAML file"]),
    train("examples: another file", "prompts.examples={answer: data.txt}", words=["data.txt is neither ready, none"]),
    train("examples: mistyped word", "prompts.examples=redy", words=["redy is neither", "did you mean 'ready'?"]),
    train("examples: unknown role", "prompts.examples={judge: ready}", words=["no role 'judge'; roles are answer"]),
    train("examples: mistyped role", "prompts.examples={answr: ready}", words=["'answr'; did you mean 'answer'?"]),
    train("examples: a number", "prompts.examples=3", words=["prompts.examples must be ready, none, a file", "not 3"]),
    train("examples: a number by role", "prompts.examples={answer: 3}", words=["examples.answer: 3 is neither"]),
    train(
        "examples: taken from elsewhere",
        "prompts.examples={num: 2, from: data.validation}",
        words=["must be of the form {num: 2, from: data.train}"],
    ),
    train("examples: taken none", "prompts.examples={num: 0, from: data.train}", words=["{num: 2, from: data.train}"]),
    train(
        "examples: of a judge, taken",
        "prompts.examples={pairwise: {num: 2, from: data.train}}",
        words=["prompts.examples.pairwise: rows of data.train hold no examples of this role; give ready"],
    ),
    train(
        "examples: taken more than there are",
        "prompts.examples={answer: {num: 9, from: data.train}}",
        words=["asks for 9 rows of data.train, and 4 of 4 that were looked at", "ask for fewer"],
    ),
    train("examples: empty file", OF_A_FILE, words=["shots.jsonl: holds no examples"], spoil=shots()),
    train(
        "examples: not JSON", OF_A_FILE, words=["shots.jsonl, row 1: not valid JSON"], spoil=write("shots.jsonl", "{")
    ),
    train(
        "examples: not YAML",
        "prompts.examples={answer: shots.yml}",
        words=["shots.yml: not valid YAML"],
        spoil=write("shots.yml", "- {"),
    ),
    train(
        "examples: a file of one role for all",
        "prompts.examples=shots.jsonl",
        words=["shots.jsonl: holds examples of one role; say which: prompts.examples={answer: shots.jsonl}"],
        spoil=shots(SHOT),
    ),
    train(
        "examples: a file with an unknown role",
        "prompts.examples=shots.yaml",
        words=["shots.yaml: there is no role 'judge'"],
        spoil=write("shots.yaml", "judge: []"),
    ),
    train(
        "examples: a file without the role",
        "prompts.examples={pointwise: shots.yaml}",
        words=["shots.yaml, pointwise: must be a list of examples"],
        spoil=write("shots.yaml", "answer: []"),
    ),
    train(
        "examples: unknown key",
        OF_A_FILE,
        words=["shots.jsonl, row 2: unknown key 'anser'; did you mean 'answer'?"],
        spoil=shots(SHOT, {**SHOT, "anser": 4}),
    ),
    train("examples: no question", OF_A_FILE, words=["row 1: has no 'question'; add it"], spoil=shots({"answer": 4})),
    train(
        "examples: contradiction",
        OF_A_FILE,
        words=["shots.jsonl, row 1: its reply states '5', and '4' is meant; change one"],
        spoil=shots({**SHOT, "reply": r"\boxed{5}"}),
    ),
    train(
        "examples: a reply that states nothing",
        OF_A_FILE,
        words=["row 1: turn 2 (assistant) does not state an answer as \\boxed{...}; let it"],
        spoil=shots({"question": "2+2?", "reply": "four"}),
    ),
    train(
        "examples: an answer that the format cannot state",
        *(OF_A_FILE, "data.answer_format=last_number"),
        words=["row 1: 'x' cannot be stated as last_number"],
        spoil=shots({"question": "Name a letter.", "answer": "x"}),
    ),
    train(
        "examples: turns that do not alternate",
        OF_A_FILE,
        words=["row 1: its turns are assistant; let user and assistant take turns, the assistant last"],
        spoil=shots({"messages": [{"role": "assistant", "content": r"\boxed{4}"}]}),
    ),
    train(
        "examples: a verdict of other words",
        'prompts.examples={pointwise: [{messages: [{role: user, content: "?"}, {role: assistant, content: maybe}]}]}',
        words=["prompts.examples.pointwise, example 1: turn 2 (assistant) does not state the verdict Yes or No"],
    ),
    train(
        "examples: held out",
        *(OF_A_FILE, "data.validation={path: data.jsonl, size: 1}"),
        words=["prompts.examples: the question 'What is 0+1?' is held out as well; take another one"],
        spoil=shots({"question": "What is 0+1?", "answer": 1}),
    ),
    train(
        "examples: longer than a prompt may be",
        *(OF_A_FILE, "data.max_prompt_tokens=60"),
        words=["prompts.examples.answer: the worked examples take ", "a prompt may have 60", "give fewer or shorter"],
        spoil=shots({**SHOT, "question": "What is 2+2? " * 30}),
    ),
    Case(
        "examples: from the data at test time",
        ["solve", "model", "--question", "1+1?", "prompts.examples={num: 2, from: data.train}"],
        ["prompts.examples takes rows of data.train, which only a run has; name a file"],
    ),
    Case(
        "examples: longer than the context",
        ["solve", "model", "--question", "1+1?", OF_A_FILE, "--max-new-tokens", "20"],
        ["prompts.examples.answer: the worked examples take ", "a context of 1024"],
        shots({**SHOT, "question": "What is 2+2? " * 300}),
    ),
]
TRY = ["doctor", "model", "--data", "data.jsonl"]
DOCTOR = [
    Case("doctor: no questions", ["doctor", "model"], ["no questions", "name some with --data"]),
    Case("doctor: no model", ["doctor", "--data", "data.jsonl"], ["no model to try", "name one"]),
    Case("doctor: questions that are nowhere", ["doctor", "model", "--data", "nowhere.jsonl"], ["nowhere.jsonl"]),
    Case("doctor: a config that is nowhere", ["doctor", "--data", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
    Case("doctor: no such model", ["doctor", "no/such/model", *TRY[2:]], ["no/such/model"]),
    Case("doctor: weights cut short", TRY, ["model.safetensors"], cut("model/model.safetensors")),
    Case("doctor: no rows", TRY, ["data.jsonl", "no rows"], write("data.jsonl", "")),
    Case("doctor: rows without answers", TRY, ["data.jsonl, row 1", "'answer'"], rows({"prompt": "What is 1+1?"})),
    Case(
        "doctor: pictures for a model of text", TRY, ["data.jsonl, row 2: has images", "takes none"], seen("good.png")
    ),
    Case(
        "doctor: questions longer than the context",
        TRY,
        ["data.jsonl", "leaves room for a reply of 256 tokens"],
        rows({"prompt": "1+1? " * 1000, "answer": 2}),
    ),
    Case("doctor: a folder for the config", [*TRY, "--out", "model"], ["--out model: is a folder", "name a file"]),
    Case("doctor: mistyped setting", [*TRY, "rollout.max_new_token=9"], ["did you mean 'max_new_tokens'"]),
    Case(
        "doctor: mistyped setting of the engine",
        [*TRY, "engine.concurency=2"],
        ["engine.concurency", "did you mean 'concurrency'"],
    ),
    Case("doctor: replies longer than the context", [*TRY, "rollout.max_new_tokens=2000"], ["2000", "1024", "lower"]),
    Case("doctor: no time", [*TRY, "--seconds", "0"], ["--seconds 0", "more than 0"]),
    Case(
        "doctor: a config for a server",
        ["doctor", "http://127.0.0.1:9/v1", *TRY[2:], "--out", "new.yaml"],
        ["--out new.yaml", "server's model"],
    ),
]
CASES = [
    *(*EVAL, *ENGINES, *CONFIG, *WARM_START, *DATA, *FORMATS, *EXAMPLES, *IMAGES),
    *(*MODEL, *OUTPUT, *VERBS, *SERVE, *INFER, *DOCTOR),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(
        "preset: spark\nmodel: {path: model}\ndata: {train: [data.jsonl]}\n"
        "rollout: {max_new_tokens: 20}\ntrain: {output: out, steps: 1}\n"
    )
    (tmp_path / "data.jsonl").write_text(GOOD)
    shutil.copytree(resolve_path("embedded"), tmp_path / "model", ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    found = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path): path.read_bytes() if path.is_file() else None for path in found}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_gets_one_line_and_code_2(case: Case, folder: Path) -> None:
    case.spoil(folder)
    used = folder.with_name(f"{folder.name}-used")
    command = [*PYTHON, "-c", TIMED, str(used), *case.arguments]
    if case.shell:
        if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
            pytest.skip("needs a mount namespace")
        command = [sys.executable, *command[len(PYTHON) :]]
        command = ["unshare", "-rm", "bash", "-c", case.shell.replace("$COMMAND", shlex.join(command))]
    before, environment = contents(folder), {**os.environ, **dict(case.environment)}
    for _ in range(3):  # what else the machine does can double the CPU time of a try, and a third time is no chance
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
        errors = [line for line in done.stderr.splitlines() if not line.startswith("head: ")]
        assert done.returncode == 2, done.stderr
        assert len(errors) == 1, done.stderr
        assert all(word in errors[0] for word in case.words), errors[0]
        assert "Traceback" not in errors[0] and done.stdout == ""
        assert contents(folder) == before
        steps = float(used.read_text()) / step()
        if steps < LIMIT:
            return
    pytest.fail(f"{steps:.1g} steps of CPU time at the third try, {LIMIT:.1g} may be")


def test_rows_with_bad_images_are_skipped_and_said_and_a_typed_marker_is_text(folder: Path) -> None:
    (folder / "empty.png").write_bytes(b"")
    rows(
        Q, {**Q, "prompt": "What is <image> in HTML?"}, *({**DISCS, "images": name} for name in ("empty.png", "no.png"))
    )(folder)
    command = [*PYTHON, "-m", "spark_rl.cli", *TRAIN, "--dry-run", "data.bad_rows=skip"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = "2 of the 4 rows of data.jsonl are left out of training (bad image); the first one is data.jsonl, row 3"
    assert said in done.stderr


def test_the_good_folder_is_good(folder: Path) -> None:
    command = [sys.executable, "-m", "spark_rl.cli", *TRAIN]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
