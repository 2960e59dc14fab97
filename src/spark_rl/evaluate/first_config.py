"""A config to start from, by what a model did on a few questions: whatever the user has not set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spark_rl.config import Config, SourceConfig, config_from, flat, load_config, merge
from spark_rl.data.tables import names_files
from spark_rl.evaluate.prognosis import needed_tokens
from spark_rl.evaluate.trial import Trial
from spark_rl.types import Role

_SECONDS = 60.0
"""A step that one waits for."""
_SIZES = (64, 48, 32, 24, 16)
"""Groups of a step."""
_HELD_OUT, _FEWEST = 100, 50
"""Questions that are held out of a file; of one with fewer rows than the latter none are."""
_RATES = ((2e7, 2e-4), (4e8, 2e-5), (1.2e9, 5e-6), (float("inf"), 1e-6))
"""Learning rates by number of parameters: small models learn at much larger ones."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured here, and what a step would take by it."""

    read: float
    """Seconds for a token that is read, no reply sampled from it. Measured."""
    answers: float
    """Seconds in which the replies to a question are generated. Measured."""
    verdicts: float
    """Seconds in which as many replies to a judge's prompt are; estimated by their tokens."""
    updated: float
    """Seconds in which a group is trained on: three times what its tokens take to be read. Estimated."""

    def step(self, config: Config, groups: int | None = None) -> tuple[float, float]:
        """Seconds that generation and update of a step take, if all groups teach something.

        Args:
            groups: instead of those of the config.
        """
        num = groups or config.rollout.groups_per_step
        of_answers = config.roles.answer.share * num
        return of_answers * self.answers + (num - of_answers) * self.verdicts, num * self.updated


def measured_speed(answers: Trial, verdicts: Trial | None, read: float) -> Speed:
    """By a trial of answers and one of verdicts; without the latter, recycled prompts are taken for questions."""
    num = len(answers.groups)
    samples = len(answers.rollouts) / num
    seconds = answers.seconds / num
    written = sum(answers.tokens) / num
    prompt = sum(answers.prompt_tokens) / num
    judged = seconds
    if verdicts:
        of_prompts = sum(verdicts.prompt_tokens) / len(verdicts.groups)
        by_writing = max(0.0, seconds - prompt * read) / max(1.0, written)
        judged = of_prompts * read + samples * sum(verdicts.tokens) / len(verdicts.groups) * by_writing
    return Speed(read, seconds, judged, 3 * read * (prompt + written))


def first_config(
    config: Config,
    given: Mapping[str, Any],
    trial: Trial,
    verdicts: Trial | None,
    *,
    speed: Speed,
    limit: int,
    context: int | None,
    num_params: int | None,
    rows: int,
) -> Config:
    """The settings of a trial, and for those that were not given what it has shown.

    Args:
        config: of the trial.
        given: what the user set, by section.
        limit: tokens that replies were allowed.
        context: of the model, tokens.
        num_params: of the model.
        rows: how many questions the data hold, as far as they were read.
    """
    wanted = needed_tokens(trial, verdicts, limit=limit)
    values: dict[str, Any] = {
        "data": {"validation": held_out(config, rows)},
        "rollout": {
            "max_new_tokens": min(wanted, context // 2) if context else wanted,
            "groups_per_step": _groups(config, speed),
        },
        "train": {
            "output": f"runs/{_named(config.model.path)}",
            "steps": 100,
            "learning_rate": next(rate for most, rate in _RATES if (num_params or float("inf")) <= most),
        },
        "checkpoint": {"every": 10},
        "validation": {"items": 200},
    }
    if any(group.task.example.images for group in trial.groups):
        values["model"] = {"freeze_vision": True}
    asked = flat(given)
    kept = {
        section: {k: v for k, v in keys.items() if f"{section}.{k}" not in asked} for section, keys in values.items()
    }
    return config_from(merge(config.model_dump(mode="json"), kept))


def as_yaml(config: Config) -> str:
    """A config as a file that holds what differs from its preset."""
    base = flat(load_config(None, [f"preset={config.preset}"] if config.preset else []).model_dump(mode="json"))
    named: dict[str, Any] = {"preset": config.preset} if config.preset else {}
    for key, value in flat(config.model_dump(mode="json")).items():
        if key not in base or base[key] != value or key in ("model.path", "data.train"):
            section, _, name = key.rpartition(".")
            target = named
            for part in filter(None, section.split(".")):
                target = target.setdefault(part, {})
            target[name] = value
    return yaml.safe_dump(named, sort_keys=False, allow_unicode=True)


def _groups(config: Config, speed: Speed) -> int:
    """As many groups as a step has time for, and every role needs."""
    least = max(2 / share for role in Role if (share := config.roles[role].share) > 0)
    enough = [size for size in _SIZES if size >= least] or [config.rollout.groups_per_step]
    return next((size for size in enough if sum(speed.step(config, size)) <= _SECONDS), enough[-1])


def held_out(config: Config, rows: int) -> list[Any]:
    """Held-out questions of the same kind: other ones where they are generated, or the first rows, which training then
    leaves out."""
    if config.data.validation:
        return config.model_dump(mode="json")["data"]["validation"]
    source: SourceConfig = config.data.train[0]
    kind, _, name = source.path.partition(":")
    if kind == "embedded":
        other = f"embedded:{name.replace('train', 'validation')}"
        return [other] if other != source.path else []
    given = source.model_dump(mode="json")
    given = {"path": given} if isinstance(given, str) else given
    if kind == "reasoning_gym":
        return [given | {"size": 2 * _HELD_OUT}]
    if rows < _FEWEST:
        return []
    split = {} if names_files(source.path) else {"split": source.split or "train"}
    return [given | split | {"size": min(_HELD_OUT, rows // 5)}]


def _named(model: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(model).name) or "model"
