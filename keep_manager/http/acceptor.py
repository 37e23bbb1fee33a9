"""Accepts connections, and keeps those that are established: bounded in number, and in number from one host.

Handshakes have a quota of their own (handshakes.py), so that strangers, who complete none, take nothing from clients.
TLS begins with the client's first byte; until then a connection costs a socket and no buffers.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import errno
import ipaddress
import logging
import socket
import ssl
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from keep_manager.http.handshakes import STRANGERS, ConnectionTable, Handshake, Handshakes, Quota
from keep_manager.model import is_exhausted
from keep_manager.tasks import Group
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.tls import HANDSHAKE_SECONDS

LOG = logging.getLogger("keepfleet.http")
ESTABLISHED = Quota(in_all=1536, of_one=128)
"""A thousand clients that follow a keep each, and others: with what each of those needs besides, a quarter of the
descriptors that the unit file gives the manager. From one host a script with a hundred requests under way is served."""
BACKLOG = 1024
"""What waits while the loop is busy; when it is full the kernel ignores a client, which tries again after a second."""
ACCEPTS_AT_ONCE = 32
"""Connections taken before the loop turns to others again."""
PAUSE_SECONDS = 1.0
"""Until the next attempt when the process or the host is out of descriptors; nothing signals when there are some."""
UNHEARD_SECONDS = 15.0
"""How long a connection lives on whose other end acknowledges nothing of what was sent, as one whose network is gone.
Linux alone would try for a quarter of an hour, and a guest's output would be kept for a follower as long; a lost packet
is sent again some six times meanwhile (man 7 tcp, TCP_USER_TIMEOUT)."""
SHUTDOWN_SECONDS = 2.0
"""For the other side's part of closing TLS."""
TLS_BUFFER_BYTES = 16 * 1024
"""What asyncio reads into, for each connection from its handshake on: one TLS record instead of 256 KiB. Those are more
than what malloc gives back, and 1,000 aborted handshakes left 135 MB behind."""
_OF_ONE_CONNECTION = {
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENONET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}
"""Errors of the connection that was to be accepted, not of the listener (man 2 accept, "Error handling")."""


class Established(Protocol):
    """A connection whose handshake is complete."""

    @property
    def idle_since(self) -> float | None:
        """Since when no request is under way, by the loop's clock; None while one is."""

    def cut_off(self) -> None:
        """Closes it without waiting for anything."""


Hook = Callable[[Established], None]
Factory = Callable[[Hook, Hook], asyncio.Protocol]
"""Makes the protocol of one connection, which calls the first hook when it is established and the second when it has
ended."""


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


def to_close(contenders: Iterable[Established]) -> Established | None:
    """Of the connections of which one has to go: the one that has been idle longest; None where all are used. Pure."""
    idle = [(since, one) for one in contenders if (since := one.idle_since) is not None]
    return min(idle, key=lambda pair: pair[0])[1] if idle else None


