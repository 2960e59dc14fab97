"""The table of `run.py` on a GPU: random Qwen2.5 models in bfloat16, of 0.5B and 7B parameters. JSON lines.

    python benchmarks/gpu.py [--shape 0.5b 7b] [--case update] [--rounds 5]

Both sides have the same weights and rows and take turns. TRL has the batch size that is fastest for it, tried first;
`generate` has all rows at once. Prompts are random tokens; completions end at a set rate or never. Long generations are
run once on each side, after one to warm up.

- `generate/*`: the engine against `generate` of transformers, 8 samples a prompt.
- `update/*`: forward and backward over rows of 8 completions a prompt, against `_compute_loss` and backward of TRL;
  `update-peak/*`: bytes held at once beside the weights, gradients counted, against TRL's at its fastest.
- `step/*`: what generation and update take together for a step of questions (prompt 300, completion 400) and as many
  judge's prompts (700, 150), against TRL's generation and update of the questions alone.
- `rate/*`: multiplications of the update that it must do, a second, to those of `torch.matmul` at the model's shapes.

With the 7B shape both sides recompute activations in the backward pass, as such runs do. That is a fourth pass, which
the rate does not count.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from bench_rate import matmul_rate, needed
from harness import (
    EOS,
    PAD,
    NoText,
    embedded,
    fastest,
    gradient,
    interleaved,
    line,
    peak_bytes,
    random_groups,
    recorded,
    show,
    speedup,
    train_groups,
    trl_trainer,
    trl_update,
    update,
)
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from spark_rl.models.fused import stock
from spark_rl.rollout.engine import Request
from spark_rl.rollout.transformers_engine import TransformersEngine
from spark_rl.train.forward import GroupLogProbs


@dataclass(frozen=True)
class Shape:
    config: dict[str, Any]
    groups: int
    """Of the cases with short rows; those with long ones have an eighth of it."""
    checkpointing: bool


SHAPES = {
    "0.5b": Shape(
        {
            "vocab_size": 151_936,
            "hidden_size": 896,
            "head_dim": 64,
            "intermediate_size": 4_864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        groups=64,
        checkpointing=False,
    ),
    "7b": Shape(
        {
            "vocab_size": 152_064,
            "hidden_size": 3_584,
            "head_dim": 128,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
        groups=16,
        checkpointing=True,
    ),
    "tiny": Shape(  # to try this script without a GPU
        {
            "vocab_size": 1024,
            "hidden_size": 64,
            "head_dim": 16,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        groups=8,
        checkpointing=False,
    ),
}
_COMPARED = 2**20
"""Numbers of every parameter whose gradients are compared: all of a large model would not fit beside it."""
QUESTIONS, JUDGES = "policy-300-400", "judge-700-150"
GENERATE = {
    "prompt-40-new-32": (40, 32, None, 1, 1.8),
    "prompt-230-new-10": (230, 10, None, 1, 5.0),
    "prompt-40-long-tail-96": (40, 96, 0.08, 1, 2.5),
    QUESTIONS: (300, 400, None, 8, None),
    JUDGES: (700, 150, None, 8, None),
}
"""Prompt, new tokens, rate of ends, part of the groups, and how many times faster than `generate` it is meant to be."""
UPDATE = {
    "policy-40-32": (40, 32, 1, 1.9),
    "judge-230-10": (230, 10, 1, 5.0),
    "recorded-mixed": (0, 0, 1, 4.0),
    QUESTIONS: (300, 400, 8, None),
    JUDGES: (700, 150, 8, None),
}
"""Prompt, completion, part of the groups, and how many times faster than TRL it is meant to be."""


def build(shape: Shape) -> Any:
    """The model with a bias on the logits, which sets the rate at which rows end."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            model = Qwen2ForCausalLM(Qwen2Config(**shape.config, pad_token_id=PAD, eos_token_id=EOS)).eval()
            model.lm_head.bias = torch.nn.Parameter(torch.zeros(shape.config["vocab_size"]), requires_grad=False)
    finally:
        torch.set_default_dtype(before)
    return model


def end_at(model: Any, rate: float | None) -> None:
    vocab = model.config.vocab_size
    model.lm_head.bias[EOS] = -1e4 if rate is None else torch.tensor(rate * vocab).log()


