"""A keep's stub over real HTTPS that takes any one file starting like a WebAssembly module, and runs nothing."""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Callable

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.fakes.tls_peer import TlsPeer, answer, read_whole_request


class UploadStub(TlsPeer):
    """`received` is what it was sent; `accepted` is called after a workload was taken."""

    def __init__(self, context: ssl.SSLContext, accepted: Callable[[], None] = lambda: None) -> None:
        super().__init__(context, self._serve_request)
        self.received: bytes | None = None
        self.headers: dict[str, str] = {}
        self._accepted = accepted

    def _serve_request(self, connection: ssl.SSLSocket) -> None:
        line, self.headers, body = read_whole_request(connection)
        if self.received is not None:
            error = KeepfleetError(ErrorKind.CONFLICT, "cannot take a second workload: there is one")
            connection.sendall(answer(409, strict_json.dumps({"error": error.to_wire()})))
            return
        raw = line.startswith("PUT /workload ")
        data = body if raw else bytes(json.loads(body)["contents"])
        if not data.startswith(b"\0asm"):
            refusal = KeepfleetError(ErrorKind.INVALID_MODULE, "cannot run it: \x1b[31mnot a module", ("magic header",))
            connection.sendall(answer(422, strict_json.dumps({"error": refusal.to_wire()})))
            return
        self.received = data
        self._accepted()
        digest = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        connection.sendall(answer(200, strict_json.dumps(digest) if raw else b"Payload received"))
