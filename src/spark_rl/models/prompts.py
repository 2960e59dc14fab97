"""The prompts that belong to a model: those in its folder, and what settings say otherwise."""

from __future__ import annotations

import logging
from functools import cache

from spark_rl.config import Config, Inference, ModelConfig
from spark_rl.models.folder import model_folder
from spark_rl.prompts import Prompts, build_prompts, kept_prompts, one_sided, saved_prompts

logger = logging.getLogger(__name__)


def prompts_of_run(config: Config) -> tuple[Prompts, list[str]]:
    """What a model is shown in a run: the prompts in its folder, or else the shipped ones, and what the config says
    otherwise; without examples that are to be taken from data. Also what of them is the folder's (`kept_prompts`).

    Raises:
        ValueError: they cannot be had; one sentence.
    """
    saved, whole = _of_folder(config.model), config.recycle.reasoning_view
    prompts = build_prompts(config.prompts, config.data.answer_format, saved, whole)
    return prompts, kept_prompts(prompts, saved) if saved else []


def prompts_for(settings: Inference) -> Prompts:
    """What a model is shown at test time, likewise.

    Raises:
        ValueError: they cannot be had; one sentence.
    """
    saved, whole = _of_folder(settings.model), 1.0 if settings.judge.view == "reasoning" else 0.0
    prompts = build_prompts(settings.prompts, settings.data.answer_format, saved, whole)
    for sentence in one_sided(prompts):
        _say(sentence)
    return prompts


def _of_folder(model: ModelConfig) -> Prompts | None:
    return None if model.is_remote else saved_prompts(model_folder(model.path))


@cache
def _say(sentence: str) -> None:
    """Once in a process, however often the prompts are asked for."""
    logger.warning(sentence)
