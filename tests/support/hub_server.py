"""The Hugging Face hub as its client sees it, on this machine: what a repository holds, and its files in ranges."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """repositories: by name, a folder. Files that are broken break off at their first answer, empty ones send nothing,
    and altered ones send other bytes."""

    repositories: Mapping[str, Path]
    gated: tuple[str, ...] = ()
    broken: set[str] = field(default_factory=set)
    altered: set[str] = field(default_factory=set)
    empty: set[str] = field(default_factory=set)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # files, and the range of each request
    url: str = ""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            _answer(self, hub, body=False)

        def do_GET(self) -> None:
            _answer(self, hub, body=True)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(request: BaseHTTPRequestHandler, hub: Hub, *, body: bool) -> None:
    path = unquote(urlsplit(request.path).path)
    listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
    file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
    found = listing or file
    repository = found[1] if found else ""
    if repository in hub.gated:
        _send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
    elif repository not in hub.repositories:
        _send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})
    elif found is not None and found[2] not in (None, "main", COMMIT):
        _send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
    elif listing:
        _send(request, 200, _listing(repository, hub.repositories[repository]), {"Content-Type": "application/json"})
    elif file:
        _send_file(request, hub, hub.repositories[repository] / file[3], file[3], body=body)


def _listing(name: str, folder: Path) -> bytes:
    siblings = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            item = {"rfilename": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "blobId": "0" * 40}
            if path.suffix == ".safetensors":
                lfs = {"sha256": _sha256(path.read_bytes()), "size": path.stat().st_size, "pointerSize": 1}
                item["lfs"] = lfs  # type: ignore[assignment]
            siblings.append(item)
    return json.dumps({"id": name, "modelId": name, "sha": COMMIT, "private": False, "siblings": siblings}).encode()


def _send_file(request: BaseHTTPRequestHandler, hub: Hub, path: Path, name: str, *, body: bool) -> None:
    if not path.is_file():
        _send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        return
    content = path.read_bytes()
    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_sha256(content)}"', "Accept-Ranges": "bytes"}
    if not body:
        request.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(key, value)
        request.end_headers()
        return
    if name in hub.empty:
        content = b""
    wanted = request.headers.get("Range")
    hub.asked.append((name, wanted))
    if name in hub.altered:
        content = content[:-1] + bytes([content[-1] ^ 1])
    first, _, last = wanted.removeprefix("bytes=").partition("-") if wanted else ("0", "", "")
    start, end = int(first), min(int(last) + 1, len(content)) if last else len(content)
    rest = content[start:end]
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
    if name in hub.broken:
        hub.broken.remove(name)
        request.send_response(206 if wanted else 200)
        for key, value in {**headers, "Content-Length": str(len(rest))}.items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(rest[: len(rest) // 2])
        request.close_connection = True
        return
    _send(request, 206 if wanted else 200, rest, headers)


def _send(request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str]) -> None:
    request.send_response(status)
    for key, value in {**headers, "Content-Length": str(len(content))}.items():
        request.send_header(key, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
