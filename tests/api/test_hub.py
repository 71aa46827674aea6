"""Systems are shared: pushed to a hub and loaded from it by name, over HTTP, with a download that breaks off."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import systems

from deop.settings.methods import DeOPSettings
from deop.settings.stages import Inference

REPOSITORY = "me/bear-system"
COMMIT = "0" * 40
NAMES = ["bear", "grass", "sky"]


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face hub's API that pushing and loading one repository needs.

    The first download of the weights breaks off half way.
    """

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    commits: list[str]
    ranges: list[str]
    breaks: list[str]

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length) if length else self._chunked()
        if self.path == "/api/repos/create":
            self._json({"url": f"http://{self.headers['Host']}/{REPOSITORY}"})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.path == f"/api/models/{REPOSITORY}/preupload/main":
            asked = json.loads(content)["files"]
            self._json(
                {
                    "files": [
                        {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked
                    ]
                }
            )
        elif self.path == f"/api/models/{REPOSITORY}/commit/main":
            for line in map(json.loads, content.decode().splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._json({"success": True, "commitOid": COMMIT, "commitUrl": f"/{REPOSITORY}/commit/{COMMIT}"})
        else:
            self.send_error(404)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        about = f"/api/models/{REPOSITORY}"
        if self.path.partition("?")[0] == about or self.path.startswith(f"{about}/revision"):
            siblings = [{"rfilename": name} for name in self.files]
            self._json({"id": REPOSITORY, "sha": self.commits[-1], "siblings": siblings})
            return
        if self.path.startswith(f"/api/models/{REPOSITORY}/tree"):
            self._json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": COMMIT}
                    for name, content in self.files.items()
                ]
            )
            return
        start, _, name = self.path.partition("?")[0].rpartition("/")
        if not start.startswith(f"/{REPOSITORY}/resolve/") or name not in self.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if REPOSITORY in self.path else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.files[name]
        asked = self.headers.get("Range")
        first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", self.commits[-1])
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        if asked:
            self.ranges.append(asked)
        if name in self.breaks:
            self.breaks.remove(name)
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content[first:])

    def _chunked(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_a_system_is_pushed_and_loaded_by_name(tmp_path):
    network = systems.build(DeOPSettings(text_prompts="templates", templates=("a {}",)))
    folder = systems.save(network, tmp_path / "system", NAMES, inference=Inference(short_side=32))
    np.save(tmp_path / "picture.npy", np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8))
    state = {"files": {}, "commits": [COMMIT], "ranges": [], "breaks": ["model.safetensors"]}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), state))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_TOKEN": "hf_of_this_test",
    }

    def python(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    python(f"import deop; deop.load({str(folder)!r}, device='cpu').push_to_hub({REPOSITORY!r})")
    assert {"README.md", "config.json", "model.safetensors", "provenance.json"} <= set(state["files"])
    assert state["files"]["model.safetensors"] == Path(folder, "model.safetensors").read_bytes()

    label = "import deop, numpy as np; np.save({!r}, deop.load({!r}, device='cpu')(np.load('picture.npy')).labels)"
    python(label.format("here.npy", str(folder)))
    said = python(label.format("there.npy", REPOSITORY))
    assert f"deop: downloading {REPOSITORY}" in said and "MB)" in said
    assert np.array_equal(np.load(tmp_path / "here.npy"), np.load(tmp_path / "there.npy"))
    assert not state["breaks"] and state["ranges"]  # it broke off, and what was there was not fetched again

    python(label.format("there.npy", REPOSITORY))  # it is there already, and still the newest
    config = json.loads(state["files"]["config.json"])
    state["files"]["config.json"] = json.dumps(config | {"name": "retrained"}).encode()
    state["commits"].append("1" * 40)
    name = f"import deop, sys; print(deop.load({REPOSITORY!r}, device='cpu').name, file=sys.stderr)"
    assert python(name).splitlines()[-1] == "retrained"
    server.shutdown()
    server.server_close()
