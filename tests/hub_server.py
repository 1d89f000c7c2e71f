"""A small hub on 127.0.0.1: the requests that huggingface_hub makes to list and fetch a model."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """Models by name: branch -> path -> content. What was asked for is in `requests`.

    sizes: what a listing says of a file, where that is not its size.
    cut:   files of which a download breaks off in the middle.
    down:  answer everything with 503.
    """

    models: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    down: bool = False
    requests: list[str] = field(default_factory=list)

    def add(self, name: str, folder: Path, branch: str = "main") -> None:
        """Put a folder's files on the hub."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        self.models.setdefault(name, {})[branch] = files

    def fetched(self) -> set[str]:
        """The paths of all files that were downloaded."""
        gets = [request for request in self.requests if request.startswith("GET /")]
        return {r.split("/resolve/")[1].split("/", 1)[1] for r in gets if "/resolve/" in r}

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            models = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def commit_of(name: str, branch: str) -> str:
    return hashlib.sha1(f"{name}@{branch}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    models: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        hub, path = self.models, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        if hub.down:
            return self.send(503, b"{}", body=body)
        if path.startswith("/api/models/"):
            owner, model, what, revision = path.removeprefix("/api/models/").split("/")[:4]
            return self.describe(f"{owner}/{model}", what, revision, body)
        name, _, rest = path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        files = self.find(name, revision)
        if files is None or file not in files:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        headers = {"ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"', "X-Repo-Commit": revision}
        if body and file in hub.cut:
            self.send(200, files[file], headers, half=True)
        else:
            self.send(200, files[file], headers, body)

    def find(self, name: str, revision: str) -> dict[str, bytes] | None:
        branches = self.models.models.get(name, {})
        named = {commit_of(name, branch): files for branch, files in branches.items()} | branches
        return named.get(revision)

    def describe(self, name: str, what: str, revision: str, body: bool) -> None:
        if name not in self.models.models:
            return self.send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        files = self.find(name, revision)
        if files is None:
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        if what == "revision":
            content: object = {"id": name, "sha": commit_of(name, revision), "siblings": []}
        else:
            sizes = {path: self.models.sizes.get(path, len(data)) for path, data in files.items()}
            content = [
                {
                    "type": "file",
                    "path": path,
                    "size": size,
                    "oid": hashlib.sha1(path.encode()).hexdigest(),
                }
                for path, size in sizes.items()
            ]
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"}, body)

    def send(
        self,
        code: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        body: bool = True,
        half: bool = False,
    ) -> None:
        self.send_response(code)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass
