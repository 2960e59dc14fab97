"""`spark-rl recycle`."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spark_rl.cli.rows import (
    FORMAT,
    Input,
    Output,
    Row,
    check_summary,
    counted,
    file_and_settings,
    say,
    take,
    take_verifier,
    verify_settings,
)
from spark_rl.config import Config, DataConfig, SourceConfig, load_config
from spark_rl.progress import Shown
from spark_rl.prompts import Prompts, build_prompts
from spark_rl.recycle import recycle as recycle_groups
from spark_rl.types import Group, Role, Rollout, Task
from spark_rl.verify import Check, VerifierPool

if TYPE_CHECKING:
    from spark_rl.data.rows import RowReader

GROUPS_PER_STEP = 64
"""Rows that are recycled together; `recycle.keep_right_share` holds among them."""
RECYCLED = {role.value for role in Role if role.is_recycled}
_OF_A_RUN = ("rollouts", "template", "depth", "made_at_step", "parents", "question_id")
"""What a run's rows hold beside the question."""


def recycle(
    file: Annotated[str | None, typer.Argument(help="JSONL rows; standard input when left out or '-'.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="recycle.key=value, on top of the preset; prompts.key, verify.key."),
    ] = None,
    preset: Annotated[str, typer.Option(help="spark or paper: what is made of a question's rollouts.")] = "spark",
    seed: Annotated[int, typer.Option(help="Of all draws: templates, views, which response is shown.")] = 0,
    answer_format: Annotated[str, typer.Option("--format", help=FORMAT)] = "boxed",
    out: Annotated[Path | None, typer.Option(help="File for the rows, instead of standard output.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Grade rollouts that come without a reward.")] = False,
    verifier: Annotated[
        str, typer.Option(help="Of rows that name none; the only function that rows may name.")
    ] = "math",
    workers: Annotated[int, typer.Option(help="With --verify: processes for verifiers that need one.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="With --out: print a summary as JSON.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave malformed rows out, and count them.")] = False,
) -> None:
    """Turn graded rollouts into judge and reflection items to train on.

    A row is {"id", "prompt", "answer", "rollouts": [{"text", "reward"}, ...]}:
    what a run writes to rollouts/, or what anyone sampled anywhere. Rows of a
    run that are recycled already are skipped. What comes out has "messages" and
    their "label". Rows stream in constant memory.

    Examples:

        spark-rl recycle sampled.jsonl --verify --out items.jsonl

        cat run/rollouts/*.jsonl | spark-rl recycle recycle.items_per_group=1

        spark-rl recycle sampled.jsonl --preset paper --out items.jsonl --json

        spark-rl train run.yaml data.train=items.jsonl \\
            'data.columns={prompt: messages, answer: label}'
    """
    check_summary(as_json, out)
    if workers < 1:
        raise ValueError("--workers must be at least 1")
    file, settings = file_and_settings(file, overrides)
    from spark_rl.data.rows import RowReader

    grading = [setting for setting in settings if setting.startswith("verify.")]
    config = _settings(preset, [setting for setting in settings if setting not in grading])
    prompts = build_prompts(config.prompts, answer_format)
    if grading and not verify:
        raise ValueError(f"{grading[0]!r} is about grading, which is not asked for; add --verify or leave it out")
    limits = verify_settings(grading, workers=workers)
    source = Input(file, skip_bad)
    name = source.path.stem if source.path else "stdin"
    folder = source.path.parent if source.path else Path()
    reader = RowReader(SourceConfig(path=name), DataConfig(verifier=verifier), name, folder, prompts)
    counts: Counter[str] = Counter()

    def parse(row: Row, number: int) -> Group | None:
        role = take(row, "role", str, default="")
        if role in RECYCLED:
            counts[f"skipped_{role}"] += 1
            return None
        take_verifier(row, verifier)
        return _group(row, reader, number)

    with (
        Output(out, source) as output,
        VerifierPool.of(limits) if verify else nullcontext() as pool,
        Shown(bar=out is not None) as shown,
    ):
        groups = (group for group in shown.track(source.read(parse), "recycle", source.num_lines()) if group)
        for step in itertools.count(1):
            if not (chunk := list(itertools.islice(groups, GROUPS_PER_STEP))):
                break
            if pool:
                _grade(chunk, pool, prompts)
            recycled = recycle_groups(chunk, config.recycle, seed=seed, step=step, prompts=prompts)
            counts.update(recycled.counts)
            for task in itertools.chain.from_iterable(recycled.bundles):
                output.write(_record(task, counts["made"]))
                counts["made"] += 1
            for group in chunk:
                counts.update(rows=1, rollouts=len(group.rollouts))
    _report(Counter({"bad_rows": source.num_bad}) + counts, as_json)


def _settings(preset: str, overrides: Sequence[str]) -> Config:
    for override in overrides:
        if not override.startswith(("recycle.", "prompts.")):
            raise ValueError(
                f"{override!r} is no setting of recycling; give recycle.key=value, or, where it is a second file, pipe "
                "both: cat A B | spark-rl recycle"
            )
    return load_config(overrides=[f"preset={preset}", *overrides])


def _group(row: Row, reader: RowReader, number: int) -> Group:
    take(row, "prompt", str, list)
    columns = {key: value for key, value in row.items() if key not in _OF_A_RUN}
    if row.get("question_id") is not None:
        columns["id"] = row["question_id"]
    task = reader.task(columns, number - 1)
    group_id = task.example.id if row.get("id") is None else str(row["id"])
    rollouts = []
    for i, item in enumerate(take(row, "rollouts", list)):
        try:
            rollouts.append(_rollout(item, f"{group_id}:{i}", reader.prompts))
        except ValueError as error:
            raise ValueError(f"rollout {i}: {error}") from None
    return Group(task, [], rollouts)


def _rollout(item: Any, default_id: str, prompts: Prompts) -> Rollout:
    if not isinstance(item, dict):
        raise ValueError("must be an object with a 'text' and a 'reward'")
    text = take(item, "text", str)
    return Rollout(
        id=str(take(item, "id", str, int, default=default_id)),
        token_ids=[],
        logps=[],
        text=text,
        finish_reason="stop",
        reward=None if item.get("reward") is None else take(item, "reward", int, float),
        extracted=prompts.answer_format.read(text),
        reason=take(item, "reason", str, default=""),
    )


def _grade(groups: Sequence[Group], pool: VerifierPool, prompts: Prompts) -> None:
    """Give a reward to the rollouts that have none."""
    open_ones = [(group.task, r) for group in groups for r in group.rollouts if r.reward is None]
    stated = prompts.answer_format
    checks = [
        Check(r.text, task.label, task.verifier, task.example.metadata, task.messages, stated) for task, r in open_ones
    ]
    for (_, rollout), verdict in zip(open_ones, pool.stream(checks), strict=True):
        rollout.reward, rollout.reason = verdict.reward, verdict.reason


def _record(task: Task, number: int) -> dict[str, Any]:
    """A recycled task as a row to train on. Questions may come up again in a stream, so ids are numbered."""
    from spark_rl.data.row_images import written_columns

    columns = written_columns(task.messages, task.example.question, task.example.images)
    record = {
        "id": f"{task.id}-{number}",
        "role": task.role,
        "messages": columns.pop("prompt"),
        "label": task.label,
        "verifier": task.verifier,
        "template": task.template,
        "parents": [response.id for response in task.shown],
        "question_id": task.example.id,
        "question": columns.pop("question"),
        "source": task.example.source,
    }
    reads_metadata = task.role is Role.REFLECTION and task.example.metadata
    return record | columns | ({"metadata": task.example.metadata} if reads_metadata else {})


def _report(counts: Counter[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"rows": 0, "rollouts": 0, "made": 0, **counts}))
    others = [f"{count:,} {name}" for name, count in counts.items() if name not in ("rows", "rollouts", "made")]
    read = " with ".join(counted(counts[f"{noun}s"], noun) for noun in ("row", "rollout"))
    totals = f"{read} gave {counted(counts['made'], 'item')}"
    say(": ".join(filter(None, [totals, ", ".join(others).replace("_", " ")])))
