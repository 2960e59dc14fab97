"""The prompts that belong to a model at test time."""

from __future__ import annotations

import logging
from functools import cache

from spark_rl.config import Inference
from spark_rl.models.folder import model_folder
from spark_rl.prompts import Prompts, build_prompts, one_sided, saved_prompts

logger = logging.getLogger(__name__)


def prompts_for(settings: Inference) -> Prompts:
    """What a model is shown at test time: the prompts in its folder, or else the shipped ones, and what the settings
    say otherwise.

    Raises:
        ValueError: they cannot be had; one sentence.
    """
    folder = None if settings.is_remote else model_folder(settings.model.path)
    whole = 1.0 if settings.judge.view == "reasoning" else 0.0
    prompts = build_prompts(settings.prompts, settings.data.answer_format, saved_prompts(folder), whole)
    for sentence in one_sided(prompts):
        _say(sentence)
    return prompts


@cache
def _say(sentence: str) -> None:
    """Once in a process, however often the prompts are asked for."""
    logger.warning(sentence)