class Acceptor:
    """Accepts clients on one listening socket, which it owns."""

    def __init__(self, listener: socket.socket, context: ssl.SSLContext, factory: Factory) -> None:
        self._listener = listener
        self._context = context
        self._factory = factory
        self._handshakes = Handshakes()
        self._established: ConnectionTable[Established] = ConnectionTable(ESTABLISHED)
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Acceptor({len(self._established)} connections, {len(self._handshakes)} handshakes)"

    def open(self, group: Group) -> None:
        """Accepts from now on, in tasks of `group`: a defect here ends the process, one of a connection ends that."""
        asyncio.sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES  # of the whole process, whose only TLS is ours
        self._own(group.start(self._accept(group), name="acceptor"))

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Accepts no more, and gives up the handshakes under way. Connections that are established stay so."""
        self._handshakes.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._listener.close()

    async def _accept(self, group: Group) -> None:
        loop = asyncio.get_running_loop()
        taken = 0
        while True:
            try:
                sock, peer = await loop.sock_accept(self._listener)
            except OSError as error:
                await self._survive(error)
                continue
            handshake = Handshake(sock, str(peer[0]))
            self._handshakes.enter(handshake)
            handshake.task = group.start(self._shake_hands(handshake, sock))
            handshake.task.add_done_callback(partial(self._finished, handshake))
            self._own(handshake.task)
            taken += 1
            if taken % ACCEPTS_AT_ONCE == 0:
                await asyncio.sleep(0)  # sock_accept itself does not wait where a connection is there

    async def _survive(self, error: OSError) -> None:
        """Returns when it makes sense to accept again. Raises `error` where it never will."""
        if is_exhausted(error):
            LOG.error("cannot accept connections for %g s: %s", PAUSE_SECONDS, error.strerror)
            await asyncio.sleep(PAUSE_SECONDS)
        elif error.errno not in _OF_ONE_CONNECTION:
            raise error

    def _finished(self, handshake: Handshake, _: asyncio.Task[None]) -> None:
        """Runs also where the task was cancelled before it began."""
        self._handshakes.leave(handshake)
        handshake.task = None
        if handshake.sock is not None:
            handshake.sock.close()

    async def _shake_hands(self, handshake: Handshake, sock: socket.socket) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await _first_byte(sock)
                handshake.heard = True
                await self._handshakes.turn(handshake)
                await self._begin_tls(handshake, sock)
        except ssl.SSLCertVerificationError as error:
            STRANGERS.warning("refused the certificate of a client at %s: %s", handshake.address, error.verify_message)
            _let_go(error)
        except (OSError, TimeoutError) as error:
            why = getattr(error, "reason", None) or str(error) or f"nothing in {HANDSHAKE_SECONDS:g} s"
            STRANGERS.info("no TLS with a client at %s: %s", handshake.address, why)
            _let_go(error)
        except asyncio.CancelledError as error:
            _let_go(error)
            raise
        except Exception as error:  # what a client sends may end its connection, never the manager
            LOG.error("defect in a handshake with %s", handshake.address, exc_info=error)
            _let_go(error)

    async def _begin_tls(self, handshake: Handshake, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNHEARD_SECONDS * 1000))
        protocol = self._factory(partial(self._admit, handshake), self._established.remove)
        handshake.sock = None
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: protocol,
            sock,
            ssl=self._context,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=SHUTDOWN_SECONDS,
        )

    def _admit(self, handshake: Handshake, connection: Established) -> None:
        """Counts a connection whose handshake is complete from now on; closes an idle one for it, or else itself."""
        self._handshakes.leave(handshake)
        contenders = self._established.contenders(handshake.source)
        victim = (to_close(contenders) or connection) if contenders else None
        if victim is not None:
            what = "refused a connection" if victim is connection else "closed an idle connection for one"
            STRANGERS.warning("%s from %s: %d are open", what, handshake.address, len(contenders))
            self._established.remove(victim)
            victim.cut_off()
        if victim is not connection:
            self._established.add(handshake.source, connection)

    def established(self) -> Iterable[Established]:
        """The connections there are."""
        return self._established


async def _first_byte(sock: socket.socket) -> None:
    """Returns when there is something to read, which stays there. Raises ConnectionResetError when the client goes."""
    loop = asyncio.get_running_loop()
    readable = loop.create_future()

    def there() -> None:
        loop.remove_reader(sock.fileno())
        if not readable.done():
            readable.set_result(None)

    try:
        first = sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        loop.add_reader(sock.fileno(), there)
        try:
            await readable
        finally:
            loop.remove_reader(sock.fileno())
        first = sock.recv(1, socket.MSG_PEEK)
    if not first:
        raise ConnectionResetError("it left without a word")


def _let_go(error: BaseException) -> None:
    """Frees a connection whose handshake failed now, and not when the garbage collector looks.

    asyncio's frames in the traceback, the error and the connection hold each other, with their buffers; a deadline's
    error also holds the cancellation it came from.
    """
    traceback.clear_frames(error.__traceback__)
    if error.__cause__ is not None:
        traceback.clear_frames(error.__cause__.__traceback__)
