"""Closes the connections of clients whose certificate was revoked, or has expired, since they were opened.

Every request is checked on its own (access.py), but a stream or a long wait is one request that goes on. One look at
the list of the revoked every 0.4 s serves all connections. It is a look and not a watch (inotify), because expiry
sends no signal, the list may lie on a file system that sends none, and a watch that overflows would fail open.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from keep_manager.http.access import Certificates
from keep_manager.http.connection import Connection
from keep_manager.model import ClientIdentity
from keep_protocol.errors import KeepfleetError

SECURITY = logging.getLogger("keepfleet.security")
RECHECK_SECONDS = 0.4
"""Two looks are under a second: the longest a connection lives that was opened just before the revocation."""


class Recheck:
    """Looks at `connections()` again and again."""

    def __init__(self, connections: Callable[[], Iterable[object]], certificates: Certificates) -> None:
        self._connections = connections
        self._certificates = certificates
        self._known: frozenset[Connection] = frozenset()

    def __repr__(self) -> str:
        return f"Recheck({len(self._known)} connections)"

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            self.look()

    def look(self) -> None:
        """Cuts off whose certificate may not be used any more; each certificate is checked once for all connections.

        A connection that was not there at the last look is spared until the next: its first request hears why.
        """
        now = frozenset(one for one in self._connections() if isinstance(one, Connection))
        held: dict[ClientIdentity, list[Connection]] = {}
        for connection in now & self._known:
            if connection.peer.identity is not None:
                held.setdefault(connection.peer.identity, []).append(connection)
        self._known = now
        for identity, connections in held.items():
            try:
                self._certificates.check(identity)
            except KeepfleetError as error:
                SECURITY.warning("cut off %d connections of %s: %s", len(connections), identity, error.message)
                for connection in connections:
                    connection.cut_off()
