"""`spark-rl train`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from spark_rl.cli.model import quiet_libraries
from spark_rl.cli.rows import say
from spark_rl.config import Config, load_config
from spark_rl.progress import Shown

if TYPE_CHECKING:
    from spark_rl.data import Data


def train(
    config: Annotated[Path, typer.Argument(help="YAML config; see recipes/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, on top of the file.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run directory's newest checkpoint.")] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="With --resume: go on although settings that change results differ.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show config, arithmetic of a step, tokens, memory, prompts.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary (dry run: figures) as JSON.")] = False,
) -> None:
    """Train a model as policy, judge and reflector.

    Examples:

        spark-rl train recipes/quickstart.yaml

        spark-rl train recipes/quickstart.yaml preset=grpo train.output=runs/grpo train.seed=1

        spark-rl train recipes/quickstart.yaml --resume

        spark-rl train recipes/quickstart.yaml train.steps=100 --resume --allow-changes
    """
    settings = load_config(config, overrides or [])
    data = _check(settings, resume, dry_run)
    if dry_run:
        from spark_rl.train.dry_run import describe, figures

        with Shown() as shown:
            shown.stage("measuring prompts")
            figured = json.dumps(figures(settings, data)) if as_json else describe(settings, data)
        for note in data.messages:  # a run says them itself
            say(note)
        if os.environ.get("RANK", "0") == "0":  # under `accelerate launch` every process comes here
            print(figured)
        return
    from accelerate.utils.memory import should_reduce_batch_size

    from spark_rl.train.loop import Trainer
    from spark_rl.train.telemetry import summary_table

    quiet_libraries()
    try:
        with Shown(bar=False) as shown:  # it warns, through a display of its own
            shown.stage("loading the model, rendering the prompts")
            trainer = Trainer(settings, data=data, resume=resume, allow_changes=allow_changes)
        summary = trainer.run()
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
            raise
        raise MemoryError(
            f"there is not enough memory ({' '.join(str(error).split())}); --dry-run says what a step takes and what "
            "to lower, and a run that has a checkpoint goes on with --resume --allow-changes"
        ) from error
    if summary is None:
        raise typer.Exit(1)
    if not trainer.accelerator.is_main_process:
        return
    if as_json:
        print(json.dumps(summary))
        return
    console = Console(emoji=False)
    if trainer.held_out.items:
        console.print(summary_table(summary))
    for finding in summary["findings"]:
        console.print(finding, highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{summary['wall_seconds']:.0f} s; the model is in {settings.train.output / 'final'}", highlight=False
    )


def _check(settings: Config, resume: bool, dry_run: bool) -> Data:
    """Everything that can be wrong and needs no torch, which takes seconds to load: output, model folder, data."""
    from spark_rl.data import load_data
    from spark_rl.train.checkpoint import RunDirectory
    from spark_rl.train.hub import check_hub_id
    from spark_rl.train.preflight import check_lengths, check_model, check_processes, trained_prompts

    check_hub_id(settings)
    check_processes(settings, int(os.environ.get("WORLD_SIZE", "1")))
    if not dry_run:
        directory = RunDirectory(settings.train.output)
        if os.environ.get("RANK", "0") == "0":  # the first of several processes may have the run already
            directory.refuse_if_at_work()
        directory.check(resume)
    check_model(settings)
    with Shown() as shown:
        data = load_data(settings, shown.track)
    check_lengths(settings, data.train.sources, data.prompts)
    if data.warm_start:
        prompts = trained_prompts(settings, data.prompts)
        check_lengths(settings, data.warm_start.sources, prompts, "warm_start.data")
    if settings.preset is None and settings.roles.answer.share == 1:
        say("no preset is named, so nothing is recycled; `preset: spark` would")
    return data
