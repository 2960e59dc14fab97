"""`spark-rl eval`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spark_rl.cli.model import deciding, folder_of, open_model
from spark_rl.cli.rows import RIGHT_AT, check_right_at, say
from spark_rl.progress import Shown

if TYPE_CHECKING:
    from spark_rl.config import Inference

ALL = "greedy,sample,reflect,majority@32,best-of-8,weighted-vote@8,tournament@8"


def evaluate(
    model: Annotated[str, typer.Argument(help="A run's final/, a model folder, a Hub id, embedded, or http://...")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value of engine, judge, solve.")] = None,
    suite: Annotated[
        str,
        typer.Option(help="embedded, embedded:test, embedded:vision-test, paper-text, paper-vision, a set, a JSONL."),
    ] = "embedded",
    local: Annotated[list[str] | None, typer.Option(help="NAME=PATH: your copy of a published set.")] = None,
    verifier: Annotated[
        str, typer.Option(help="Of rows of a JSONL that name none; the only function that rows may name.")
    ] = "math",
    right_at: Annotated[float, typer.Option(help=RIGHT_AT)] = 1.0,
    out: Annotated[Path, typer.Option(help="Folder for results.json, samples.jsonl and report.md.")] = Path("eval"),
    baseline: Annotated[str | None, typer.Option(help="A second model, to compare with on the same items.")] = None,
    strategies: Annotated[str, typer.Option(help="Separated by commas; all takes every one.")] = "greedy,reflect",
    seeds: Annotated[int, typer.Option(help="Times that strategies which sample are run.", min=1)] = 1,
    blind: Annotated[bool, typer.Option("--blind", help="Paint all images white: what is answered unseen?")] = False,
    limit: Annotated[int | None, typer.Option(help="Only so many items of each part.", min=1)] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad rows and images out, and count them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json instead of the report.")] = False,
) -> None:
    """Measure how well a model answers, judges, corrects itself and chooses.

    Writes every item to samples.jsonl as it is finished; called again with
    the same settings, it goes on where it was stopped. In another folder it
    starts anew.

    Examples:

        spark-rl eval runs/quickstart/final --baseline embedded --out eval/quickstart

        spark-rl eval runs/quickstart/final --suite embedded:test --strategies all --seeds 3

        spark-rl eval runs/quickstart-vision/final --suite embedded:vision-test --blind

        spark-rl eval Qwen/Qwen2.5-7B-Instruct --suite paper-text --local gsm8k=data/gsm8k

        spark-rl eval http://127.0.0.1:8000/v1 --suite held_out.jsonl engine.max_new_tokens=2048

        spark-rl eval runs/mine/final --suite held_out.jsonl --verifier trl:rewards:stars --right-at 4
    """
    from spark_rl.config import load_inference
    from spark_rl.evaluate.suites import blinded, open_suite
    from spark_rl.infer.strategies import parse_strategy
    from spark_rl.models.prompts import prompts_for
    from spark_rl.prompts.build import prompts_as_json
    from spark_rl.verify import VerifierPool

    check_right_at(right_at)
    names = (ALL if strategies == "all" else strategies).split(",")
    for name in names:
        parse_strategy(name)
    models = {"model": model, **({"baseline": baseline} if baseline else {})}
    settings = {label: load_inference(overrides or [], model={"path": path}) for label, path in models.items()}
    weights = {label: _weights(folder_of(each)) for label, each in settings.items()}
    prompts = prompts_for(settings["model"])
    notes = []
    if baseline and prompts_for(settings["baseline"]) != prompts:
        notes.append(
            f"baseline: {baseline} is asked in the prompts of {model}, which are not its own; how it does in its own "
            "is told by an evaluation of it alone"
        )
    with VerifierPool.of(settings["model"].verify) as pool:
        with Shown() as shown:
            shown.stage(f"opening {suite}")
            opened = open_suite(
                suite,
                pool,
                limit,
                _copies(local or []),
                skip_bad=skip_bad,
                verifier=verifier,
                right_at=right_at,
                prompts=prompts,
            )
        if blind and not opened.has_images:
            raise ValueError(f"--blind: {suite} has no images; leave it out")
        if opened.has_images:
            _check_they_take_images(suite, settings.values())
        opened = blinded(opened) if blind else opened
        described = {
            "models": models,
            "weights": weights,
            "suite": opened.name,
            "verifier": verifier,
            "right_at": right_at,
            "items": _digest(opened),
            "limit": limit,
            "local": local or [],
            "settings": deciding(settings["model"]),
            "prompts": prompts_as_json(prompts),
        }
        _check_free(out, described)
        from spark_rl.evaluate.report import markdown
        from spark_rl.evaluate.runner import Runner, Samples
        from spark_rl.evaluate.summary import summarise
        from spark_rl.evaluate.unread import unread_notes

        skipped = dict(opened.skipped)
        samples, started = Samples(out / "samples.jsonl"), time.monotonic()
        with Shown() as shown:
            for label, each in settings.items():
                shown.stage(f"loading {models[label]}")
                chat = open_model(each, prompts)
                chat.told = shown.part
                _claim(out, described)
                runner = Runner(label, chat, each, pool, samples, _told(shown, models[label]), right_at)
                renderable = runner.renderable(opened, skip_bad)
                skipped |= renderable.skipped
                runner.run(renderable, names, seeds)
                del runner, chat  # there may be room for one model only
                if not each.is_remote:
                    from accelerate.utils import release_memory

                    release_memory()
        notes += unread_notes(samples.rows, opened.questions, prompts.answer_format, pool, right_at)
    counts = {source: len(reasons) for source, reasons in skipped.items()}
    results = {
        **described,
        "skipped": counts,
        "notes": notes,
        **summarise(samples.rows),
        "wall_seconds": time.monotonic() - started,
    }
    page = markdown(results)
    _write(out / "results.json", json.dumps(results, indent=1) + "\n")
    _write(out / "report.md", page)
    print(json.dumps(results) if as_json else page)
    for source, reasons in skipped.items():
        say(f"rows of {source} that are left out: {len(reasons):,}; the first one: {reasons[0]}")
    say(f"{len(samples.rows):,} items in {out / 'samples.jsonl'}")


def _told(shown: Shown, model: str) -> Callable[[str, int, int], None]:
    """What a runner tells of its parts, of which each is a stage."""
    reports: dict[str, Callable[[float, float | None], None]] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in reports:
            reports[what] = shown.stage(f"{model}: {what}", total, "items")
        reports[what](done, total)

    return show


def _check_they_take_images(suite: str, settings: Iterable[Inference]) -> None:
    """All of them before the first is asked anything, which may take hours.

    Raises:
        ValueError: a model takes no images.
    """
    from spark_rl.models.folder import is_surely_text_only

    models = [each.model for each in settings if not each.is_remote]
    without = [model for model in models if is_surely_text_only(model.path)]
    if not without:
        from spark_rl.models.processor import is_vision_language  # knows it of all models, after seconds of imports

        without = [model for model in models if not is_vision_language(model)]
    if without:
        raise ValueError(
            f"--suite {suite}: asks about images, and {without[0].path} takes none; name a vision-language model, "
            "or choose a suite of text such as paper-text"
        )


def _weights(folder: Path | None) -> str | None:
    """What tells a folder's files from those of another training; None for a server or the Hub."""
    if folder is None:
        return None
    files = sorted(folder.glob("*.safetensors"))
    return _digest([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def _digest(what: Any) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def _copies(local: Sequence[str]) -> dict[str, Path]:
    """Of `NAME=PATH` options."""
    copies = {}
    for option in local:
        name, equals, path = option.partition("=")
        if not equals or not Path(path).exists():
            raise ValueError(f"--local {option}: " + (f"there is no {path}" if equals else "must be NAME=PATH"))
        copies[name] = Path(path)
    return copies


def _check_free(out: Path, described: dict[str, Any]) -> None:
    """See that the folder is new or empty, or that what was begun in it was the same evaluation.

    Raises:
        ValueError: it holds something else.
    """
    known = out / "evaluation.json"
    if known.exists():
        before = dict(_named(_read(known)))
        now = dict(_named(described))
        if different := [name for name in before | now if before.get(name) != now.get(name)]:
            raise ValueError(
                f"--out {out}: holds another evaluation, where {different[0]} was {before.get(different[0])!r:.60}; "
                "name another folder, or remove this one"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: is no empty folder and holds no evaluation; name another")


def _read(known: Path) -> dict[str, Any]:
    try:
        described = json.loads(known.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{known}: cannot be read ({error}); remove that folder, or name another with --out") from None
    return described if isinstance(described, dict) else {}


def _named(described: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in it, by a name such as `settings.engine.max_new_tokens`."""
    for key, value in described.items():
        if isinstance(value, Mapping):
            yield from _named(value, f"{above}{key}.")
        else:
            yield above + key, value


def _claim(out: Path, described: dict[str, Any]) -> None:
    """Make the folder, and write down which evaluation it holds.

    Raises:
        ValueError: the folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "evaluation.json", json.dumps(described, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}); name another folder") from None


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial_file = path.with_name(path.name + ".partial")
    partial_file.write_text(text, encoding="utf-8")
    partial_file.replace(path)
