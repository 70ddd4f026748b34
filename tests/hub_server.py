"""A server on the loopback address with the routes of the Hugging Face hub that its client uses, and its refusals."""

from __future__ import annotations

import base64
import hashlib
import json
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from file_server import serve
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory

TOKEN = "hf_right"


@dataclass
class Repository:
    """A repository: the files of every commit, and which commit a branch or tag is."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        """Make `files` the newest commit of main; its hash."""
        identity = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[identity], self.refs["main"] = files, identity
        return identity

    @property
    def files(self) -> dict[str, bytes]:
        """The files of main."""
        return self.commits[self.refs["main"]] if self.refs else {}

    def find(self, revision: str) -> str | None:
        """The commit that a revision is."""
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass
class HubSite:
    """What the server has, how it behaves, and what it was asked."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    """Statuses by words of an address, in place of the right answer; 0: the connection is cut."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256."""
    address: str = ""
    requests: list[str] = field(default_factory=list)
    """Method and path of each request, in order."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: HubSite

    def _handle(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.site.requests.append(f"{self.command} {path}")
        for words, status in self.site.answers.items():
            if words in f"{self.command} {path}":
                self._refuse(status)
                return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN):
            self._send(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        elif self.command == "POST" and token != TOKEN:
            self._send(401, {"error": "Invalid username or password."})
        elif self.command in ("POST", "PUT"):
            self._write(path, content)
        else:
            self._read(path, token)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _refuse(self, status: int) -> None:
        if status:
            self._send(status, headers={"X-Error-Message": "not today"})
        else:
            self.close_connection = True

    def _write(self, path: str, content: bytes) -> None:
        if path.startswith("/objects/"):
            name = path.split("/")[2]
            assert hashlib.sha256(content).hexdigest() == name
            self.site.objects[name] = content
            self._send(200)
        elif path == "/api/repos/create":
            self._create(json.loads(content))
        elif path == "/api/validate-yaml":
            self._send(200, {})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._send(
                200, {"transfer": "basic", "objects": [self._upload_action(o) for o in json.loads(content)["objects"]]}
            )
        elif "/preupload/" in path:
            modes = [
                ("lfs" if file["path"].endswith(".safetensors") else "regular", file)
                for file in json.loads(content)["files"]
            ]
            self._send(
                200, {"files": [{"path": f["path"], "uploadMode": mode, "shouldIgnore": False} for mode, f in modes]}
            )
        else:
            name = "/".join(path.split("/")[3:5])
            repository = self.site.repositories[name]
            committed = dict(repository.files)
            for line in content.splitlines():
                self._change(committed, json.loads(line))
            identity = repository.commit(committed)
            self._send(200, {"commitUrl": f"{self.site.address}/{name}/commit/{identity}", "commitOid": identity})

    def _upload_action(self, entry: dict[str, Any]) -> dict[str, Any]:
        action = {"upload": {"href": f"{self.site.address}/objects/{entry['oid']}"}}
        return entry if entry["oid"] in self.site.objects else entry | {"actions": action}

    def _create(self, request: dict[str, Any]) -> None:
        name = f"{request['organization']}/{request['name']}"
        if name in self.site.repositories:
            self._send(409, {"url": f"{self.site.address}/{name}"}, {"X-Error-Message": "You already created this"})
            return
        self.site.repositories[name] = Repository(request.get("visibility") == "private")
        self._send(200, {"url": f"{self.site.address}/{name}"})

    def _change(self, files: dict[str, bytes], entry: dict[str, Any]) -> None:
        value = entry["value"]
        if entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            files[value["path"]] = self.site.objects[value["oid"]]
        elif entry["key"] == "deletedFile":
            del files[value["path"]]

    def _read(self, path: str, token: str) -> None:
        words = path.removeprefix("/api/models").strip("/").split("/")
        repository = self.site.repositories.get("/".join(words[:2]))
        if repository is None or (repository.private and token != TOKEN):
            self._send(401 if not token else 404, headers={"X-Error-Code": "RepoNotFound"})
            return
        commit = repository.find(words[3] if len(words) > 3 else "main")
        if commit is None and len(words) > 3:
            self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
            return
        files = repository.commits.get(commit or "", {})
        if not path.startswith("/api/"):
            self._send_file(files.get("/".join(words[4:])), commit or "")
        elif "tree" in words:
            self._send(200, [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()])
        else:
            siblings = [{"rfilename": name} for name in files]
            self._send(
                200, {"id": "/".join(words[:2]), "sha": commit, "private": repository.private, "siblings": siblings}
            )

    def _send_file(self, content: bytes | None, commit: str) -> None:
        if content is None:
            self._send(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._send(200, content, {"X-Repo-Commit": commit, "ETag": etag})

    def _send(self, status: int, body: object = b"", headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serve_hub() -> Iterator[HubSite]:
    """A hub, up while the block runs; the hub's client in this process waits for it for as long as it takes."""
    set_client_factory(_build_client)
    try:
        with serve(HubSite(), _Handler) as site:
            yield site
    finally:
        set_client_factory(default_client_factory)


def _build_client() -> Any:
    """The hub's client without its time-outs of 10 s: a loaded machine may stand still for that long."""
    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = hooks | {"request": [*hooks["request"], _wait_without_end]}
    return client


def _wait_without_end(request: Any) -> None:
    request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"))


def use_hub(site: HubSite, home: Path, patch: Any) -> None:
    """Have the hub's client in this process speak to `site`, with its cache in `home`: as HF_ENDPOINT and HF_HOME."""
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        patch.setenv(name, "127.0.0.1")
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):  # of commands
        patch.setenv(name, "600")
    settings = {
        "ENDPOINT": site.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": site.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        patch.setattr(constants, name, value)
