"""A run on one revision of a model of the Hub: a folder in the layout of the Hub's cache stands for the download.

Its newest state holds nothing that loads, so whatever were taken from there would end the run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spark_rl.models.folder import resolve_path

OLD, NEW = "1" * 40, "2" * 40
RUN = [
    *("preset=grpo", "rollout.groups_per_step=2", "rollout.num_generations=2", "rollout.max_new_tokens=8"),
    *("train.threads=1", "train.steps=1"),
]


def cached(cache: Path, id: str, base: str) -> None:
    """A model in the cache: whole in the revision `v1`, and an empty config in `main`."""
    folder = cache / f"models--{id.replace('/', '--')}"
    shutil.copytree(
        resolve_path(base), folder / "snapshots" / OLD, ignore=shutil.ignore_patterns("*.py", "__pycache__")
    )
    (folder / "snapshots" / NEW).mkdir()
    (folder / "snapshots" / NEW / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    for ref, commit in (("main", NEW), ("v1", OLD)):
        (folder / "refs" / ref).write_text(commit)


def called(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the cache's place is read when the Hub's library is imported."""
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [sys.executable, "-m", "spark_rl.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize(("base", "questions"), [("embedded", "train"), ("embedded-vision", "vision-train")])
def test_all_of_a_model_is_of_the_revision_that_is_named(base: str, questions: str, tmp_path: Path) -> None:
    """Config, tokenizer with its template, processor and its files, weights with their generation config."""
    cached(tmp_path / "cache", "me/solver", base)
    (tmp_path / "run.yaml").write_text("{}")
    output = [f"train.output={tmp_path / 'run'}", f"data.train={{path: 'embedded:{questions}', size: 20}}"]
    run = ["train", str(tmp_path / "run.yaml"), *RUN, *output]
    done = called(tmp_path / "cache", *run, "model.path=me/solver@v1")
    assert done.returncode == 0, done.stderr
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["model"] == {"path": "me/solver", "revision": "v1", "commit": OLD}
    final = tmp_path / "run" / "final"
    assert f"`me/solver` (revision `v1`, commit `{OLD}`)" in (final / "README.md").read_text()
    names = {path.name for path in Path(resolve_path(base)).glob("*config.json")}
    assert names <= {path.name for path in final.iterdir()}


def test_a_revision_that_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    cached(tmp_path / "cache", "me/solver", "embedded")
    done = called(tmp_path / "cache", "solve", "me/solver@v2", "--question", "1+1?")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "there is no folder me/solver, and the Hub cannot be asked for it at the revision 'v2'" in done.stderr
