"""Held-out evaluation of all roles on the same items before, during and after training.

The judge and reflection items are made once, by recycling the starting model's own sampled rollouts on the held-out
questions (each label balanced within its question, both orders of a pair, reflection on wrong answers only), and are
then kept. They do not depend on the run's seed or on how it recycles, so that runs from one model with the same rollout
settings can be compared. Decoding is greedy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from pydantic import TypeAdapter

from spark_rl.config import Config, RecycleConfig
from spark_rl.data import Data
from spark_rl.prompts import Prompts
from spark_rl.recycle import recycle
from spark_rl.rollout.generate import Sampling, greedy_sampling, training_sampling
from spark_rl.train import checksums
from spark_rl.train.checkpoint import RunDirectory, read_json
from spark_rl.train.metrics import Metrics, balanced_accuracy, side
from spark_rl.types import Group, Role, Task, with_images_at_hand

HEADLINE = {
    Role.ANSWER: "answer_accuracy",
    Role.POINTWISE: "pointwise_balanced_accuracy",
    Role.PAIRWISE: "pairwise_accuracy",
    Role.REFLECTION: "reflection_accuracy",
}
"""The metric by which a role is judged on held-out items."""
_ITEMS = TypeAdapter(list[Task])
_QUESTIONS_AN_ITEM = 4
"""Held-out questions that are rolled out for each item wanted: not every one gives a judge item."""

Ask = Callable[[Sequence[Task], Sampling, str], list[Group]]
"""Rolls tasks out, under a name for the display, and grades them: the groups of all ranks."""


class HeldOut:
    """The held-out items of a run, made once and asked again and again.

    Args:
        ask: generates and grades.
        fits: whether a task's prompt is short enough; what does not fit is left out and said.
        warn: told in a sentence.
        ask_first: as `ask`, of the questions whose rollouts give the other items: with worked examples if the run
            begins so, since a model that states no answer without would give none.
        unread: sentences on the roles of whose replies hardly any can be read; None where that is to be expected.
    """

    def __init__(
        self,
        config: Config,
        data: Data,
        ask: Ask,
        fits: Callable[[Task], bool],
        warn: Callable[[str], None],
        ask_first: Ask | None = None,
        unread: Callable[[Sequence[Group]], list[str]] | None = None,
    ) -> None:
        self.config, self.ask, self.ask_first, self.fits = config, ask, ask_first or ask, fits
        self.images, self.prompts = data.images, data.prompts
        self.questions = list(filter(fits, data.validation))
        self.monitored = list(filter(fits, data.monitor))
        self.items: list[Task] = []
        self.before: dict[str, Any] | None = None
        """The starting model's metrics on the items, once they are known."""
        self.warn, self.unread = warn, unread
        if left_out := len(data.validation) + len(data.monitor) - len(self.questions) - len(self.monitored):
            warn(f"{left_out} held-out questions are longer than prompts may be and are left out")

    def begin(self, directory: RunDirectory, is_main: bool) -> dict[str, Any]:
        """The starting model's metrics on the items: of the checkpoint that was loaded, of an earlier start of the run
        that died before its first checkpoint, or made now."""
        is_written = self.before is None and self._read(directory)
        if self.before is None:
            self._make()
        assert self.before is not None
        if is_main and not is_written:
            directory.write_sealed("validation", {f"{name}.json": part for name, part in self.state_dict().items()})
        return self.before

    def state_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return {"items": _ITEMS.dump_python(self.items, mode="json"), "before": self.before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`, with the images where they are now."""
        self.items = [with_images_at_hand(task, self.images) for task in _ITEMS.validate_python(state["items"])]
        self.before = state["before"]

    def _read(self, directory: RunDirectory) -> bool:
        """Whether there was something whole to read."""
        folder = directory.root / "validation"
        if not (folder / checksums.NAME).exists():
            return False
        if damage := checksums.flaw(folder):
            self.warn(f"{folder} is damaged ({damage}); the held-out items are made again")
            return False
        self.load_state_dict({name: read_json(folder / f"{name}.json") for name in ("items", "before")})
        return True

    def _make(self) -> None:
        if self.questions:
            self.items = self._made(self.ask_first)
        groups = self._asked()
        self.before = self._measured(groups)
        for sentence in self.unread(groups) if self.unread else ():  # nobody should wait for the first steps to be told
            self.warn(f"warning, before the first step: {sentence}")

    def complete(self) -> bool:
        """Make items of the roles that the starting model gave none of, by the model as it is now: one that states no
        answers yet gives nothing to judge. What they were like before is then not known.

        Returns whether there are more items than before.
        """
        missing = set(self.config.validation.roles) - {task.role for task in self.items}
        if not missing or not self.items:
            return False
        added = [task for task in self._made(self.ask) if task.role in missing]
        self.items += added
        return bool(added)

    def _made(self, ask: Ask) -> list[Task]:
        """The items that the rollouts of a model give."""
        questions = self.questions[: _QUESTIONS_AN_ITEM * self.config.validation.items]
        groups = ask(questions, training_sampling(self.config), f"making held-out items of {len(questions)} questions")
        return list(filter(self.fits, validation_items(groups, self.config, self.prompts)))

    def measure(self) -> dict[str, Any]:
        """Greedy metrics on the items, with accuracies by role and source (the monitored questions included)."""
        return self._measured(self._asked())

    def _asked(self) -> list[Group]:
        tasks = [*self.items, *self.monitored]
        name = f"evaluating on {len(tasks)} held-out items"
        return self.ask(tasks, greedy_sampling(self.config), name) if tasks else []

    def _measured(self, groups: Sequence[Group]) -> dict[str, Any]:
        headline, right_at = {task.id for task in self.items}, self.config.recycle.right_at
        metrics, by_source = validation_metrics(groups, headline, right_at)
        return {**metrics, "n": len(self.items), "by_source": by_source}


def validation_items(
    groups: Sequence[Group],
    config: Config,
    prompts: Prompts = Prompts(),
) -> list[Task]:
    """The questions of these sampled groups, and the items recycled from them for roles that are measured."""
    settings = RecycleConfig(
        keep_right_share=0.0, max_depth=1, right_at=config.recycle.right_at, wrong_at=config.recycle.wrong_at
    )
    made = recycle(groups, settings, seed=0, step=0, prompts=prompts)
    limit = config.validation.items
    items = [group.task for group in groups][:limit]
    for role in config.validation.roles:
        tasks = [bundle for bundle in made.bundles if bundle[0].role is role]
        whole: list[Task] = []
        for bundle in tasks:
            if len(whole) + len(bundle) <= limit:
                whole += bundle
        items += whole
    return items


def validation_metrics(
    groups: Sequence[Group], headline: set[str], right_at: float = 1.0
) -> tuple[Metrics, dict[str, Metrics]]:
    """The metrics of graded greedy groups, and accuracies by role and source.

    Beside the headline metrics `n_<role>`, and for the roles that answer `<role>_reward`, the mean reward, with
    `<role>_reward_std` over the items.

    Args:
        groups: one rollout each.
        headline: ids of the tasks that count in the first result; the others are only reported by source.
        right_at: the reward from which on an answer is right.
    """
    graded = [(group.task, group.rewards[0]) for group in groups if group.rewards]
    counted = [(task, reward) for task, reward in graded if task.id in headline]
    metrics: Metrics = {}
    for role, name in HEADLINE.items():
        of_role = [(task, reward) for task, reward in counted if task.role is role]
        if not of_role:
            continue
        metrics[name] = balanced_accuracy([_labelled(task, reward, right_at) for task, reward in of_role])
        metrics[f"n_{role}"] = len(of_role)
        if not role.is_judge:
            rewards = [reward for _, reward in of_role]
            metrics |= {f"{role}_reward": fmean(rewards), f"{role}_reward_std": pstdev(rewards)}
    by_source: dict[str, dict[str, list[tuple[str, bool]]]] = {}
    for task, reward in graded:
        of_source = by_source.setdefault(task.role, {}).setdefault(task.example.source, [])
        of_source.append(_labelled(task, reward, right_at))
    accuracies = {
        role: {source: balanced_accuracy(rows) for source, rows in sources.items()}
        for role, sources in by_source.items()
    }
    return metrics, accuracies


def _labelled(task: Task, reward: float, right_at: float) -> tuple[str, bool]:
    return side(task), reward >= task.role.right_at(right_at)


def rewards_beside(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[Role, str]:
    """By role the name of the mean reward, where it was measured both times and is not just the accuracy once more."""
    names = {role: f"{role}_reward" for role in HEADLINE}
    return {
        role: name
        for role, name in names.items()
        if name in before and name in after and any(m[name] != m[HEADLINE[role]] for m in (before, after))
    }


def score_of(metrics: Metrics, best: str) -> float:
    """The number that decides which checkpoint is the best; see `validation.best`."""
    if best != "mean":
        return metrics.get(best, float("-inf"))
    values = [value for name, value in metrics.items() if name.endswith("accuracy")]
    return sum(values) / len(values) if values else float("-inf")
