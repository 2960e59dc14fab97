"""Data larger than one would keep in memory: how much a row costs, in memory and in time. One JSON line a figure.

    OMP_NUM_THREADS=1 python benchmarks/bench_data.py [--rows 1000000]

Every case is a process of its own that loads a JSONL file of generated sums through `load_data` and draws 10,000
questions. `data/memory-per-row` is what a row adds to the peak of resident memory, in bytes, from a file with a tenth
of the rows to the whole one. `data/read` is the pass that reads every row, in rows a second, and `data/golds-*` the one
that grades every gold; each is timed around its rows alone.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from spark_rl.config import config_from
from spark_rl.data import load_data

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


def latex(number: int) -> str:
    """A gold that needs the grammar of mathematics: plain integers are graded without it."""
    return rf"\frac{{{number}}}{{{number % 89 + 2}}}"


def write_fractions(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            file.write(json.dumps({"prompt": f"What is {i} as a fraction?", "answer": latex(i)}) + "\n")


def measure(path: str, settings: dict[str, Any], workers: int) -> dict[str, float]:
    """In this process: load, and draw. Seconds of every pass, and the peak of resident memory in bytes."""
    seconds: dict[str, float] = {}

    def track(rows: Iterable[Any], name: str, total: int) -> Iterator[Any]:
        start = time.perf_counter()
        yield from rows
        seconds[name.partition(" ")[0]] = time.perf_counter() - start

    data = {"train": {**settings, "path": path}, "check_golds": workers > 0}
    load_data(config_from({"data": data, "verify": {"workers": max(1, workers)}}), track).train.draw(10_000)
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count what the parent held at the fork
    return {**seconds, "peak": int(status.partition("VmHWM:")[2].split()[0]) * 1024.0}


def in_process(path: Path, workers: int = 0, **settings: Any) -> dict[str, float]:
    """`measure` in a process of its own; without workers no gold is graded."""
    command = [sys.executable, __file__, "--measure", json.dumps([str(path), settings, workers])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*json.loads(arguments.measure))))
        return
    with tempfile.TemporaryDirectory() as folder:
        path, tenth, fractions = (Path(folder, f"{name}.jsonl") for name in ("sums", "tenth", "fractions"))
        rows, few = arguments.rows, arguments.rows // 10
        write_sums(path, rows)
        write_sums(tenth, few)
        write_fractions(fractions, 10_000)
        large, small = in_process(path), in_process(tenth)
        growth = (large["peak"] - small["peak"]) / (rows - few)
        sizes = {"file": path.stat().st_size, "peak": large["peak"], "peak_of_a_tenth": small["peak"]}
        mib = {f"{name}_mib": round(size / 2**20) for name, size in sizes.items()}
        show("data/memory-per-row", growth, BYTES_PER_ROW, growth <= BYTES_PER_ROW, **mib)
        show("data/read", rows / large["reading"], None, True)
        golds = in_process(path, workers=1, size=few, verifier="numeric")
        show("data/golds-numeric", few / golds["checking"], None, True)
        for workers in (1, 2):
            show(f"data/golds-math-{workers}", 10_000 / in_process(fractions, workers)["checking"], None, True)


def show(name: str, ratio: float, target: float | None, holds: bool, **extra: object) -> None:
    print(json.dumps({"name": name, "ratio": round(ratio, 1), "target": target, "holds": holds, **extra}), flush=True)


if __name__ == "__main__":
    main()
