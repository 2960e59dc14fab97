"""A model and questions that are looked at before a run, with the settings of that run. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spark_rl.config import Config, Inference, flat, given_settings, load_config, load_inference, merge, parse_override
from spark_rl.data import Data, load_data
from spark_rl.models.prompts import prompts_of_run
from spark_rl.progress import Shown
from spark_rl.prompts import Prompts
from spark_rl.types import Role

_TOKENS = 256
"""Length limit of a reply where none is set."""
_ROWS = 512
"""Rows of a file or data set that are read: the first ones."""
Settings = dict[str, Any]
"""By dotted key, beside those that were given."""


class Patient:
    """The settings of a run that is not begun.

    Args:
        model: instead of that of the config; may be None if `data` is one.
        data: as in `data.train`, or the path of a run's config.
        overrides: `section.key=value` of the run, or of the section `engine` of test time.

    Raises:
        ValueError: something is missing, or a setting is wrong.
    """

    def __init__(self, model: str | None, data: str | None, overrides: Sequence[str]) -> None:
        if data is None:
            raise ValueError("there are no questions to try the model on; name some with --data")
        self._file = data if data.endswith((".yaml", ".yml")) else None
        if model is None and self._file is None:
            raise ValueError("there is no model to try; name one, or with --data the config of a run")
        of_engine = [override for override in overrides if override.startswith("engine.")]
        named = [] if model is None else [f"model.path={json.dumps(model)}"]
        if self._file is None:
            named.append(f"data.train={data if data.startswith(('{', '[')) else json.dumps(data)}")
        named += [override for override in overrides if override not in of_engine]
        self.given = given_settings(self._file, named)
        preset = [] if self._file or "preset" in self.given else ["preset=spark"]
        self._overrides = [*preset, *named]
        self._engine: dict[str, Any] = {}
        for override in of_engine:
            self._engine = merge(self._engine, parse_override(override)["engine"])
        self.config = load_config(self._file, self._overrides)

    @property
    def is_remote(self) -> bool:
        """The model is at the address of a server."""
        return self.config.model.is_remote

    def limit_replies(self, context: int | None) -> None:
        """Choose how long replies may be, where that is not set.

        Args:
            context: of the model, tokens.
        """
        if "rollout.max_new_tokens" not in flat(self.given):
            limit = min(_TOKENS, context // 2) if context else _TOKENS
            self._overrides.append(f"rollout.max_new_tokens={limit}")
            self.config = load_config(self._file, self._overrides)

    def inference(self) -> Inference:
        """The settings by which the model is asked."""
        config = self.config
        engine: dict[str, Any] = {"max_new_tokens": config.rollout.max_new_tokens}
        if config.rollout.max_batch_tokens:
            engine["max_batch_tokens"] = config.rollout.max_batch_tokens
        return load_inference(
            model=config.model.model_dump(mode="json"),
            verify=config.verify.model_dump(),
            engine=merge(engine, self._engine),
            seed=config.train.seed,
        )

    def with_settings(self, settings: Settings) -> Config | None:
        """The config with further ones, each in place of the whole of what was given; None if they do not go with the
        others, such as a format that one's own templates do not ask for, or responses to learn from do not have."""
        further = [f"{k}={value}" for k, v in settings.items() for value in ("null", json.dumps(v))]
        try:
            config = load_config(self._file, [*self._overrides, *further])
            prompts_of_run(config)
        except ValueError:
            return None
        has_responses = "data.answer_format" in settings and bool(config.warm_start.data)
        return None if has_responses else config

    def data(self, shown: Shown, config: Config | None = None) -> Data:
        """The training questions, of files the first rows only; but of all where examples are taken from them, since
        the run's are.

        Args:
            config: instead of that of the patient.

        Raises:
            ValueError: as `load_data`.
        """
        config = config or self.config

        def first(source: Any) -> Any:
            is_made = source.path.startswith(("embedded:", "reasoning_gym:"))
            return source if is_made else source.model_copy(update={"size": min(_ROWS, source.size or _ROWS)})

        train = [first(source) for source in config.data.train]
        few = config.data.model_copy(update={"train": train, "validation": [], "monitor": []})
        data = config.data if config.prompts.num_taken else few
        return load_data(config.model_copy(update={"data": data}), shown.track)


def with_examples(config: Config, shown: Prompts, further: Mapping[Role, Any]) -> Settings:
    """The setting of worked examples for some roles, and for the others of those that they have.

    Args:
        shown: the prompts of the config.
    """
    given = config.prompts.examples_by_role
    kept = {role: each for role, each in given.items() if each == "none" or shown.examples.get(role)}
    examples = {**kept, **further}
    return {"prompts.examples": {r.value: str(e) if isinstance(e, Path) else e for r, e in examples.items()}}


def written(settings: Settings) -> str:
    """Settings as one would type them."""
    return " ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()
    )
