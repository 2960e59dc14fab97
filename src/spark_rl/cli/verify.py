"""`spark-rl verify`."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from spark_rl.cli.rows import (
    FORMAT,
    RIGHT_AT,
    Input,
    Output,
    Row,
    check_right_at,
    check_summary,
    counted,
    file_and_settings,
    say,
    take,
    take_format,
    take_verifier,
    verify_settings,
)
from spark_rl.progress import Shown
from spark_rl.verify import Check, VerifierPool, better_format, formats_seen, resolve

_LOOKED_AT = 200
"""Responses without an answer that are looked through for other formats."""


def verify(
    file: Annotated[str | None, typer.Argument(help="JSONL rows; standard input when left out or '-'.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="verify.key=value: limits of time and memory.")] = None,
    verifier: Annotated[
        str, typer.Option(help="Of rows that name none; the only function that rows may name.")
    ] = "math",
    right_at: Annotated[float, typer.Option(help=RIGHT_AT)] = 1.0,
    answer_format: Annotated[str, typer.Option("--format", help=FORMAT)] = "boxed",
    out: Annotated[Path | None, typer.Option(help="File for the rows, instead of standard output.")] = None,
    workers: Annotated[int, typer.Option(help="Processes for verifiers that need one.")] = 1,
    cpu_seconds: Annotated[float, typer.Option(help="CPU time that one answer may cost.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="With --out: print a summary as JSON.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave malformed rows out, and count them.")] = False,
) -> None:
    r"""Grade responses: the same rows come out with a reward, in order.

    A row is {"answer": text of a response, "gold": ...}; it may name its
    "verifier", and the "metadata" that this one reads. It gains "reward" (null:
    not gradable), "extracted" (the last \boxed{}, or what --format says), "reason", and "detail" where
    there is one. Rows stream in constant memory.

    An answer on which the verifier runs out of time although it grades the gold
    gets 0 and the reason timeout (null with verify.timed_out=mask).

    Verifiers: math, numeric, choice, exact, reasoning_gym; a function of yours,
    (answer, gold, metadata) -> float, as module:function; a reward function in
    TRL's signature, which reads the whole response, as trl:module:function.

    Examples:

        spark-rl verify responses.jsonl --out graded.jsonl --workers 4

        spark-rl verify rows.jsonl verify.wall_seconds=10 --verifier mine:grade

        spark-rl verify rows.jsonl --format hash --out graded.jsonl

        zcat rows.jsonl.gz | spark-rl verify --verifier numeric | grep wrong

        spark-rl verify rows.jsonl --verifier trl:rewards:brevity | head
    """
    check_summary(as_json, out)
    check_right_at(right_at)
    if workers < 1 or not cpu_seconds > 0:
        raise ValueError("--workers must be at least 1, and --cpu-seconds above 0")
    file, given = file_and_settings(file, overrides)
    settings = verify_settings(given, workers=workers, cpu_seconds=cpu_seconds)
    resolve(verifier)
    stated = take_format(answer_format)
    source = Input(file, skip_bad)

    def parse(row: Row, number: int) -> tuple[Row, Check]:
        name = take_verifier(row, verifier)
        text, gold = (str(take(row, key, str, int, float)) for key in ("answer", "gold"))
        return row, Check(text, gold, name, take(row, "metadata", dict, default={}), format=stated)

    reasons: Counter[str] = Counter()
    unread: list[Check] = []
    num_to_read = num_unread = num_graded = 0
    total, start = 0.0, time.monotonic()
    with (
        Output(out, source) as output,
        VerifierPool.of(settings) as pool,
        Shown(bar=out is not None) as shown,
    ):
        pairs, ahead = itertools.tee(source.read(parse))
        verdicts = zip(pairs, pool.stream(check for _, check in ahead), strict=True)
        for (row, check), verdict in shown.track(verdicts, "verify", source.num_lines()):
            verdict = verdict.at(right_at)
            grade = {"reward": verdict.reward, "extracted": verdict.extracted, "reason": verdict.reason}
            output.write(row | grade | ({"detail": verdict.detail} if verdict.detail else {}))
            reasons[verdict.reason] += 1
            if verdict.reward is not None:
                total, num_graded = total + verdict.reward, num_graded + 1
            if resolve(check.verifier).reads == "answer":
                num_to_read += 1
                if verdict.extracted is None:
                    num_unread += 1
                    unread += [check] * (len(unread) < _LOOKED_AT)
        better = better_format(formats_seen(unread, pool, stated, right_at)) if 2 * num_unread > num_to_read else None
    rate = reasons.total() / (time.monotonic() - start)
    mean = total / num_graded if num_graded else None
    if as_json:
        summary = {"rows": reasons.total(), "bad_rows": source.num_bad, "reasons": dict(reasons.most_common())}
        print(json.dumps(summary | {"mean_reward": mean, "rows_per_second": round(rate, 1)}))
    bad = f", and {counted(source.num_bad, 'bad one')} left out" if source.num_bad else ""
    counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common()) or "nothing graded"
    of_all = "none" if mean is None else f"{mean:.3f}"
    say(f"{counted(reasons.total(), 'row')}{bad}: {counts}; mean reward {of_all}; {rate:,.0f} rows/s")
    if better:
        others = f"{better.found} of the{' first' * (num_unread > len(unread))} {len(unread)} others"
        num_read, responses = num_to_read - num_unread, counted(num_to_read, "response")
        say(f"{num_read:,} of {responses} hold an answer as `{stated.form}`; {better.advice('--format', others)}")
