"""A small Hub on 127.0.0.1: model info, resolve with HEAD and Range, large files in a store of another name, gates."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import huggingface_hub

LARGE = 1000  # bytes from which a file lies in the store, as LFS files do


@dataclass
class Repository:
    files: dict[str, bytes]
    revision: str = "0" * 40
    gated: bool = False


@dataclass
class Request:
    method: str
    path: str
    token: str | None
    range: str | None


@dataclass
class Hub:
    """repositories by name; tokens with access to gated ones; budget: bytes that the file store sends before the connection breaks."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    budget: int | None = None
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> "Hub":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            log_message = lambda *_: None  # noqa: E731

            def do_HEAD(self):
                hub.answer(self)

            def do_GET(self):
                hub.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, http: BaseHTTPRequestHandler) -> None:
        url = urlparse(http.path)
        token = (http.headers.get("authorization") or "").removeprefix("Bearer ") or None
        self.requests.append(Request(http.command, url.path, token, http.headers.get("range")))
        parts = url.path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.info("/".join(parts[2:4]), parts[5] if len(parts) > 5 else None, "blobs" in parse_qs(url.query), http)
        if parts[0] == "store":
            return self.bytes(self.repositories["/".join(parts[1:3])].files["/".join(parts[3:])], http)
        if parts[2:3] == ["resolve"]:
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), token, http)
        return self.error(404, "RepoNotFound", http)

    def info(self, name, revision, blobs, http) -> None:
        repository = self.repositories.get(name)
        if repository is None:
            return self.error(401, "RepoNotFound", http)
        if revision not in (None, "main", repository.revision):
            return self.error(404, "RevisionNotFound", http)
        siblings = []
        for path, content in repository.files.items():
            digest = hashlib.sha256(content).hexdigest()
            lfs = {"sha256": digest, "size": len(content), "pointerSize": 134} if len(content) >= LARGE else None
            siblings.append(
                {"rfilename": path, **({"size": len(content), "blobId": digest[:40]} if blobs else {}), **({"lfs": lfs} if lfs else {})}
            )
        body = {
            "id": name,
            "sha": repository.revision,
            "siblings": siblings,
            "gated": "auto" if repository.gated else False,
            "private": False,
        }
        return self.send(200, {"content-type": "application/json"}, json.dumps(body).encode(), http)

    def resolve(self, name, revision, path, token, http) -> None:
        repository = self.repositories.get(name)
        if repository is None:
            return self.error(404, "RepoNotFound", http)
        if revision not in ("main", repository.revision):
            return self.error(404, "RevisionNotFound", http)
        if repository.gated and token not in self.tokens:
            return self.error(403 if token else 401, "GatedRepo", http)
        if path not in repository.files:
            return self.error(404, "EntryNotFound", http)
        content = repository.files[path]
        headers = {"x-repo-commit": repository.revision, "etag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if len(content) < LARGE:
            return self.bytes(content, http, headers)
        headers |= {"x-linked-size": str(len(content)), "x-linked-etag": headers["etag"]}
        headers["location"] = f"http://localhost:{self.server.server_port}/store/{name}/{path}"
        return self.send(302, headers, b"", http)

    def bytes(self, content, http, headers=None) -> None:
        start = int((http.headers.get("range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {**(headers or {}), "accept-ranges": "bytes"}
        if start:
            headers["content-range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send(206 if start else 200, headers, content[start:], http)

    def error(self, status, code, http) -> None:
        self.send(status, {"x-error-code": code, "x-error-message": code}, b"", http)

    def send(self, status, headers, body, http) -> None:
        http.send_response(status)
        for name, value in headers.items():
            http.send_header(name, value)
        http.send_header("content-length", str(len(body)))
        http.end_headers()
        if http.command == "HEAD":
            return
        if self.budget is not None and len(body) >= LARGE:
            body, whole = body[: self.budget], len(body)
            self.budget -= len(body)
            if len(body) < whole:
                http.wfile.write(body)
                http.wfile.flush()
                http.close_connection = True
                return http.connection.shutdown(2)
        return http.wfile.write(body)


def use_hub(running: Hub, monkeypatch, tmp_path: Path) -> None:
    """Make huggingface_hub talk to this Hub, without a token or a proxy of this machine."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", running.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", *proxies):
        monkeypatch.delenv(name, raising=False)
