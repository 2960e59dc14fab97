"""Update and generation with images against what transformers and its users do: every row sees its own copy.

    OMP_NUM_THREADS=1 python benchmarks/bench_vision.py

A Qwen2.5-VL of small width; each prompt shows one image of 256 tokens and 40 of text, 8 samples of 16 tokens. The
baseline repeats prompt and image for each completion, in the best of three batch sizes. Turns alternate.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from harness import EOS, PAD, VOCAB, NoText, fastest, interleaved, show, speedup
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from spark_rl.models.processor import PreparedImage
from spark_rl.models.vision import Vision
from spark_rl.rollout.engine import Request
from spark_rl.rollout.transformers_engine import TransformersEngine
from spark_rl.train.forward import GroupLogProbs, collate
from spark_rl.types import Image

PROMPTS, GROUP, TEXT, NEW, SIDE, PATCH = 8, 8, 40, 16, 32, 8
IMAGE_TOKEN = VOCAB - 1
GRID = torch.tensor([[1, SIDE, SIDE]])


class Noise:
    """Images of random patches, as a processor would prepare them."""

    image_token_id = IMAGE_TOKEN

    def prepare(self, image: Image) -> PreparedImage:
        generator = torch.Generator().manual_seed(int(image.sha256))
        pixels = torch.randn(SIDE * SIDE, 3 * 2 * PATCH * PATCH, generator=generator)
        return PreparedImage("", SIDE * SIDE // 4, {"pixel_values": pixels, "image_grid_thw": GRID})


def build_model() -> Any:
    torch.manual_seed(0)
    text = {
        "vocab_size": VOCAB,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": None,
    }
    vision = {"depth": 3, "hidden_size": 64, "intermediate_size": 192, "num_heads": 4, "patch_size": PATCH}
    vision |= {"out_hidden_size": 128, "fullatt_block_indexes": [0, 1, 2]}
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE_TOKEN, tie_word_embeddings=True
    )
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    bias = torch.zeros(VOCAB)
    bias[[EOS, IMAGE_TOKEN]] = -1e4
    model.lm_head.bias = torch.nn.Parameter(bias)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model, images = build_model(), Noise()
    generator = torch.Generator().manual_seed(1)
    shown = [(Image("", str(i)),) for i in range(PROMPTS)]
    text = torch.randint(2, VOCAB - 1, (PROMPTS, TEXT), generator=generator)
    prompts = [[*ids[:4], *[IMAGE_TOKEN] * (SIDE * SIDE // 4), *ids[4:]] for ids in text.tolist()]
    completions = torch.randint(2, VOCAB - 1, (PROMPTS, GROUP, NEW), generator=generator)
    vision = Vision(model, images)  # type: ignore[arg-type]
    logprobs = GroupLogProbs(model)

    def ours() -> None:
        model.zero_grad()
        groups = list(zip(prompts, completions.tolist(), strict=True))
        for part in (slice(0, 4), slice(4, 8)):  # about the tokens that a CPU's micro-batches hold
            batch = collate(groups[part], PAD, None, vision.read(prompts[part], shown[part]))
            logprobs(batch).logps_RT.sum().backward()

    rows = [(b, completion) for b in range(PROMPTS) for completion in completions[b].tolist()]

    def plain(batch: int) -> None:
        model.zero_grad()
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            ids = torch.tensor([prompts[b] + completion for b, completion in part])
            logits = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=torch.cat([images.prepare(shown[b][0]).tensors["pixel_values"] for b, _ in part]),
                image_grid_thw=GRID.repeat(len(part), 1),
                mm_token_type_ids=(ids == IMAGE_TOKEN).long(),
                logits_to_keep=NEW + 1,
                use_cache=False,
            ).logits[:, :-1]
            logits.log_softmax(-1).gather(-1, ids[:, -NEW:, None]).sum().backward()

    best = fastest(plain, (2, 8, 16))
    times = interleaved(ours, lambda: plain(best), rounds=args.rounds)
    show(speedup("vision/update", *times, at_least=4.0, baseline_batch=best))

    engine = TransformersEngine(model, NoText(), images=images)  # type: ignore[arg-type]
    requests = [Request(str(b), tuple(prompts[b]), GROUP, NEW, seed=b, images=shown[b]) for b in range(PROMPTS)]
    config = GenerationConfig(
        do_sample=True, num_return_sequences=GROUP, max_new_tokens=NEW, eos_token_id=EOS, pad_token_id=PAD, top_k=0
    )

    @torch.inference_mode()
    def generate(batch: int) -> None:
        for start in range(0, PROMPTS, batch):
            ids = torch.tensor(prompts[start : start + batch])
            pixels = [images.prepare(image).tensors["pixel_values"] for (image,) in shown[start : start + batch]]
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=torch.cat(pixels),
                image_grid_thw=GRID.repeat(len(ids), 1),
                mm_token_type_ids=(ids == IMAGE_TOKEN).long(),
                generation_config=config,
            )

    best = fastest(generate, (1, 2, 4))
    times = interleaved(lambda: engine.generate(requests), lambda: generate(best), rounds=args.rounds)
    show(speedup("vision/generate", *times, at_least=1.7, baseline_batch=best))


if __name__ == "__main__":
    main()
