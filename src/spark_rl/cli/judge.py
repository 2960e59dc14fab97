"""`spark-rl judge`."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from spark_rl.cli.model import folder_of, open_model, settings_for, signature
from spark_rl.cli.rows import Input, Row, check_pictures, check_summary, file_and_settings, take
from spark_rl.cli.stream import NO_ROOM, Carrier, Item, Journal, Tell, sum_up, through
from spark_rl.types import Image

if TYPE_CHECKING:
    from spark_rl.infer import Judge, Preference, Verdict

_ADDED = ("verdict", "probability", "preferred", "consistent")


class Shown(NamedTuple):
    """What is judged."""

    question: str
    responses: tuple[str, ...]
    """One, or the two to compare."""
    images: tuple[Image, ...]


def judge(
    model: Annotated[str, typer.Argument(help="Folder of a model, Hub id, `embedded`, or address of a server.")],
    file: Annotated[str | None, typer.Argument(help="JSONL rows; standard input when left out or '-'.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="judge.key=value, engine.key=value.")] = None,
    question: Annotated[str | None, typer.Option(help="Judge one item, which needs no rows.")] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            help="With --question: a picture it is about. Once for each, shown where <image> stands in the question."
        ),
    ] = None,
    response: Annotated[str | None, typer.Option(help="With --question: is this right?")] = None,
    a: Annotated[str | None, typer.Option("--a", help="With --question: is this better ...")] = None,
    b: Annotated[str | None, typer.Option("--b", help="... than this?")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the rows, instead of standard output.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the file of a call that was stopped.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Length limit of a judgement.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampled judgements.")] = 0,
    chunk: Annotated[int, typer.Option(help="Rows judged together; what a kill costs at most.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="With --out: print a summary as JSON.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave malformed rows out, and count them.")] = False,
) -> None:
    """Judge responses: the same rows come out with a verdict, in order.

    A row is {"question", "response"} and gains "verdict" (right, wrong, or null:
    no judgement held one) and the "probability" that it is right; or {"question",
    "a", "b"}, which is asked in both orders and gains "preferred" (a, b or null),
    the "probability" that it is a, and whether both orders are "consistent".
    A vision-language model is shown the "images" of a row, paths from the file's
    folder. Rows stream in constant memory.

    Examples:

        spark-rl judge runs/quickstart/final responses.jsonl --out judged.jsonl

        spark-rl judge embedded --question "What is 3+4+2?" --response "\\boxed{8}"

        spark-rl judge http://localhost:8000 judge.samples=4 < pairs.jsonl
    """
    file, settings = file_and_settings(file, overrides)
    check_pictures(question, image, file)
    config = settings_for(model, settings, seed, max_new_tokens)

    def load() -> Judge:
        from spark_rl.infer import Judge

        return Judge(open_model(config), config.judge, seed=config.seed)

    one = {"question": question, "response": response, "a": a, "b": b, "images": image}
    if item := {key: value for key, value in one.items() if value is not None}:
        if file or out or resume:
            raise ValueError("--question judges one item; leave out the file, --out and --resume")
        if item.keys() - {"images"} not in ({"question", "response"}, {"question", "a", "b"}):
            raise ValueError("one item is a --question with a --response, or with --a and --b; give these")
        return _one(item, load, as_json)
    check_summary(as_json, out)
    from spark_rl.models.prompts import prompts_for

    source = Input(file, skip_bad)
    counts, start = Counter[str](), time.monotonic()
    judges: list[Judge] = []

    def count(row: Row) -> None:
        counts[_word(row)] += 1

    folder_of(config)
    by = signature(config, prompts_for(config), "judge")
    journal = Journal(out, source, added=_ADDED, by=by, resume=resume, count=count)

    def prepare() -> Carrier[Shown]:
        judges.append(load())

        def check(item: Shown) -> None:
            for ask in judges[0].asks(item.question, *item.responses, images=item.images):
                judges[0].model.check(ask.messages, ask.images)

        def carry(items: Sequence[Shown], tell: Tell) -> list[Row | None]:
            judgements = _judge_all(judges[0], items, tell)
            return [None if judgement.no_room else judgement.columns() for judgement in judgements]

        return Carrier(judges[0].model, check, carry)

    folder = source.path.parent if source.path else Path()
    through("judge", journal, lambda row, number: Item(number, row, _shown(row, folder)), prepare, chunk)
    summary: dict[str, Any] = {
        "rows": counts.total(),
        "bad_rows": source.num_bad,
        "rows_before": journal.num_done,
        "verdicts": dict(counts.most_common()),
        "parse_rate": 1 - counts["unparsed"] / counts.total() if counts else None,
        "prompt_tokens": sum(each.spent.prompt_tokens for each in judges),
        "generated_tokens": sum(each.spent.generated_tokens for each in judges),
        "seconds": round(time.monotonic() - start, 2),
    }
    if as_json:
        print(json.dumps(summary))
    said = ", ".join(f"{count:,} {word}" for word, count in summary["verdicts"].items())
    sum_up(summary, said or "nothing judged")


def _shown(row: Row, folder: Path) -> Shown:
    """What is judged of a row.

    Raises:
        ValueError: it is no item of either kind, or of both, or an image cannot be used.
    """
    from spark_rl.data.row_images import asked_to_judge

    question = take(row, "question", str)
    if row.get("response") is not None and (row.get("a") is not None or row.get("b") is not None):
        raise ValueError("has a 'response' as well as 'a' or 'b'; give one or the other")
    if row.get("response") is None and row.get("a") is None and row.get("b") is None:
        raise ValueError("has neither a 'response' nor 'a' and 'b'; add one or the other")
    keys = ("response",) if row.get("response") is not None else ("a", "b")
    question, images = asked_to_judge(question, row, folder)
    return Shown(question, tuple(take(row, key, str) for key in keys), images)


def _judge_all(judge: Judge, items: Sequence[Shown], tell: Tell) -> list[Verdict | Preference]:
    """The judgements on items of both kinds, in order."""
    single = [(q, responses[0], images) for q, responses, images in items if len(responses) == 1]
    paired = [(q, *responses, images) for q, responses, images in items if len(responses) == 2]
    verdicts = iter(judge.score_all(single, tell) if single else [])
    preferences = iter(judge.compare_all(paired, lambda ended, _: tell(len(single) + ended, 0)) if paired else [])
    return [next(verdicts) if len(item.responses) == 1 else next(preferences) for item in items]


def _word(row: Row) -> str:
    """What a judged row is counted as."""
    word: str | None = row["preferred"] if row.get("response") is None else row["verdict"]
    return word or ("unparsed" if row["probability"] is None else "undecided")


def _one(row: Row, load: Callable[[], Judge], as_json: bool) -> None:
    """Judge what the options hold, and print it: the row, or for people with the judgements in the model's words."""
    shown = _shown(row, Path())
    from spark_rl.infer import Verdict

    (judgement,) = _judge_all(load(), [shown], lambda ended, total: None)
    if judgement.no_room:
        raise ValueError(NO_ROOM)
    columns = judgement.columns()
    if as_json:
        print(json.dumps(row | columns, ensure_ascii=False))
        return
    for text in [judgement.text] if isinstance(judgement, Verdict) else judgement.texts:
        print(text.strip() + "\n")
    about = "that it is right" if isinstance(judgement, Verdict) else "that a is better"
    orders = {None: "", True: "; the same in both orders", False: "; the orders disagree"}[columns.get("consistent")]
    certainty = "" if judgement.probability is None else f" (probability {about}: {judgement.probability:.3f}{orders})"
    print(_word(row | columns) + certainty)
