"""`spark-rl doctor`: what is installed, what this machine can run, and what to install for what. With a model it tries
that instead (`doctor_model.py`)."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from spark_rl import __version__
from spark_rl.cli.rows import file_and_settings
from spark_rl.progress import Shown

Status = Literal["ok", "warning", "missing", "broken"]
"""`missing` is optional and not there; `broken` keeps training from working."""

_STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "missing": "dim", "broken": "bold red"}
_SHOWN = ("torch", "transformers", "accelerate", "datasets", "math-verify", "reasoning-gym")
"""Requirements that always get a line; others only when something is wrong with them."""
_OPTIONAL = (
    ("flash-attn", "model.attn_implementation: flash_attention_2", "pip install flash-attn --no-build-isolation"),
    ("wandb", "train.trackers: [wandb]", "pip install wandb"),
    ("trackio", "train.trackers: [trackio]", "pip install trackio"),
    ("tensorboard", "train.trackers: [tensorboard]", "pip install tensorboard"),
    ("vllm", "engine.kind=vllm", "pip install 'spark-rl[vllm]'"),
    ("fastapi", "spark-rl serve", "pip install 'spark-rl[serve]'"),
)
"""Package, what it is for, how to install it."""
_LITTLE_DISK = 5 * 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One line."""

    section: str
    name: str
    status: Status
    text: str
    fix: str = ""
    """What to do about it."""


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A model folder, a Hub id, embedded, or http://..., to be tried on --data.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value of a run, and of engine, for the trial.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Questions: whatever data.train takes, or the YAML config of a run.")
    ] = None,
    questions: Annotated[int, typer.Option(help="How many the model is asked.", min=1)] = 16,
    samples: Annotated[int, typer.Option(help="Replies to each.", min=2)] = 8,
    seconds: Annotated[float, typer.Option(help="What a trial may take; replies are cut to keep to it.")] = 600.0,
    out: Annotated[Path | None, typer.Option(help="File for the config, instead of standard output.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Without a model: do not try the embedded one.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Check this installation and this machine; or ask whether a model could learn from questions.

    Without a model: exit code 1 if training would not work.

    With one it samples replies to a few questions, and says how the model
    states its answers, how often it is right, whether it can judge, what a step
    takes here, and whether RL could learn. The config to start from goes to
    standard output, what is said to standard error.

    Examples:

        spark-rl doctor

        spark-rl doctor --quick --json

        spark-rl doctor embedded --data embedded:train

        spark-rl doctor Qwen/Qwen2.5-1.5B-Instruct --data questions.jsonl rollout.max_new_tokens=512 > run.yaml

        spark-rl doctor my/model --data "{path: reasoning_gym:chain_sum, options: {max_terms: 2}}" --out run.yaml

        spark-rl doctor --data run.yaml --json
    """
    model, settings = file_and_settings(model, overrides)
    if model or data or settings:
        from spark_rl.cli.doctor_model import try_model

        try_model(
            model, data, settings, questions=questions, samples=samples, seconds=seconds, out=out, as_json=as_json
        )
        return
    findings = []
    console = Console(emoji=False)
    for finding in examine(quick):
        findings.append(finding)
        if not as_json:
            _print(console, finding)
    broken = [finding.name for finding in findings if finding.status == "broken"]
    if as_json:
        print(json.dumps(as_object(findings)))
    elif broken:
        console.print(f"\nTraining would not work here: {', '.join(broken)}; see above what to do.", style="bold red")
    else:
        tried = "Nothing is broken; leave out --quick to try a model." if quick else "Training works here."
        console.print(f"\n{tried}", style="green", highlight=False)
    if broken:
        raise typer.Exit(1)


def examine(quick: bool = False) -> Iterator[Finding]:
    """All findings, each as soon as it is known."""
    yield Finding("packages", "spark-rl", "ok", f"{__version__}, Python {platform.python_version()}")
    yield from _requirements()
    yield from _optional()
    yield from _machine()
    reinstall = "pip install --force-reinstall torch transformers accelerate"
    yield from _guarded("machine", "devices", reinstall, _devices)
    yield from _guarded("settings", "precision", reinstall, _settings)
    yield from _guarded("settings", "Hub token", "pip install -U huggingface-hub", _hub_token)
    yield from _guarded("works", "verifier", "pip install --force-reinstall sympy pint", _verifier)
    if not quick:
        yield from _guarded("works", "model", reinstall, _model)


def as_object(findings: Iterable[Finding]) -> dict[str, Any]:
    """`{"ok": bool, section: {name: {"status", "text", "fix"}}}`."""
    result: dict[str, Any] = {"ok": True}
    for f in findings:
        result["ok"] = result["ok"] and f.status != "broken"
        result.setdefault(f.section, {})[f.name] = {"status": f.status, "text": f.text, "fix": f.fix}
    return result


def _print(console: Console, finding: Finding) -> None:
    fix = f"  ->  {finding.fix}" if finding.fix else ""
    line = f"{finding.status:<9}{finding.name:<16}{finding.text}{fix}"
    console.print(line, style=_STYLES[finding.status], markup=False, highlight=False, soft_wrap=True)


def _guarded(section: str, name: str, fix: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of a check; if it raises, that is the finding."""
    try:
        with Shown() as shown:
            shown.stage(f"looking at {name}")
            return list(check())
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")
        return [Finding(section, name, "broken", f"{type(error).__name__}: {line}", fix)]


def _requirements() -> Iterator[Finding]:
    """What the distribution needs, in the versions it needs; nothing is imported."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(text) for text in metadata.requires("spark-rl") or []]
    except metadata.PackageNotFoundError:
        yield Finding("packages", "installation", "warning", "run from a folder, not installed", "pip install spark-rl")
        needed = [Requirement(name) for name in _SHOWN]
    for need in needed:
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        version = _version(need.name)
        if version is None:
            yield Finding("packages", need.name, "broken", "not installed, but needed", f"pip install '{need}'")
        elif not need.specifier.contains(version, prereleases=True):
            text = f"{version}, but {need.specifier} is needed"
            yield Finding("packages", need.name, "broken", text, f"pip install -U '{need}'")
        elif need.name in _SHOWN:
            yield Finding("packages", need.name, "ok", version)


def _optional() -> Iterator[Finding]:
    for name, purpose, fix in _OPTIONAL:
        if version := _version(name):
            yield Finding("optional", name, "ok", f"{version}  for {purpose}")
        else:
            yield Finding("optional", name, "missing", f"for {purpose}", fix)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> Iterator[Finding]:
    from spark_rl.train import machine
    from spark_rl.train.estimate import readable

    free = machine.free_disk_bytes(Path())
    memory = readable(machine.ram_bytes())
    yield Finding("machine", "CPU", "ok", f"{machine.num_cores()} cores, {memory} memory, {platform.machine()}")
    if free < _LITTLE_DISK:
        fix = "checkpoints take 12 bytes a parameter each; set train.output to a larger disk"
        yield Finding("machine", "disk", "warning", f"{readable(free)} free here", fix)
    else:
        yield Finding("machine", "disk", "ok", f"{readable(free)} free here")


def _devices() -> Iterator[Finding]:
    import torch

    from spark_rl.models.load import has_bfloat16
    from spark_rl.train import machine
    from spark_rl.train.estimate import largest_model, readable

    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bf16 = "bfloat16" if has_bfloat16() else "no bfloat16"
        yield Finding("machine", f"GPU {index}", "ok", f"{device.name}, {readable(device.total_memory)}, {bf16}")
    if torch.backends.mps.is_available():
        yield Finding("machine", "GPU", "ok", "Apple MPS")
    elif not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        fix = "install the CUDA build of torch (pytorch.org) or update the driver"
        yield Finding("machine", "GPU", "warning", f"an NVIDIA driver, which torch {torch.__version__} cannot use", fix)
    elif not torch.cuda.is_available():
        yield Finding("machine", "GPU", "missing", "none that torch can use; small models train on the CPU")
    kind, memory = machine.device_memory()
    largest = largest_model(memory, dtype_bytes=2 if kind == "cuda" else 4, on_accelerator=kind != "cpu")
    size = f"about {largest / 1e9:.1g}" if largest < 1e9 else f"about {largest / 1e9:.2g}"
    text = f"{size} billion parameters on one device ({kind}, {readable(memory)}): 16 bytes each, and activations"
    yield Finding("machine", "full fine-tune", "ok", f"up to {text} of 4,096 tokens with checkpointing")


def _settings() -> Iterator[Finding]:
    import torch

    from spark_rl.config import ModelConfig
    from spark_rl.train import machine
    from spark_rl.train.model import mixed_precision

    dtype = "bfloat16, weights in float32" if mixed_precision(ModelConfig()) == "bf16" else "float32"
    yield Finding("settings", "model.dtype", "ok", f"auto is {dtype}")
    attention = "null is sdpa, or eager for a model without it"
    yield Finding("settings", "attention", "ok", attention)
    threads, cores, asked = torch.get_num_threads(), machine.num_cores(), os.environ.get("OMP_NUM_THREADS")
    text = f"{threads} for torch on {cores} cores, OMP_NUM_THREADS is {asked or 'not set'}"
    if threads > cores:
        yield Finding("settings", "threads", "warning", text, f"export OMP_NUM_THREADS={cores}")
    elif threads > 1 and not asked and not torch.accelerator.is_available():
        fix = "set OMP_NUM_THREADS=1 or train.threads if other work shares the cores: torch may slow down many times"
        yield Finding("settings", "threads", "warning", text, fix)
    else:
        yield Finding("settings", "threads", "ok", text)


def _hub_token() -> Iterator[Finding]:
    from huggingface_hub import get_token

    if get_token():
        yield Finding("settings", "Hub token", "ok", "present")
    else:
        yield Finding("settings", "Hub token", "missing", "for gated models and train.push_to_hub", "hf auth login")


def _verifier() -> Iterator[Finding]:
    from spark_rl.verify import Check, VerifierPool, box

    started = time.monotonic()
    with VerifierPool() as pool:
        (verdict,) = pool.verify([Check(box(r"\frac12"), "0.5")])
    seconds = time.monotonic() - started
    what = rf"a worker started and graded \boxed{{\frac12}} against 0.5 in {seconds:.1f} s"
    if verdict.reward == 1:
        yield Finding("works", "verifier", "ok", what)
    else:
        fix = "pip install --force-reinstall sympy pint"
        yield Finding("works", "verifier", "broken", f"{what}, wrongly ({verdict.reason})", fix)


def _model() -> Iterator[Finding]:
    import torch
    import transformers

    from spark_rl.config import ModelConfig
    from spark_rl.models.load import load_model, load_tokenizer
    from spark_rl.prompts import ChatRenderer
    from spark_rl.rollout.engine import Request
    from spark_rl.rollout.transformers_engine import TransformersEngine

    transformers.utils.logging.disable_progress_bar()
    started = time.monotonic()
    tokenizer, model = load_tokenizer(ModelConfig()), load_model(ModelConfig())
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    prompt_ids = ChatRenderer(tokenizer).encode([{"role": "user", "content": "What is 1 + 1?"}])
    request = Request("doctor", tuple(prompt_ids), n=1, max_new_tokens=1)
    ((completion,),) = TransformersEngine(model.to(device), tokenizer).generate([request])
    assert len(completion.token_ids) == 1
    attention = model.config._attn_implementation
    seconds = time.monotonic() - started
    yield Finding("works", "model", "ok", f"the embedded one gave a token on {device} ({attention}) in {seconds:.1f} s")
