"""Writes judging.jsonl, what a judge's work looks like: `python recipes/smollm2/judging.py`.

Each sum comes twice, once with its result and once with a mistake that small models make, so that half of the verdicts
are No. The judge does the sum for itself and then puts its own result and the shown one side by side. No sum is one
that `spark.yaml` holds out.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from spark_rl.config import load_config
from spark_rl.data.sources import open_sources
from spark_rl.prompts import Prompts
from spark_rl.types import Role

NUM_SUMS = 64


def main(path: Path) -> None:
    rng, used = random.Random(0), held_out()
    rows = [row for _ in range(NUM_SUMS) for row in couple(rng, used)]
    rng.shuffle(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} rows in {path}")


def held_out() -> set[str]:
    """The sums that the recipe measures on, such as `9 - 4`."""
    config = load_config(Path(__file__).with_name("spark.yaml"))
    sources = open_sources(config.data.validation, config.data, set(), held_out=True)
    questions = (source.task(i).example.question for source in sources for i in range(source.num_rows))
    return {found[0] for question in questions if (found := re.search(r"\d+ [+-] \d+", question))}


def couple(rng: random.Random, used: set[str]) -> list[dict[str, object]]:
    """Rows that judge the result of a sum that was not used before, and a mistake in it."""
    while True:
        a, b = (rng.randint(1, 10 ** rng.randint(1, 2)) for _ in range(2))
        sign = rng.choice("+-")
        if (asked := f"{a} {sign} {b}") not in used:
            used.add(asked)
            break
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
