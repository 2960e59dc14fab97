"""The `spark-rl` command: one file a verb, imported when it is used."""

from __future__ import annotations

import sys

import typer
from click.exceptions import ClickException
from rich.console import Console

from spark_rl import __version__
from spark_rl.cli.train import train

app = typer.Typer(
    name="spark-rl",
    help="Train a solver and a judge in one reinforcement-learning run (SPARK, arXiv 2509.22624).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command. Exit code 0: done, 1: failed or stopped, 2: usage or bad input, one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    errors = Console(stderr=True)
    try:
        code = app(args=[a for a in arguments if a != "--debug"], standalone_mode=False)
    except ClickException as error:
        error.show()
        code = 2
    except ValueError as error:
        if debug:
            raise
        errors.print(
            f"spark-rl: {' '.join(str(error).split())}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        code = 2
    except KeyboardInterrupt:
        code = 1
    sys.exit(code or 0)
