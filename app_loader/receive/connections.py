"""The connection table: the few connections an endpoint has, and which of them has to go when there are too many.

Silent clients cannot lock out a good one: above MAX_CONNECTIONS the oldest that has sent nothing is dropped first, and
one connection is accepted between two looks at those already open.
"""

from __future__ import annotations

import socket
import ssl

from app_loader.limits import MAX_CONNECTIONS
from app_loader.receive.access import UploadAccess
from app_loader.receive.exchange import Channel, Exchange, Gone, Stage
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Uploader


class ConnectionTable:
    """All exchanges of an endpoint. exchanges: those not yet removed, in the order they came."""

    def __init__(self, context: ssl.SSLContext, access: UploadAccess) -> None:
        self._context, self._access = context, access
        self.exchanges: list[Exchange] = []

    def __repr__(self) -> str:
        return f"ConnectionTable({self.exchanges!r})"

    def accept(self, listener: socket.socket, now: float) -> None:
        """Accepts one connection, if there still is one and room for it."""
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # it has gone again before it was accepted
        if len(self.exchanges) >= MAX_CONNECTIONS and not self._make_room():
            connection.close()
            return
        try:
            self.exchanges.append(Exchange(Channel(connection, self._context), now))
        except Gone:
            return

    def _make_room(self) -> bool:
        """Drops the one that matters least: a refused one, else the oldest that may not upload, the silent first."""
        others = [e for e in self.exchanges if e.stage is Stage.LINGERING or not self.may_upload(e)]
        if not others:
            return False
        victim = min(others, key=lambda e: (e.stage is not Stage.LINGERING, e.heard, e.opened))
        victim.close()
        self.exchanges.remove(victim)
        return True

    def check(self, exchange: Exchange) -> Uploader:
        """The exchange's client, who may upload. Raises KeepfleetError(FORBIDDEN) for any other."""
        if isinstance(exchange.peer, KeepfleetError):
            raise exchange.peer
        if exchange.peer is None:
            raise KeepfleetError(ErrorKind.FORBIDDEN, "cannot let the client in: its handshake is not complete")
        return self._access.check(exchange.peer)

    def may_upload(self, exchange: Exchange) -> bool:
        """Whether the client may upload, so that no other can push it out."""
        try:
            self.check(exchange)
        except KeepfleetError:
            return False
        return True

    def remove_closed(self) -> None:
        """Drops the exchanges that are over."""
        self.exchanges = [e for e in self.exchanges if e.stage is not Stage.CLOSED]

    def close(self) -> None:
        """Ends every exchange."""
        for exchange in self.exchanges:
            exchange.close()
