"""What a run writes down about itself, and what it compares when it is resumed."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from spark_rl.config import Config, HealthConfig, ModelConfig, flat, load_config
from spark_rl.data.row_images import written_columns
from spark_rl.models.folder import model_folder
from spark_rl.prompts import Prompts
from spark_rl.prompts.build import prompts_as_json
from spark_rl.train.checkpoint import read_json
from spark_rl.types import Group, Role


def rollout_record(group: Group) -> dict[str, Any]:
    """A group as a row of `rollouts/`; also what `recycle` reads."""
    task = group.task
    return {
        "id": task.id,
        "role": task.role,
        **written_columns(task.messages, task.example.question, task.example.images),
        "answer": task.label,
        "verifier": task.verifier,
        **({"metadata": task.example.metadata} if task.example.metadata else {}),
        "question_id": task.example.id,
        "source": task.example.source,
        "template": task.template,
        "depth": task.depth,
        "made_at_step": task.step,
        "parents": [response.id for response in task.shown],
        "rollouts": [
            {
                "id": r.id,
                "text": r.text,
                "reward": r.reward,
                "extracted": r.extracted,
                "reason": r.reason,
                **({"detail": r.detail} if r.detail else {}),
                "finish_reason": r.finish_reason,
                "num_tokens": len(r.token_ids),
            }
            for r in group.rollouts
        ],
    }


def environment(accelerator: Accelerator, hub: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Versions and machine, for `environment.json`, and where on the Hub the model is from; see `hub_source`."""
    packages = (
        "spark-rl",
        "torch",
        "transformers",
        "accelerate",
        "tokenizers",
        "sympy",
        "math-verify",
        "pint",
        "numpy",
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        **({"model": dict(hub)} if hub else {}),
        "packages": {name: _version(name) for name in packages},
    }


def hub_source(config: ModelConfig) -> dict[str, Any] | None:
    """Id, revision and commit of a model that was loaded from the Hub; None of any other."""
    if model_folder(config.path) is not None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(config.path, "config.json", revision=config.revision)
    commit = Path(found).parent.name if isinstance(found, str) else None  # .../snapshots/<commit>/config.json
    return {"path": config.path, "revision": config.revision or "main", "commit": commit}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # spark-rl itself, run from a source folder
        return "not installed"


_HARMLESS = {
    "preset",  # the values it stands for are compared themselves
    "train.output",
    "train.trackers",
    "train.project",
    "train.sample_every",
    "train.push_to_hub",
    "train.hub_private",
    "checkpoint.every",
    "checkpoint.keep",
    "verify.workers",
    "verify.max_timeout_rate",
    *(f"health.{name}" for name in HealthConfig.model_fields),
}
"""Settings on which no result depends."""
_FIXED = {
    "model.path": "the checkpoints hold that model's weights",
    "model.revision": "the checkpoints hold that revision's weights",
    "train.seed": "data order, sampling and recycling hang on it",
    "data.": "the run's place in its questions and its held-out items hang on them",
    "prompts.templates.": "the held-out items and what waits to be asked were made with them",
    "prompts.verdict_format": "the held-out items and what waits to be asked were made with it",
    "warm_start.steps": "the numbers of all later steps hang on it",
    "warm_start.data": "the run's place in its rows hangs on it",
    "warm_start.from_rollouts": "the held-out items were made by it",
    "validation.items": "the held-out items were made when the run was begun",
    "validation.best": "the best checkpoint so far was chosen by it",
}
"""Settings (or sections) that no run can change on its way, and why."""
_FREE = {"data.max_prompt_tokens", "data.image_folder", "data.allow_image_urls"}
"""Settings in those sections that it can."""

