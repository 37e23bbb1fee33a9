"""The connection to the bus that systemd is on, made again where it ends.

Calls in flight are bounded, and every call has a deadline. A signal counts where systemd, or the bus itself, has sent
it: any user of the host may send one to any connection (man dbus-daemon, "SECURITY POLICY").
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from keep_manager.systemd import replies
from keep_manager.systemd.bulk import PropertyReader
from keep_manager.systemd.connection import BUS, BUS_PATH, BusLost, Connection, dial
from keep_manager.systemd.message import ERROR, Message, Variant
from keep_manager.systemd.replies import JobEnd
from keep_manager.tasks import Group
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record

LOG = logging.getLogger("keepfleet.bus")
SYSTEMD = "org.freedesktop.systemd1"
SYSTEMD_PATH = "/org/freedesktop/systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
MAX_CALLS = 64
"""Half of what the system bus allows one connection to have pending."""
CALL_SECONDS = 10.0
"""PID 1 answers in milliseconds; a daemon-reload of a large host holds it for seconds."""
CONNECT_SECONDS = 5.0
RETRY_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Pauses between attempts to reach a bus that is away: nothing says when it is back. The last one repeats."""
_RULES = (
    f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved',path='{SYSTEMD_PATH}'",
    f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{SYSTEMD}'",
)
_LOST = (OSError, EOFError, BusLost)
"""What says that there is no connection, or none any more."""
_AWAY = frozenset(f"org.freedesktop.DBus.Error.{n}" for n in ("NoReply", "ServiceUnknown", "NameHasNoOwner"))
"""What the bus answers for a systemd that is re-executing itself."""
_NO_OWNER = "org.freedesktop.DBus.Error.NameHasNoOwner"


class ReplyError(Exception):
    """The other side answered with an error: its D-Bus name and its text."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


class Call(Record):
    """One method call to systemd: member, signature and arguments; `path` and `interface` where not the Manager's."""

    member: str
    signature: str = ""
    body: tuple[object, ...] = ()
    path: str = SYSTEMD_PATH
    interface: str = MANAGER
    destination: str = SYSTEMD
    files: tuple[int, ...] = ()  # descriptors that go with it, which a value of type h names by place


def array_of(properties: Iterable[tuple[str, str, object]]) -> list[list[object]]:
    """Properties, each by name, signature and value, as the a(sv) of a call."""
    return [[name, Variant(signature, value)] for name, signature, value in properties]


def string_lists(address: str, paths: Sequence[str], interface: str, name: str) -> Mapping[str, list[str]]:
    """A property of many of systemd's objects that is a list of strings, by the paths of those of which it could be
    read; for a thread. Raises OSError, ValueError or KeyError when that bus cannot be read."""
    with dial(address) as sock:
        reader = PropertyReader(sock, SYSTEMD, CALL_SECONDS)
        reader.open()
        return reader.string_lists(paths, interface, name)


class Bus:
    """One connection that comes back.

    `on_end` hears of each job of systemd's that has ended; `on_return()` is called each time the connection, or systemd
    on it, is there again after it was away: signals may have been lost.
    """

    def __init__(self, tasks: Group, address: str, on_end: Callable[[JobEnd], None], *, files: bool = False) -> None:
        self._tasks = tasks
        self._address = address
        self._files = files  # whether descriptors can be passed
        self._on_end = on_end
        self._calls = asyncio.Semaphore(MAX_CALLS)
        self._ready = asyncio.Event()
        self._connection: Connection | None = None
        self._owner = ""  # systemd's own name on the bus, while it has one
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
        except (*_LOST, TimeoutError, ReplyError) as error:
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
        connection = self._connection
        if connection is None or connection.lost.done():
            self._ready.clear()  # or who asks again immediately would keep the loop from noticing the loss
            raise BusLost(call.member)
        reply = await connection.call(
            call.destination, call.path, call.interface, call.member, call.signature, call.body, call.files
        )
        if reply.type == ERROR and reply.error_name in _AWAY and call.destination != BUS:
            raise BusLost(f"{call.member}: {reply.error_name}")
        try:
            body = reply.body()
        except ValueError as error:
            connection.end()
            raise BusLost(call.member) from error
        if reply.type == ERROR:
            raise ReplyError(reply.error_name, str(body[0]) if body else "")
        return body

    async def _connect(self) -> None:
        self._connection = Connection(self._address, self._received, files=self._files)
        await self._connection.open()
        for rule in _RULES:
            await self._call(_to_bus("AddMatch", "s", rule))
        try:
            owner = str((await self._call(_to_bus("GetNameOwner", "s", SYSTEMD)))[0])
        except ReplyError as error:
            if error.name != _NO_OWNER:
                raise
        else:
            self._owned_by(owner)

    def _owned_by(self, owner: str) -> None:
        """systemd has this name on the bus now, or with "" none."""
        self._owner = owner
        if owner:
            self._ready.set()
        else:
            self._ready.clear()

    async def _keep_connected(self) -> None:
        while True:
            if self._connection is not None:
                await asyncio.wait({self._connection.lost})
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
            except (*_LOST, TimeoutError, ReplyError) as error:
                self._drop()
                LOG.debug("the bus at %s is still away: %s", self._address, error or type(error).__name__)

    def _returned(self) -> None:
        self._returns += 1
        self.on_return()

    def _drop(self) -> None:
        self._owned_by("")
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.end()

    def _received(self, message: Message) -> None:
        """A signal; those that others have sent, in whose name ever, are nothing."""
        of_bus = message.sender == BUS and message.member == "NameOwnerChanged"
        if not of_bus and not (message.sender == self._owner and message.interface == MANAGER):
            return
        body = message.body()
        if not of_bus:
            end = replies.job_end(body) if message.member == "JobRemoved" else None
            if end is not None:
                self._on_end(end)
        elif body[0] == SYSTEMD:
            self._owned_by(str(body[2]))
            if self._owner:
                self._returned()
            else:
                LOG.warning("systemd left the bus at %s; waiting for its return", self._address)


def _to_bus(member: str, signature: str, *body: object) -> Call:
    return Call(member, signature, body, BUS_PATH, BUS, BUS)
