"""A small stand-in for the Hugging Face Hub on this machine: repositories in memory, commits,
branches, LFS uploads and downloads, as huggingface_hub asks for them (``HF_ENDPOINT``).

It takes a token, ``TOKEN``, and records every request in ``log``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import re
import threading
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_standin"


class FakeHub:
    """What the hub holds."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, str]] = {}
        """Repository -> branch -> commit."""
        self.trees: dict[str, dict[str, bytes]] = {}
        """Commit -> file -> content."""
        self.blobs: dict[str, bytes] = {}
        self.private: set[str] = set()
        self.log: list[tuple[str, str]] = []
        self.address = ""

    def environment(self, home: object) -> dict[str, str]:
        """Variables under which a process uses this hub and a cache of its own."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "*",
        }

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """Files of a revision."""
        return self.trees[self.commit_of(repository, revision)]

    def commit_of(self, repository: str, revision: str) -> str:
        branches = self.repositories[repository]
        if revision in branches:
            return branches[revision]
        if revision in self.trees:
            return revision
        raise KeyError(revision)

    def create(self, repository: str) -> None:
        commit = hashlib.sha1(repository.encode()).hexdigest()
        self.trees[commit] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        self.repositories[repository] = {"main": commit}

    def commit(self, repository: str, branch: str, operations: list[dict[str, Any]]) -> str:
        files = dict(self.files(repository, branch))
        for each in operations:
            key, value = each["key"], each["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        text = json.dumps(sorted((n, hashlib.sha256(c).hexdigest()) for n, c in files.items()))
        commit = hashlib.sha1((repository + branch + text).encode()).hexdigest()
        self.trees[commit] = files
        self.repositories[repository][branch] = commit
        return commit


def _lfs(name: str) -> bool:
    return name.endswith(".safetensors")


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on the terminal."""

    def _send(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _lost(self, code: str, status: int = 404) -> None:
        self._send(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _trusted(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.log.append((self.command, path))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            name, what, revision = match[1], match[2], match[3] or "main"
            if (tree := self._tree(name, revision)) is None:
                return
            commit, files = tree
            if what == "tree":
                self._send(200, [self._entry(each, content) for each, content in files.items()])
            else:
                siblings = [{"rfilename": each} for each in files]
                self._send(200, {"id": name, "sha": commit, "siblings": siblings})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (tree := self._tree(match[1], match[2])) is None:
                return
            commit, files = tree
            if match[3] not in files:
                self._lost("EntryNotFound")
                return
            content = files[match[3]]
            etag = hashlib.sha256(content).hexdigest() if _lfs(match[3]) else _blob(content)
            self._send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})
        else:
            self._lost("NotHere")

    def _tree(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        hub = self.hub
        if name not in hub.repositories or (name in hub.private and not self._trusted()):
            self._lost("RepoNotFound", 404 if self._trusted() else 401)
            return None
        try:
            commit = hub.commit_of(name, revision)
        except KeyError:
            self._lost("RevisionNotFound")
            return None
        return commit, hub.trees[commit]

    @staticmethod
    def _entry(name: str, content: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {
            "type": "file",
            "path": name,
            "size": len(content),
            "oid": _blob(content),
        }
        if _lfs(name):
            digest = hashlib.sha256(content).hexdigest()
            found["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        return found

    def do_PUT(self) -> None:
        self.hub.log.append(("PUT", self.path))
        content = self._body()
        self.hub.blobs[hashlib.sha256(content).hexdigest()] = content
        self._send(200, {}, {"ETag": '"x"'})

    def do_POST(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.log.append(("POST", path))
        body = self._body()
        if not self._trusted():
            self._lost("Unauthorized", 401)
            return
        if path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told.get('organization') or 'me'}/{told['name']}"
            there = name in hub.repositories
            if not there:
                hub.create(name)
                if told.get("visibility") == "private" or told.get("private"):
                    hub.private.add(name)
            self._send(409 if there else 200, {"url": f"{hub.address}/{name}", "name": name})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = hub.files(match[1], match[2])
            answer = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if _lfs(each["path"]) else "regular",
                    "shouldIgnore": False,
                    "oid": None
                    if each["path"] not in files or _lfs(each["path"])
                    else _blob(files[each["path"]]),
                }
                for each in json.loads(body)["files"]
            ]
            self._send(200, {"files": answer})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {
                    **each,
                    "actions": {
                        "upload": {"href": f"{hub.address}/lfs/{each['oid']}", "header": {}}
                    },
                }
                for each in json.loads(body)["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            branches = hub.repositories[match[1]]
            there = match[2] in branches
            branches.setdefault(match[2], branches["main"])
            self._send(409 if there else 200, {})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            operations = [json.loads(line) for line in body.splitlines()]
            commit = hub.commit(match[1], match[2], operations[1:])
            address = f"{hub.address}/{match[1]}/commit/{commit}"
            self._send(200, {"commitUrl": address, "commitOid": commit, "success": True})
        else:
            self._lost("NotHere")


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that answers while the block runs."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
