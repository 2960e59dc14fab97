"""The page of published sets, made of their entries: `python -m spark_rl.evaluate.reference > docs/suites.md`."""

from __future__ import annotations

from collections.abc import Iterator

from spark_rl.evaluate.published import in_suite
from spark_rl.evaluate.published_sets import PUBLISHED, PublishedSet

_HEAD = """# Published sets

The sets on which the SPARK paper reports. `spark-rl eval MODEL --suite paper-text` takes all of a collection,
`--suite gsm8k` one of them, from the Hub or, with `--local gsm8k=PATH`, from a copy: a Parquet, JSONL, JSON or CSV
file, or a folder as a snapshot download leaves it. Answers are stated in a box, or as
[`data.answer_format`](prompts.md#answer-formats) has it, and graded by [rule](data.md#verifiers): a letter may be
followed by its option, a number by its unit, and two answers are none. What a table calls metadata stands in the rows
of `samples.jsonl`, for breakdowns and official scores that are not computed here.

Sets with images need a vision-language model. An image goes where the question marks it (`<image>`, `<image 1>`), and
before the question where it does not; a pair of `vl-reward-bench` is judged with its image in view. Images that stand
in the data are kept as files in the cache of images. A row whose image cannot be read ends the evaluation before
anything is asked, unless `--skip-bad` leaves such rows out; the report then says how many.

The data itself was not seen when this was written: schemas were taken from cards and from the code of other evaluators,
rows in the tests are written after these, and no score here was compared with a published one. What each source left
open is listed below its table.

For what [lm-eval](https://github.com/EleutherAI/lm-evaluation-harness) has, its own prompts and scores can be used in
place of these, with a strategy of ours as the model:

    python -m spark_rl.integrations.lm_eval run --model spark-rl --tasks gsm8k_cot \\
        --model_args pretrained=runs/mine/final,strategy=reflect

This page is made of [`evaluate/published_sets.py`](../src/spark_rl/evaluate/published_sets.py) by `make docs`.
"""


def markdown() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_collections()])


def _collections() -> Iterator[str]:
    for suite in dict.fromkeys(each.suite for each in PUBLISHED.values()):
        yield f"## {suite}\n"
        yield "| set | on the Hub | scored by | licence, source |\n|---|---|---|---|"
        yield from map(_row, in_suite(suite))
        yield "\nNot checked against the data:\n"
        yield from (
            f"- `{each.name}`: {each.unverified} Schema after {each.schema_source}." for each in in_suite(suite)
        )
        yield ""


def _row(each: PublishedSet) -> str:
    images = " (images)" if each.has_images else ""
    return f"| `{each.name}`{images} | {each.place} | {each.rule} | {each.licence}; {each.citation} |"


if __name__ == "__main__":
    print(markdown(), end="")
