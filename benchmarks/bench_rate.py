"""How close the update comes to the machine's matrix rate, and how its and generation's cost grow.

    OMP_NUM_THREADS=1 python benchmarks/bench_rate.py

`rate/*` is the rate of the multiplications that an update must do over the rate of `torch.matmul` at the shapes of the
model's own weights, measured in turns with it. An update must do six multiplications-and-additions a parameter and
token (two forward, four backward), every prompt once, the head for completion tokens only, and attention over the
pairs of tokens that see each other; nothing is counted for padding or for what is computed twice.

`growth/*` is what an update and a generation cost together when one size doubles, over what they cost before.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness import (
    NoText,
    build_model,
    embedded,
    interleaved,
    line,
    random_groups,
    recorded,
    seconds,
    show,
    train_groups,
    update,
)

from spark_rl.rollout.engine import Request
from spark_rl.rollout.transformers_engine import TransformersEngine
from spark_rl.train.forward import GroupLogProbs


def weights(model: Any) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """Shapes of the matrices of the layers, and of the head."""
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    return shapes, tuple(model.get_output_embeddings().weight.shape)


def needed(model: Any, groups: Sequence[Any]) -> float:
    """Floating-point operations that an update of these groups must do."""
    shapes, head = weights(model)
    config = model.config
    prompts = [len(g.prompt_ids) for g in groups]
    own = [[max(0, len(ids) - 1) for ids in g.completions] for g in groups]  # a last token predicts nothing
    tokens = sum(prompts) + sum(map(sum, own))
    predicted = sum(len(ids) for g in groups for ids in g.completions)
    pairs = sum(p * (p + 1) / 2 + sum(n * p + n * (n + 1) / 2 for n in o) for p, o in zip(prompts, own, strict=True))
    heads = config.num_attention_heads * config.head_dim * config.num_hidden_layers
    linear = tokens * sum(a * b for a, b in shapes if (a, b) != head) + predicted * head[0] * head[1]
    return 6 * linear + 12 * heads * pairs


def matmul_rate(model: Any, rows: int) -> Callable[[], float]:
    """Measures operations a second of forward and backward products at the model's shapes."""
    shapes, head = weights(model)
    like = next(model.parameters())

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=like.device, dtype=like.dtype)

    cases = [
        (count, noise(rows, shape[1]), noise(*shape), noise(rows, shape[0]))
        for shape, count in (Counter(shapes) | Counter([head])).items()
    ]

    def measure() -> float:
        done = total = 0.0
        for count, x, weight, grad in cases:

            def run(x: Any = x, weight: Any = weight, grad: Any = grad) -> None:
                for _ in range(4):
                    x @ weight.t(), grad @ weight, grad.t() @ x

            total += count * seconds(run) / 4
            done += count * 6 * rows * weight.numel()
        return done / total

    return measure


def run_rate(name: str, model: Any, groups: Sequence[Any], target: float, rounds: int) -> None:
    logprobs, operations = GroupLogProbs(model.train()), needed(model, groups)
    measure = matmul_rate(model, rows=2048)
    update(logprobs, groups), measure()
    shares, rates = [], []
    for _ in range(rounds):
        before = measure()
        taken = seconds(lambda: update(logprobs, groups))
        rates.append((before + measure()) / 2)
        shares.append(operations / taken / rates[-1])
    show(line(f"rate/{name}", shares, at_least=target, matmul_gflops=round(statistics.median(rates) / 1e9, 1)))


def workload(model: Any, **changes: int) -> Callable[[], None]:
    """An update, and a generation of as many tokens."""
    sizes = {"num": 8, "prompt": 96, "completion": 48, "group": 8, **changes}
    groups = random_groups(**sizes)
    ready, logprobs, engine = train_groups(groups), GroupLogProbs(model), TransformersEngine(model, NoText())
    requests = [
        Request(str(i), tuple(g["prompt"]), sizes["group"], sizes["completion"], seed=i) for i, g in enumerate(groups)
    ]

    def run() -> None:
        update(logprobs, ready)
        engine.generate(requests)

    return run


def run_growth(rounds: int) -> None:
    model = build_model().train()
    doubled = {"groups": {"num": 16}, "group-size": {"group": 16}, "prompt": {"prompt": 192}}
    doubled["completion"] = {"completion": 96}
    before, *after = interleaved(
        workload(model), *(workload(model, **changes) for changes in doubled.values()), rounds=rounds
    )
    for name, taken in zip(doubled, after, strict=True):
        turns = [b / a for a, b in zip(before, taken, strict=True)]
        show(line(f"growth/{name}", turns, at_most=2.1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    run_rate("embedded", embedded()[0], train_groups(recorded("both")), 0.6, rounds)
    wide = build_model(hidden=1024, layers=2, vocab=4096)
    run_rate("width-1024", wide, train_groups(random_groups(2, 300, 150, group=4)), 0.85, max(3, rounds // 2))
    run_growth(rounds)


if __name__ == "__main__":
    main()
