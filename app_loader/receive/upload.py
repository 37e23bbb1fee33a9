"""The one upload an endpoint receives at a time: its client, its body, its checker and its pace.

The body is streamed into a file without a name, counted and hashed on its way, and never held whole.
"""

from __future__ import annotations

import os
from _hashlib import openssl_sha256

from app_loader.check.checking import Checking, store_error, unnamed_file
from app_loader.limits import ACCESS_RECHECK_SECONDS, GRACE_SECONDS, MIN_BYTES_PER_SECOND
from app_loader.receive.exchange import Exchange
from app_loader.receive.requests import Request, Route, body_limit, too_large
from app_loader.settings import Settings
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from app_loader.receive.payload import PayloadParser


def _payload_parser() -> PayloadParser:
    from app_loader.receive.payload import PayloadParser  # here: it reads by regular expressions, which are 3 ms

    return PayloadParser()


class Body:
    """The body of one upload, from its first byte to its file: `receive` each piece, `finish`, then `close`.

    descriptor: the module's file; size: its bytes so far; both the body and the module are bounded.
    Every method may raise KeepfleetError: TOO_LARGE, BAD_REQUEST for a payload's shape, NO_SPACE.
    """

    def __init__(self, route: Route, max_workload: int, descriptor: int | None = None) -> None:
        self._max_workload = max_workload
        self._body_left = body_limit(route, max_workload)
        self._parser = _payload_parser() if route is Route.PAYLOAD else None
        self._hash = openssl_sha256()
        self.route = route
        self.size = 0
        self.descriptor = unnamed_file() if descriptor is None else descriptor

    def __repr__(self) -> str:
        return f"Body({self.route.value}, {self.size} bytes)"

    @property
    def digest(self) -> str:
        """The digest of the module's bytes so far: `sha256:` and hexadecimal digits."""
        return f"sha256:{self._hash.hexdigest()}"

    def receive(self, data: bytes) -> None:
        """Takes the next piece of the body."""
        self._body_left -= len(data)
        if self._body_left < 0:
            raise too_large(self._max_workload)
        if self._parser is None:
            self._store(data)
            return
        for piece in self._parser.feed(data):
            self._store(piece)

    def _store(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._max_workload:
            raise too_large(self._max_workload)
        self._hash.update(data)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.descriptor, view) :]
        except OSError as error:
            raise store_error(error) from error

    def finish(self) -> None:
        """The body has ended: returns when it was whole."""
        if self._parser is not None:
            self._parser.finish()

    def close(self) -> None:
        """Drops the file. May be called twice."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Upload:
    """An upload from its headers to its result; `close` drops everything it holds."""

    def __init__(self, exchange: Exchange, request: Request, settings: Settings, now: float) -> None:
        """Raises KeepfleetError (NO_SPACE, INTERNAL), leaving nothing behind."""
        self.exchange = exchange
        self.request = request
        self.body = Body(request.route, settings.max_workload)
        self.checking: Checking | None = None
        self._limits = settings.limits
        self._started = now
        self._body_bytes = 0
        self.recheck_at = now + ACCESS_RECHECK_SECONDS

    def __repr__(self) -> str:
        return f"Upload({self.body!r})"

    def receive(self, data: bytes) -> None:
        """Takes the next piece of the body. Raises KeepfleetError, see `Body`."""
        self._body_bytes += len(data)
        self.body.receive(data)

    def check_pace(self, now: float) -> None:
        """Raises KeepfleetError(TOO_SLOW) once the average has fallen below what is allowed."""
        if now - self._started > GRACE_SECONDS + self._body_bytes / MIN_BYTES_PER_SECOND:
            raise KeepfleetError(
                ErrorKind.TOO_SLOW,
                f"cannot take the upload: it comes at under {MIN_BYTES_PER_SECOND >> 10} KiB a second",
            )

    def complete(self, checks: int, now: float) -> None:
        """The body has ended: asks over `checks` for its check. Raises KeepfleetError when the body is not whole, or no
        check can be asked for."""
        self.body.finish()
        self.exchange.hold()
        self.checking = Checking(checks, self.body.descriptor, self._limits, now)

    @property
    def module(self) -> Module:
        """The module as it is reported."""
        return Module(self.body.digest, self.request.module_name, self.body.size)

    def close(self) -> None:
        """Ends the check and drops the files. May be called twice."""
        if self.checking is not None:
            self.checking.close()
        self.body.close()
