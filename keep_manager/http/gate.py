"""Accepts connections: bounded in number, in number from one address, and in the time their handshake may take.

asyncio's own accept loop takes all that come; 300 silent ones would hold every descriptor of a small process.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
import traceback
from collections import Counter
from collections.abc import Callable

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.tls import HANDSHAKE_SECONDS

LOG = logging.getLogger("keepfleet.http")
SECURITY = logging.getLogger("keepfleet.security")
MAX_CONNECTIONS = 512
"""Half of the 1,024 descriptors a process has by default; the rest are for loaders and listeners."""
MAX_CONNECTIONS_OF_ONE = 128
"""One address: a script with a hundred requests under way is served, four hosts are needed to fill the manager."""
BACKLOG = 128
ACCEPTS_AT_ONCE = 32
"""Connections taken before the loop turns to others again."""
PAUSE_SECONDS = 1.0
"""Until the next attempt when the process or the host is out of descriptors; nothing tells when there are some."""
UNHEARD_SECONDS = 15.0
"""How long a connection lives on whose other end acknowledges nothing of what was sent, as one whose network is gone.
Linux alone would try for a quarter of an hour, and keep a follower's journalctl as long; a lost packet is sent again
some six times meanwhile (man 7 tcp, TCP_USER_TIMEOUT)."""
SHUTDOWN_SECONDS = 2.0
"""For the other side's part of closing TLS."""

Factory = Callable[[Callable[[], None]], asyncio.Protocol]
"""Makes the protocol of one connection; its argument is to be called when the connection has ended."""


def listen(address: str, port: int) -> socket.socket:
    """The manager's listening socket. Raises KeepfleetError(PORT_UNAVAILABLE)."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise KeepfleetError(
            ErrorKind.PORT_UNAVAILABLE,
            f"cannot listen on {address} port {port}: {error.strerror}; is another keep-manager running?",
        ) from error
    return sock


class Gate:
    """Lets clients in through one listening socket, which it owns."""

    def __init__(self, listener: socket.socket, context: ssl.SSLContext, factory: Factory) -> None:
        self._listener = listener
        self._context = context
        self._factory = factory
        self._open: Counter[str] = Counter()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"Gate({self._open.total()} connections, {len(self._handshakes)} handshakes)"

    def open(self) -> None:
        """Accepts from now on."""
        self._pause = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    async def close(self) -> None:
        """Accepts no more. Connections that are open stay so."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for task in self._handshakes:
            task.cancel()
        if self._handshakes:
            await asyncio.wait(self._handshakes)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                sock, peer = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                LOG.error("cannot accept connections for %g s: %s", PAUSE_SECONDS, error.strerror)
                self._loop.remove_reader(self._listener.fileno())
                self._pause = self._loop.call_later(PAUSE_SECONDS, self.open)
                return
            address = str(peer[0])
            if self._open.total() >= MAX_CONNECTIONS or self._open[address] >= MAX_CONNECTIONS_OF_ONE:
                SECURITY.warning("refused a connection from %s: %d are open", address, self._open.total())
                sock.close()
                continue
            self._open[address] += 1
            task = self._loop.create_task(self._shake_hands(sock, address))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, sock: socket.socket, address: str) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNHEARD_SECONDS * 1000))
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                self._open[address] -= 1
                if not self._open[address]:
                    del self._open[address]

        try:
            await self._loop.connect_accepted_socket(
                lambda: self._factory(release),
                sock,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS,
            )
        except ssl.SSLCertVerificationError as error:
            SECURITY.warning("refused the certificate of a client at %s: %s", address, error.verify_message)
            _let_go(error)
            release()
        except (OSError, TimeoutError) as error:
            SECURITY.info("no TLS with a client at %s: %s", address, getattr(error, "reason", None) or error)
            _let_go(error)
            release()
        except asyncio.CancelledError:
            release()
            raise


def _let_go(error: OSError) -> None:
    """Frees a connection whose handshake failed now, and not when the garbage collector looks.

    asyncio's frames in the traceback, the error and the connection hold each other: 256 KiB of buffer that a stranger
    could have us keep for each connection.
    """
    traceback.clear_frames(error.__traceback__)
