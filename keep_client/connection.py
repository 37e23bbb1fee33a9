"""The way to one server: requests, long answers and server-sent events, each on a connection of its own or all on one
that is kept; and how a server that is away is waited for, and what was lost goes on where it broke off."""

from __future__ import annotations

import _ssl
import errno
import time
from _collections_abc import Callable, Generator, Iterator

from keep_client.channel import Channel, ReaderGone
from keep_client.http import NO_BODY, NO_HEADERS, Body, Headers, Reply, exchange, nothing, nothing_of, receive
from keep_client.peer import ConnectionFailed, Endpoint
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.sse import ALIVE_SECONDS, END, MAX_EVENT_BYTES, MAX_ID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self, TypeVar

    Item = TypeVar("Item")

CALL_SECONDS = 60.0
"""Creation waits for systemd up to the manager's start_timeout_seconds (15) and in its queue of creations."""
KEPT_SECONDS = 5.0
"""How long a connection may lie idle and be used again: the manager closes one after ten seconds."""
RESUME_HEADER = "Last-Event-ID"
IDLE_SECONDS = 3 * ALIVE_SECONDS
"""A server that has said nothing for three of its own intervals is gone, or the way to it is."""
RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Pauses before each try to resume, the last one again and again: a killed manager is back in half a second."""
RECONNECT_SECONDS = 120.0
"""How long a server that is away is waited for, if nothing else is said: an upgrade of its host's packages takes so
long. Nothing is lost meanwhile but the time: a keep goes on without its manager."""
QUIET_SECONDS = 1.0
"""How long one is waited for before that is said: a person need not know of a manager that is back in half a second."""


class ServerEvent(Record):
    """One event: its name, its data as a JSON object, and its id, "" where it has none."""

    name: str
    data: dict[str, object]
    id: str


ALIVE = ServerEvent("", {}, "")
"""What a connection may yield to say that it is open; it goes no further."""


class EventParser:
    """Bytes in, events out (the WHATWG event stream format, of it what the manager sends); bounded in memory."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._rest = b""
        self._name, self._id = "", ""
        self._data: list[bytes] = []
        self._size = 0

    def __repr__(self) -> str:
        return f"EventParser({len(self._rest) + self._size} bytes held)"

    def feed(self, data: bytes) -> Iterator[ServerEvent]:
        """The events `data` completes. Raises KeepfleetError(TOO_LARGE or BAD_REQUEST) for one that cannot be read."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._size += len(line)
            self._bounded(self._size)
            event = self._line(line.removesuffix(b"\r"))
            if event is not None:
                yield event
        self._bounded(self._size + len(self._rest))

    def _bounded(self, size: int) -> None:
        if size > MAX_EVENT_BYTES:
            raise KeepfleetError(
                ErrorKind.TOO_LARGE, f"cannot read the stream of {self._peer}: an event is over {MAX_EVENT_BYTES} bytes"
            )

    def _line(self, line: bytes) -> ServerEvent | None:
        if not line:
            return self._finish()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"id" and len(value) <= MAX_ID and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        return None

    def _finish(self) -> ServerEvent | None:
        data, name, event_id = b"\n".join(self._data), self._name or "message", self._id
        had_data = bool(self._data)
        self._name, self._id, self._data, self._size = "", "", [], 0
        if not had_data:
            return None
        return ServerEvent(
            name, strict_json.loads_object(data, MAX_EVENT_BYTES, f"the stream of {self._peer}"), event_id
        )


class Patience:
    """How a server that is away is waited for: asked again after growing pauses, until it has not answered for
    `seconds`."""

    def __init__(
        self,
        seconds: float = RECONNECT_SECONDS,
        pause: Callable[[float], None] | None = None,
        waiting: Callable[[str], None] = nothing_of,
    ) -> None:
        """waiting: hears how long it is waited for, and why, once that takes QUIET_SECONDS; "" when it is over."""
        self._seconds, self._pause, self._waiting = seconds, pause or time.sleep, waiting
        self._tries, self._until, self._said = 0, 0.0, False

    def __repr__(self) -> str:
        return f"Patience({self._seconds:g} s, {self._tries} tries)"

    def renew(self) -> None:
        """The server has answered."""
        self._tries, self._until = 0, 0.0
        self._say("")

    def wait(self, error: ConnectionFailed) -> None:
        """Pauses before the next try. Raises what the last one has raised, with how long it was tried, where that is
        long enough."""
        now = time.monotonic()
        if not self._tries:
            self._until = now + self._seconds
        left = self._until - now
        if left <= 0:
            self._say("")
            if not self._seconds:
                raise error
            waited = f"it was waited for for {self._seconds:g} seconds"
            raise ConnectionFailed(error.kind, f"{error.message}; {waited}", error.evidence) from error
        away = self._seconds - left
        if away >= QUIET_SECONDS:
            self._say(f"waiting, {away:.0f} of at most {self._seconds:.0f} s: {error.message}")
        try:
            self._pause(min(RETRY_SECONDS[min(self._tries, len(RETRY_SECONDS) - 1)], left))
        except BaseException:
            self._say("")
            raise
        self._tries += 1

    def _say(self, text: str) -> None:
        if text or self._said:
            self._said = bool(text)
            self._waiting(text)


class Connection:
    """Requests to one server; inside `with connection:` all go over one TLS connection, made when it is needed.

    A kept connection that the server has closed meanwhile is noticed before the next request. Where it closes just
    then, a GET is sent again on a new one. No other request is: it may have been obeyed, and a caller that can bear to
    ask twice does so itself.
    """

    def __init__(
        self, endpoint: Endpoint, context: _ssl._SSLContext, reconnect_seconds: float = RECONNECT_SECONDS
    ) -> None:
        """reconnect_seconds: how long the server may be away where that is waited for. `reached` is the IP address of
        the last connection, "" before the first; `waiting` hears of such a wait, see `Patience`."""
        self.endpoint, self._context, self.reached = endpoint, context, ""
        self.reconnect_seconds = reconnect_seconds
        self.waiting: Callable[[str], None] = nothing_of
        self._keeps, self._kept = False, list[Channel]()  # at most one

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint})"

    def another(self) -> Self:
        """Another connection to the same server, for another thread."""
        return type(self)(self.endpoint, self._context, self.reconnect_seconds)

    def __enter__(self) -> Self:
        self._keeps = True
        return self

    def __exit__(self, *_: object) -> None:
        self._keeps = False
        while self._kept:
            self._kept.pop().close()

    def _channel(self, seconds: float) -> Channel:
        """The kept connection where it is still good, or a new one."""
        while self._kept:
            kept = self._kept.pop()
            if kept.seconds() < KEPT_SECONDS and kept.is_quiet():
                kept.extend(seconds)
                return kept
            kept.close()
        channel = Channel.open(self.endpoint, self._context, seconds)
        self.reached = channel.address
        return channel

    @property
    def patience(self) -> Patience:
        """For one wait, or one stream."""
        return Patience(self.reconnect_seconds, waiting=self._waits)

    def _waits(self, text: str) -> None:
        self.waiting(text)  # which may have been set after this patience was made

    def reach(self) -> str:
        """The IP address by which the server is reached; connects where that is not known. Raises ConnectionFailed."""
        if not self.reached:
            channel = self._channel(CALL_SECONDS)
            self._keep(channel, answers=-1)
        return self.reached

    def _keep(self, channel: Channel, answers: int) -> None:
        """Keeps a connection on which there have been more than `answers` by now, or closes it."""
        if self._keeps and channel.answers > answers and not self._kept:
            self._kept.append(channel)
        else:
            channel.close()

    def request(
        self,
        method: str,
        target: str,
        body: Body = NO_BODY,
        seconds: float = CALL_SECONDS,
        headers: Headers = NO_HEADERS,
        meanwhile: Callable[[], None] = nothing,
    ) -> Reply:
        """One exchange, whatever its status; meanwhile: as for `exchange`."""
        channel = self._channel(seconds)
        answers = channel.answers
        try:
            return exchange(
                channel, self.endpoint, method, target, body, headers=headers, keep=self._keeps, meanwhile=meanwhile
            )
        except ConnectionFailed as error:
            if not answers or method != "GET" or error.kind is ErrorKind.TOO_SLOW:
                raise
        finally:
            self._keep(channel, answers)
        return self.request(method, target, body, seconds, headers)

    def received(
        self, target: str, reader: int | None = None, headers: Headers = NO_HEADERS
    ) -> Generator[memoryview, None, None]:
        """The body of one answer as it comes, see `receive`; nothing is sent again.

        reader: the pipe or socket it will be written to; BrokenPipeError as soon as its other end is closed.
        """
        channel = self._channel(IDLE_SECONDS)
        answers, channel.reader = channel.answers, reader
        try:
            yield from receive(channel, self.endpoint, target, headers, IDLE_SECONDS, keep=self._keeps)
        except ReaderGone as error:
            raise BrokenPipeError(errno.EPIPE, "the output has no reader any more") from error
        finally:
            channel.reader = None
            self._keep(channel, answers)

    def stream(self, target: str, endless: bool, reader: int | None, after: str) -> Generator[ServerEvent, None, None]:
        """One connection's events. endless: it must not end but with END, so that any other end means a manager that
        stops. Nothing is sent again here: `resumed` does that, after the last event."""
        parser, is_over = EventParser(str(self.endpoint)), False
        received = self.received(target, reader, {RESUME_HEADER: after} if after else NO_HEADERS)
        try:
            for data in received:
                if data:
                    yield ALIVE
                for event in parser.feed(bytes(data)):
                    is_over = is_over or event.name == END
                    yield event
        except ConnectionFailed:
            if not is_over:
                raise
        finally:
            received.close()
        if endless and not is_over:
            raise cut_short(self.endpoint)


def cut_short(endpoint: Endpoint) -> ConnectionFailed:
    """The error for a stream that ended before its end: its server is being stopped."""
    return ConnectionFailed(
        ErrorKind.UNAVAILABLE, f"cannot read on from {endpoint}: it ended the stream before its end"
    )


def resumed(
    connect: Callable[[str], Iterator[ServerEvent]],
    patience: Patience,
    after: str = "",
    patient: bool = False,
) -> Generator[ServerEvent, None, None]:
    """The events of `connect(after)`, and of new connections after the last event's id when one is lost; otherwise as
    `persistent`."""

    def connected() -> Iterator[ServerEvent]:
        nonlocal after
        for event in connect(after):
            after = event.id or after
            yield event

    for event in persistent(connected, patience, patient):
        if event is not ALIVE:
            yield event


def persistent(
    connect: Callable[[], Iterator[Item]], patience: Patience, patient: bool = False
) -> Generator[Item, None, None]:
    """The items of `connect()`, and of new connections when one is lost; an empty item is no sign of life.

    patient: the first connection is tried as often as any other. Ends where a connection ends by itself. Raises
    ConnectionFailed when the first connection fails, or patience has come to its end.
    """
    while True:
        try:
            for item in connect():
                if item:
                    patience.renew()
                    patient = True
                yield item
            return
        except ConnectionFailed as error:
            if not patient:
                raise
            patience.wait(error)
