"""What a run writes down about itself, and what it compares when it is resumed."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from spark_rl.config import Config
from spark_rl.types import Group


def rollout_record(group: Group) -> dict[str, Any]:
    """A group as a row of `rollouts/`; also what `recycle` reads."""
    task = group.task
    return {
        "id": task.id,
        "role": task.role,
        "prompt": [dict(message) for message in task.messages],
        "answer": task.label,
        "verifier": task.verifier,
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
                "finish_reason": r.finish_reason,
                "num_tokens": len(r.token_ids),
            }
            for r in group.rollouts
        ],
    }


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Versions and machine, for `environment.json`."""
    packages = ("spark-rl", "torch", "transformers", "accelerate", "tokenizers", "math-verify", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "packages": {name: metadata.version(name) for name in packages},
    }


_MAY_CHANGE = ("checkpoint.every", "checkpoint.keep", "train.output", "verify.workers")


def refuse_changes(saved: Path, config: Config) -> None:
    """A resumed run must be the run that was stopped.

    Raises:
        ValueError: a setting that changes results differs from the saved config; all such are named.
    """
    old, new = (_flat(values) for values in (yaml.safe_load(saved.read_text()), yaml.safe_load(config.dump())))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    changed = [key for key in changed if key not in _MAY_CHANGE]
    if changed:
        differences = ", ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in changed)
        raise ValueError(f"--resume: the settings of this run have changed ({differences}); set them back")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
