"""The update against TRL's on the same rows: `_compute_loss` and backward, and the memory it takes.

    OMP_NUM_THREADS=1 python benchmarks/bench_update.py

Runs of both sides take turns. TRL gets the micro-batch size that is fastest for it, tried first on eight groups; it
pads all rows of a step to the widest prompt and the widest completion, as its trainer does. `of_plain` is how many
times faster we are than our own plain forward, which repeats prompts but computes no logits of padding. `update-peak`
lines compare the most bytes of tensors held at once, parameters left out, with 8 rows at once in TRL, one group (16 to
64 are faster for some cases and hold more). The two gradients are checked to agree.

Cases: policy-like and judge-like rows of a random model of 0.9 M parameters, every other group of recorded quickstart
steps (policy, judges and reflection in one batch) on its own model, and the shape of a 7B run on the small one.
"""

from __future__ import annotations

import argparse
from typing import Any

from harness import (
    build_model,
    embedded,
    fastest,
    gradient,
    interleaved,
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
from harness import line as result

from spark_rl.train.forward import GroupLogProbs

CASES: dict[str, tuple[Any, float | None]] = {
    "policy-40-32": (lambda: random_groups(8, 40, 32), 1.9),
    "judge-230-10": (lambda: random_groups(8, 230, 10), 5.0),
    "recorded-mixed": (lambda: recorded("both")[::2], 4.0),
    "policy-300-400": (lambda: random_groups(1, 300, 400), None),
    "judge-700-150": (lambda: random_groups(1, 700, 150), None),
}
"""Groups, and how many times faster than TRL the update is meant to be."""


def run_case(name: str, rounds: int) -> None:
    make, target = CASES[name]
    groups = make()
    ready = train_groups(groups)
    (ours, tokenizer), (theirs, _) = embedded(), embedded()
    if not name.startswith("recorded"):
        ours, theirs = build_model(), build_model()
    ours.train(), theirs.train()
    shared, plain = GroupLogProbs(ours), GroupLogProbs(ours, "plain")
    trainer = trl_trainer(
        theirs,
        tokenizer,
        [{"prompt": "?"}] * 8,
        lambda prompts, **_: [0.0] * len(prompts),
        groups=8,
        batch=64,
        max_new_tokens=8,
    )
    some = groups[:: max(1, len(groups) // 8)]
    sizes = [size for size in (4, 8, 16, 32, 64) if size <= 8 * len(some)]
    batch = fastest(lambda size: trl_update(trainer, some, size), sizes)

    def run_ours() -> None:
        update(shared, ready)

    def run_trl() -> None:
        trl_update(trainer, groups, batch)

    times, trl, twin = interleaved(run_ours, run_trl, lambda: update(plain, ready), rounds=rounds)
    run_ours(), run_trl()
    apart = (gradient(ours) - gradient(theirs)).norm().item()
    assert apart < 1e-3, f"the gradients differ by {apart:.2g} of their length"
    of_plain = speedup("", times, twin)["ratio"]
    show(speedup(f"update/{name}", times, trl, at_least=target, of_plain=of_plain, trl_batch=batch, apart=apart))
    held, trl_held = peak_bytes(run_ours), peak_bytes(lambda: trl_update(trainer, groups, 8))
    peaks = {"peak_mib": round(held / 2**20, 1), "trl_peak_mib": round(trl_held / 2**20, 1)}
    show(result(f"update-peak/{name}", [held / trl_held], at_most=0.6, **peaks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", default="", help="only the cases whose name contains this")
    args = parser.parse_args()
    for name in CASES:
        if args.case in name:
            run_case(name, args.rounds)


if __name__ == "__main__":
    main()
