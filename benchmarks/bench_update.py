"""Forward and backward of an update, the prompt computed once, against the plain forward. One JSON line a case.

    OMP_NUM_THREADS=1 python benchmarks/bench_update.py

The plain forward is the one that trainers run: the model's own forward on prompt + completion, the prompt repeated for
every completion, padded to the widest, logits at the completion positions only. `ratio_to_twin` compares with our own
plain implementation, which computes the head on real tokens only. `auto` chooses our implementation. Runs of both
sides take turns; `ratio` is the median of plain over ours, `spread` the smallest and largest ratio of a turn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench_generate import VOCAB, build_model, interleaved, result
from torch import nn

from spark_rl.train.forward import GroupBatch, GroupLogProbs, collate


@dataclass(frozen=True)
class Case:
    name: str
    prompt: int
    completion: int
    target: float | None
    groups: int = 8
    group: int = 8


CASES = [
    Case("update/prompt-40-completion-32", prompt=40, completion=32, target=1.9),
    Case("update/prompt-230-completion-10", prompt=230, completion=10, target=5.0),
    Case("update/prompt-120-completion-60", prompt=120, completion=60, target=2.2),
]


def run_case(case: Case, rounds: int, implementation: str) -> dict[str, object]:
    model = build_model(None).train()
    generator = torch.Generator().manual_seed(1)

    def ids(longest: int) -> list[int]:
        length = int(torch.randint(int(longest * 0.75), longest + 1, (1,), generator=generator))
        return torch.randint(2, VOCAB, (length,), generator=generator).tolist()

    batch = collate([(ids(case.prompt), [ids(case.completion) for _ in range(case.group)]) for _ in range(case.groups)])
    ours, plain = GroupLogProbs(model, implementation), GroupLogProbs(model, "plain")

    def update(logps: Callable[[], torch.Tensor]) -> None:
        model.zero_grad()
        logps().sum().backward()

    def run_ours() -> None:
        update(lambda: ours(batch).logps_RT)

    times = interleaved(run_ours, lambda: update(lambda: plain_logps(model, batch)), rounds)
    twin = interleaved(run_ours, lambda: update(lambda: plain(batch).logps_RT), rounds)
    twin_ratio = result(case.name, None, *twin)["ratio"]
    return result(case.name, case.target, *times, implementation=ours.resolve(batch), ratio_to_twin=twin_ratio)


def plain_logps(model: nn.Module, batch: GroupBatch) -> torch.Tensor:
    """Log-probabilities [R, T] as trainers compute them."""
    ids = torch.cat([batch.prompt_ids_BP[batch.group_R], batch.completion_ids_RT], dim=1)
    mask = torch.cat([batch.prompt_mask_BP[batch.group_R], batch.completion_mask_RT], dim=1)
    length = batch.completion_ids_RT.shape[1]
    logits_RTV = model(input_ids=ids, attention_mask=mask, logits_to_keep=length + 1, use_cache=False).logits[:, :-1]
    logps_RT = logits_RTV.log_softmax(-1).gather(-1, batch.completion_ids_RT[..., None])[..., 0]
    return logps_RT * batch.completion_mask_RT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--case", default="", help="only the cases whose name contains this")
    parser.add_argument("--implementation", default="auto", choices=["auto", "cache", "packed", "plain"])
    args = parser.parse_args()
    for case in CASES:
        if args.case in case.name:
            print(json.dumps(run_case(case, args.rounds, args.implementation)), flush=True)


if __name__ == "__main__":
    main()
