"""What a run shows while it runs: a live table on a terminal, plain lines elsewhere (`spark_rl.progress` says when)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from spark_rl.progress import Pulse, Report, Stage
from spark_rl.train.metrics import Metrics
from spark_rl.train.validation import HEADLINE, rewards_beside
from spark_rl.types import Role

_COLUMNS: dict[str, Callable[[Metrics], str]] = {
    "groups": lambda rates: f"{rates['groups']:.0f}",
    "accuracy": lambda rates: f"{rates['accuracy']:.1%}",
    "reward": lambda rates: "" if rates["reward"] == rates["accuracy"] else f"{rates['reward']:.3g}",
    "mixed": lambda rates: f"{1 - rates['zero_variance_rate']:.0%}",
    "parsed": lambda rates: f"{rates['parse_rate']:.0%}",
    "cut": lambda rates: f"{rates['truncated_rate']:.0%}",
    "tokens": lambda rates: f"{rates['tokens']:.0f}",
    "waiting": lambda rates: f"{rates['waiting']:.0f}",
    "balanced": lambda rates: f"{rates['balanced_accuracy']:.1%}",
    "yes/label": lambda rates: f"{rates['yes_rate']:.0%}/{rates['label_rate']:.0%}",
    "entropy": lambda rates: f"{rates['entropy']:.2f}",
}
"""The cells of a role's row, the most telling first: as many are shown as the terminal is wide."""
_LEGEND = "mixed: groups whose rewards differ, cut: too long, waiting: recycled prompts"
_CAPTION = {
    "loss": "loss {:.3g}",
    "grad_norm": "grad norm {:.3g}",
    "learning_rate": "learning rate {:.3g}",
    "time/tokens_per_second": "{:.0f} tokens/s",
    "time/step": "{:.1f} s",
}
_SECONDS_BETWEEN_LINES = 5


class Display:
    """Says one line every few seconds, hence not of every step; on a terminal the last one stands below as a table.

    The lines stay, so that the way of a run can be read when it is over.
    """

    def __init__(self, steps: int, console: Console | None = None, enabled: bool = True, warm_steps: int = 0) -> None:
        """`steps` are those of the run; the first `warm_steps` of them are a warm start."""
        self.console = console or Console(stderr=True, emoji=False)
        self.enabled, self.steps, self.warm_steps = enabled, steps, warm_steps
        self.live = enabled and self.console.is_terminal
        self._stages = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=self.console,
        )  # fmt: skip
        self._run = self._stages.add_task("steps", total=steps)
        self._stage = self._stages.add_task("", total=None, visible=False)
        self._pulse = Pulse(self._print) if enabled and not self.live else None
        self._view = Live(self._stages, console=self.console, refresh_per_second=4, transient=True)
        self._table: Table | None = None
        self._last_line = 0.0
        self._done = 0
        self._first: tuple[int, float] | None = None
        """The first step that this process finished, and when: later ones tell how long the rest takes."""

    def __enter__(self) -> Self:
        if self.live:
            self._view.start()
        if self._pulse:
            self._pulse.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pulse:
            self._pulse.__exit__(kind, error, trace)
        if self.live:
            self._view.stop()
            if self._table:
                self.console.print(self._table)  # the view, which is wiped, had progress bars too

    def say(self, text: str, style: str = "") -> None:
        """A line that stays."""
        if self.enabled:
            self._print(text, style)
        if self._pulse:
            self._pulse.heard()

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style), soft_wrap=True)  # a style of `print` would colour the view

    def warn(self, text: str) -> None:
        """A line that stays and is seen."""
        self.say(text, "bold yellow")

    def announce(self, text: str) -> None:
        """Say that something long begins, where no bar shows that it goes on."""
        if not self.live:
            self.say(f"{text} ...")

    def stage(self, name: str) -> Report:
        """Announce a stage of the step; the result is called with (done, total)."""
        self._stages.update(self._stage, description=name, completed=0, total=None, visible=True)
        stage = Stage(f"{name} (after step {self._done} of {self.steps})")
        if self._pulse:
            self._pulse.begin(stage)

        def report(done: float, total: float | None) -> None:
            stage.tell(done, total)
            self._stages.update(self._stage, completed=int(done), total=total)

        return report

    def step(self, step: int, metrics: Metrics) -> None:
        """Show a finished step."""
        self._done = step
        self._stages.update(self._run, completed=step)
        self._stages.update(self._stage, visible=False)
        now = time.monotonic()
        self._first = self._first or (step, now)
        ends = step in (self.warm_steps, self.steps)
        if self.enabled and (now - self._last_line > _SECONDS_BETWEEN_LINES or ends):
            self._last_line = now
            line = (
                warm_line(step, self.warm_steps, metrics)
                if step <= self.warm_steps
                else step_line(step, self.steps, metrics)
            )
            self.say(line + self._left(step, now))
        if self.live:
            self._table = step_table(step, metrics, self.console.width)
            self._view.update(Group(self._table, self._stages))

    def _left(self, step: int, now: float) -> str:
        """What the steps to come will take, at the pace so far; nothing if that is not known or none is left."""
        first, then = self._first or (step, now)
        if not first < step < self.steps:
            return ""
        seconds = (now - then) / (step - first) * (self.steps - step)
        return f", about {timedelta(seconds=round(seconds))} left"


