"""A Hugging Face Hub of one's own, as small as downloading needs it: repositories that are folders here."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves `repositories`; breaks the connection in the middle of the first download of each file in `broken`."""

    def __init__(self, repositories: dict[str, Path], broken: tuple[str, ...] = ()):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.broken = repositories, set(broken)
        self.asked: list[tuple[str, str | None]] = []  # each download's file, and the range that was asked for

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0].removeprefix("/")
        if listed := re.fullmatch(r"api/models/([^/]+/[^/]+)/(tree|revision)/[^/]+", path):
            self._listing(listed[1], listed[2])
        elif file := re.fullmatch(r"([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._file(file[1], file[2], body)
        else:
            self._send(404, b"{}")

    def _listing(self, repository: str, kind: str) -> None:
        if (folder := self.server.repositories.get(repository)) is None:
            self._send(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
            return
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in files]
        if kind == "revision":
            found = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        else:
            found = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
                for name, path in zip(names, files, strict=True)
            ]
        self._send(200, json.dumps(found).encode(), **{"Content-Type": "application/json"})

    def _file(self, repository: str, name: str, body: bool) -> None:
        path = self.server.repositories.get(repository, Path("/nowhere")) / name
        if not path.is_file():
            self._send(404, b"", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content, wanted = path.read_bytes(), self.headers.get("Range")
        headers = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not body:
            self._send(200, b"", **headers | {"Content-Length": str(len(content))})
            return
        self.server.asked.append((name, wanted))
        start = int(re.match(r"bytes=(\d+)", wanted)[1]) if wanted else 0
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if name in self.server.broken:
            self.server.broken.remove(name)
            self._head(200, headers | {"Content-Length": str(len(content))})
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self._send(206 if wanted else 200, content[start:], **headers)

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self._head(status, {"Content-Length": str(len(content))} | headers)
        self.wfile.write(content)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serving(repositories: dict[str, Path], broken: tuple[str, ...] = ()) -> Iterator[Hub]:
    """The Hub in a thread of its own."""
    hub = Hub(repositories, broken)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
