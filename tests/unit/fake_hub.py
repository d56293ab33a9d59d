"""A stand-in for the Hugging Face Hub on a local port: as much of its protocol as creating, committing to, and
downloading a repository of small files takes. huggingface_hub itself speaks to it, unchanged."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WRITER = "Bearer hf_writer"
"""The Authorization of the one who may write."""


class FakeHub:
    """Repositories by name: {"me/model": {"README.md": b"..."}}; `requests` lists what was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            def __getattr__(self, name: str) -> Any:
                if name in ("do_GET", "do_HEAD", "do_POST"):
                    return lambda: self.answer(hub)
                raise AttributeError(name)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def commit_of(self, name: str) -> str:
        """A repository's commit: it changes with its content."""
        content = self.repositories[name]
        return hashlib.sha1(repr(sorted(content.items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, hub: FakeHub) -> None:
        path = self.path.partition("?")[0]
        hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        may_write = self.headers.get("Authorization") == WRITER
        if self.command == "POST" and not may_write:
            return self._error(401, "Invalid username or password.")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            hub.repositories.setdefault(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(name)
            return self._json({"url": f"{hub.url}/{name}", "name": name, "id": "1"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        if name not in hub.repositories or (name in hub.private and not may_write):
            return self._error(404, "Repository not found", "RepoNotFound")
        rest = parts[4:] if api else parts[2:]
        files, commit = hub.repositories[name], hub.commit_of(name)
        match rest:
            case [] | ["revision", _]:
                if rest and rest[1] not in ("main", commit):
                    return self._error(404, "Invalid rev id", "RevisionNotFound")
                siblings = [{"rfilename": file} for file in files]
                return self._json({"id": name, "sha": commit, "private": name in hub.private, "siblings": siblings})
            case ["tree", *_]:
                return self._json(
                    [
                        {"type": "file", "path": file, "size": len(content), "oid": _git_oid(content)}
                        for file, content in files.items()
                    ]
                )
            case ["preupload", _]:
                asked = json.loads(body)["files"]
                modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
                return self._json({"files": modes})
            case ["commit", _]:
                for line in body.splitlines():
                    operation = json.loads(line)
                    value = operation["value"]
                    if operation["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif operation["key"] == "deletedFile":
                        del files[value["path"]]
                return self._json({"commitUrl": f"{hub.url}/{name}/commit/1", "commitOid": hub.commit_of(name)})
            case ["resolve", _, *inside] if "/".join(inside) in files:
                content = files["/".join(inside)]
                self._send(200, content, {"ETag": f'"{_git_oid(content)}"', "X-Repo-Commit": commit})
                return None
        return self._error(404, "Entry not found", "EntryNotFound")

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Code": code} if code else {}
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Message": message, **headers})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