def run_generate(model: Any, name: str, groups: int, rounds: int, of: str) -> tuple[float, float]:
    """Seconds of ours and of transformers' generation."""
    prompt, new, rate, part, target = GENERATE[name]
    end_at(model, rate)
    prompts = [g["prompt"] for g in random_groups(max(2, groups // part), prompt, 1)]
    requests = [Request(str(i), tuple(ids), 8, new, seed=i) for i, ids in enumerate(prompts)]
    engine = TransformersEngine(model, NoText())
    width = max(map(len, prompts))
    ids_BP = torch.tensor([[PAD] * (width - len(ids)) + ids for ids in prompts], device=model.device)
    sampling = {"do_sample": True, "top_k": 0, "num_return_sequences": 8, "max_new_tokens": new}
    config = GenerationConfig(**sampling, eos_token_id=EOS, pad_token_id=PAD)
    made = {}

    @torch.inference_mode()
    def hf() -> None:
        with stock():
            out = model.generate(ids_BP, attention_mask=(ids_BP != PAD).long(), generation_config=config)
        made["baseline_tokens"] = int((out[:, width:] != PAD).sum())

    def ours() -> None:
        made["tokens"] = sum(len(c.token_ids) for group in engine.generate(requests) for c in group)

    times = interleaved(ours, hf, rounds=rounds if part == 1 else 1)
    graphs = engine._capture.recorded if engine._capture else 0
    show(speedup(f"{of}/generate/{name}", *times, at_least=target, **made, graphs=graphs))
    return statistics.median(times[0]), statistics.median(times[1])


def run_update(model: Any, shape: Shape, name: str, rounds: int, of: str, tokens: int = 16_384) -> tuple[float, float]:
    """Seconds of ours and of TRL's update."""
    prompt, completion, part, target = UPDATE[name]
    if name == "recorded-mixed":
        groups = recorded("both")[: shape.groups]
    else:
        groups = random_groups(max(1, shape.groups // part), prompt, completion)
    ready, logprobs = train_groups(groups), GroupLogProbs(model)
    trainer = trl_trainer(
        model,
        embedded()[1],
        [{"prompt": "?"}] * 8,
        lambda prompts, **_: [0.0] * len(prompts),
        groups=8,
        batch=64,
        max_new_tokens=8,
        checkpointing=shape.checkpointing,
    )
    model.train()
    sizes = [size for size in ((8, 16) if part > 1 else (16, 64)) if size <= 8 * len(groups)]
    some = groups[:: max(1, len(groups) // 8)]
    batch = fastest(lambda size: trl_update(trainer, some, size), sizes)
    run_ours = partial(update, logprobs, ready, tokens)

    def run_trl() -> None:
        with stock():
            trl_update(trainer, groups, batch)

    times = interleaved(run_ours, run_trl, rounds=rounds)
    run_ours()
    ours_gradient = gradient(model, _COMPARED)
    run_trl()
    cosine = (ours_gradient @ gradient(model, _COMPARED)).item()
    show(speedup(f"{of}/update/{name}", *times, at_least=target, trl_batch=batch, cosine=round(cosine, 5)))
    peaks = []
    for run in (run_ours, run_trl):
        model.zero_grad(set_to_none=True)
        peaks.append(peak_bytes(run))
    gib = {name: round(peak / 2**30, 2) for name, peak in zip(("peak_gib", "trl_peak_gib"), peaks, strict=True)}
    show(line(f"{of}/update-peak/{name}", [peaks[0] / peaks[1]], at_most=0.6, **gib))
    model.zero_grad(set_to_none=True)
    model.gradient_checkpointing_disable()
    model.eval()
    ours, trl = map(statistics.median, times)
    if name in (QUESTIONS, "recorded-mixed"):
        rate = matmul_rate(model, rows=16_384)
        rate()
        peak = statistics.median(rate() for _ in range(3))
        show(line(f"{of}/rate/{name}", [needed(model, ready) / t / peak for t in times[0]], at_least=0.6,
                  matmul_tflops=round(peak / 1e12)))  # fmt: skip
    return ours, trl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["0.5b", "7b"])
    parser.add_argument("--case", default="", help="only the cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16_384, help="of a micro-batch of ours (default: as in training)")
    arguments = parser.parse_args()
    for of in arguments.shape:
        shape, seconds = SHAPES[of], {}
        model = build(shape)
        runs: dict[str, Callable[[], tuple[float, float]]] = {
            **{
                f"update/{n}": partial(run_update, model, shape, n, arguments.rounds, of, arguments.tokens)
                for n in UPDATE
            },
            **{f"generate/{n}": partial(run_generate, model, n, shape.groups, arguments.rounds, of) for n in GENERATE},
        }
        for name, run in runs.items():
            if arguments.case in name:
                seconds[name] = run()
        parts = [(f"generate/{case}", f"update/{case}") for case in (QUESTIONS, JUDGES)]
        if all(name in seconds for part in parts for name in part):
            ours = sum(seconds[name][0] for part in parts for name in part)
            trl = sum(seconds[name][1] for name in parts[0])
            show(line(f"{of}/step", [ours / trl], at_most=1.6, ours_s=round(ours, 2), trl_s=round(trl, 2)))
        del model, runs
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
