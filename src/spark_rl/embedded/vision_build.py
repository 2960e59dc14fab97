"""Builds the vision base: the text base, which gets an eye. Seeded; `make base-vision` runs it.

    python -m spark_rl.embedded.vision_build OUTPUT [--work runs/base-vision] [--seed 0]

A Qwen3-VL of about a million parameters, whose language model is the embedded text base's: it works sums out and
compares already. The vision tower learns first and alone: every cell of a picture tells the facts that it has a part
in, in directions that begin as the embeddings of their words. From then on it is frozen (trained on, it forgets), and
the language model learns to look facts up, to answer and to judge, cleanly; the habits of `habits.py` come last, in
few steps.

That order is what a model of this size needs. Trained together from the first step, answers came to 96 % in geometry
and to 20 % in the other kinds; with looking up for itself, after 400 steps in which nothing seems to happen, a fact of
a chart is found in 100 % of cases, of a table, whose facts have two names, in 64 %.
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
    Qwen2VLImageProcessorPil,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from spark_rl.embedded.build import END, PAD, Encoded, batched, completed, minimise, padded, train_tokenizer, words
from spark_rl.embedded.habits import BASE, CLEAN, NOISY, Habits, Sample, corpus, mixture
from spark_rl.embedded.pictures import CELL, KINDS, LEVELS, PictureProblem, picture_problems
from spark_rl.images.drawn import draw
from spark_rl.models.folder import resolve_path
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
TEXT_SETTINGS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
)
"""What the language model takes over from the text base's config."""
TOWER_STEPS = 1500
HARD = (*KINDS, "table", "table")
"""Entries of tables have two names."""
JUDGING = {"answer": 0.3, "compare-among": 0.2, "pointwise": 0.25, "pairwise": 0.25}
WORDS = {"answer": 0.3, "pointwise": 0.25, "pairwise": 0.25, "compare-among": 0.1, "reflection": 0.1}
READING = {"answer": 0.3, "pointwise": 0.27, "pairwise": 0.27, "reflection": 0.1, "compare-among": 0.06}
ALL_KINDS = {"answer": 0.36, "pointwise": 0.27, "pairwise": 0.22, "reflection": 0.15}


@dataclass(frozen=True)
class Stage:
    """One stretch of pre-training."""

    name: str
    habits: Habits
    shares: dict[str, float]
    steps: int
    learning_rate: float
    """Peak; warmed up over the first 50 steps and decayed to a tenth of it by a cosine."""
    look_up: float = 0.0
    """Share of samples that look up all facts of a picture."""
    words: float = 0.0
    """Share of samples that are the text base's."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Drawn in turn; one that is named twice comes twice as often."""
    samples: int = 64
    """Samples a step."""


STAGES = (
    Stage("looking", CLEAN, {"answer": 1.0}, steps=800, learning_rate=3e-3, look_up=0.9, words=0.1),
    Stage("answers", CLEAN, {"answer": 1.0}, 350, learning_rate=2e-3, look_up=0.3, words=0.2, kinds=HARD),
    Stage("judging", CLEAN, JUDGING, steps=350, learning_rate=2e-3),
    Stage("reading", NOISY, READING, steps=350, learning_rate=1.5e-3),
    Stage("habits", BASE, ALL_KINDS, steps=150, learning_rate=5e-4),
)


