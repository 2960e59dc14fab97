"""What decides whether `make bench` fails."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "benchmarks" / "run.py"


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("run", PATH)
    sys.modules["run"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["run"]


@pytest.mark.parametrize(
    ("better", "old", "new", "bad"),
    [("higher", 2.0, 1.83, False), ("higher", 2.0, 1.8, True), ("lower", 1.0, 1.09, False), ("lower", 1.0, 1.11, True)],
)
def test_a_tenth_worse_is_a_regression(run, better, old, new, bad):
    result = {"name": "a", "ratio": new, "better": better}
    assert run.regressed(result, {"ratio": old}) == bad
    assert not run.regressed(result, None)


def test_every_stored_result_can_turn_out_worse(run):
    for result in run.read(run.STORED).values():
        much_worse = result["ratio"] * (0.5 if result["better"] == "higher" else 2)
        assert result["ratio"] > 0 and run.regressed(result | {"ratio": much_worse}, result)


def test_the_stored_results_are_those_of_the_readme(run):
    table = run.table(run.read(run.STORED))
    assert table in run.README.read_text(encoding="utf-8")
    assert all(name in table for name in run.TABLE.values())
