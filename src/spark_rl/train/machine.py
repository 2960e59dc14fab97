"""What this machine has: memory of the device that a process will train on, and how many processes share it."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def ram_bytes() -> int:
    """Memory of the machine, or of the container if that is less."""
    import psutil

    sizes = [int(psutil.virtual_memory().total)]
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # no such file, or "max"
            sizes.append(int(Path(path).read_text()))
    return min(sizes)


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_disk_bytes(path: Path) -> int:
    """Free space where a path lies or will lie."""
    path = path.absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def num_processes() -> int:
    """Processes of this run, as `accelerate launch` and `torchrun` say."""
    return int(os.environ.get("WORLD_SIZE", 1))


def device_memory() -> tuple[str, int]:
    """The kind of device that one process trains on, and the bytes it has for itself."""
    import torch

    if torch.cuda.is_available():
        return "cuda", int(torch.cuda.get_device_properties(0).total_memory)
    if torch.backends.mps.is_available():
        return "mps", int(torch.mps.recommended_max_memory())
    return "cpu", ram_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
