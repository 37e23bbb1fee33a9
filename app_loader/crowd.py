"""The few connections a door has at once: who is let in, who is known, who has to go when there are too many.

Silent clients cannot lock out a good one: above MAX_CONNECTIONS the oldest that has said nothing is dropped first, and
one connection is accepted between two looks at those already open.
"""

from __future__ import annotations

import socket
import ssl

from app_loader.access import Peer, UploadAccess
from app_loader.channel import Channel, Gone
from app_loader.exchange import Exchange, Stage
from app_loader.limits import MAX_CONNECTIONS
from keep_protocol.errors import ErrorKind, KeepfleetError


class Crowd:
    """All visits of a door. exchanges: those not yet forgotten, in the order they came."""

    def __init__(self, context: ssl.SSLContext, access: UploadAccess) -> None:
        self._context, self._access = context, access
        self.exchanges: list[Exchange] = []

    def __repr__(self) -> str:
        return f"Crowd({self.exchanges!r})"

    def welcome(self, listener: socket.socket, now: float) -> None:
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
        """Drops the one that matters least: a refused one, else the oldest stranger, the silent before the others."""
        strangers = [e for e in self.exchanges if e.stage is Stage.LINGERING or not self.knows(e)]
        if not strangers:
            return False
        victim = min(strangers, key=lambda e: (e.stage is not Stage.LINGERING, e.heard, e.opened))
        victim.close()
        self.exchanges.remove(victim)
        return True

    def check(self, exchange: Exchange) -> Peer:
        """The exchange's client, who may upload. Raises KeepfleetError(FORBIDDEN) when nobody is there who may."""
        if isinstance(exchange.peer, KeepfleetError):
            raise exchange.peer
        if exchange.peer is None:
            raise KeepfleetError(ErrorKind.FORBIDDEN, "cannot let the client in: its handshake is not complete")
        self._access.check(exchange.peer)
        return exchange.peer

    def knows(self, exchange: Exchange) -> bool:
        """Whether the client may upload, so that no stranger can push it out."""
        try:
            self.check(exchange)
        except KeepfleetError:
            return False
        return True

    def forget_closed(self) -> None:
        """Drops the visits that are over."""
        self.exchanges = [e for e in self.exchanges if e.stage is not Stage.CLOSED]

    def close(self) -> None:
        """Ends every visit."""
        for exchange in self.exchanges:
            exchange.close()
