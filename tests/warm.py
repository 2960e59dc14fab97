"""A Python whose imports are done: a command given to it costs a fork, not the seconds that torch takes to import.

`[*PYTHON, "-m", "spark_rl.cli", ...]` stands wherever `[sys.executable, "-m", "spark_rl.cli", ...]` could. Three
processes take part: the caller's child, which runs `main`: it hands its arguments, folder, environment and streams
over, passes signals on and ends as the command does; a server, which has imported everything and run nothing; and its
fork, which is the command. Whoever comes first starts the server; all workers of a test run share it, and it ends with
them.

A command with an environment of its own gets a real interpreter, since libraries read it while they are imported.
What a fork cannot show, such as what the start of a command imports, or limits that a shell sets, is tested with
`sys.executable`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path
    from selectors import BaseSelector
    from typing import Any

PYTHON = [sys.executable, "-IS", __file__]
FOLDER = "SPARK_RL_WARM"
"""The environment variable that names the server's folder."""
HARMLESS = {
    *(FOLDER, "PATH", "PWD", "OLDPWD", "SHLVL", "_", "TERM", "COLUMNS", "LINES", "JUDGE_TOKEN"),
    *("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_USE_AGENT_STORE",),
    *("TORCHINDUCTOR_CACHE_DIR",),  # which torch sets
}
"""What may differ between the environments of the server and of a command, beside what pytest sets: no library reads it
when imported."""


def open_folder(folder: str) -> None:
    """Let commands started from here on use the server of `folder`, which lives as long as this process at most."""
    with open(f"{folder}/owner.json", "w") as file:
        json.dump({"process": os.getpid(), "environment": dict(os.environ)}, file)
    os.environ[FOLDER] = folder


def write_commands(folder: Path) -> None:
    """`python` and `spark-rl` for the PATH of a shell."""
    import shlex

    for name, arguments in (("python", ""), ("spark-rl", "-m spark_rl.cli ")):
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(PYTHON)} {arguments}"$@"\n')
        (folder / name).chmod(0o755)


def kill(process: subprocess.Popen[Any]) -> None:
    """End a command from outside, its fork as well, and wait until nothing of it is left."""
    process.kill()
    process.wait()
    with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{os.environ[FOLDER]}/socket")
        connection.sendall(bytes(4))  # ask for nothing: it is answered after what ended before
        connection.recv(1)


def main(arguments: list[str]) -> None:
    """The caller's side, of `-m module ...` and of `-c code ...`: take the command's place until it has ended."""
    connection = _connect() if arguments[:1] in (["-m"], ["-c"]) else None
    if connection is None:
        os.execv(sys.executable, [sys.executable, *arguments])
    early: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: early.append(number))
    request = {"arguments": arguments, "cwd": os.getcwd(), "umask": os.umask(0), "environment": dict(os.environ)}
    connection.sendall(len(message := json.dumps(request).encode()).to_bytes(4))
    socket.send_fds(connection, [message[:1]], [0, 1, 2])
    connection.sendall(message[1:])
    answers = connection.makefile()
    process = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(process, number))
    for number in early:
        os.kill(process, number)
    code = os.waitstatus_to_exitcode(int(answers.readline()))
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _connect() -> socket.socket | None:
    """To the server, started if need be; None where a real interpreter is called for."""
    folder = os.environ.pop(FOLDER, None)
    if folder is None or not hasattr(os, "pidfd_open"):
        return None
    with open(f"{folder}/owner.json") as file:
        environment = json.load(file)["environment"]
    names = {name for name in {*os.environ, *environment} - HARMLESS if not name.startswith("PYTEST_")}
    if any(os.environ.get(name) != environment.get(name) for name in names):
        return None
    address = f"{folder}/socket"
    with open(f"{folder}/lock", "w") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(address):
            _start(folder, address, environment)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    return connection


def _start(folder: str, address: str, environment: dict[str, str]) -> None:
    import subprocess

    with socket.socket(socket.AF_UNIX) as listener, open(f"{folder}/log", "w") as log:
        listener.bind(address)
        listener.listen(64)
        command = [sys.executable, __file__, "serve", str(listener.fileno()), folder]
        subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def serve(listener: socket.socket, owner: int) -> None:
    """Fork for every connection until `owner` has ended."""
    import selectors

    import_everything()
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(os.pidfd_open(owner), selectors.EVENT_READ, "owner")
    while True:
        events = [key for key, _ in selector.select()]
        for key in sorted(events, key=lambda key: key.fileobj is listener):  # who comes after a death finds it done
            if key.data == "owner":
                return
            if key.fileobj is listener:
                connection, _ = listener.accept()
                if fork := _fork(connection, selector):
                    for end in fork[1:]:
                        selector.register(end, selectors.EVENT_READ, fork)
            elif key.fd in selector.get_map():
                _finish(selector, *key.data)


def _fork(connection: socket.socket, selector: BaseSelector) -> tuple[int, int, int] | None:
    """Read a request and start it: its process, a file that tells its end, and the connection, which tells the end of
    who waits for it."""
    size = int.from_bytes(connection.recv(4, socket.MSG_WAITALL))
    if not size:
        connection.close()
        return None
    first, streams, _, _ = socket.recv_fds(connection, 1, 3)
    message = first + connection.recv(size - 1, socket.MSG_WAITALL)
    process = os.fork()
    if not process:
        for fd in selector.get_map():
            os.close(fd)
        connection.close()
        run(streams, **json.loads(message))
    for stream in streams:
        os.close(stream)
    with suppress(OSError):  # who asked may be gone already
        connection.sendall(f"{process}\n".encode())
    return process, os.pidfd_open(process), connection.detach()


def _finish(selector: BaseSelector, process: int, ended: int, connection: int) -> None:
    os.kill(process, signal.SIGKILL)  # nobody waits for it any more, if it has not ended by itself
    _, status = os.waitpid(process, 0)
    with suppress(OSError):
        os.write(connection, f"{status}\n".encode())
    for end in (ended, connection):
        selector.unregister(end)
        os.close(end)


def import_everything() -> None:
    """Every module of the package, and what only the work itself would import."""
    import gc
    import importlib
    import pkgutil
    import weakref

    import spark_rl

    gc.disable()
    for module in pkgutil.walk_packages(spark_rl.__path__, "spark_rl."):
        if not module.name.endswith("__main__"):
            with suppress(ImportError):  # of an extra that is not installed
                importlib.import_module(module.name)
    for finalizer in [*weakref.finalize._registry]:
        finalizer.atexit = False  # torch takes all its operators apart, which copies a tenth of its memory
    gc.collect()
    gc.freeze()  # a collection would copy all of it
    gc.enable()


def run(streams: list[int], arguments: list[str], cwd: str, umask: int, environment: dict[str, str]) -> None:
    """Be the command: start, run and leave as an interpreter does."""
    import atexit
    import runpy
    import threading
    import traceback
    import types

    code, interrupted = 1, False
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.chdir(cwd)
        os.umask(umask)
        os.environ.clear()
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        option, what, *rest = arguments
        sys.path[0] = cwd if option == "-m" else ""
        sys.argv = [option, *rest]
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = script = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), script.__dict__)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        interrupted = isinstance(error, KeyboardInterrupt)
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        try:
            if not sys.stdout.closed:
                sys.stdout.flush()
        except OSError:
            code = 120
        if interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        with open(f"{sys.argv[3]}/owner.json") as file:
            owner = json.load(file)["process"]
        serve(socket.socket(fileno=int(sys.argv[2])), owner)
    else:
        main(sys.argv[1:])
