"""The connection to the bus systemd is on: the only import of dbus_next.

What dbus-next does not do is done here. Its writer drops the whole connection when the socket's buffer is full (about
278 unsent calls), so calls in flight are bounded. A dead connection is silent and is not made again, so it is
watched and made again. It waits for answers for ever, so every call has a deadline.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from dbus_next._private.address import parse_address
from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import MessageFlag, MessageType
from dbus_next.errors import AuthError, DBusError
from dbus_next.message import Message
from dbus_next.signature import Variant

from keep_manager.systemd import replies
from keep_manager.systemd.bulk import PropertyReader
from keep_manager.tasks import Group
from keep_protocol.errors import ErrorKind, KeepfleetError

LOG = logging.getLogger("keepfleet.bus")
SYSTEMD = "org.freedesktop.systemd1"
SYSTEMD_PATH = "/org/freedesktop/systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
MAX_CALLS = 64
"""Half of what the system bus allows one connection to have pending, a quarter of what fills the socket."""
CALL_SECONDS = 10.0
"""PID 1 answers in milliseconds; a daemon-reload of a large host holds it for seconds."""
CONNECT_SECONDS = 5.0
RETRY_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Pauses between attempts to reach a bus that is away: nothing says when it is back. The last one repeats."""
_RULES = (
    f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved',path='{SYSTEMD_PATH}'",
    "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',member='NameOwnerChanged',"
    f"arg0='{SYSTEMD}'",
)
_LOST = (OSError, EOFError, LookupError, ValueError, asyncio.InvalidStateError, DBusError, AuthError)
"""What dbus-next raises when its connection is or goes dead, found by breaking it."""
_AWAY = frozenset(f"org.freedesktop.DBus.Error.{n}" for n in ("NoReply", "ServiceUnknown", "NameHasNoOwner"))
"""What the bus answers for a systemd that is re-executing itself."""


class ReplyError(Exception):
    """The other side answered with an error: its D-Bus name and its text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class BusLost(Exception):
    """The connection went away while a call was under way; it may have been carried out or not."""


@dataclass(frozen=True)
class Call:
    """One method call to systemd: member, signature and arguments; `path` and `interface` where not the Manager's."""

    member: str
    signature: str = ""
    body: tuple[object, ...] = ()
    path: str = SYSTEMD_PATH
    interface: str = MANAGER
    destination: str = SYSTEMD
    files: tuple[int, ...] = ()  # descriptors that go with it, which a value of type h names by place


def variant(signature: str, value: object) -> object:
    """A D-Bus variant, for a property's value."""
    return Variant(signature, value)


def _dial(addresses: list[tuple[str, dict[str, str]]], flags: int = 0) -> socket.socket:
    """A socket that is connected to the first of these addresses that is a Unix socket's. Raises OSError."""
    for transport, options in addresses:
        if transport != "unix":
            continue
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | flags)
        try:
            sock.connect(options["path"] if "path" in options else "\0" + options["abstract"])
        except BaseException:
            sock.close()
            raise
        return sock
    raise OSError(errno.EAFNOSUPPORT, "the address names no Unix socket")


def string_lists(address: str, paths: Sequence[str], interface: str, name: str) -> Mapping[str, list[str]]:
    """A property of many of systemd's objects that is a list of strings, by the paths of those of which it could be
    read; for a thread. Raises OSError, ValueError or KeyError when that bus cannot be read."""
    with _dial(parse_address(address)) as sock:  # type: ignore[no-untyped-call] # dbus-next is typed in part
        reader = PropertyReader(sock, SYSTEMD, CALL_SECONDS)
        reader.open()
        return reader.string_lists(paths, interface, name)


class _Connection(MessageBus):
    """dbus-next's connection, closed when it ends, and without its handshake's endless loop on a bus that hangs up."""

    def _setup_socket(self) -> None:
        sock = _dial(self._bus_address, socket.SOCK_NONBLOCK)
        self._sock, self._stream, self._fd = sock, sock.makefile("rwb"), sock.fileno()

    async def _auth_readline(self) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            received = await self._loop.sock_recv(self._sock, 2)
            if not received:
                raise EOFError("the bus closed the connection during the handshake")
            line += received
        return line[:-2].decode()

    def when_ended(self, lost: asyncio.Future[None]) -> None:
        """Completes `lost` when the connection ends, for whatever reason."""

        def ended(future: asyncio.Future[None]) -> None:
            if not future.cancelled():
                future.exception()
            _complete(lost)

        self._disconnect_future.add_done_callback(ended)

    def end(self) -> None:
        """Closes the socket now. No call may be made afterwards: its descriptor's number may be another's."""
        if self._sock.fileno() < 0:
            return
        self._user_disconnect = True
        self._finalize()  # type: ignore[no-untyped-call] # dbus-next is typed in part
        with suppress(OSError):
            self._stream.close()
        self._sock.close()


