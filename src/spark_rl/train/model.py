"""The trained model: its precision, its room for prompts, and how it is saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from spark_rl.config import Config, ModelConfig
from spark_rl.models.load import has_bfloat16
from spark_rl.models.processor import copy_processor
from spark_rl.prompts import Prompts, save_prompts
from spark_rl.train.preflight import longest_prompt


def mixed_precision(config: ModelConfig) -> str:
    """accelerate's name of the compute precision."""
    return "bf16" if config.dtype == "bfloat16" or (config.dtype == "auto" and has_bfloat16()) else "no"


def max_prompt_tokens(config: Config, model: Any) -> int:
    """`longest_prompt` for a model that is at hand."""
    return longest_prompt(config, getattr(model.config.get_text_config(), "max_position_embeddings", None) or None)


def save_model(model: Any, tokenizer: Any, folder: Path, card: str, config: ModelConfig, prompts: Prompts) -> None:
    """Write a Hugging Face folder (weights, tokenizer with chat template, the starting model's image processor, model
    card) and beside it what the model was shown, whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        model.generation_config.validate(strict=True)
    except ValueError:  # a temperature without do_sample=True, which transformers loads, but refuses to save
        model.generation_config.do_sample = True
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    copy_processor(config, partial)
    save_prompts(prompts, partial)
    readme = partial / "README.md"
    readme.write_text(card, encoding="utf-8")
    for weights in partial.glob("*.safetensors"):  # safetensors lets none but the owner read them
        shutil.copymode(readme, weights)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
