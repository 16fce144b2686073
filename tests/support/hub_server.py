"""A stand-in for the hub: a real HTTP server with the endpoints that huggingface_hub calls to push a model."""

import base64
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import yaml

WRITE, READ = "hf_mayWriteMayWriteMayWrite", "hf_mayReadMayReadMayReadMayRead"
"""Tokens of `me`, who is in the organisation `lab`, and may read what is of `others`."""

_ROLES = {WRITE: "write", READ: "read"}


@dataclass
class Stored:
    """A repository."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    commits: int = 0


class StandInHub:
    """The hub, and what it was asked.

    Attributes:
        repositories: repositories by name.
        calls: method and path of every call.
        unplugged_at: pattern of a method and path at which the connection is dropped, while it is set.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Stored] = {}
        self.calls: list[str] = []
        self.unplugged_at: str | None = None
        self._objects: dict[str, bytes] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._serve(self)

            do_POST = do_PUT = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:  # clients whose connection was dropped
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        asked = f"{handler.command} {path}"
        self.calls.append(asked)
        if self.unplugged_at and re.search(self.unplugged_at, asked):
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if handler.headers.get("Transfer-Encoding") == "chunked":
            while size := int(handler.rfile.readline(), 16):
                body += handler.rfile.read(size)
                handler.rfile.readline()
            handler.rfile.readline()
        token = (handler.headers.get("Authorization") or "").removeprefix("Bearer ")
        status, content = self._answer(handler.command, path, body, token)
        sent = json.dumps(content).encode()
        handler.send_response(status)
        if status == 404:
            handler.send_header("X-Error-Code", "RepoNotFound")
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(sent)))
        handler.end_headers()
        handler.wfile.write(sent)

    def _answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        if method == "PUT":  # to an address that was signed, without a token
            self._objects[path.rpartition("/")[2]] = body
            return 200, {}
        if token not in _ROLES:
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/whoami-v2":
            of_token = {"accessToken": {"role": _ROLES[token]}}
            return 200, {"type": "user", "name": "me", "orgs": [{"name": "lab"}], "auth": of_token}
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return 200, {"objects": [self._upload(asked) for asked in json.loads(body)["objects"]]}
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(preupload|commit|tree|revision)/main)?", path)
        if match is None or match[1] not in self.repositories:
            return 404, {"error": "Repository not found"}
        return self._of_repository(match[1], match[2] or "", body)

    def _validate(self, card: str) -> tuple[int, Any]:
        """As the hub does: metadata that is no mapping, or names no licence of its list, is refused."""
        head = yaml.safe_load(card.split("---\n")[1])
        if not re.fullmatch(r"[a-z0-9.-]+", head.get("license", "unknown")):
            return 400, {"errors": [{"message": '"license" must be one of [...]'}], "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        owner = asked.get("organization") or "me"
        name = f"{owner}/{asked['name']}"
        if owner not in ("me", "lab"):
            return 403, {"error": f'You don\'t have the rights to create a model under the namespace "{owner}".'}
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        private = asked.get("private") or asked.get("visibility") == "private"
        self.repositories[name] = Stored(bool(private))
        return 200, {"url": f"{self.url}/{name}", "name": name}

    def _upload(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["oid"] in self._objects:
            return asked
        return {**asked, "actions": {"upload": {"href": f"{self.url}/objects/{asked['oid']}"}}}

    def _of_repository(self, name: str, what: str, body: bytes) -> tuple[int, Any]:
        there = self.repositories[name]
        if what == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {file: "lfs" if file.endswith((".safetensors", ".png")) else "regular" for file in files}
            return 200, {"files": [{"path": f, "uploadMode": m, "shouldIgnore": False} for f, m in modes.items()]}
        if what == "tree":
            return 200, [{"type": "file", "path": f, "size": len(b), "oid": "0" * 40} for f, b in there.files.items()]
        if what == "commit":
            self._commit(there, [json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40}
        siblings = [{"rfilename": file} for file in there.files]
        return 200, {"id": name, "sha": "0" * 40, "private": there.private, "siblings": siblings, "tags": []}

    def _commit(self, there: Stored, lines: list[dict[str, Any]]) -> None:
        there.commits += 1
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                there.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                there.files[value["path"]] = self._objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del there.files[value["path"]]