def _complete(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


class Bus:
    """One connection that comes back.

    `on_signal(member, body)` gets systemd's signals; `on_return()` is called each time the connection, or systemd on
    it, is there again after it was away: signals may have been lost.
    """

    def __init__(
        self, tasks: Group, address: str, on_signal: Callable[[str, list[object]], None], *, files: bool = False
    ) -> None:
        self._tasks = tasks
        self._address = address
        self._files = files  # whether descriptors can be passed, for which dbus-next reads in small pieces
        self._on_signal = on_signal
        self._calls = asyncio.Semaphore(MAX_CALLS)
        self._ready = asyncio.Event()
        self._connection: _Connection | None = None
        self._lost: asyncio.Future[None] | None = None
        self._scopes: set[asyncio.Timeout] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._returns = 0
        self.on_return: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"Bus({self._address!r}, {'ready' if self._ready.is_set() else 'away'}, {self._returns} returns)"

    async def open(self) -> None:
        """Connects. Raises KeepfleetError(UNAVAILABLE) when the bus or systemd cannot be reached now."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._connect()
                await self._ready.wait()
        except (*_LOST, TimeoutError, BusLost, ReplyError) as error:
            self._drop()
            raise KeepfleetError(
                ErrorKind.UNAVAILABLE, f"cannot reach systemd on {self._address}: {error or type(error).__name__}"
            ) from error
        self._keeper = self._tasks.start(self._keep_connected(), name="bus")

    async def close(self) -> None:
        """Ends the connection; calls under way fail."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
            if not self._keeper.cancelled():
                self._keeper.result()
        self._drop()

    async def ask(self, call: Call, what: str, seconds: float) -> list[object]:
        """The reply to a call that may be made twice; it is, each time the connection breaks. what: what it is for.

        Raises the KeepfleetError that systemd's own error means, or UNAVAILABLE without a reply in `seconds`.
        """
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        return await self.call(call)
                    except BusLost as lost:
                        LOG.debug("asking again, the bus broke: %s", lost)
        except ReplyError as error:
            raise replies.translate(error.name, error.text, what) from error
        except TimeoutError:
            why = f"systemd has not answered in {seconds:g} s"
            raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot {what}: {why}") from None

    async def call(self, call: Call, seconds: float = CALL_SECONDS) -> list[object]:
        """The reply's arguments. A bus that is away is waited for.

        Raises ReplyError, BusLost, or KeepfleetError(UNAVAILABLE) after `seconds`.
        """
        try:
            async with asyncio.timeout(seconds), self._calls:
                await self._ready.wait()
                return await self._call(call)
        except TimeoutError:
            raise KeepfleetError(
                ErrorKind.UNAVAILABLE, f"cannot ask systemd for {call.member}: no answer in {seconds:g} s"
            ) from None

    async def _call(self, call: Call) -> list[object]:
        connection, lost = self._connection, self._lost
        if connection is None or lost is None or lost.done():
            self._ready.clear()  # or who asks again immediately would keep the loop from noticing the loss
            raise BusLost(call.member)
        message = Message(
            destination=call.destination,
            path=call.path,
            interface=call.interface,
            member=call.member,
            signature=call.signature,
            body=list(call.body),
            flags=MessageFlag.NO_AUTOSTART,
            unix_fds=list(call.files),
        )
        scope = asyncio.timeout(None)
        self._scopes.add(scope)
        reply: Message | None = None
        try:
            async with scope:
                reply = await connection.call(message)
        except TimeoutError:
            if not scope.expired():
                raise
        except _LOST as error:
            self._ready.clear()
            _complete(lost)
            raise BusLost(call.member) from error
        finally:
            self._scopes.discard(scope)
        if reply is None:
            raise BusLost(call.member)
        if reply.message_type is MessageType.ERROR and reply.error_name in _AWAY:
            raise BusLost(f"{call.member}: {reply.error_name}")
        if reply.message_type is MessageType.ERROR:
            raise ReplyError(str(reply.error_name), str(reply.body[0]) if reply.body else "")
        return list(reply.body)

    async def _connect(self) -> None:
        self._lost = asyncio.get_running_loop().create_future()
        self._lost.add_done_callback(self._break_off)
        self._connection = _Connection(bus_address=self._address, negotiate_unix_fd=self._files)
        self._connection.when_ended(self._lost)
        self._connection.add_message_handler(self._received)
        await self._connection.connect()
        for rule in _RULES:
            await self._call(_to_bus("AddMatch", "s", rule))
        if (await self._call(_to_bus("NameHasOwner", "s", SYSTEMD)))[0]:
            self._ready.set()

    async def _keep_connected(self) -> None:
        while True:
            if self._lost is not None:
                await asyncio.wait({self._lost})
            self._drop()
            LOG.warning("the bus at %s went away; reconnecting", self._address)
            await self._reconnect()
            LOG.info("the bus at %s is back", self._address)
            if self._ready.is_set():
                self._returned()

    async def _reconnect(self) -> None:
        attempt = 0
        while True:
            await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
            attempt += 1
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    return await self._connect()
            except (*_LOST, TimeoutError, BusLost, ReplyError) as error:
                self._drop()
                LOG.debug("the bus at %s is still away: %s", self._address, error or type(error).__name__)

    def _break_off(self, _: asyncio.Future[None]) -> None:
        """Ends every call under way: its answer will never come."""
        for scope in self._scopes:
            with suppress(RuntimeError):  # what it says of a block that has ended meanwhile
                scope.reschedule(0)

    def _returned(self) -> None:
        self._returns += 1
        self.on_return()

    def _drop(self) -> None:
        self._ready.clear()
        _complete(self._lost)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.end()

    def _received(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.member == "NameOwnerChanged" and message.body[0] == SYSTEMD:
            if message.body[2]:
                self._ready.set()
                self._returned()
            else:
                LOG.warning("systemd left the bus at %s; waiting for its return", self._address)
                self._ready.clear()
        elif message.interface == MANAGER:
            self._on_signal(str(message.member), list(message.body))


def _to_bus(member: str, signature: str, *body: object) -> Call:
    return Call(member, signature, body, "/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
