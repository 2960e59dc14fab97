"""Loading a model, its tokenizer, and what prepares its images."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from spark_rl.config import ModelConfig
from spark_rl.models.folder import check_hub, model_folder, source
from spark_rl.models.processor import is_vision_language


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer, with the chat template of the config if it names one.

    Raises:
        ValueError: there is no tokenizer, it has no chat template, or the Hub that has it cannot be reached.
    """
    path, options = source(config)
    if model_folder(path) is None:
        check_hub(path, config.revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
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


def loader_of(config: ModelConfig) -> tuple[Any, str]:
    """The class that loads the model, and the kind of model that it is tried as.

    Raises:
        ValueError: there is no readable config.
    """
    if is_vision_language(config):
        return AutoModelForImageTextToText, "vision-language model"
    return AutoModelForCausalLM, "causal LM"


def has_bfloat16() -> bool:
    """Whether the current GPU computes in bfloat16; older ones only emulate it, slowly."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def load_model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Any:
    """The model with weights of that precision, by default the optimizer's. What its architecture keeps in float32
    stays in it: frequencies of rotary embeddings would be those of other positions in bfloat16.

    Raises:
        ValueError: the folder or id holds no causal LM or vision-language model that can be loaded, or one of its
            weights is no finite number.
    """
    path, kwargs = source(config)
    loader, kind = loader_of(config)
    if config.attn_implementation:
        kwargs["attn_implementation"] = config.attn_implementation
    try:
        model = loader.from_pretrained(path, dtype=dtype, **kwargs)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"model.path: no {kind} could be loaded from {path!r} ({_first_line(error)})") from None
    for name, weight in model.named_parameters():
        if weight.numel() and weight.element_size() > 1 and not torch.stack(weight.detach().aminmax()).isfinite().all():
            raise ValueError(
                f"model.path: weights of {path!r} are not finite (NaN or infinite in {name}); take another model, or "
                "an earlier checkpoint of it"
            )
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def load_for_inference(config: ModelConfig) -> Any:
    """The model in evaluation mode, in the precision that suits its device: the best there is, and of several processes
    on a machine (`LOCAL_RANK`) one for each.

    Raises:
        ValueError: as `load_model`.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    if device.type == "cuda" and (rank := int(os.environ.get("LOCAL_RANK", "0"))) < torch.cuda.device_count():
        device = torch.device("cuda", rank or torch.cuda.current_device())
    bf16 = config.dtype == "bfloat16" or (config.dtype == "auto" and has_bfloat16())
    return load_model(config, torch.bfloat16 if bf16 else torch.float32).to(device).eval()


def unwrap(model: Any) -> Any:
    """The transformers model inside PEFT and data-parallel wrappers."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif hasattr(model, "module"):
            model = model.module
        else:
            return model


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