def step_line(step: int, steps: int, metrics: Metrics) -> str:
    """The accuracies of one step, each with the number of groups that it is of, and with the mean reward where that is
    another number."""
    accuracies = []
    for role in Role:
        if f"{role}/accuracy" in metrics:
            accuracy = metrics[f"{role}/accuracy"]
            reward = metrics.get(f"{role}/reward", accuracy)
            beside = "" if reward == accuracy else f", reward {reward:.3g}"
            accuracies.append(f"{role} {accuracy:.0%} ({metrics[f'{role}/groups']:.0f}{beside})")
    shown = ", ".join(accuracies) or "none"
    return f"step {step}/{steps}  accuracy (groups): {shown}  {metrics['time/step']:.1f} s"


def warm_line(step: int, steps: int, metrics: Metrics) -> str:
    """What one step of a warm start was like: its loss, and what it trained on."""
    parts = [f"trained on {metrics['warm_start/trained']:.0f} responses"]
    if "warm_start/nll" in metrics:
        parts.append(f"mean NLL {metrics['warm_start/nll']:.3f} nats a token")
    if "warm_start/right_rate" in metrics:
        parts.append(f"{metrics['warm_start/right_rate']:.0%} of the rollouts right")
    return f"warm start {step}/{steps}  {', '.join(parts)}  {metrics['time/step']:.1f} s"


def step_table(step: int, metrics: Metrics, width: int) -> Table:
    """The roles of one step, in columns that fit into `width` characters uncut."""
    rows = {role: rates for role in Role if (rates := _rates(role, metrics))}
    numbers = "  ".join(form.format(metrics[name]) for name, form in _CAPTION.items() if name in metrics)
    table = Table(title=f"step {step}", caption=f"{numbers}\n{_LEGEND}")
    table.add_column("role", no_wrap=True)
    columns = []
    width -= max(map(len, Role)) + 4  # 3 for a column's margins and border, 1 for the last border
    for name, cell in _COLUMNS.items():
        if name == "reward" and not any(cell(rates) for rates in rows.values() if "reward" in rates):
            continue  # they are the accuracies
        width -= max(len(name), len("100%")) + 3
        if width < 0:
            break
        columns.append(name)
        table.add_column(name, justify="right", no_wrap=True)
    for role, rates in rows.items():
        table.add_row(role.value, *(_cell(name, rates) for name in columns))
    return table


def _rates(role: Role, metrics: Metrics) -> Metrics:
    """A role's metrics under their short names, with its prompts that wait in the pool."""
    rates = {name.removeprefix(f"{role}/"): value for name, value in metrics.items() if name.startswith(f"{role}/")}
    return rates | ({"waiting": metrics[f"pool/{role}"]} if f"pool/{role}" in metrics else {})


def _cell(column: str, rates: Metrics) -> str:
    try:
        return _COLUMNS[column](rates)
    except KeyError:  # an answer has no verdict, and a role without groups only prompts that wait
        return ""


MAX_SOURCES = 16
"""Rows of the table; of more sources none is shown."""
_NAMES = {
    Role.ANSWER: "answers",
    Role.POINTWISE: "judge, one response (balanced)",
    Role.PAIRWISE: "judge, one of two",
    Role.REFLECTION: "corrects a wrong answer",
}


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Before and after on the held-out items, and on the answers of each source."""
    table = Table(title="held-out items, greedy decoding")
    for column in ("", "before", "after", "change", "items"):
        table.add_column(column, justify="left" if not column else "right")
    before, after = summary["before"], summary["after"]
    for role, key in HEADLINE.items():
        if key in before and key in after:
            name = _NAMES[role]
            change = 100 * (after[key] - before[key])
            table.add_row(name, f"{before[key]:.1%}", f"{after[key]:.1%}", f"{change:+.1f}", str(after[f"n_{role}"]))
    for role, key in rewards_beside(before, after).items():
        change = f"{after[key] - before[key]:+.3g}"
        table.add_row(
            f"{_NAMES[role]}: mean reward", f"{before[key]:.3g}", f"{after[key]:.3g}", change, str(after[f"n_{role}"])
        )
    old, new = (when.get("by_source", {}).get(Role.ANSWER, {}) for when in (before, after))
    sources = [source for source in new if source in old]
    if 1 < len(sources) <= MAX_SOURCES:
        for source in sources:
            change = 100 * (new[source] - old[source])
            table.add_row(f"answers: {source}", f"{old[source]:.1%}", f"{new[source]:.1%}", f"{change:+.1f}", "")
    return table
