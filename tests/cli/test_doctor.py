"""Installations that are sound and such that are broken in one place; the real command where the process matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spark_rl.cli import app
from spark_rl.cli.doctor import Finding, _guarded, _optional, _requirements, _verifier, as_object

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


def test_what_is_missing_comes_with_its_purpose_and_command():
    optional = {finding.name: finding for finding in _optional()}
    assert set(optional) == {"flash-attn", "vllm", "fastapi", "wandb", "trackio", "tensorboard"}
    missing = [finding for finding in optional.values() if finding.status == "missing"]
    assert all(f.text.startswith("for ") and f.fix.startswith("pip install ") for f in missing)


def test_the_text_has_one_line_a_finding_and_says_the_same(sound, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    result = CliRunner().invoke(app, ["doctor", "--quick"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.strip().splitlines()
    findings = [line for line in lines if line.split(" ")[0] in ("ok", "missing", "warning", "broken")]
    assert len(lines) == len(findings) + 2  # an empty line and the conclusion
    assert len(findings) == sum(len(section) for name, section in sound.items() if name != "ok") - 1
    assert any(line.split()[:3] == ["ok", "Hub", "token"] for line in findings)
    assert TOKEN not in result.output
    assert not any(line.split()[1] == "model" for line in findings)


def test_an_optional_package_that_cannot_be_imported_is_none_of_its_business(tmp_path, monkeypatch):
    add_package(tmp_path, "trackio", "9.9", "raise RuntimeError('broken')")
    add_package(tmp_path, "wandb", "1.2.3", "import sys; sys.exit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    optional = {finding.name: finding for finding in _optional()}
    assert optional["trackio"].status == "ok" and optional["trackio"].text.startswith("9.9")
    assert optional["wandb"].status == "ok" and optional["wandb"].text.startswith("1.2.3")


def test_a_requirement_that_is_too_old_is_broken(tmp_path, monkeypatch):
    add_package(tmp_path, "math_verify", "0.1")
    add_package(tmp_path, "pydantic", "0.2", None)
    monkeypatch.syspath_prepend(tmp_path)
    packages = {finding.name: finding for finding in _requirements()}
    assert packages["math-verify"] == Finding(
        "packages", "math-verify", "broken", "0.1, but >=0.8 is needed", "pip install -U 'math-verify>=0.8'"
    )
    assert packages["pydantic"].status == "broken"
    assert as_object(packages.values())["ok"] is False


def test_what_is_broken_ends_with_code_1_and_says_where_to_look(monkeypatch):
    finding = Finding("packages", "math-verify", "broken", "0.1, but >=0.8 is needed", "pip install -U math-verify")
    monkeypatch.setattr(sys.modules["spark_rl.cli.doctor"], "examine", lambda quick: iter([finding]))
    shown, as_json = (CliRunner().invoke(app, ["doctor", *more]) for more in ([], ["--json"]))
    assert shown.exit_code == as_json.exit_code == 1
    assert "Training would not work here: math-verify" in shown.stdout
    assert json.loads(as_json.stdout)["packages"]["math-verify"]["fix"] == finding.fix


def test_a_torch_that_cannot_be_imported_is_a_finding_and_no_traceback(tmp_path):
    add_package(tmp_path, "torch", "2.99", "raise OSError('libcudart.so.99: cannot open')")
    result = run(path=tmp_path)
    assert result.returncode == 1
    assert "libcudart.so.99: cannot open  ->  pip install" in result.stdout
    assert "Training would not work here" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert "ok       verifier" in result.stdout  # which needs no torch


def test_a_verifier_that_cannot_grade_is_broken(tmp_path, monkeypatch):
    add_package(tmp_path, "sympy", "0.9", "raise ImportError('no mpmath')")
    monkeypatch.syspath_prepend(tmp_path)  # its worker looks where we do
    (finding,) = _verifier()
    assert finding.status == "broken" and finding.fix == "pip install --force-reinstall sympy pint"


def test_a_check_that_raises_is_a_broken_finding():
    def check():
        raise OSError("libcudart.so.99: cannot open\nand more")

    (finding,) = _guarded("machine", "devices", "pip install it", check)
    assert finding == Finding("machine", "devices", "broken", "OSError: libcudart.so.99: cannot open", "pip install it")


def test_help_shows_an_example():
    assert "spark-rl doctor --quick --json" in CliRunner().invoke(app, ["doctor", "--help"]).stdout
