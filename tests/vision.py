"""Tiny random vision-language models of five families, with tokenizer and processor, saved as models come."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from spark_rl.types import Image

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "gemma3", "internvl", "llava_onevision")

_VLM_TOKENS = {
    "qwen2_5_vl": {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    "qwen3_vl": {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
    },
    "gemma3": {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "llava_onevision": {"image_token": "<image>", "video_token": "<video>"},
}
_IN_TEMPLATE = {
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma3": "<start_of_image>",
    "internvl": "<IMG_CONTEXT>",
    "llava_onevision": "<image>",
}
_TEMPLATE = (
    "{%% for message in messages %%}<|im_start|>{{ message['role'] }}\n"
    "{%% if message['content'] is string %%}{{ message['content'] }}{%% else %%}"
    "{%% for part in message['content'] %%}{%% if part['type'] == 'image' %%}%s{%% else %%}{{ part['text'] }}"
    "{%% endif %%}{%% endfor %%}{%% endif %%}<|im_end|>\n{%% endfor %%}"
    "{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)


def picture(seed: int, width: int = 32, height: int = 24) -> PIL.Image.Image:
    """Coloured noise."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values)


def image_file(folder: Path, seed: int, width: int = 32, height: int = 24) -> Image:
    """`picture`, saved, and the reference to it."""
    path = folder / f"{seed}-{width}x{height}.png"
    picture(seed, width, height).save(path)
    return Image(str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def vision_tokenizer(family: str) -> Any:
    """One token a character, and the family's special tokens."""
    extra = _VLM_TOKENS[family]
    specials = ["<pad>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", *extra.values()]
    signs = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 \n.,:;?!'\"`\\{}()[]<>|_+-*/=#"
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*specials, *signs]))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|vision_start|>", "<|vision_end|>"],
        extra_special_tokens=extra,
        chat_template=_TEMPLATE % _IN_TEMPLATE[family],
    )


def save_vision_model(family: str, folder: Path, seed: int = 0, head_dim: int = 8) -> Path:
    """A tiny model of the family, initialised wide so that attention matters, in the form in which models come."""
    torch.manual_seed(seed)
    tokenizer = vision_tokenizer(family)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _VLM_TOKENS[family].items()}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 4 * head_dim,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor_config: dict[str, Any] = {}
    match family:
        case "qwen2_5_vl" | "qwen3_vl":
            sections = [head_dim // 8, head_dim // 8, head_dim // 4]
            text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
            vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4}
            vision |= {
                "out_hidden_size": 4 * head_dim,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "initializer_range": 0.2,
            }
            if family == "qwen3_vl":
                vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
                text |= {"head_dim": head_dim}
                text["rope_parameters"]["mrope_interleaved"] = True
            else:
                vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
            ids = {
                "image_token_id": ids["image_token"],
                "video_token_id": ids["video_token"],
                "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
                "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
            }
            kind = "Qwen2_5_VL" if family == "qwen2_5_vl" else "Qwen3VL"
            image_processor = transformers.Qwen2VLImageProcessorPil(
                patch_size=4, temporal_patch_size=2, merge_size=2, min_pixels=64, max_pixels=4096, **pixels
            )
            processor_class = "Qwen2_5_VLProcessor" if family == "qwen2_5_vl" else "Qwen3VLProcessor"
        case "gemma3":
            text |= {
                "head_dim": head_dim,
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            }
            vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
            vision |= {"image_size": 16, "patch_size": 4}
            ids = {
                "image_token_id": ids["image_token"],
                "boi_token_id": ids["boi_token"],
                "eoi_token_id": ids["eoi_token"],
            }
            ids |= {"mm_tokens_per_image": 4}
            kind = "Gemma3"
            image_processor = transformers.Gemma3ImageProcessorPil(size={"height": 16, "width": 16}, **pixels)
            processor_class, processor_config = "Gemma3Processor", {"image_seq_length": 4}
        case "internvl":
            vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
            vision |= {"image_size": [16, 16], "patch_size": [4, 4]}
            text["model_type"] = "qwen2"
            ids = {"image_token_id": ids["context_image_token"], "image_seq_length": 4}
            kind = "InternVL"
            image_processor = transformers.GotOcr2ImageProcessorPil(
                size={"height": 16, "width": 16}, max_patches=3, **pixels
            )
            processor_class, processor_config = "InternVLProcessor", {"image_seq_length": 4}
        case _:
            vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32}
            vision |= {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
            text["model_type"] = "qwen2"
            grid = [[16, 16], [16, 32], [32, 16], [32, 32]]
            ids = {
                "image_token_id": ids["image_token"],
                "video_token_id": ids["video_token"],
                "image_grid_pinpoints": grid,
            }
            kind = "LlavaOnevision"
            image_processor = transformers.LlavaOnevisionImageProcessorPil(
                size={"height": 16, "width": 16}, image_grid_pinpoints=grid, **pixels
            )
            processor_class = "LlavaOnevisionProcessor"
            processor_config = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    config_class = getattr(transformers, f"{kind}Config")
    config = config_class(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).float().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    if processor_config:
        processor_config |= {"processor_class": processor_class}
        (folder / "processor_config.json").write_text(json.dumps(processor_config))
    return folder
