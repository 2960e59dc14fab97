"""What the benchmarks share: timing in turns, result lines, models, recorded rollouts, and TRL as its users run it."""

from __future__ import annotations

import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

RECORDED = Path(__file__).parent / "rollouts.json.gz"
"""Steps of quickstart runs: by what recycled prompts show, groups of role, prompt ids, completions' ids and rewards.
Made by `record_rollouts.py`."""
PAD, EOS, VOCAB = 0, 1, 640


class NoText:
    """The least a tokenizer has to be for generation; decoding costs both sides nothing."""

    eos_token_id, pad_token_id = EOS, PAD

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return ""


def seconds(run: Callable[[], object]) -> float:
    """What a run takes, with all that it leaves to a GPU."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(*sides: Callable[[], object], rounds: int) -> list[list[float]]:
    """Seconds of `rounds` runs of each side, taking turns, after one run of each to warm up."""
    times: list[list[float]] = [[] for _ in sides]
    for i in range(rounds + 1):
        for side, run in enumerate(sides):
            taken = seconds(run)
            if i:
                times[side].append(taken)
    return times


def line(
    name: str,
    ratios: Sequence[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    ratio: float | None = None,
    **extra: object,
) -> dict[str, object]:
    """One result: `ratio` (by default the median of the turns' `ratios`), its target, and the spread of the turns."""
    ratio = statistics.median(ratios) if ratio is None else ratio
    holds = (at_least is None or ratio >= at_least) and (at_most is None or ratio <= at_most)
    return {
        "name": name,
        "ratio": round(ratio, 3),
        "target": at_most if at_least is None else at_least,
        "better": "lower" if at_most is not None else "higher",
        "holds": holds,
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        **extra,
    }


def show(result: dict[str, object]) -> None:
    print(json.dumps(result), flush=True)


def speedup(name: str, ours: Sequence[float], other: Sequence[float], **extra: Any) -> dict[str, object]:
    """How many times the other side's time is ours: ratio of the medians, spread over the turns."""
    medians = {"median_s": round(statistics.median(ours), 4), "baseline_s": round(statistics.median(other), 4)}
    turns = [b / o for o, b in zip(ours, other, strict=True)]
    return line(name, turns, ratio=statistics.median(other) / statistics.median(ours), **extra, **medians)


def build_model(end_rate: float | None = None, hidden: int = 128, layers: int = 4, vocab: int = VOCAB) -> Any:
    """A random Qwen3 (0.9 M parameters by default) that ends a row at about `end_rate`, by a bias on that logit."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(4, hidden // 64),
        num_key_value_heads=max(2, hidden // 128),
        head_dim=64 if hidden > 128 else 32,
        intermediate_size=3 * hidden,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    model = Qwen3ForCausalLM(config).eval()
    bias = torch.zeros(vocab)
    bias[EOS] = -1e4 if end_rate is None else torch.tensor(end_rate * vocab).log()
    model.lm_head.bias = torch.nn.Parameter(bias)
    return model


def embedded(path: str | Path = "embedded") -> tuple[Any, Any]:
    """The embedded base, or a model trained from it, and its tokenizer."""
    from spark_rl.config import config_from
    from spark_rl.models.load import load_model, load_tokenizer

    config = config_from({"model": {"path": str(path)}}).model
    return load_model(config), load_tokenizer(config)


def recorded(view: str) -> list[dict[str, Any]]:
    """The groups of a recorded step in which recycled prompts show `answer`s, the whole `reasoning`, or `both`."""
    with gzip.open(RECORDED, "rt") as file:
        return json.load(file)[view]


def train_groups(groups: Sequence[dict[str, Any]]) -> list[Any]:
    """Recorded groups as the update takes them, every rollout trained."""
    from spark_rl.train.batches import TrainGroup

    return [
        TrainGroup(g["prompt"], g["completions"], [1.0] * len(g["completions"]), [1e-4] * len(g["completions"]), 1.0)
        for g in groups
    ]


def random_groups(num: int, prompt: int, completion: int, group: int = 8) -> list[dict[str, Any]]:
    """Groups of random tokens, lengths between three quarters of the given ones and these."""
    generator = torch.Generator().manual_seed(1)

    def ids(longest: int) -> list[int]:
        length = int(torch.randint(int(longest * 0.75), longest + 1, (1,), generator=generator))
        return torch.randint(2, VOCAB, (length,), generator=generator).tolist()

    return [{"prompt": ids(prompt), "completions": [ids(completion) for _ in range(group)]} for _ in range(num)]


def update(logprobs: Any, groups: Sequence[Any], max_tokens: int = 16384) -> None:
    """Forward and backward over the micro-batches of a step, as `train/update.py` makes them."""
    from spark_rl.train.batches import fill_tokens, micro_batches, to_tensors
    from spark_rl.train.loss import policy_loss

    logprobs.model.zero_grad()
    device = next(logprobs.model.parameters()).device
    for micro in micro_batches(groups, max_tokens, fill_tokens(max_tokens, device.type)):
        tensors = to_tensors(micro, PAD, device)
        logps_RT = logprobs(tensors.batch, tensors.temperature_R).logps_RT
        policy_loss(
            logps_RT,
            logps_RT.detach(),
            tensors.batch.completion_mask_RT,
            tensors.advantage_R,
            tensors.scale_R,
            clip_low=0.2,
            clip_high=0.28,
        ).loss.backward()


def trl_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    reward: Callable[..., list[float]],
    *,
    groups: int,
    batch: int,
    max_new_tokens: int,
    steps: int = 1,
    callbacks: Sequence[Any] = (),
    checkpointing: bool = False,
    **further: Any,
) -> Any:
    """TRL's GRPOTrainer with the loss, sampler and dtype of our `grpo` preset, without what would slow it down here:
    no activation checkpointing unless asked for, no tracker, no saving, and `batch` rows at once, which the caller
    chooses by trying. `further` are settings of its own."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=8 * groups // batch,
        num_generations=8,
        max_completion_length=max_new_tokens,
        temperature=1.0,
        top_k=0,
        learning_rate=1e-9,
        lr_scheduler_type="constant",
        max_steps=steps,
        beta=0.0,
        loss_type="dapo",
        epsilon_high=0.28,
        gradient_checkpointing=checkpointing,
        report_to=[],
        use_cpu=next(model.parameters()).device.type == "cpu",
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
        logging_strategy="no",
        **further,
    )
    return GRPOTrainer(
        model,
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


def trl_update(trainer: Any, groups: Sequence[dict[str, Any]], batch: int) -> float:
    """TRL's `_compute_loss` and backward over rows padded as its generation step pads them, shuffled as it does.
    Returns the loss, a mean over all tokens. Groups may have `advantages`, otherwise 1."""
    rows = [
        (g["prompt"], ids, advantage)
        for g in groups
        for ids, advantage in zip(g["completions"], g.get("advantages", [1.0] * len(g["completions"])), strict=True)
    ]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [rows[i] for i in order]
    width, length = max(len(p) for p, _, _ in rows), max(len(c) for _, c, _ in rows)
    inputs = {
        "prompt_ids": torch.tensor([[PAD] * (width - len(p)) + p for p, _, _ in rows]),
        "prompt_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _, _ in rows]),
        "completion_ids": torch.tensor([c + [PAD] * (length - len(c)) for _, c, _ in rows]),
        "completion_mask": torch.tensor([[1] * len(c) + [0] * (length - len(c)) for _, c, _ in rows]),
        "advantages": torch.tensor([advantage for _, _, advantage in rows]),
    }
    total = torch.tensor(sum(len(c) for _, c, _ in rows), device=trainer.accelerator.device)
    inputs = {name: tensor.to(trainer.accelerator.device) for name, tensor in inputs.items()}
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation  # the rows are a whole step's
    trainer.model.zero_grad()
    total_loss = 0.0
    for start in range(0, len(rows), batch):
        part = {name: tensor[start : start + batch] for name, tensor in inputs.items()}
        loss = trainer._compute_loss(trainer.model, {**part, "num_items_in_batch": total})
        loss.backward()
        total_loss += loss.item()
    return total_loss


def gradient(model: Any, most: int | None = None) -> torch.Tensor:
    """The model's gradient, of length 1, or of every parameter the first `most` numbers of it."""
    parts = torch.cat([p.grad.flatten()[:most].float() for p in model.parameters() if p.grad is not None])
    return parts / parts.norm()


def fastest(run: Callable[[int], object], sizes: Sequence[int]) -> int:
    """The batch size with which `run` is fastest, each tried twice."""

    def taken(size: int) -> float:
        return min(seconds(lambda: run(size)) for _ in range(2))

    return min(sizes, key=taken)


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes of tensors that `run` holds at once beside those that were there before."""
    from torch.profiler import ProfilerActivity, profile

    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
