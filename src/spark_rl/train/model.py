"""Loading and saving the model and its tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spark_rl.config import Config, ModelConfig
from spark_rl.train.preflight import longest_prompt, resolve_path


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer, with the chat template of the config if it names one.

    Raises:
        ValueError: there is no tokenizer, or it has no chat template.
    """
    path = resolve_path(config.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"model.path: no tokenizer could be loaded from {path!r} ({_first_line(error)})") from None
    if config.chat_template is not None:
        try:
            tokenizer.chat_template = config.chat_template.read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"model.chat_template: {config.chat_template}: {error.strerror}") from None
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model.path: the tokenizer of {path!r} has no end-of-turn token (eos_token)")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: ModelConfig) -> Any:
    """The causal LM with float32 weights (they are the optimizer's master weights).

    Raises:
        ValueError: the folder or id holds no causal LM that can be loaded.
    """
    path = resolve_path(config.path)
    kwargs: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.attn_implementation:
        kwargs["attn_implementation"] = config.attn_implementation
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **kwargs)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"model.path: no causal LM could be loaded from {path!r} ({_first_line(error)})") from None
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def mixed_precision(config: ModelConfig) -> str:
    """accelerate's name of the compute precision."""
    bf16_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16" if config.dtype == "bfloat16" or (config.dtype == "auto" and bf16_gpu) else "no"


def max_prompt_tokens(config: Config, model: Any) -> int:
    """`longest_prompt` for a model that is at hand."""
    return longest_prompt(config, getattr(model.config.get_text_config(), "max_position_embeddings", None) or None)


def save_model(model: Any, tokenizer: Any, folder: Path, card: str) -> None:
    """Write a Hugging Face folder (weights, tokenizer with chat template, model card), whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        model.generation_config.validate(strict=True)
    except ValueError:  # a temperature without do_sample=True, which transformers loads, but refuses to save
        model.generation_config.do_sample = True
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    readme = partial / "README.md"
    readme.write_text(card, encoding="utf-8")
    for weights in partial.glob("*.safetensors"):  # safetensors lets none but the owner read them
        shutil.copymode(readme, weights)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
