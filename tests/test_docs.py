"""Every code block of docs/ does what it says.

The blocks of a page run in their order, in one folder. A block with a name after its language is a file; `bash` runs
with `set -e`, `bash fails` must end with code 2 and the text block after it is what it prints; `python` runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from warm import PYTHON, write_commands

from spark_rl.config import load_config, reference
from spark_rl.evaluate import reference as suites

ROOT = Path(__file__).parent.parent
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"^(`{3,})(\w+)(?: +(\S+))?\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(language, name, content) of every fenced block."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = [(language, name, content) for _, language, name, content in _BLOCK.findall(text)]
    assert len(found) == len(re.findall(r"^`{3,}\w", text, re.MULTILINE)), "a block has no language or no end"
    return found


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "bin").mkdir()
    write_commands(tmp_path / "bin")
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    printed = ""
    for language, name, content in blocks(page):
        if name and name != "fails":
            (tmp_path / name).write_text(content, encoding="utf-8")
            if language == "yaml":
                load_config(tmp_path / name)
            continue
        if language == "text":
            assert " ".join(content.split()) in " ".join(printed.split())
            continue
        command = {"bash": ["bash", "-ec", content], "python": [*PYTHON, "-c", content]}[language]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == (2 if name == "fails" else 0), (
            f"{content}\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
        )
        printed = done.stdout + done.stderr


def test_the_page_of_settings_is_current() -> None:
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == reference.markdown(), "run `make docs`"


def test_the_page_of_published_sets_is_current() -> None:
    assert (ROOT / "docs" / "suites.md").read_text(encoding="utf-8") == suites.markdown(), "run `make docs`"


@pytest.mark.parametrize("page", [*PAGES, "../README.md"])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = ROOT / "docs" / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
