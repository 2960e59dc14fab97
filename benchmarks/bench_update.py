"""Forward and backward of an update, the prompt computed once, against our plain forward. One JSON line a case.

    OMP_NUM_THREADS=1 python benchmarks/bench_update.py

`auto` chooses the implementation. Runs of both sides take turns; `ratio` is the median of plain over ours, `spread`
the smallest and largest ratio of a turn.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import torch
from bench_generate import VOCAB, build_model, interleaved, result

from spark_rl.train.forward import GroupLogProbs, collate


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

    def update(forward: GroupLogProbs) -> None:
        model.zero_grad()
        forward(batch).logps_RT.sum().backward()

    times = interleaved(lambda: update(ours), lambda: update(plain), rounds)
    return result(case.name, case.target, *times, implementation=ours.resolve(batch))


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
