"""The `spark-rl` command: one file a verb, which imports what is slow when it is run."""

from __future__ import annotations

import atexit
import gc
import sys

import typer
from rich.console import Console

from spark_rl import __version__
from spark_rl.cli.data import data
from spark_rl.cli.doctor import doctor
from spark_rl.cli.eval import evaluate
from spark_rl.cli.judge import judge
from spark_rl.cli.recycle import recycle
from spark_rl.cli.serve import serve
from spark_rl.cli.solve import solve
from spark_rl.cli.train import train
from spark_rl.cli.verify import verify
from spark_rl.verify import VerifierHangs

app = typer.Typer(
    name="spark-rl",
    help="Train a solver and a judge in one reinforcement-learning run (SPARK, arXiv 2509.22624). Exit codes: 0 done, "
    "1 failed or stopped, 2 usage or bad input.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.add_typer(data, name="data")
app.command()(verify)
app.command()(recycle)
app.command("eval")(evaluate)
app.command()(judge)
app.command()(solve)
app.command()(serve)
app.command()(doctor)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error; may stand anywhere."),
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command and leave the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    # the interpreter looks for garbage among all modules at every 700 new objects and once more at the end: a second of
    # importing torch and transformers, and another of leaving
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    try:
        app(args=[a for a in arguments if a != "--debug"])
    except SystemExit as leaving:
        if leaving.code != 130:
            raise
        _say("interrupted" + "; a run that has a checkpoint goes on with --resume" * ("train" in arguments))
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        kind = "" if isinstance(error, (ValueError, VerifierHangs)) else f"{type(error).__name__}: "
        _say(f"{kind}{' '.join(str(error).split())}")
        sys.exit(2 if isinstance(error, ValueError) else 1)


def _say(text: str) -> None:
    Console(stderr=True, emoji=False).print(
        f"spark-rl: {text}", style="red", markup=False, highlight=False, soft_wrap=True
    )
