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


class Upload:
    """An upload from its headers to its result: `receive` each piece of its body, `complete`, then `close`, which drops
    everything it holds. Both the body and the module in it are bounded.
    """

    def __init__(self, exchange: Exchange, request: Request, settings: Settings, now: float) -> None:
        """Raises KeepfleetError (NO_SPACE, INTERNAL), leaving nothing behind."""
        self.exchange, self.request, self._settings = exchange, request, settings
        self.checking: Checking | None = None
        self.recheck_at = now + ACCESS_RECHECK_SECONDS
        self._started, self._body_bytes, self._module_bytes = now, 0, 0
        self._parser: PayloadParser | None = None
        if request.route is Route.PAYLOAD:
            from app_loader.receive.payload import PayloadParser  # it reads by regular expressions, which are 3 ms

            self._parser = PayloadParser()
        self._hash = openssl_sha256()
        self._file = unnamed_file()

    def __repr__(self) -> str:
        return f"Upload({self.request.route.value}, {self._module_bytes} bytes)"

    def receive(self, data: bytes) -> None:
        """Takes the next piece of the body. Raises KeepfleetError: TOO_LARGE, BAD_REQUEST for a payload's shape,
        NO_SPACE."""
        self._body_bytes += len(data)
        if self._body_bytes > body_limit(self.request.route, self._settings.max_workload):
            raise too_large(self._settings.max_workload)
        for piece in (data,) if self._parser is None else self._parser.feed(data):
            self._store(piece)

    def _store(self, data: bytes) -> None:
        self._module_bytes += len(data)
        if self._module_bytes > self._settings.max_workload:
            raise too_large(self._settings.max_workload)
        self._hash.update(data)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise store_error(error) from error

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
        if self._parser is not None:
            self._parser.finish()
        self.exchange.hold()
        self.checking = Checking(checks, self._file, self._settings.limits, now)

    @property
    def module(self) -> Module:
        """The module as it is reported."""
        return Module(f"sha256:{self._hash.hexdigest()}", self.request.module_name, self._module_bytes)

    def close(self) -> None:
        """Ends the check and drops the file. May be called twice."""
        if self.checking is not None:
            self.checking.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
