"""`spark-rl train` on several ranks with gloo: what torchrun does, without its own start and those of its children."""

from __future__ import annotations

import os
import subprocess
import tempfile
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore
from warm import PYTHON


def train_on_ranks(world: int, *arguments: object, cwd: Path | None = None) -> str:
    """What the ranks say on stderr, raised if one fails; no rank waits longer than three minutes for another."""
    command = [*PYTHON, "-m", "spark_rl.cli", "train", *map(str, arguments)]
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=3))
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{store.port}", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    sizes = {"WORLD_SIZE": f"{world}", "LOCAL_WORLD_SIZE": f"{world}"} if world > 1 else {}
    with tempfile.TemporaryFile("w+") as errors:
        running = []
        for rank in range(world):
            ranks = {**sizes, **address, "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} if world > 1 else {}
            running.append(subprocess.Popen(command, cwd=cwd, env=os.environ | ranks, stderr=errors))
        try:
            codes = [process.wait(timeout=300) for process in running]
        finally:
            for process in running:
                process.kill()
        errors.seek(0)
        said = errors.read()
        assert codes == [0] * world, said[-3000:]
        return said
