"""Records the embedded judge sets: right and wrong responses to the same questions, by models not under test.

    python -m spark_rl.evaluate.record MODEL [MODEL ...] --part validation

Each question gives at most one item: a right and a wrong response among all models' samples. The recorded files are
part of the package and change only together with `VERSION`.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from spark_rl.config import load_inference
from spark_rl.evaluate.suites import EMBEDDED, embedded_examples
from spark_rl.infer import Ask, ChatModel, Plan, run
from spark_rl.infer.plan import Reply
from spark_rl.types import Example
from spark_rl.verify import Check, VerifierPool, failed

VERSION = 1
SAMPLES = 8
ITEMS = 250


def _sampled(example: Example) -> Plan[list[Reply]]:
    (replies,) = yield [Ask(example.prompt, SAMPLES, 1.0, example.images)]
    return replies


def record(models: list[str], part: str) -> list[dict[str, object]]:
    """Up to `ITEMS` rows `{"id", "version", "question", "right", "wrong"}`, with `images` if the question has any."""
    examples = embedded_examples(f"embedded:{part}")
    right: dict[str, list[str]] = {}
    wrong: dict[str, list[str]] = {}
    with VerifierPool() as pool:
        for path in models:
            model = ChatModel.open(load_inference(["engine.max_new_tokens=80"], model={"path": path}))
            plans = [(example.id, lambda spent, example=example: _sampled(example)) for example in examples]
            for example, done in zip(examples, run(plans, model, seed=7), strict=True):
                texts = [reply.text for reply in done.value if reply.finish_reason == "stop"]
                checks = [Check(text, example.answer, example.verifier) for text in texts]
                for text, verdict in zip(texts, pool.verify(checks), strict=True):
                    if verdict.extracted is not None and verdict.reward is not None and not failed(verdict.reason):
                        (right if verdict.reward == 1 else wrong).setdefault(example.id, []).append(text)
    rng = random.Random(f"judged-{part}-{VERSION}")
    both = [example for example in examples if example.id in right and example.id in wrong]
    return [
        {
            "id": f"{part}-{number}",
            "version": VERSION,
            "question": example.question,
            **({"images": [image.path for image in example.images]} if example.images else {}),
            "right": rng.choice(right[example.id]),
            "wrong": rng.choice(wrong[example.id]),
        }
        for number, example in enumerate(rng.sample(both, min(ITEMS, len(both))))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parts = [name.removeprefix("embedded:") for name in EMBEDDED[1:]]
    parser.add_argument("--part", choices=parts, required=True)
    arguments = parser.parse_args()
    out = Path(__file__).parents[1] / "embedded" / "judged" / f"{arguments.part}.jsonl"
    out.parent.mkdir(exist_ok=True)
    rows = record(arguments.models, arguments.part)
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} items in {out.name}")


if __name__ == "__main__":
    main()
