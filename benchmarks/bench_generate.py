"""Generation against `generate` of transformers, same model, same number of tokens. One JSON line a case.

    OMP_NUM_THREADS=1 python benchmarks/bench_generate.py

The baseline repeats each prompt with `num_return_sequences` and gets the best of five batch sizes, found first.
Runs of both sides take turns; `ratio` is the median of the baseline over ours, `spread` the smallest and largest ratio
of a turn.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from harness import EOS, PAD, VOCAB, NoText, build_model, fastest, interleaved, show, speedup
from transformers import GenerationConfig

from spark_rl.rollout.engine import Completion, Request
from spark_rl.rollout.transformers_engine import TransformersEngine


@dataclass(frozen=True)
class Case:
    name: str
    prompt: int
    new: int
    target: float
    prompts: int = 64
    group: int = 8
    end_rate: float | None = None
    """Probability that a row ends at a token; None: rows never end early."""


CASES = [
    Case("generate/prompt-40-new-32", prompt=40, new=32, target=1.8),
    Case("generate/prompt-230-new-10", prompt=230, new=10, target=5.0),
    Case("generate/prompt-40-long-tail-96", prompt=40, new=96, target=2.5, end_rate=0.08),
]


def run_case(case: Case, rounds: int) -> None:
    model = build_model(case.end_rate)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(int(case.prompt * 0.75), case.prompt + 1, (case.prompts,), generator=generator).tolist()
    prompts = [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    requests = [Request(str(i), tuple(ids), case.group, case.new, seed=i) for i, ids in enumerate(prompts)]
    engine = TransformersEngine(model, NoText())
    ids_BP = torch.tensor([[PAD] * (case.prompt - len(ids)) + ids for ids in prompts])
    config = GenerationConfig(
        do_sample=True,
        num_return_sequences=case.group,
        max_new_tokens=case.new,
        eos_token_id=EOS,
        pad_token_id=PAD,
        top_k=0,
    )
    counted = {}

    @torch.inference_mode()
    def hf(batch: int) -> None:
        parts = ids_BP.split(batch)
        outs = [model.generate(ids, attention_mask=(ids != PAD).long(), generation_config=config) for ids in parts]
        counted["baseline"] = sum(int((out[:, case.prompt :] != PAD).sum()) for out in outs)

    def ours() -> None:
        completions: list[list[Completion]] = engine.generate(requests)
        counted["ours"] = sum(len(c.token_ids) for group in completions for c in group)

    best = fastest(hf, [case.prompts // parts for parts in (16, 8, 4, 2, 1)])
    times = interleaved(ours, lambda: hf(best), rounds=rounds)
    counts = {"tokens": counted["ours"], "baseline_tokens": counted["baseline"], "baseline_batch": best}
    show(speedup(case.name, *times, at_least=case.target, **counts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", default="", help="only the cases whose name contains this")
    args = parser.parse_args()
    for case in CASES:
        if args.case in case.name:
            run_case(case, args.rounds)


if __name__ == "__main__":
    main()
