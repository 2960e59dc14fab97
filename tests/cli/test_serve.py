"""`spark-rl serve`: the real command with the base that ships, from its start to SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from spark_rl.infer import Judge

COMMAND = [sys.executable, "-m", "spark_rl.cli", "serve", "embedded", "--port", "0", "--token-env", "JUDGE_TOKEN"]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "JUDGE_TOKEN": "open sesame"}
    command = [*COMMAND, "--max-new-tokens", "40", "serve.max_batch=8"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_a_served_judge_judges_as_the_judge_does_and_stops_when_told(process, embedded_judge: Judge):
    line = process.stderr.readline()
    (url,) = re.findall(r"serving embedded at (http://127\.0\.0\.1:\d+);", line)
    items = [(f"What is {i}+4?", rf"It is \boxed{{{i + 4 + i % 2}}}.") for i in range(24)]
    with httpx.Client(base_url=url, headers={"Authorization": "Bearer open sesame"}, timeout=60) as client:
        end = time.monotonic() + 60
        while client.get("/health").json() != {"ready": True, "model": "embedded", "queue": 0}:
            assert time.monotonic() < end
        with ThreadPoolExecutor(8) as threads:
            bodies = [{"question": question, "response": response} for question, response in items]
            replies = list(threads.map(lambda body: client.post("/score", json=body).json(), bodies))
        expected = [verdict.columns() for verdict in embedded_judge.score_all(items)]
        assert [reply["verdict"] for reply in replies] == [row["verdict"] for row in expected]
        for reply, row in zip(replies, expected, strict=True):
            assert reply["probability"] == pytest.approx(row["probability"], abs=2e-5)
        assert httpx.post(f"{url}/score", json=bodies[0]).status_code == 401
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert process.stderr.read() == ""


@pytest.fixture(scope="module")
def embedded_judge() -> Judge:

    return Judge.open("embedded", "engine.max_new_tokens=40")


def test_without_fastapi_the_extra_is_named():
    code = "import sys; sys.modules['fastapi'] = None; from spark_rl.cli import main; main(['serve', 'embedded'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install 'spark-rl[serve]'" in done.stderr and done.stderr.count("\n") == 1
