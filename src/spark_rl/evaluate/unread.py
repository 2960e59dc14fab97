"""What to do about a model of whose answers most could not be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spark_rl.evaluate.runner import Row
from spark_rl.types import Example
from spark_rl.verify import Check, Format, VerifierPool, better_format, formats_seen


def unread_notes(
    rows: Sequence[Row], questions: Sequence[Example], stated: Format, pool: VerifierPool, right_at: float = 1.0
) -> Iterator[str]:
    """A sentence on each model of whose greedy answers fewer than half are in the format that was asked for, if another
    one reads them.

    Args:
        rows: of `samples.jsonl`.
        questions: what was asked, of a suite.
    """
    asked = {example.id: example for example in questions}
    first = [row for row in rows if row["part"] == "answer" and row["strategy"] == "greedy" and row["id"] in asked]
    for label in dict.fromkeys(row["model"] for row in first):
        of_model = [row for row in first if row["model"] == label]
        unread = [row for row in of_model if row["answer"] is None]
        if 2 * len(unread) <= len(of_model):
            continue
        examples = [asked[row["id"]] for row in unread]
        checks = [Check(row["text"], e.answer, e.verifier, e.metadata) for row, e in zip(unread, examples, strict=True)]
        if better := better_format(formats_seen(checks, pool, stated, right_at)):
            advice = better.advice("data.answer_format", f"{better.found} of the others")
            num_read, num = len(of_model) - len(unread), len(of_model)
            yield f"{label}: {num_read} of {num} greedy answers are stated as `{stated.form}`; {advice}"
