"""Uploading to a small server that plays the Hub, to one that refuses, and to none."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from spark_rl.config import config_from
from spark_rl.train.hub import check_hub_id, is_hub_id, warn_without_token


class Hub(BaseHTTPRequestHandler):
    """The endpoints that `create_repo` and `upload_folder` call: create, validate the card, preupload, commit."""

    server: HubServer

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = f"{self.server.url}/me/solver"
        if self.server.refuses or self.headers.get("Authorization") != "Bearer hf_test":
            self._answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer(200, {"url": url})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif self.path == "/api/models/me/solver/preupload/main":
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._answer(200, {"files": files})
        elif self.path == "/api/models/me/solver/commit/main":
            lines = [json.loads(line) for line in body.splitlines()]
            for line in lines:
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{url}/commit/{'0' * 40}"})
        else:
            self._answer(404, {"error": self.path})

    def do_GET(self) -> None:
        self._answer(401 if self.server.refuses else 404, {"error": "none"})

    def _answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class HubServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.refuses = False
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


SMALL = [
    "preset=grpo",
    "rollout.groups_per_step=2",
    "rollout.num_generations=2",
    "rollout.max_new_tokens=8",
    "train.threads=1",
    "train.steps=1",
    "data.train={path: embedded:train, size: 20}",
]


def train(folder: Path, endpoint: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the Hub's address is read when its library is imported."""
    (folder / "config.yaml").write_text("{}")
    command = [sys.executable, "-m", "spark_rl.cli", "train", str(folder / "config.yaml"), *SMALL]
    run = [*command, f"train.output={folder / 'run'}", "train.push_to_hub=me/solver", *overrides]
    return subprocess.run(run, capture_output=True, text=True, timeout=120, env=environment(folder, endpoint))


def environment(folder: Path, endpoint: str) -> dict[str, str]:
    home = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    return {**os.environ, **home}


def push(final: Path, endpoint: str, **settings: Any) -> tuple[list[str], list[str]]:
    """What `push` says and warns of a folder, in a process of its own as well."""
    code = (
        "import json, sys; from pathlib import Path\n"
        "from spark_rl.config import config_from; from spark_rl.train.hub import push\n"
        "said, warned = [], []\n"
        "push(Path(sys.argv[1]), config_from(json.loads(sys.argv[2])), said.append, warned.append)\n"
        "print(json.dumps([said, warned]))"
    )
    train = json.dumps({"train": {"push_to_hub": "me/solver", **settings}})
    command = [sys.executable, "-c", code, str(final), train]
    env = environment(final.parent, endpoint)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    said, warned = json.loads(done.stdout)
    return said, warned


@pytest.fixture
def final(tmp_path: Path) -> Path:
    """A folder as a run leaves it, as far as the upload sees it."""
    folder = tmp_path / "final"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# A solver\n")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


def test_the_final_model_is_uploaded_whole(tmp_path: Path, hub: HubServer) -> None:
    done = train(tmp_path, hub.url)
    assert done.returncode == 0, done.stderr
    (created,) = hub.created
    assert (created["organization"], created["name"]) == ("me", "solver")
    assert created.get("visibility") == "private" or created.get("private")
    final = tmp_path / "run" / "final"
    assert hub.files == {path.name: path.read_bytes() for path in final.iterdir()}
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= hub.files.keys()
    assert "uploaded to" in done.stderr


def test_a_hub_that_refuses_is_one_warning_and_may_be_asked_again(final: Path, hub: HubServer) -> None:
    hub.refuses = True
    said, (line,) = push(final, hub.url)
    assert "401" in line and f"hf upload me/solver {final}" in line and "\n" not in line
    assert not any("uploaded to" in line for line in said)
    hub.refuses = False
    said, warned = push(final, hub.url, hub_private=False)
    assert warned == [] and "uploaded to" in said[-1]
    assert hub.files == {path.name: path.read_bytes() for path in final.iterdir()}
    assert hub.created[-1].get("visibility") in (None, "public")


def test_no_hub_at_all_is_one_warning(final: Path) -> None:
    with HubServer() as server:
        nobody = server.url
    _, (line,) = push(final, nobody)
    assert f"hf upload me/solver {final}" in line and "\n" not in line


def test_a_missing_token_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_rl.train.hub.get_token", lambda: None)
    said: list[str] = []
    warn_without_token(config_from({"train": {"push_to_hub": "me/solver"}}), said.append)
    warn_without_token(config_from({}), said.append)
    assert len(said) == 1 and "hf auth login" in said[0]


@pytest.mark.parametrize("hub_id", ["a/b/c", "me/so lver", "me/", "https://huggingface.co/me/solver", "me--x/y", ""])
def test_what_cannot_be_an_id_is_refused_at_the_start(tmp_path: Path, hub_id: str) -> None:
    with pytest.raises(ValueError, match="cannot be a Hub id; give one such as me/my-solver"):
        check_hub_id(config_from({"train": {"push_to_hub": hub_id}}))


def test_a_bad_id_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    done = train(tmp_path, "http://127.0.0.1:9", "train.push_to_hub=a/b/c")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "a/b/c" in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_id_is_told_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert is_hub_id("Qwen/Qwen3-0.6B")
    assert not any(map(is_hub_id, ["embedded", "models/mine", "/a/b", "./models/mine", "../x/y", "a/b/c", "data/*"]))
