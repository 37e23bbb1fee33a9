"""The way to one server: requests and event streams, each on a connection of its own or all on one that is kept."""

from __future__ import annotations

import _ssl
import errno
from _collections_abc import Callable, Generator

from keep_client.channel import Channel, ReaderGone
from keep_client.http import NO_BODY, NO_HEADERS, Body, Headers, Reply, exchange, nothing, nothing_of, receive
from keep_client.peer import ConnectionFailed, Endpoint
from keep_client.streams import ALIVE, IDLE_SECONDS, RECONNECT_SECONDS, EventParser, Patience, ServerEvent
from keep_protocol.errors import ErrorKind
from keep_protocol.sse import END

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

CALL_SECONDS = 60.0
"""Creation waits for systemd up to the manager's start_timeout_seconds (15) and in its queue of creations."""
KEPT_SECONDS = 5.0
"""How long a connection may lie idle and be used again: the manager closes one after ten seconds."""
RESUME_HEADER = "Last-Event-ID"


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
