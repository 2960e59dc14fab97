"""`spark-rl train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spark_rl.config import load_config


def train(
    config: Annotated[Path, typer.Argument(help="YAML config; see recipes/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, on top of the file.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run directory's newest checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved config, a step's arithmetic and prompts of each role.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Train a model as policy, judge and reflector.

    Examples:

        spark-rl train recipes/quickstart.yaml

        spark-rl train recipes/quickstart.yaml preset=grpo train.output=runs/grpo train.seed=1

        spark-rl train recipes/quickstart.yaml --resume
    """
    settings = load_config(config, overrides or [])
    if dry_run:
        from spark_rl.train.dry_run import describe

        print(describe(settings))
        return
    from spark_rl.train.loop import Trainer
    from spark_rl.train.telemetry import summary_table

    _quiet_libraries()
    trainer = Trainer(settings, resume=resume)
    summary = trainer.run()
    if summary is None:
        raise typer.Exit(1)
    if not trainer.accelerator.is_main_process:
        return
    if as_json:
        print(json.dumps(summary))
        return
    console = Console()
    if trainer.items:
        console.print(summary_table(summary))
    console.print(
        f"{summary['wall_seconds']:.0f} s; the model is in {settings.train.output / 'final'}", highlight=False
    )


def _quiet_libraries() -> None:
    """Keep the progress bars and hints of libraries out of our own display."""
    import logging

    import transformers

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