def looked_up(problem: PictureProblem, rng: random.Random) -> Sample:
    """All facts of a picture in any order, twice; only the values are learned."""
    names = [name for _ in range(2) for name in rng.sample(list(problem.facts), len(problem.facts))]
    pieces = [piece for n in names for piece in ((f"{n}:", False), (str(problem.facts[n]), True), ("\n", False))]
    return ({"role": "user", "content": f"{IMAGE}\nLook up."},), pieces


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The vision base's tokenizer, trained on what both bases read."""
    quiet = replace(BASE, aside=0.0, hollow=0.0)  # words in no order would take tokens from what is said
    samples: list[Sample] = []
    for habits, seed in ((CLEAN, 1), (quiet, 2)):
        pictures = picture_problems("pretrain", seed)
        samples += (sample for _, sample in itertools.islice(corpus(habits, ALL_KINDS, seed), 2000))
        for _, problem, sample in itertools.islice(mixture(pictures, habits, ALL_KINDS, seed), 2000):
            samples += (sample, looked_up(problem, random.Random(0)))
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


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3VLForConditionalGeneration:
    """The text base with a random vision tower; a token new to it is the mean of those it read for the same."""
    torch.manual_seed(seed)
    base = Qwen3ForCausalLM.from_pretrained(resolve_path("embedded"))
    base_tokenizer = PreTrainedTokenizerFast.from_pretrained(resolve_path("embedded"))
    ends: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    known = base.config.to_dict()
    text = {name: known[name] for name in TEXT_SETTINGS} | {"vocab_size": len(tokenizer), "bos_token_id": None, **ends}
    text["rope_parameters"] = {**known["rope_parameters"], "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    vision = {
        "depth": 3,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 1,
        "num_position_embeddings": (MERGE * max(LEVELS.values())) ** 2,
        "deepstack_visual_indexes": [],
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
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids, **ends)
    model = Qwen3VLForConditionalGeneration(config)
    language_model = model.model.language_model
    weights = base.model.state_dict()
    known_ED = weights.pop("embed_tokens.weight")
    with torch.no_grad():
        for token, index in tokenizer.get_vocab().items():
            text_of = token if token in base_tokenizer.all_special_tokens else tokenizer.decode([index])
            if ids_of := base_tokenizer(text_of, add_special_tokens=False)["input_ids"]:
                language_model.embed_tokens.weight[index] = known_ED[ids_of].mean(dim=0)
        for name, weight in weights.items():
            language_model.get_parameter(name).copy_(weight)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


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
        return words(self.tokenizer, text)

    def sample(self, sample: Sample, path: str) -> Encoded:
        shown = (path,) * (IMAGE in sample[0][-1]["content"])
        return completed(self.prompt(sample[0], path), sample, self.tokenizer, shown)

    def images(self, paths: list[str]) -> dict[str, torch.Tensor]:
        """The `pixel_values` and `image_grid_thw` of drawings."""
        if not paths:
            return {}
        features = [self.pixels(path) for path in paths]
        return {key: torch.cat([f[key] for f in features]) for key in ("pixel_values", "image_grid_thw")}


def _batches(stage: Stage, encoder: Encoder, seed: int) -> Iterator[list[Encoded]]:
    """Batches of samples; samples of like length stand together."""
    rng = random.Random(seed)
    pictures = mixture(picture_problems("pretrain", seed, stage.kinds), stage.habits, stage.shares, seed)
    texts = corpus(stage.habits, WORDS, seed)

    def encoded() -> Iterator[Encoded]:
        while True:
            if rng.random() < stage.words:
                yield encoder.sample(next(texts)[1], "")
            else:
                _, problem, sample = next(pictures)
                picked = looked_up(problem, rng) if rng.random() < stage.look_up else sample
                yield encoder.sample(picked, problem.image.path)

    return batched(encoded(), stage.samples, rng)


