"""Writes judging.jsonl, what a judge's work looks like: `python recipes/smollm2/judging.py`.

Each sum comes twice, once with its result and once with a mistake that small models make, so that half of the verdicts
are No. The judge does the sum for itself and then puts its own result and the shown one side by side.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from spark_rl.prompts import Prompts
from spark_rl.types import Role

NUM_SUMS = 64


def main(path: Path) -> None:
    rng = random.Random(0)
    rows = [row for _ in range(NUM_SUMS) for row in couple(rng)]
    rng.shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} rows in {path}")


def couple(rng: random.Random) -> list[dict[str, object]]:
    """Rows that judge the result of a sum, and a mistake in it."""
    a, b = (rng.randint(1, 10 ** rng.randint(1, 2)) for _ in range(2))
    sign = rng.choice("+-")
    result = a + b if sign == "+" else a - b
    mistakes = {result + d for d in (-10, -2, -1, 1, 2, 10)} | {-result, a + b, a - b, a, b}
    shows_work = rng.random() < 0.5
    template = Prompts().template(None, Role.POINTWISE)
    rows = []
    for said in (result, rng.choice(sorted(mistakes - {result}))):
        response = f"{a} {sign} {b} = {said}. The answer is \\boxed{{{said}}}." if shows_work else f"\\boxed{{{said}}}"
        compared, verdict = ("same", "Yes") if said == result else ("different", "No")
        (prompt,) = Prompts().fill(template, question=f"What is {a} {sign} {b}?", response=response)
        reply = f"{a} {sign} {b} = {result}. {result} and {said}: {compared}. \\boxed{{{verdict}}}"
        rows.append({"role": "pointwise", "prompt": [prompt], "answer": verdict, "response": reply})
    return rows


if __name__ == "__main__":
    main(Path(__file__).with_name("judging.jsonl"))
