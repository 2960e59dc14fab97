"""Generation against vLLM in this process, on the prompts of a recorded quickstart step. One JSON line a case.

    OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python benchmarks/vllm_generate.py [MODEL]

Needs the environment of `make test-vllm`. MODEL is the embedded base or a model trained from it (which says more,
since the base ends its replies early). Both sample 8 completions of at most 80 tokens and take turns; since their noise
is not the same, the ratio is one of tokens a second. vLLM keeps nothing between runs (its prefix cache is emptied).
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

from harness import embedded, interleaved, line, recorded, show

from spark_rl.models.folder import resolve_path
from spark_rl.rollout.engine import Request
from spark_rl.rollout.transformers_engine import TransformersEngine
from spark_rl.rollout.vllm_engine import VLLMEngine


def count(who: str, engine: TransformersEngine | VLLMEngine, requests: list[Request], tokens: dict[str, int]) -> None:
    if isinstance(engine, TransformersEngine):
        tokens[who] = sum(c.num_tokens for group in engine.generate(requests) for c in group)
        return
    from vllm import SamplingParams

    # without seeds: on a CPU, vLLM 0.32 fails where a seeded request is prefilled in parts
    params = [SamplingParams(n=r.n, max_tokens=r.max_new_tokens, logprobs=0) for r in requests]
    prompts = [{"prompt_token_ids": list(r.prompt_ids)} for r in requests]
    answers = engine._llm.generate(prompts, params, use_tqdm=False)
    tokens[who] = sum(len(output.token_ids) for answer in answers for output in answer.outputs)
    engine._llm.reset_prefix_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="embedded")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    ours, theirs = TransformersEngine(*embedded(args.model)), VLLMEngine(resolve_path(args.model))
    groups = recorded("both")
    cases = {"questions": [g for g in groups if g["role"] == "answer"], "all-roles": groups}
    for name, asked in cases.items():
        requests = [Request(str(i), tuple(g["prompt"]), 8, 80, seed=i) for i, g in enumerate(asked)]
        tokens: dict[str, int] = {}
        seconds, other = interleaved(
            partial(count, "ours", ours, requests, tokens),
            partial(count, "vllm", theirs, requests, tokens),
            rounds=args.rounds,
        )
        turns = [b / tokens["vllm"] * tokens["ours"] / a for a, b in zip(seconds, other, strict=True)]
        rates = {
            "tokens_per_second": round(tokens["ours"] / statistics.median(seconds)),
            "vllm_tokens_per_second": round(tokens["vllm"] / statistics.median(other)),
        }
        show(line(f"generate-vllm/{name}", turns, **rates))


if __name__ == "__main__":
    main()
