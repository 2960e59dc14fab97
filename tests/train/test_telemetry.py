"""What a run shows: a table that no usual terminal cuts, and lines that stay when it is gone."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from spark_rl.train.metrics import Metrics
from spark_rl.train.telemetry import Display, step_line, step_table
from spark_rl.types import Role

RATES = {
    "groups": 32,
    "accuracy": 1.0,
    "zero_variance_rate": 0.25,
    "parse_rate": 1.0,
    "truncated_rate": 1.0,
    "tokens": 1024,
    "entropy": 0.31,
}
OF_JUDGES = {"yes_rate": 1.0, "label_rate": 1.0, "balanced_accuracy": 1.0}
ALWAYS = ["role", "groups", "accuracy", "mixed", "parsed", "cut", "tokens", "waiting"]
STEP: Metrics = {
    "loss": -0.00123,
    "grad_norm": 0.5123,
    "learning_rate": 2e-4,
    "time/tokens_per_second": 12345.6,
    "time/step": 3.81,
    **{f"{role}/{name}": value for role in Role for name, value in RATES.items()},
    **{f"{role}/{name}": value for role in Role if role.is_judge for name, value in OF_JUDGES.items()},
    **{f"pool/{role}": 12345.0 for role in Role if role.is_recycled},
}
"""Every number as wide as it gets."""


def shown(metrics: Metrics, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(step_table(6, metrics, width))
    return console.export_text().splitlines()


def header(lines: list[str]) -> list[str]:
    return lines[2].replace("┃", " ").split()


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (80, ALWAYS),
        (100, [*ALWAYS, "balanced", "yes/label"]),
        (140, [*ALWAYS, "balanced", "yes/label", "entropy"]),
    ],
)
def test_no_header_role_or_number_is_cut(width: int, columns: list[str]) -> None:
    lines = shown(STEP, width)
    assert header(lines) == columns
    assert "…" not in "".join(lines)
    rows = [line.split()[1] for line in lines if line.startswith("│")]
    assert rows == list(Role)  # one line each: none is wrapped
    assert sum("mixed:" in line and "cut:" in line and "waiting:" in line for line in lines) == 1


@pytest.mark.parametrize("width", range(42, 120))
def test_a_narrow_terminal_gets_fewer_columns(width: int) -> None:
    lines = shown(STEP, width)
    assert header(lines) == [*ALWAYS, "balanced", "yes/label", "entropy"][: len(header(lines))]
    assert len(header(lines)) >= 4
    assert "…" not in "".join(lines)


def test_a_role_that_only_waits_and_metrics_that_are_missing_leave_cells_empty() -> None:
    metrics = {"answer/groups": 3.0, "answer/zero_variance_rate": 0.25, "pool/pairwise": 7.0}
    answer, pairwise = (line.split() for line in shown(metrics, 80) if line.startswith("│"))
    assert [cell for cell in answer if cell != "│"] == ["answer", "3", "75%"]
    assert [cell for cell in pairwise if cell != "│"] == ["pairwise", "7"]


def test_the_line_of_a_step_says_what_its_numbers_are() -> None:
    metrics = {"time/step": 2.04, "answer/accuracy": 0.444, "answer/groups": 8.0, "pairwise/accuracy": 0.5}
    metrics |= {"pairwise/groups": 2.0, "answer/reward": -1.25, "pairwise/reward": 0.5}
    said = "step 6/12  accuracy (groups): answer 44% (8, reward -1.25), pairwise 50% (2)  2.0 s"
    assert step_line(6, 12, metrics) == said
    assert step_line(6, 12, {"time/step": 2.0}) == "step 6/12  accuracy (groups): none  2.0 s"


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_stay_and_a_terminal_keeps_the_last_table(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, record=True)
    with Display(2, console) as display:
        display.step(1, STEP)
        display.step(2, STEP)
        display.warn("stopped")
    text = console.export_text()
    assert "step 2/2  accuracy (groups): answer 100% (32)" in text and "stopped" in text
    assert text.rstrip().endswith("waiting: recycled prompts") == terminal
    assert "step 1/2" in text  # at least one line besides the last


def test_the_line_of_a_step_says_how_long_the_others_take(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=120, record=True)
    display = Display(12, console)
    for step, seconds in ((3, 1000.0), (4, 1030.0), (8, 1100.0), (12, 1190.0)):
        monkeypatch.setattr("time.monotonic", lambda seconds=seconds: seconds)
        display.step(step, {"time/step": 2.0})
    ends = [line.partition("2.0 s")[2].strip() for line in console.export_text().splitlines()]
    assert ends == ["", ", about 0:04:00 left", ", about 0:01:20 left", ""]


@pytest.mark.parametrize("terminal", [True, False])
def test_what_takes_long_is_announced_where_no_bar_shows_it(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, record=True)
    Display(2, console).announce("evaluating on 40 held-out questions")
    assert ("evaluating on 40 held-out questions ..." in console.export_text()) is not terminal


def test_a_disabled_display_says_nothing() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with Display(1, console, enabled=False) as display:
        display.step(1, STEP)
        display.say("hello")
        display.announce("hello")
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
