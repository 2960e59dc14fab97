"""Builds a vision base from nothing, as `build.py` does the text base; `make base-vision` runs it.

    python -m spark_rl.embedded.vision_build OUTPUT [--work runs/base-vision] [--seed 0]

A Qwen2.5-VL of under a million parameters. It first says what it sees in pictures and answers, cleanly, and takes on
the habits of `habits.py` last; judging it has read there alone.

It is not good enough to ship yet: after these stages geometry is read (96 % greedy before the habits, 4 % blind), while
charts and tables still are not (about 20 %), and it has not learned to judge, for which the text base takes seven more
stages.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from spark_rl.embedded.build import END, PAD, minimise, train_tokenizer
from spark_rl.embedded.habits import BASE, CLEAN, Habits, Sample, mixture
from spark_rl.embedded.pictures import CELL, KINDS, LEVELS, PictureProblem, picture_problems
from spark_rl.images.drawn import draw
from spark_rl.types import IMAGE, Message

VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH, MERGE = 8, 2
HARD = ("chart", "shapes", "table", "chart", "shapes", "table", "geometry")
ALL_KINDS = {"answer": 0.36, "pointwise": 0.27, "pairwise": 0.22, "reflection": 0.15}


@dataclass(frozen=True)
class Stage:
    """One stretch of pre-training; `describe` is the share of samples that say all that is seen."""

    name: str
    habits: Habits
    shares: dict[str, float]
    steps: int
    learning_rate: float
    """Peak; warmed up over the first 50 steps and decayed to a tenth of it by a cosine."""
    describe: float = 0.0
    kinds: tuple[str, ...] = tuple(KINDS)
    """Drawn in turn; one that is named twice comes twice as often."""
    samples: int = 64
    """Samples a step."""


STAGES = (
    Stage("seeing", CLEAN, {"answer": 1.0}, steps=900, learning_rate=3e-3, describe=0.4),
    Stage("seeing-more", CLEAN, {"answer": 1.0}, steps=550, learning_rate=3e-3, describe=0.2, kinds=HARD),
    Stage("habits", BASE, ALL_KINDS, steps=90, learning_rate=1e-3),
)


def described(problem: PictureProblem) -> Sample:
    """All that is seen in a picture."""
    return ({"role": "user", "content": f"{IMAGE}\nDescribe the picture."},), [(problem.caption, True)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    quiet = replace(BASE, aside=0.0, hollow=0.0)  # words in no order would take tokens from what is said
    streams = [(CLEAN, 1), (quiet, 2)]
    samples = [
        sample
        for habits, seed in streams
        for _, problem, own in itertools.islice(
            mixture(picture_problems("pretrain", seed), habits, ALL_KINDS, seed), 2000
        )
        for sample in (own, described(problem))
    ]
    specials = [PAD, "<|im_start|>", END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD]
    return train_tokenizer(samples, specials, CHAT_TEMPLATE, vocab_size=768)


def build_image_processor() -> Qwen2VLImageProcessorPil:
    """One image token a cell; no picture of the embedded questions is resized."""
    sides = [cells * CELL for cells in LEVELS.values()]
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": min(sides) ** 2, "longest_edge": max(sides) ** 2},
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=1,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A random Qwen2.5-VL of under a million parameters; a picture is one window, so all its attention is full."""
    torch.manual_seed(seed)
    ends: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.05,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        **ends,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 1,
        "window_size": PATCH * MERGE * 8,
        "fullatt_block_indexes": [0, 1],
        "out_hidden_size": text["hidden_size"],
        "initializer_range": 0.05,
    }
    ids: dict[str, Any] = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in (
            ("image", IMAGE_PAD),
            ("video", VIDEO_PAD),
            ("vision_start", VISION_START),
            ("vision_end", VISION_END),
        )
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        **ids,
        **ends,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample as the model reads it."""

    ids: list[int]
    learned: list[bool]
    """Which of the ids are to be learned."""
    paths: tuple[str, ...]
    """The drawings, in the order of the prompt."""


class Encoder:
    """Turns prompts and samples into ids, and drawings into patches."""

    def __init__(self, tokenizer: Any, image_processor: Qwen2VLImageProcessorPil) -> None:
        self.tokenizer = tokenizer
        self.pad, self.image_pad = (tokenizer.convert_tokens_to_ids(token) for token in (PAD, IMAGE_PAD))
        self.pixels = lru_cache(maxsize=4096)(lambda path: image_processor(draw(path), return_tensors="pt"))

    def prompt(self, messages: tuple[Message, ...], path: str) -> list[int]:
        """The ids of a prompt, one image token for every cell of the picture."""
        text = self.tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=True
        )
        if IMAGE in text:
            num_tokens = self.pixels(path)["image_grid_thw"].prod().item() // MERGE**2
            text = text.replace(IMAGE, VISION_START + IMAGE_PAD * num_tokens + VISION_END)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def sample(self, sample: Sample, path: str) -> Encoded:
        messages, pieces = sample
        ids = self.prompt(messages, path)
        learned = [False] * len(ids)
        for text, is_learned in [*pieces, (END, True)]:
            piece = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids, learned = ids + piece, learned + [is_learned] * len(piece)
        return Encoded(ids, learned, (path,) * (IMAGE in messages[-1]["content"]))

    def images(self, paths: list[str]) -> dict[str, torch.Tensor]:
        """The `pixel_values` and `image_grid_thw` of drawings."""
        if not paths:
            return {}
        features = [self.pixels(path) for path in paths]
        return {key: torch.cat([f[key] for f in features]) for key in ("pixel_values", "image_grid_thw")}


def _batches(stage: Stage, encoder: Encoder, seed: int) -> Iterator[list[Encoded]]:
    """Batches of samples; samples of like length stand together."""
    rng = random.Random(seed)
    stream = mixture(picture_problems("pretrain", seed, stage.kinds), stage.habits, stage.shares, seed)
    while True:
        block = [
            encoder.sample(described(problem) if rng.random() < stage.describe else sample, problem.image.path)
            for _, problem, sample in itertools.islice(stream, stage.samples * 8)
        ]
        block.sort(key=lambda item: len(item.ids))
        batches = [block[i : i + stage.samples] for i in range(0, len(block), stage.samples)]
        rng.shuffle(batches)
        yield from batches


def _loss(model: Qwen2_5_VLForConditionalGeneration, encoder: Encoder, batch: list[Encoded]) -> torch.Tensor:
    """Mean cross-entropy over the learned tokens."""
    width = max(len(item.ids) for item in batch)
    ids_BT = torch.tensor([item.ids + [encoder.pad] * (width - len(item.ids)) for item in batch])
    learned_BT = torch.tensor([item.learned + [False] * (width - len(item.ids)) for item in batch])[:, 1:]
    is_image_BT = torch.eq(ids_BT, encoder.image_pad)
    images = encoder.images([path for item in batch for path in item.paths])
    embeds_BTD = model.get_input_embeddings()(ids_BT)
    if images:
        seen_ND = model.model.visual(images["pixel_values"], grid_thw=images["image_grid_thw"]).pooler_output
        embeds_BTD = embeds_BTD.masked_scatter(is_image_BT[..., None], seen_ND)
    positions_3BT, _ = model.model.get_rope_index(
        ids_BT, mm_token_type_ids=is_image_BT.int(), image_grid_thw=images.get("image_grid_thw")
    )
    hidden_BTD = model.model.language_model(  # right padding: causality is mask enough
        inputs_embeds=embeds_BTD[:, :-1], position_ids=positions_3BT[..., :-1], use_cache=False
    ).last_hidden_state
    return F.cross_entropy(model.lm_head(hidden_BTD[learned_BT]), ids_BT[:, 1:][learned_BT])


def train_stage(model: Qwen2_5_VLForConditionalGeneration, encoder: Encoder, stage: Stage, seed: int) -> None:
    """Run one stage in place."""
    losses = (_loss(model, encoder, batch) for batch in _batches(stage, encoder, seed))
    minimise(model, losses, stage.name, stage.steps, stage.learning_rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/base-vision"), help="stages found here are kept")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer, image_processor = build_tokenizer(), build_image_processor()
    encoder = Encoder(tokenizer, image_processor)
    model = build_model(tokenizer, arguments.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    for number, stage in enumerate(STAGES):
        folder = arguments.work / stage.name
        if folder.exists():
            model.load_state_dict(Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).state_dict())
            continue
        train_stage(model, encoder, stage, seed=1000 * arguments.seed + number)
        for part in (model, tokenizer, image_processor):
            part.save_pretrained(folder)
    for part in (model, tokenizer, image_processor):
        part.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
