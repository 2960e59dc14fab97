"""Data larger than one would keep in memory: how much a row costs, in memory and in time. One JSON line a figure.

    OMP_NUM_THREADS=1 python benchmarks/bench_data.py [--rows 1000000]

Every case is a process of its own that loads a JSONL file of generated sums through `load_data` and draws 10,000
questions. `data/memory-per-row` is what a row adds to the peak of resident memory, in bytes, from a file with a tenth
of the rows to the whole one. The others are times, of 20,000 rows or fewer, over those of the least that could be done,
measured in the same process right after: `data/read` the pass that reads every row, to `json.loads` of its lines;
`data/golds-numeric` the one that grades every gold, to the same; `data/golds-math` the one for golds in LaTeX, by one
worker, to math-verify called without any worker. Each pass is timed around its rows alone.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spark_rl.config import config_from
from spark_rl.data import load_data
from spark_rl.verify import box

SUMS, FRACTIONS = 20_000, 3_000
"""Rows of the files that passes are timed on."""
BYTES_PER_ROW = 64
"""Target for memory: the places of the rows, their ids, their order, and what sorting these takes for a moment."""


def write_sums(path: Path, count: int) -> None:
    """About 200 bytes a row."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            a, b = rng.randrange(10**6), rng.randrange(10**6)
            question = f"Case {i}: a shop sells {a} pens in the first year and {b} in the second, which is the last one"
            row = {"id": f"sum-{i}", "prompt": f"{question}. How many pens does it sell in all?", "answer": str(a + b)}
            file.write(json.dumps(row) + "\n")


def seconds(run: Callable[[], object]) -> float:
    """The least of three runs."""

    def once() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return min(once() for _ in range(3))


def bare_json(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        for text in file:
            json.loads(text)


def bare_math(path: str) -> None:
    """Each gold parsed once: as an answer, it is equal to itself."""
    from math_verify import LatexExtractionConfig, parse

    config = LatexExtractionConfig(boxed_match_priority=0)
    with open(path, encoding="utf-8") as file:
        for text in file:
            assert parse(box(json.loads(text)["answer"]), [config], fallback_mode="no_fallback", parsing_timeout=None)


def latex(number: int) -> str:
    """A gold that needs the grammar of mathematics: plain integers are graded without it."""
    return rf"\frac{{{number}}}{{{number % 89 + 2}}}"


def write_fractions(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            file.write(json.dumps({"prompt": f"What is {i} as a fraction?", "answer": latex(i)}) + "\n")


def measure(path: str, settings: dict[str, Any], workers: int) -> dict[str, float]:
    """In this process: load, and draw. Seconds of every pass, the peak of resident memory in bytes, and seconds of the
    bare passes."""
    passes: dict[str, float] = {}

    def track(rows: Iterable[Any], name: str, total: int) -> Iterator[Any]:
        start = time.perf_counter()
        yield from rows
        passes[name.partition(" ")[0]] = time.perf_counter() - start

    data = {"train": {**settings, "path": path}, "check_golds": workers > 0}
    load_data(config_from({"data": data, "verify": {"workers": max(1, workers)}}), track).train.draw(10_000)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count what the parent held at the fork
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024.0
    if not workers:
        return {**passes, "peak": peak}
    name, bare = ("json", bare_json) if settings.get("verifier") else ("math", bare_math)
    return {**passes, "peak": peak, name: seconds(lambda: bare(path))}


def in_process(path: Path, workers: int = 0, **settings: Any) -> dict[str, float]:
    """`measure` in a process of its own; without workers no gold is graded."""
    command = [sys.executable, __file__, "--measure", json.dumps([str(path), settings, workers])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*json.loads(arguments.measure))))
        return
    from harness import line, show  # not above: torch would be most of what the measured processes hold

    with tempfile.TemporaryDirectory() as folder:
        path, tenth, timed, fractions = (Path(folder, f"{n}.jsonl") for n in ("sums", "tenth", "timed", "fractions"))
        rows, few = arguments.rows, arguments.rows // 10
        write_sums(path, rows)
        write_sums(tenth, few)
        write_sums(timed, SUMS)
        write_fractions(fractions, FRACTIONS)
        large, small = in_process(path), in_process(tenth)
        growth = (large["peak"] - small["peak"]) / (rows - few)
        sizes = {"file": path.stat().st_size, "peak": large["peak"], "peak_of_a_tenth": small["peak"]}
        mib = {f"{name}_mib": round(size / 2**20) for name, size in sizes.items()}
        show(line("data/memory-per-row", [growth], at_most=BYTES_PER_ROW, **mib))
        turns = [
            (in_process(timed, workers=1, verifier="numeric"), in_process(fractions, workers=1))
            for _ in range(arguments.rounds)
        ]
        sums, maths = zip(*turns, strict=True)
        compare("data/read", SUMS, sums, "reading", "json")
        compare("data/golds-numeric", SUMS, sums, "checking", "json")
        compare("data/golds-math", FRACTIONS, maths, "checking", "math")


def compare(name: str, rows: int, turns: Sequence[dict[str, float]], ours: str, bare: str) -> None:
    from harness import line, show

    a_second = {f"{which}_rows_per_second": round(rows / min(t[which] for t in turns)) for which in (ours, bare)}
    least = min(turn[ours] for turn in turns) / min(turn[bare] for turn in turns)  # what else runs only adds
    ratios = [turn[ours] / turn[bare] for turn in turns]
    show(line(name, ratios, ratio=least, at_most=math.inf, **a_second) | {"target": None})


if __name__ == "__main__":
    main()
