"""A fork of the warm interpreter is to its caller what an interpreter of its own would be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from warm import PYTHON, kill

SCRIPTS = {
    "streams": "import sys; print(sys.stdin.read().upper()); print('ö\\udc80', file=sys.stderr)",
    "place": "import os, sys; print(os.getcwd(), sys.argv, sys.path[0], os.umask(0), os.environ.get('COLUMNS'))",
    "main": "import sys; f = 1; print(__name__, sys.modules['__main__'].f, sys.stdout.isatty())",
    "code": "import sys; sys.exit(3)",
    "message": "import sys; sys.exit('no')",
    "at exit": "import atexit; atexit.register(print, 'bye'); print('hi')",
    "thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "interrupted": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "module": ["-m", "json.tool", "--compact"],
    "nothing": ["-c", ""],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_does_what_python_does(name: str, tmp_path: Path) -> None:
    script = SCRIPTS[name]
    arguments = ["-c", script, "a", "--b"] if isinstance(script, str) else script
    environment = {**os.environ, "COLUMNS": "77"}
    seen = []
    for python in (PYTHON, [sys.executable]):
        done = subprocess.run(
            [*python, *arguments], input='{"a": 1}', cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        seen.append((done.returncode, done.stdout, "" if name == "interrupted" else done.stderr))
    assert seen[0] == seen[1]


def test_it_is_warm_and_runs_where_an_environment_is_its_own() -> None:
    code = "import os, sys; print('torch' in sys.modules, os.environ.get('HF_HOME'))"
    own = {**os.environ, "HF_HOME": "/nowhere"}
    said = [
        subprocess.run([*PYTHON, "-c", code], env=env, capture_output=True, text=True).stdout for env in (None, own)
    ]
    assert said[0].startswith("True ") and said[1] == "False /nowhere\n"


def test_an_uncaught_error_is_shown() -> None:
    done = subprocess.run([*PYTHON, "-c", "1 / 0"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_signals_reach_it_and_nothing_outlives_its_caller(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    code = f"""if True:
        import pathlib, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        pathlib.Path({str(alive)!r}).touch()
        while True:
            time.sleep(0.01)
            pathlib.Path({str(alive)!r}).touch()
    """
    for end, expected in ((lambda process: process.send_signal(signal.SIGTERM), 7), (kill, -signal.SIGKILL)):
        alive.unlink(missing_ok=True)
        with subprocess.Popen([*PYTHON, "-c", code]) as process:
            late = time.monotonic() + 60
            while not alive.exists():
                assert process.poll() is None and time.monotonic() < late
                time.sleep(0.01)
            end(process)
            assert process.wait() == expected
        alive.unlink()
        time.sleep(0.05)
        assert not alive.exists()
