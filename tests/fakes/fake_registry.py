"""A registry of artifacts on loopback, as honest as a test wants it to be."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Answer:
    """What is sent, whatever else would have been. stall: then nothing more, until the registry is closed."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stall: bool = False


class FakeRegistry:
    """Artifacts by tag and digest. answers: what is sent for a path instead; asked: (path, Authorization) of each
    request; login: the `Authorization` without which there is a 401 with `challenge`."""

    def __init__(self, certificate: str = "") -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str]] = []
        self.login = self.challenge = ""
        self._blobs: dict[str, tuple[str, bytes]] = {}
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def put(self, name: str, data: bytes, kind: str = MANIFEST) -> str:
        """Keeps something under its digest and `name`, which may be a tag; its digest."""
        self._blobs[digest_of(data)] = self._blobs[name] = (kind, data)
        return digest_of(data)

    def put_module(
        self,
        tag: str,
        module: bytes,
        kind: str = "application/wasm",
        change: Callable[[dict[str, Any]], object] = id,
    ) -> str:
        """An artifact with one module; its manifest's digest."""
        layer = {"mediaType": kind, "digest": self.put(digest_of(module), module), "size": len(module)}
        config = self.put(digest_of(b"{}"), b"{}")
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": config, "size": 2},
            "layers": [layer],
        }
        change(manifest)
        return self.put(tag, json.dumps(manifest).encode())

    def _answer(self, path: str) -> Answer:
        if path in self.answers:
            return self.answers[path]
        kind, data = self._blobs.get(path.rpartition("/")[2], ("", b""))
        if not kind:
            return Answer(404)
        headers = {"Content-Type": kind, "Docker-Content-Digest": digest_of(data)} if "/manifests/" in path else {}
        return Answer(200, headers, data)

    def _handler(registry) -> type[BaseHTTPRequestHandler]:  # `self` is the request's below
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                login = self.headers.get("Authorization", "")
                registry.asked.append((self.path, login))
                answer = registry._answer(self.path)
                if registry.login and login != registry.login and self.path not in registry.answers:
                    answer = Answer(401, {"WWW-Authenticate": registry.challenge})
                self.send_response(answer.status)
                for name, text in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(answer.body)
                self.wfile.flush()
                if answer.stall:
                    registry._closing.wait()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        return Handler

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
