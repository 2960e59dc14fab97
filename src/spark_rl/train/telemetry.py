"""What a run shows while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from spark_rl.train.metrics import Metrics
from spark_rl.train.validation import HEADLINE
from spark_rl.types import Role

_COLUMNS = {
    "groups": "{:.0f}",
    "accuracy": "{:.1%}",
    "balanced_accuracy": "{:.1%}",
    "yes_rate": "{:.0%}",
    "label_rate": "{:.0%}",
    "parse_rate": "{:.0%}",
    "zero_variance_rate": "{:.0%}",
    "truncated_rate": "{:.0%}",
    "tokens": "{:.0f}",
    "entropy": "{:.2f}",
}


class Display:
    """Shows the last step; on a terminal as a table that stays in place, else as one line every few seconds."""

    def __init__(self, steps: int, console: Console | None = None, enabled: bool = True) -> None:
        self.console = console or Console(stderr=True)
        self.enabled, self.steps = enabled, steps
        self.live = enabled and self.console.is_terminal
        self._stages = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=self.console,
        )  # fmt: skip
        self._run = self._stages.add_task("steps", total=steps)
        self._stage = self._stages.add_task("", total=None, visible=False)
        self._view = Live(self._stages, console=self.console, refresh_per_second=4, transient=True)
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self.live:
            self._view.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self._view.stop()

    def say(self, text: str, style: str | None = None) -> None:
        """A line that stays."""
        if self.enabled:
            self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line that stays and is seen."""
        self.say(text, "bold yellow")

    def stage(self, name: str) -> Callable[[int, int], None]:
        """Announce a stage of the step; the result is called with (done, total)."""
        self._stages.update(self._stage, description=name, completed=0, total=None, visible=True)

        def report(done: int, total: int) -> None:
            self._stages.update(self._stage, completed=done, total=total)

        return report

    def step(self, step: int, metrics: Metrics) -> None:
        """Show a finished step."""
        self._stages.update(self._run, completed=step)
        self._stages.update(self._stage, visible=False)
        if self.live:
            self._view.update(Group(step_table(step, metrics), self._stages))
        elif self.enabled and (time.monotonic() - self._last_line > 5 or step == self.steps):
            self._last_line = time.monotonic()
            accuracies = (
                f"{role} {metrics[f'{role}/accuracy']:.0%} ({metrics[f'{role}/groups']:.0f})"
                for role in Role
                if f"{role}/accuracy" in metrics
            )
            self.say(f"step {step}/{self.steps}  {'  '.join(accuracies)}  {metrics['time/step']:.1f} s")


def step_table(step: int, metrics: Metrics) -> Table:
    """The roles of one step."""
    caption = "  ".join(
        f"{name} {metrics[key]:.3g}"
        for name, key in (
            ("loss", "loss"),
            ("grad norm", "grad_norm"),
            ("learning rate", "learning_rate"),
            ("tokens/s", "time/tokens_per_second"),
            ("seconds", "time/step"),
        )
        if key in metrics
    )
    table = Table(title=f"step {step}", caption=caption)
    table.add_column("role")
    for column in _COLUMNS:
        table.add_column(column.replace("_", " ").removesuffix(" rate"), justify="right")
    table.add_column("waiting", justify="right")
    for role in Role:
        if f"{role}/groups" in metrics or f"pool/{role}" in metrics:
            cells = [
                form.format(metrics[f"{role}/{name}"]) if f"{role}/{name}" in metrics else ""
                for name, form in _COLUMNS.items()
            ]
            table.add_row(role.value, *cells, f"{metrics.get(f'pool/{role}', 0):.0f}" if role.is_recycled else "")
    return table


_NAMES = {
    Role.ANSWER: "answers",
    Role.POINTWISE: "judge, one response (balanced)",
    Role.PAIRWISE: "judge, one of two",
    Role.REFLECTION: "corrects a wrong answer",
}


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Before and after on the held-out items."""
    table = Table(title="held-out items, greedy decoding")
    for column in ("", "before", "after", "change", "items"):
        table.add_column(column, justify="left" if not column else "right")
    before, after = summary["before"], summary["after"]
    for role, key in HEADLINE.items():
        if key in before and key in after:
            name = _NAMES[role]
            change = 100 * (after[key] - before[key])
            table.add_row(name, f"{before[key]:.1%}", f"{after[key]:.1%}", f"{change:+.1f}", str(after[f"n_{role}"]))
    for source in summary.get("monitor", []):
        with suppress(KeyError):
            old, new = (summary[when]["by_source"]["answer"][source] for when in ("before", "after"))
            table.add_row(f"answers: {source}", f"{old:.1%}", f"{new:.1%}", f"{100 * (new - old):+.1f}", "")
    return table
