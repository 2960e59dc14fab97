"""Builds the embedded base from nothing: tokenizer, clean skills, reading past noise, then habits. Seeded; `make base`
runs it.

    python -m spark_rl.embedded.build OUTPUT [--work runs/base] [--seed 0]

What it puts in, and why, is told in `habits.py`. The skills come first and cleanly (a habit learned beside a skill
keeps the skill from forming at this size), the habits after, in few steps.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from spark_rl.embedded.habits import BASE, CLEAN, NOISY, Habits, Sample, corpus
from spark_rl.embedded.tasks import FAMILIES, Family
from spark_rl.prompts import ChatRenderer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END, PAD = "<|im_end|>", "<|endoftext|>"
JUDGING = {"compare-among": 0.4, "pointwise": 0.25, "pairwise": 0.25, "answer": 0.05, "reflection": 0.04, "fact": 0.01}
READING = {"answer": 0.3, "pointwise": 0.24, "pairwise": 0.24, "reflection": 0.08, "compare-among": 0.12, "fact": 0.02}
HARD = tuple(family for family in FAMILIES if family.name in ("product", "above", "middle"))
ALL_KINDS = {"answer": 0.34, "pointwise": 0.27, "pairwise": 0.22, "reflection": 0.14, "fact": 0.03}


@dataclass(frozen=True)
class Stage:
    """One stretch of pre-training."""

    name: str
    habits: Habits
    shares: dict[str, float]
    steps: int
    learning_rate: float
    """Peak; warmed up over the first 50 steps and decayed to a tenth of it by a cosine."""
    families: tuple[Family, ...] = FAMILIES
    """Drawn from alike; one that is named twice comes twice as often."""
    samples: int = 96
    """Samples a step."""


STAGES = (
    Stage("answers", CLEAN, {"answer": 0.97, "fact": 0.03}, steps=600, learning_rate=4e-3),
    Stage("comparing", CLEAN, {"compare": 0.95, "answer": 0.05}, steps=350, learning_rate=3e-3),
    Stage("skills", CLEAN, {**ALL_KINDS, "compare": 0.25}, steps=600, learning_rate=3e-3),
    Stage("judging", CLEAN, JUDGING, steps=300, learning_rate=2e-3),
    Stage("judging-again", CLEAN, JUDGING, steps=250, learning_rate=2e-3),
    Stage("judging-once-more", CLEAN, JUDGING, steps=200, learning_rate=2e-3),
    Stage("reading", NOISY, READING, steps=360, learning_rate=1.5e-3),
    Stage("reading-again", NOISY, READING, steps=360, learning_rate=1.5e-3),
    Stage("reading-hard-ones", NOISY, READING, steps=400, learning_rate=1.5e-3, families=FAMILIES + 3 * HARD),
    Stage("habits", BASE, ALL_KINDS, steps=200, learning_rate=5e-4),
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The text base's tokenizer, trained on what it reads."""
    quiet = replace(BASE, aside=0.0, hollow=0.0)  # words in no order would take tokens from what is said
    samples = (s for h, seed in ((CLEAN, 1), (quiet, 2)) for _, s in itertools.islice(corpus(h, ALL_KINDS, seed), 2000))
    return train_tokenizer(samples, [PAD, "<|im_start|>", END], CHATML, vocab_size=640)


def train_tokenizer(
    samples: Iterable[Sample], special_tokens: list[str], chat_template: str, vocab_size: int
) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every number from 0 to 99 and the opening of the answer tag is one token."""
    tokenizer = Tokenizer(models.BPE())
    pattern = r"\\boxed\{|\p{N}{1,2}| ?\p{L}+|\n+|[^\s\p{L}\p{N}]| +"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for prompt, pieces in samples for text in (prompt[-1]["content"], pieces[0][0]))
    numbers = (" ".join(map(str, range(100))) for _ in range(1000))
    tokenizer.train_from_iterator(itertools.chain(texts, numbers, ["system user assistant"] * 1000), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=1024)
    fast.chat_template = chat_template
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A random Qwen3 of under one million parameters."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample as the model reads it."""

    ids: list[int]
    learned: list[bool]
    """Which of the ids are to be learned."""
    paths: tuple[str, ...] = ()
    """The drawings, in the order of the prompt."""


def words(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, special tokens included."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def completed(prompt: list[int], sample: Sample, tokenizer: Any, paths: tuple[str, ...] = ()) -> Encoded:
    """A sample whose prompt has these ids, with the end of its turn."""
    ids, learned = list(prompt), [False] * len(prompt)
    for text, is_learned in [*sample[1], (END, True)]:
        piece = words(tokenizer, text)
        ids, learned = ids + piece, learned + [is_learned] * len(piece)
    return Encoded(ids, learned, paths)


def batched(stream: Iterator[Encoded], samples: int, rng: random.Random) -> Iterator[list[Encoded]]:
    """Batches of samples; samples of like length stand together."""
    while True:
        block = sorted(itertools.islice(stream, samples * 8), key=lambda item: len(item.ids))
        batches = [block[i : i + samples] for i in range(0, len(block), samples)]
        rng.shuffle(batches)
        yield from batches


def padded(batch: list[Encoded], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids [B, T], padded on the right, so that causality is mask enough, and which are to be learned [B, T]."""
    width = max(len(item.ids) for item in batch)
    ids_BT = torch.tensor([item.ids + [pad] * (width - len(item.ids)) for item in batch])
    learned_BT = torch.tensor([item.learned + [False] * (width - len(item.ids)) for item in batch])
    return ids_BT, learned_BT


def _batches(stage: Stage, tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[list[Encoded]]:
    renderer = ChatRenderer(tokenizer)
    samples = (sample for _, sample in corpus(stage.habits, stage.shares, seed, stage.families))
    encoded = (completed(renderer.encode(sample[0]), sample, tokenizer) for sample in samples)
    return batched(encoded, stage.samples, random.Random(seed))


def _loss(model: Qwen3ForCausalLM, base: Callable[..., Any], batch: list[Encoded], pad: int) -> torch.Tensor:
    """Mean cross-entropy over the learned tokens."""
    ids_BT, learned_BT = padded(batch, pad)
    hidden_BTD = base(input_ids=ids_BT[:, :-1]).last_hidden_state
    return F.cross_entropy(model.lm_head(hidden_BTD[learned_BT[:, 1:]]), ids_BT[learned_BT])


def train_stage(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, stage: Stage, seed: int) -> None:
    """Run one stage in place."""
    base = torch.compile(model.model, dynamic=True)
    losses = (_loss(model, base, batch, tokenizer.pad_token_id) for batch in _batches(stage, tokenizer, seed))
    minimise(model, losses, stage.name, stage.steps, stage.learning_rate)


def minimise(model: Any, losses: Iterator[torch.Tensor], name: str, steps: int, learning_rate: float) -> None:
    """So many steps of AdamW, each on the next loss: warmed up over 50 steps and decayed to a tenth by a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, 1.0, 50)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - 50, learning_rate / 10)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], [50])
    model.train()
    for step, loss in enumerate(itertools.islice(losses, steps), start=1):
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            print(f"{name} {step}/{steps} loss {loss.item():.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/base"), help="stages found here are not trained again")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, arguments.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    for number, stage in enumerate(STAGES):
        folder = arguments.work / stage.name
        if folder.exists():
            model.load_state_dict(Qwen3ForCausalLM.from_pretrained(folder).state_dict())
            continue
        train_stage(model, tokenizer, stage, seed=1000 * arguments.seed + number)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
