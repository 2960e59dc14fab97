"""The child process of `pool.py`: grades one item after another under a CPU limit that kills even C code.

It runs as `python -m spark_rl.verify.worker FD CPU_SECONDS MEMORY_GB`, reads pickled arguments of `grade` from the
connection FD and writes a `Verdict` for each, until the connection closes.
"""

from __future__ import annotations

import math
import pickle
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from spark_rl.verify.verifiers import grade


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Have the kernel kill this process (SIGXCPU) when the block uses more CPU time; rounded up to whole seconds."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))


def _cap(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def main(fd: int, cpu_seconds: float, memory_gb: float) -> None:
    """Serve the connection until its other end closes."""
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    _cap(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":  # elsewhere RLIMIT_AS is refused or ignored
        _cap(resource.RLIMIT_AS, int(memory_gb * 2**30))
    with Connection(fd) as connection:
        connection.send_bytes(b"ready")
        while True:
            try:
                answer, gold, verifier, metadata = pickle.loads(connection.recv_bytes())
            except EOFError:
                return
            connection.send(grade(answer, gold, verifier, metadata, limit=cpu_limit(cpu_seconds)))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