Changes = dict[str, tuple[Any, Any]]
"""What differs between a saved run and this one: its value then and now, by key."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """How a run that goes on differs from the one that was begun."""

    changes: Changes
    """Settings, those without effect included."""
    warnings: list[str]


def resumption(
    saved: Path,
    done: int,
    config: Config,
    environment: Mapping[str, Any],
    allow_changes: bool,
    prompts: Prompts = Prompts(),
) -> Resumption:
    """Compare a saved run with the settings and the machine it is to go on with.

    Args:
        saved: the folder of the checkpoint that is resumed, which tells what the weights were trained with; the run
            directory if there is none yet.
        done: steps that the checkpoint has made.
        prompts: what the model is shown now.

    Raises:
        ValueError: a setting that changes results differs (all such are named), and `allow_changes` is off or could
            not make sense of it.
    """
    before, now = _saved_settings(saved / "config.yaml"), flat(config.model_dump(mode="json"))
    shown = read_json(saved / "prompts.json") or prompts_as_json(Prompts())
    changes = _differences(_with_prompts(before, shown), _with_prompts(now, prompts_as_json(prompts)))
    harmful = {key: change for key, change in changes.items() if key not in _HARMLESS}
    if fixed := {key: change for key, change in harmful.items() if _why_fixed(key)}:
        raise ValueError(
            f"--resume: {_described(fixed)}, which no run can change on its way "
            f"({'; '.join(dict.fromkeys(filter(None, map(_why_fixed, fixed))))}); set back what changed, or begin a "
            "new run in another train.output"
        )
    if harmful and not allow_changes:
        raise ValueError(
            f"--resume: the settings of this run have changed ({_described(harmful)}); set them back, or go on with "
            "the new ones by --allow-changes"
        )
    if config.num_steps < done:
        warm = f" beside the {config.warm_start.steps} of the warm start" if config.warm_start.steps else ""
        raise ValueError(f"--resume: train.steps is {config.train.steps}{warm}, but this run has made {done}; raise it")
    warnings = []
    if harmless := {key: change for key, change in changes.items() if key in _HARMLESS}:
        warnings.append(f"changed, without effect on results: {_described(harmless)}")
    if harmful:
        warnings.append(f"going on with changed settings, as --allow-changes asks: {_described(harmful)}")
    if moved := _differences(flat(read_json(saved / "environment.json") or {}), flat(environment)):
        warnings.append(f"not bit for bit the run that was begun, since the machine has changed: {_described(moved)}")
    return Resumption(changes, warnings)


def _with_prompts(settings: Mapping[str, Any], prompts: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with what the prompts come to in the place of the files they are of, in short."""
    kept = {key: value for key, value in settings.items() if not key.startswith("prompts.")}
    kept["data.answer_format"] = prompts["answer_format"]
    kept["prompts.verdict_format"] = prompts["verdict_format"]
    for role in Role:
        templates = [template for template in prompts["templates"] if template["role"] == role]
        names = ", ".join(template["name"] for template in templates)
        kept[f"prompts.templates.{role}"] = f"{names} {_digest(templates)}"
    for role, turns in prompts["examples"].items():
        kept[f"prompts.examples.{role}"] = f"{len(turns)} turns {_digest(turns)}"
    return kept


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _saved_settings(path: Path) -> dict[str, Any]:
    try:
        return flat(load_config(path).model_dump(mode="json"))
    except ValueError as error:
        raise ValueError(
            f"--resume: the saved settings cannot be read ({error}); mend that file, or resume with the version of "
            "spark-rl that wrote it"
        ) from None


def _why_fixed(key: str) -> str | None:
    whole = next((name for name in _FIXED if key == name or (name.endswith(".") and key.startswith(name))), None)
    return None if whole is None or key in _FREE else _FIXED[whole]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changes:
    return {
        key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)
    }


def _described(changes: Changes) -> str:
    return ", ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in changes.items())


def refuse_other_data(saved: Mapping[str, Any] | None, report: Mapping[str, Any]) -> None:
    """A run's place in its questions means nothing in other ones.

    Args:
        saved: `data.json` of the run, None if it has none yet.
        report: the same of the data as they are now.

    Raises:
        ValueError: there are other sources than when the run was begun, or one has other rows.
    """
    for part in sorted(report if saved else (), key="train".__eq__):  # last: it leaves out what the others hold out
        before, sources = (saved or {}).get(part, []), report[part]
        if len(sources) != len(before):
            old, new = ({each["source"] for each in side} for side in (before, sources))
            changes = [f"{name} is {'new' if name in new else 'gone'}" for name in sorted(old ^ new)]
            raise ValueError(
                f"--resume: data.{part} opens {len(sources)} sources, and {len(before)} when the run was begun "
                f"({', '.join(changes)}); put the data back, or begin a new run"
            )
        for then, now in zip(before, sources, strict=True):
            if then["fingerprint"] != now["fingerprint"]:
                raise ValueError(
                    f"--resume: {now['source']} has changed since the run was begun: its rows or their images, "
                    f"or which rows are left out ({then['rows']} rows then, {now['rows']} now); put the data back, or "
                    "begin a new run"
                )