def train_tower(model: Qwen3VLForConditionalGeneration, encoder: Encoder, seed: int) -> None:
    """Teach the vision tower to tell the facts that each cell is part of, by a head that is thrown away.

    A fact's direction begins as the embeddings of its words, so that the language model finds in a picture what it
    would look for in a text.
    """
    known = {
        f"{name}:{value}"
        for problem in itertools.islice(picture_problems("pretrain", seed), 8000)
        for name, value in problem.facts.items()
    }
    index = {fact: i for i, fact in enumerate(sorted(known))}
    embed = model.model.language_model.embed_tokens
    with torch.no_grad():
        directions = [embed(torch.tensor(words(encoder.tokenizer, fact))).sum(dim=0) for fact in index]
    head = torch.nn.Linear(model.model.visual.config.out_hidden_size, len(index))
    head.weight = torch.nn.Parameter(torch.stack(directions))
    torch.nn.init.constant_(head.bias, -4.0)

    def losses() -> Iterator[torch.Tensor]:
        stream = picture_problems("pretrain", seed + 1)
        while True:
            problems = list(itertools.islice(stream, 64))
            logits_NF = head(_see(model, encoder.images([problem.image.path for problem in problems])))
            told_NF = torch.zeros_like(logits_NF)
            cells = ((problem, cell) for problem in problems for cell in problem.cells)
            for row, (problem, cell) in enumerate(cells):
                told_NF[row, [i for name in cell if (i := index.get(f"{name}:{problem.facts[name]}")) is not None]] = 1
            yield F.binary_cross_entropy_with_logits(logits_NF, told_NF, reduction="sum") / told_NF.sum()

    minimise(torch.nn.ModuleList([model.model.visual, head]), losses(), "tower", TOWER_STEPS, learning_rate=2e-3)
    _scale(model, encoder, seed)


def _scale(model: Qwen3VLForConditionalGeneration, encoder: Encoder, seed: int) -> None:
    """Bring what the tower says to the size of the embeddings of words, among which it will stand."""
    problems = itertools.islice(picture_problems("pretrain", seed + 2), 256)
    with torch.no_grad():
        seen_ND = _see(model, encoder.images([problem.image.path for problem in problems]))
        ratio = model.model.language_model.embed_tokens.weight.std() / seen_ND.std()
        for parameter in model.model.visual.merger.linear_fc2.parameters():
            parameter *= ratio


def _see(model: Qwen3VLForConditionalGeneration, images: dict[str, torch.Tensor]) -> torch.Tensor:
    """The embeddings of the images' tokens, in order."""
    seen_ND: torch.Tensor = model.model.visual(images["pixel_values"], grid_thw=images["image_grid_thw"]).pooler_output
    return seen_ND


def _loss(model: Qwen3VLForConditionalGeneration, encoder: Encoder, batch: list[Encoded]) -> torch.Tensor:
    """Mean cross-entropy over the learned tokens."""
    ids_BT, learned_BT = padded(batch, encoder.pad)
    is_image_BT = torch.eq(ids_BT, encoder.image_pad)
    images = encoder.images([path for item in batch for path in item.paths])
    embeds_BTD = model.model.language_model.embed_tokens(ids_BT)
    if images:
        embeds_BTD = embeds_BTD.masked_scatter(is_image_BT[..., None], _see(model, images))
    positions_3BT, _ = model.model.get_rope_index(
        ids_BT, mm_token_type_ids=is_image_BT.int(), image_grid_thw=images.get("image_grid_thw")
    )
    hidden_BTD = model.model.language_model(
        inputs_embeds=embeds_BTD[:, :-1], position_ids=positions_3BT[..., :-1], use_cache=False
    ).last_hidden_state
    return F.cross_entropy(model.lm_head(hidden_BTD[learned_BT[:, 1:]]), ids_BT[learned_BT])


def train_stage(model: Qwen3VLForConditionalGeneration, encoder: Encoder, stage: Stage, seed: int) -> None:
    """Run one stage in place; the tower stays as it is, since it would forget while the others learn to read it."""
    model.model.visual.requires_grad_(False)
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
    parts = (model, tokenizer, image_processor)
    for number, stage in enumerate((None, *STAGES)):
        folder = arguments.work / (stage.name if stage else "tower")
        if folder.exists():
            model.load_state_dict(Qwen3VLForConditionalGeneration.from_pretrained(folder).state_dict())
            continue
        seed = 1000 * arguments.seed + number
        if stage:
            train_stage(model, encoder, stage, seed)
        else:
            train_tower(model, encoder, seed)
        for part in parts:
            part.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
