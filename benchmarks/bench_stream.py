"""`spark-rl verify` and `spark-rl recycle` at scale, through the real command: is memory constant, and what is a row?

    python benchmarks/bench_stream.py [--verify 100000] [--recycle 125000] [--workers 2]

Rows are made on the fly and piped in. The peak resident memory of the command and its workers is read after a tenth of
the rows and at the end; their ratio must stay below 1.1. A row of `recycle` holds 8 rollouts. `stream-cost/*` is the
processor time of the command and its workers, for a tenth of the rows, over that of reading and writing the same rows
as JSON; turns alternate.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness import line, show

from spark_rl.verify import box

GROUP_SIZE = 8
COPY = "import json, sys\nfor row in sys.stdin: print(json.dumps(json.loads(row)))"
TARGET = 1.1


def question(number: int) -> tuple[str, str, list[str]]:
    """A question, its gold, and answers to it of which about half are right: integers, fractions and roots."""
    rng = random.Random(number)
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    kind = rng.choices(["integer", "fraction", "root"], weights=[7, 2, 1])[0]
    write = {
        "integer": lambda d: str(a * b + d),
        "fraction": lambda d: rf"\frac{{{a}}}{{{b + d}}}",
        "root": lambda d: rf"{a + d}\sqrt{{{b}}}",
    }[kind]
    answers = [write(rng.choice([0, 0, 0, 1, 2, 3])) for _ in range(GROUP_SIZE)]
    return f"Question {number}: what do {a} and {b} make, as {kind}?", write(0), answers


def response(number: int, answer: str) -> str:
    return f"Attempt {number}. " + "Let us go through it step by step, slowly and with care. " * 3 + box(answer)


def verify_rows(count: int) -> Iterator[dict]:
    for number in range(count // GROUP_SIZE):
        _, gold, answers = question(number)
        for i, answer in enumerate(answers):
            yield {"id": f"{number}:{i}", "answer": response(i, answer), "gold": gold}


def recycle_rows(count: int) -> Iterator[dict]:
    for number in range(count):
        prompt, gold, answers = question(number)
        rollouts = [{"text": response(i, a), "reward": float(a == gold)} for i, a in enumerate(answers)]
        yield {"id": f"q{number}", "prompt": prompt, "answer": gold, "rollouts": rollouts}


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process and its children, each by itself, in MiB; 0 when they are gone."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pages = [Path(f"/proc/{p}/status").read_text() for p in (str(pid), *children)]
    except FileNotFoundError:
        return 0.0
    return sum(int(match[1]) for page in pages if (match := re.search(r"VmHWM:\s*(\d+) kB", page))) / 1024


def bench(name: str, rows: Iterator[dict], count: int, arguments: list[str]) -> dict:
    command = [sys.executable, "-m", "spark_rl.cli", name, *arguments]
    start = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin
        early = 0.0
        for number, row in enumerate(rows, start=1):
            process.stdin.write(json.dumps(row).encode() + b"\n")
            if number == count // 10:
                early = peak_mb(process.pid)
        process.stdin.close()
        late = early
        while process.poll() is None:
            late = max(late, peak_mb(process.pid))
            time.sleep(0.1)
    assert process.returncode == 0, process.returncode
    seconds = time.monotonic() - start
    figures = {"rows": count, "seconds": round(seconds, 1), "rows_per_second": round(count / seconds)}
    peaks = {"peak_mb_at_10_percent": round(early, 1), "peak_mb": round(late, 1)}
    return line(f"stream/{name}", [late / early], at_most=TARGET, **figures, **peaks)


def cost(name: str, rows: Iterator[dict], arguments: list[str], rounds: int = 3) -> dict:
    with tempfile.TemporaryFile("w+b") as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in rows)

        def processor_seconds(command: list[str]) -> float:
            file.seek(0)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *command], stdin=file, stdout=subprocess.DEVNULL, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        sides = ["-m", "spark_rl.cli", name, *arguments], ["-c", COPY]
        turns = [[processor_seconds(command) for command in sides] for _ in range(rounds)]
    ours, copies = (min(seconds) for seconds in zip(*turns, strict=True))  # what else runs only adds
    figures = {"seconds": round(ours, 2), "copy_seconds": round(copies, 2)}
    ratios = [a / b for a, b in turns]
    return line(f"stream-cost/{name}", ratios, ratio=ours / copies, at_most=math.inf, **figures) | {"target": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verify", type=int, default=100_000, help="rows (0: leave out)")
    parser.add_argument("--recycle", type=int, default=125_000, help="rows of 8 rollouts (0: leave out)")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    if asked.verify:
        workers = ["--workers", str(asked.workers)]
        show(bench("verify", verify_rows(asked.verify), asked.verify, workers))
        show(cost("verify", verify_rows(asked.verify // 10), workers))
    if asked.recycle:
        show(bench("recycle", recycle_rows(asked.recycle), asked.recycle, []))
        show(cost("recycle", recycle_rows(asked.recycle // 10), []))


if __name__ == "__main__":
    main()
