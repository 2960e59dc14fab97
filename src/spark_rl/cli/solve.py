"""`spark-rl solve`."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spark_rl.cli.model import folder_of, open_model, settings_for, signature
from spark_rl.cli.rows import (
    RIGHT_AT,
    Input,
    Row,
    check_pictures,
    check_right_at,
    check_summary,
    file_and_settings,
    say,
    take,
    take_verifier,
)
from spark_rl.cli.stream import NO_ROOM, Carrier, Item, Journal, Tell, sum_up, through
from spark_rl.config import DataConfig, Inference, SourceConfig
from spark_rl.types import Example, Role
from spark_rl.verify import Check, Format, Verdict, VerifierPool

if TYPE_CHECKING:
    from spark_rl.infer import Solution, Solver

_READ = ("prompt", "id", "question", "system", "metadata", "source", "images", "image")
_MEANS = {"accuracy": "right", "mean_reward": "reward"}
"""Figures of --check, and what they are the means of."""
_ADDED = ("answer", "text", "tokens", "prompt_tokens", "generated_tokens", "steps", "reward", "reason")


def solve(
    model: Annotated[str, typer.Argument(help="Folder of a model, Hub id, `embedded`, or address of a server.")],
    file: Annotated[str | None, typer.Argument(help="JSONL rows; standard input when left out or '-'.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="solve.key=value, judge.key=value, engine.key=value.")
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(help="greedy, sample, reflect, majority@8, best-of-8, weighted-vote@8, tournament@8; any number."),
    ] = "greedy",
    question: Annotated[str | None, typer.Option(help="Solve this one, which needs no rows.")] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            help="With --question: a picture it is about. Once for each, shown where <image> stands in the question."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the rows, instead of standard output.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the file of a call that was stopped.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Add the steps: answers, judgements, revisions.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Grade against the rows' gold answers.")] = False,
    verifier: Annotated[
        str, typer.Option(help="Of rows that name none; the only function that rows may name.")
    ] = "math",
    right_at: Annotated[float, typer.Option(help=RIGHT_AT)] = 1.0,
    max_new_tokens: Annotated[int | None, typer.Option(help="Length limit of a reply.")] = None,
    seed: Annotated[int, typer.Option(help="Of all sampling.")] = 0,
    chunk: Annotated[int, typer.Option(help="Rows solved together; what a kill costs at most.")] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="With --out: print a summary as JSON.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave malformed rows out, and count them.")] = False,
) -> None:
    """Answer questions by a strategy: the same rows come out with an answer, in order.

    A row is {"prompt": text or chat messages} and gains "answer" (null: none came
    of it), the "text" that was chosen, "tokens" (read and written, by all roles)
    and its parts "prompt_tokens" and "generated_tokens". A gold "answer" that it
    had goes to "gold", and is seen by --check alone, which adds a "reward"
    and its "reason"; right is a reward of --right-at or more.
    A vision-language model is shown the "images" of a row, paths from the file's
    folder. solve.max_tokens is a budget a question. Rows stream in constant memory.

    Examples:

        spark-rl solve runs/quickstart/final --strategy reflect --question "What is 17*6?"

        spark-rl solve embedded questions.jsonl --strategy majority@8 --out solved.jsonl

        spark-rl solve embedded questions.jsonl --strategy majority@8 --out solved.jsonl --resume

        spark-rl solve runs/quickstart-vision/final --question "How many are red?" --image shapes.png

        spark-rl solve http://localhost:8000 --strategy tournament@16 solve.max_tokens=20000 < questions.jsonl
    """
    check_right_at(right_at)
    file, settings = file_and_settings(file, overrides)
    check_pictures(question, image, file)
    config = settings_for(model, settings, seed, max_new_tokens)
    from spark_rl.data.rows import RowReader
    from spark_rl.infer.strategies import parse_strategy
    from spark_rl.models.prompts import prompts_for

    parse_strategy(strategy)
    folder = Path(file).parent if file not in (None, "-") else Path()
    folder_of(config)
    prompts = prompts_for(config)
    reader = RowReader(SourceConfig(path="row"), DataConfig(verifier=verifier), "row", folder, prompts)

    def read(row: Row, number: int) -> Item[Example]:
        kept = dict(row)
        if row.get("answer") is not None:
            kept.setdefault("gold", kept.pop("answer"))
        take(row, "prompt", str, list)
        if check and kept.get("gold") is None:
            raise ValueError("has no 'answer', the gold that --check grades against; add it")
        gold = str(take(kept, "gold", str, int, float)) if check else "-"
        columns = {key: row.get(key) for key in _READ}
        name = take_verifier(row, verifier)
        return Item(number, kept, reader.task(columns | {"answer": gold, "verifier": name}, number - 1).example)

    if image and question is None:
        raise ValueError("--image belongs to --question; in rows, images are in the column 'images'")
    pool = VerifierPool.of(config.verify)
    if question is not None:
        if file or out or resume or check:
            raise ValueError("--question solves one; leave out the file, --out, --resume and --check")
        with pool:
            return _one(
                read({"prompt": question} | ({"images": image} if image else {}), 1),
                lambda: _solver(config, pool, right_at),
                strategy,
                trace,
                as_json,
            )
    check_summary(as_json, out)
    source = Input(file, skip_bad)
    options = [*["--trace"] * trace, *["--check"] * check, *[f"--right-at {right_at:g}"] * (right_at != 1)]
    by = signature(config, prompts, strategy, *options)
    counts, start = Counter[str](), time.monotonic()
    journal = Journal(out, source, added=_ADDED, by=by, resume=resume, count=partial(_count, counts))
    with pool:

        def prepare() -> Carrier[Example]:
            solver = _solver(config, pool, right_at)

            def check_prompt(example: Example) -> None:
                solver.model.check(solver.model.prompts.conversation(Role.ANSWER, example.prompt), example.images)

            def carry(examples: Sequence[Example], tell: Tell) -> list[Row | None]:
                solutions = solver.solve(examples, strategy, tell)
                rows = [_columns(each, trace) for each in solutions]
                if check:
                    verdicts = _grade(pool, examples, solutions, reader.prompts.answer_format)
                    rows = [
                        row | {"reward": verdict.reward, "reason": verdict.at(right_at).reason}
                        for row, verdict in zip(rows, verdicts, strict=True)
                    ]
                return [None if each.no_room else row for each, row in zip(solutions, rows, strict=True)]

            return Carrier(solver.model, check_prompt, carry)

        through("solve", journal, read, prepare, chunk)
    summary = {
        **_summary(counts, check),
        "rows_before": journal.num_done,
        "bad_rows": source.num_bad,
        "strategy": strategy,
        "seconds": round(time.monotonic() - start, 2),
    }
    if as_json:
        print(json.dumps(summary))
    graded = ""
    if summary.get("accuracy") is not None:
        graded = f"; accuracy {summary['accuracy']:.1%}, mean reward {summary['mean_reward']:.3f}"
    sum_up(summary, f"{summary['answered']:,} answered{graded}")


def _solver(config: Inference, pool: VerifierPool, right_at: float) -> Solver:
    from spark_rl.infer import Judge, Solver

    model = open_model(config)
    judge = Judge(model, config.judge, seed=config.seed)
    return Solver(model, pool, config.solve, judge=judge, seed=config.seed, right_at=right_at)


def _columns(solution: Solution, trace: bool) -> Row:
    columns = {
        "answer": solution.answer,
        "text": solution.text,
        "tokens": solution.tokens,
        "prompt_tokens": solution.prompt_tokens,
        "generated_tokens": solution.generated_tokens,
    }
    return columns | ({"steps": [asdict(step) for step in solution.steps]} if trace else {})


def _grade(
    pool: VerifierPool, examples: Sequence[Example], solutions: Sequence[Solution], stated: Format
) -> list[Verdict]:
    checks = [
        Check(solution.text, example.answer, example.verifier, example.metadata, example.prompt, stated)
        for example, solution in zip(examples, solutions, strict=True)
    ]
    return list(pool.stream(checks))


def _one(item: Item[Example], load: Callable[[], Solver], strategy: str, trace: bool, as_json: bool) -> None:
    """Solve one question and print it: the row, or for people the text and what it took."""
    (solution,) = load().solve([item.value], strategy)
    if solution.no_room:
        raise ValueError(f"the question {NO_ROOM}")
    if as_json:
        print(json.dumps(item.row | _columns(solution, trace), ensure_ascii=False))
        return
    for step in solution.steps if trace else ():
        said = ", ".join(filter(None, [step.answer, step.verdict]))
        print(f"[{step.kind}{': ' * bool(said)}{said}]\n{step.text.strip()}\n")
    print(solution.text.strip())
    answer = "no answer" if solution.answer is None else f"answer: {solution.answer}"
    say(f"{answer}; {solution.prompt_tokens:,} tokens read, {solution.generated_tokens:,} written")


def _count(counts: Counter[str], row: Row) -> None:
    counts.update(
        rows=1,
        answered=row["answer"] is not None,
        prompt_tokens=row["prompt_tokens"],
        generated_tokens=row["generated_tokens"],
    )
    if row.get("reward") is not None:
        counts.update(graded=1, reward=row["reward"], right=row["reason"] == "correct")


def _summary(counts: Counter[str], check: bool) -> dict[str, Any]:
    totals = {key: counts[key] for key in ("rows", "answered", "prompt_tokens", "generated_tokens")}
    if not check:
        return totals
    means = {key: counts[name] / counts["graded"] if counts["graded"] else None for key, name in _MEANS.items()}
    return totals | {"graded": counts["graded"], **means}
