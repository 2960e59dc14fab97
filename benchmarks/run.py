"""All benchmarks, or those named; compares with the stored results and writes README's table.

    OMP_NUM_THREADS=1 python benchmarks/run.py [update step ...] [--store]

Prints one JSON line a result and writes them to `benchmarks/results.jsonl`. A ratio that is more than 10 % worse than
the one in `benchmarks/stored.jsonl` is a failure (code 1), whatever its target. `--store` makes the new results the
stored ones; the table between README's `speed` marks is made of these.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, STORED, README = HERE / "results.jsonl", HERE / "stored.jsonl", HERE.parent / "README.md"
TOLERANCE = 0.1
TABLE = {
    "step/answer-views": "a SPARK step, 32 questions + 32 recycled prompts (answers shown), to TRL's on the questions",
    "step/reasoning-views": "the same, whole responses shown",
    "step/answer-views-dropping": "the same, answers shown, groups without signal dropped before the update",
    "generate/prompt-40-new-32": "generation to HF `generate` at its best batch size: prompt 40, 32 new, 8 samples",
    "generate/prompt-230-new-10": "the same, prompt 230, 10 new",
    "generate/prompt-40-long-tail-96": "the same, prompt 40, up to 96 new, few of them long",
    "update/policy-40-32": "update to TRL's `_compute_loss` and backward: prompt 40, completion 32",
    "update/judge-230-10": "the same, prompt 230, completion 10",
    "update/recorded-mixed": "the same, a recorded step of all roles",
    "update/policy-300-400": "the same, prompt 300, completion 400",
    "update/judge-700-150": "the same, prompt 700, completion 150",
    "step-predicted/answer-views": "the step's time by the tokens it computes, to that of a step of questions only",
    "step-predicted/reasoning-views": "the same, whole responses shown",
    "update-peak/policy-40-32": "tensors that the update holds, to TRL's with 8 rows at once: prompt 40, completion 32",
    "update-peak/recorded-mixed": "the same, the recorded step",
    "rate/embedded": "multiplications of the update to the machine's matrix rate, embedded model",
    "rate/width-1024": "the same, a model of width 1024",
    "vision/update": "update with an image of 256 tokens a prompt, to rows that each see their own copy (transformers)",
    "vision/generate": "generation of the same, to HF `generate`",
}
REAL = {
    f"real/step-{examples}-examples-{threads}{end}": what
    for examples, many in ((2, "two"), (6, "six"))
    for threads, on in (("2-threads", "two threads"), ("1-thread", "one thread"))
    for end, what in (
        ("", f"a GRPO step of SmolLM2-135M to TRL's, {many} worked examples before each question, {on}"),
        ("-natural", "the same, groups without signal dropped ({mixed:.0%} of them have some)"),
    )
}
"""The rows of `real_step.py`, as far as it has stored them; a result's figures fill what stands in braces."""


def run(names: Iterable[str]) -> list[dict[str, Any]]:
    """Results of the scripts, shown as they come. A script that fails ends it all."""
    results = []
    for name in names:
        command = [sys.executable, str(HERE / f"bench_{name}.py")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
            assert process.stdout
            for text in process.stdout:
                if text.startswith('{"name"'):  # TRL prints, too
                    print(text, end="", flush=True)
                    results.append(json.loads(text))
        if process.returncode:
            raise SystemExit(f"bench_{name}.py failed with code {process.returncode}")
    return results


def read(path: Path) -> dict[str, dict[str, Any]]:
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {row["name"]: row for row in rows}


def regressed(new: dict[str, Any], old: dict[str, Any] | None) -> bool:
    """Whether a result is more than the tolerance worse than the stored one."""
    if old is None or "better" not in new:
        return False
    worse = old["ratio"] / new["ratio"] if new["better"] == "higher" else new["ratio"] / old["ratio"]
    return bool(worse > 1 + TOLERANCE)


def table(results: dict[str, dict[str, Any]]) -> str:
    """The rows of README's table."""
    rows = ["| what | figure (lowest to highest turn) | meant to be |", "|---|---|---|"]
    for name, text in {**TABLE, **REAL}.items():
        if result := results.get(name):
            low, high = result["spread"]
            at = "at most" if result["better"] == "lower" else "at least"
            target = "" if result["target"] is None else f"{at} {result['target']:g}"
            spread = f" ({low:.2f} to {high:.2f})" if low < high else ""
            rows.append(f"| {text.format_map(result)} | {result['ratio']:.2f}{spread} | {target} |")
    return "\n".join(rows)


def write_table(results: dict[str, dict[str, Any]]) -> None:
    start, end = "<!-- speed -->\n", "\n<!-- /speed -->"
    before, _, rest = README.read_text(encoding="utf-8").partition(start)
    _, _, after = rest.partition(end)
    README.write_text(f"{before}{start}{table(results)}{end}{after}", encoding="utf-8")


def settle(results: dict[str, dict[str, Any]], store: bool) -> None:
    """Say what missed its target; keep the results, or end with code 1 if one is worse than the kept one."""
    stored = read(STORED)
    bad = [name for name, result in results.items() if regressed(result, stored.get(name))]
    missed = [name for name, result in results.items() if not result["holds"]]
    if store:
        stored |= results
        STORED.write_text("".join(json.dumps(result) + "\n" for result in stored.values()))
        write_table(stored)
    if missed:
        print(f"not what they are meant to be: {', '.join(missed)}", file=sys.stderr)
    if bad:
        print(f"worse than the stored results by more than {TOLERANCE:.0%}: {', '.join(bad)}", file=sys.stderr)
    if bad and not store:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="step, update, ...; all by default")
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    names = arguments.names or sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    results = {result["name"]: result for result in run(names)}
    RESULTS.write_text("".join(json.dumps(result) + "\n" for result in results.values()))
    settle(results, arguments.store)


if __name__ == "__main__":
    main()
