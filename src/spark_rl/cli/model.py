"""What verbs that run a model share: its settings, loading it quietly, and what is said of who made a row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_rl.config import Inference, ModelConfig, load_inference

if TYPE_CHECKING:
    from spark_rl.infer import ChatModel
    from spark_rl.prompts import Prompts

_PACE = {
    "engine": {"max_batch_tokens", "concurrency", "timeout_seconds", "retries", "api_key_env"},
    "verify": {"workers", "max_timeout_rate"},
    "serve": True,
}
"""Settings that change no result."""
_HINTS = ("clean_up_tokenization_spaces", "sequence length is longer than")
"""Words of warnings that tell a user nothing: what does not fit the context we refuse or cut ourselves."""


def settings_for(model: str, overrides: Sequence[str], seed: int, max_new_tokens: int | None) -> Inference:
    """The settings of test time, of a verb's arguments.

    Raises:
        ValueError: as `load_inference`.
    """
    engine = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    values = {"model": {"path": model}, "engine": engine, "seed": seed}
    settings = load_inference(overrides, **values)
    if settings.model.path != ModelConfig(path=model).path:
        raise ValueError(f"the model is given twice, {model} and model.path={settings.model.path}; give one")
    return settings


def open_model(settings: Inference, prompts: Prompts | None = None) -> ChatModel:
    """The model, loaded without progress bars and hints of libraries. What can be seen to be wrong is said at once.

    Args:
        prompts: instead of those that belong to it.

    Raises:
        ValueError: as `ChatModel.open`.
    """
    from spark_rl.infer import ChatModel

    folder_of(settings)
    if not settings.is_remote:
        quiet_libraries()
    return ChatModel.open(settings, prompts)


def folder_of(settings: Inference) -> Path | None:
    """The model's folder, looked into; None for a model of the Hub, which can be asked for it, or of a server.

    Raises:
        ValueError: the model cannot be had, or not be used.
    """
    from spark_rl.models.folder import check_folder, check_hub

    if settings.is_remote:
        return None
    folder = check_folder(settings.model)
    if folder is None:
        check_hub(settings.model.path, settings.model.revision)
    return folder


def deciding(settings: Inference) -> dict[str, Any]:
    """All settings that change results."""
    return settings.model_dump(mode="json", exclude=_PACE)  # type: ignore[arg-type]


def signature(settings: Inference, prompts: Prompts, *words: str) -> str:
    """What makes a row, as one line: the model, these words, and a digest of what the model is shown and of all
    settings that change results."""
    from spark_rl.prompts.build import prompts_as_json

    decides = deciding(settings) | {"prompts": prompts_as_json(prompts)}
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
    return " ".join([settings.model.name, *words, digest])


def quiet_libraries() -> None:
    """Keep the progress bars and hints of libraries out of our own display."""
    import logging

    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    logging.getLogger("transformers.generation.configuration_utils").setLevel(logging.ERROR)  # we do not generate by it
    for module in ("tokenization_utils_base", "tokenization_utils_tokenizers"):  # their other warnings matter
        logging.getLogger(f"transformers.{module}").addFilter(
            lambda record: not any(words in record.getMessage() for words in _HINTS)
        )
