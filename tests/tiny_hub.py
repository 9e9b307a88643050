"""A Hugging Face hub on this machine: the part of its interface by which repositories are listed and their files fetched."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from huggingface_hub import constants


class TinyHub:
    """Repositories by name, each a folder; a change to its files is a new commit.  `fetched` are the files asked for."""

    def __init__(self, repositories: dict[str, Path]):
        self.repositories, self.fetched = repositories, []

    def files(self, repository: str) -> dict[str, bytes]:
        folder = self.repositories[repository]
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    def commit(self, repository: str) -> str:
        return _digest(repr([(name, _digest(data)) for name, data in self.files(repository).items()]).encode())


@contextmanager
def tiny_hub(repositories: dict[str, Path], cache: Path, monkeypatch):
    """The hub while the block runs, as the one that `huggingface_hub` asks; what is fetched goes to the folder `cache`."""
    hub = TinyHub(repositories)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Answer, hub)) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        for name, value in {
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield hub
        server.shutdown()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: TinyHub, *args):
        self.hub = hub
        super().__init__(*args)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/tree/\w+|/revision/\w+)?(/.+)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", path)
        repository = (api or file or [None, None])[1]
        if repository not in self.hub.repositories:
            return self._say(404, b"", {"X-Error-Code": "RepoNotFound"})
        files = self.hub.files(repository)
        if file:
            return self._file(repository, file[2], files)
        if api[3]:  # no folder of a repository is listed by itself
            return self._say(404, b"", {"X-Error-Code": "EntryNotFound"})
        if (api[2] or "").startswith("/tree/"):
            said = [{"type": "file", "path": n, "size": len(d), "oid": _digest(d)} for n, d in files.items()]
        else:
            siblings = [{"rfilename": n, "size": len(d), "blobId": _digest(d)} for n, d in files.items()]
            said = {"id": repository, "sha": self.hub.commit(repository), "siblings": siblings}
        self._say(200, json.dumps(said).encode(), {"Content-Type": "application/json"})

    do_HEAD = do_GET

    def _file(self, repository: str, name: str, files: dict[str, bytes]) -> None:
        commit = {"X-Repo-Commit": self.hub.commit(repository)}
        if name not in files:
            return self._say(404, b"", {**commit, "X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.hub.fetched.append((repository, name))
        self._say(200, files[name], {**commit, "ETag": f'"{_digest(files[name])}"'})

    def _say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
