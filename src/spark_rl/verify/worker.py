"""The child process of `process.py`: grades one item after another under a CPU limit that kills even C code.

It runs as `python -m spark_rl.verify.worker FD CPU_SECONDS MEMORY_GB`. On the socket FD it reads requests, a line with
a number and a size and then as many bytes: the pickled arguments of `grade`. It answers in lines of JSON:

    "ready"                            once
    [number]                           the modules of the verifier are imported, and the clock of its first item starts
    [number, reward, reason, detail]   the verdict

Verifiers may do anything. Processes that they start do not have the socket, and one that comes back into this loop
leaves it; the alarms, signal actions and folder that they leave behind are undone. What is used here was looked up
before they could replace it.
"""

from __future__ import annotations

import math
import pickle
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from json import dumps
from os import _exit, chdir, close, getcwd, getpid, register_at_fork, set_inheritable
from socket import socket
from time import process_time
from typing import Any

from spark_rl.verify.verifiers import grade


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Have the kernel kill this process (SIGXCPU) when the block uses more CPU time; rounded up to whole seconds."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))


def _cap(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


class _Channel:
    """The socket to the parent, of this process alone."""

    def __init__(self, fd: int) -> None:
        self._fd, self._process = fd, getpid()
        self._socket = socket(fileno=fd)
        self._send = self._socket.sendall
        set_inheritable(fd, False)
        register_at_fork(after_in_child=self._close_in_child)

    def _close_in_child(self) -> None:
        with suppress(OSError):  # a verifier has closed it
            close(self._fd)

    def requests(self) -> Iterator[tuple[int, bytes]]:
        """(number, payload) of each, until the parent closes its end."""
        stream = self._socket.makefile("rb")
        while header := stream.readline():
            number, size = map(int, header.split())
            payload = stream.read(size)
            if len(payload) < size:
                return
            yield number, payload

    def tell(self, message: Any) -> None:
        if getpid() != self._process:  # a verifier has forked, and this is its child
            _exit(0)
        self._send(dumps(message).encode() + b"\n")


def main(fd: int, cpu_seconds: float, memory_gb: float) -> None:
    """Serve the socket until its other end closes."""
    _cap(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":  # elsewhere RLIMIT_AS is refused or ignored
        _cap(resource.RLIMIT_AS, int(memory_gb * 2**30))
    home, begun = getcwd(), set[str]()
    channel = _Channel(fd)
    channel.tell("ready")
    for number, payload in channel.requests():
        _restore(home)
        answer, gold, verifier, metadata = pickle.loads(payload)

        @contextmanager
        def limit(number: int = number, verifier: str = verifier) -> Iterator[None]:
            if verifier not in begun:
                begun.add(verifier)
                channel.tell([number])
            with cpu_limit(cpu_seconds):
                yield

        verdict = grade(answer, gold, verifier, metadata, limit=limit())
        channel.tell([number, verdict.reward, verdict.reason, verdict.detail])


def _restore(home: str) -> None:
    """Undo what an earlier verifier may have left that would kill or mislead the next one."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGALRM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    with suppress(OSError):
        chdir(home)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
