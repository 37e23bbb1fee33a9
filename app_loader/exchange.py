"""One client's visit: TLS handshake, one request, perhaps a body, one answer, the end. No decisions are taken here.

`advance` reads and returns what has happened, in h11's own events; the door decides and calls `answer`.
"""

from __future__ import annotations

from enum import Enum

import h11

from app_loader.access import Peer, peer_of
from app_loader.answers import Answer
from app_loader.channel import Channel, Gone
from app_loader.limits import (
    ANSWER_SECONDS,
    HEADERS_SECONDS,
    LINGER_SECONDS,
    MAX_HEADER_BYTES,
    STALL_SECONDS,
)
from keep_protocol.errors import KeepfleetError
from keep_protocol.tls import HANDSHAKE_SECONDS

Happening = h11.Request | h11.Data | h11.EndOfMessage


class Stage(Enum):
    """Where a visit is. CHECKING: the body is whole and nothing is read; LINGERING: see `limits.LINGER_SECONDS`."""

    HANDSHAKE = "handshake"
    HEADERS = "headers"
    BODY = "body"
    CHECKING = "checking"
    ANSWERING = "answering"
    LINGERING = "lingering"
    CLOSED = "closed"


class Exchange:
    """One visit. stage: where it is; deadline: the monotonic time at which this stage has lasted too long; peer: the
    client's certificate, or the refusal that reading it gave, once the handshake is done; heard: whether the client
    has sent anything."""

    def __init__(self, channel: Channel, now: float) -> None:
        self._channel = channel
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        self.stage = Stage.HANDSHAKE
        self.opened = now
        self.deadline = now + HANDSHAKE_SECONDS
        self.peer: Peer | KeepfleetError | None = None
        self.heard = False
        self._headless = False

    def __repr__(self) -> str:
        return f"Exchange({self.stage.value}, {self._channel!r})"

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._channel.fileno()

    @property
    def interest(self) -> int:
        """What to poll for; 0 for nothing at all."""
        return 0 if self.stage in (Stage.CHECKING, Stage.CLOSED) else self._channel.interest

    def advance(self, now: float, buffer: memoryview) -> list[Happening]:
        """Does what can be done without waiting, and returns what has happened.

        Raises Gone when the client has left, h11.RemoteProtocolError when it does not speak HTTP.
        """
        self.heard = True
        if self.stage is Stage.ANSWERING:
            self._send(now)
        elif self.stage is Stage.LINGERING:
            if self._channel.discard(buffer):
                self.close()
        elif self.stage is Stage.HANDSHAKE:
            if self._channel.handshake():
                self.stage, self.deadline = Stage.HEADERS, now + HEADERS_SECONDS
                self._identify()
        elif self.stage in (Stage.HEADERS, Stage.BODY):
            count = self._channel.read_into(buffer)
            if count:
                self._http.receive_data(bytes(buffer[:count]))
                return self._events(now)
        return []

    def _identify(self) -> None:
        try:
            self.peer = peer_of(self._channel.connection)
        except KeepfleetError as refusal:
            self.peer = refusal

    def _events(self, now: float) -> list[Happening]:
        found: list[Happening] = []
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                self.stage = Stage.BODY
                self._headless = event.method == b"HEAD"
            elif not isinstance(event, h11.Data | h11.EndOfMessage):
                break
            self.deadline = now + STALL_SECONDS
            found.append(event)
            if isinstance(event, h11.EndOfMessage):
                break
        return found

    def invite_body(self) -> None:
        """Answers `Expect: 100-continue` where the client has asked. Raises Gone."""
        if self._http.they_are_waiting_for_100_continue:
            self._channel.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")

    def hold(self) -> None:
        """Stops reading: the body is whole and being checked."""
        self.stage = Stage.CHECKING

    def answer(self, answer: Answer, now: float) -> None:
        """Sends `answer` and then the goodbye. A client that has left is noticed and not an error."""
        if self.stage in (Stage.ANSWERING, Stage.LINGERING, Stage.CLOSED):
            return
        self.stage, self.deadline = Stage.ANSWERING, now + ANSWER_SECONDS
        try:
            head = self._http.send(
                h11.Response(status_code=answer.status, headers=list(answer.headers), reason=answer.reason)
            )
            body = b"" if self._headless else self._http.send(h11.Data(data=answer.body))
            end = self._http.send(h11.EndOfMessage())
            self._channel.write((head or b"") + (body or b"") + (end or b""))
            self._send(now)
        except Gone:
            self.close()

    def _send(self, now: float) -> None:
        if self._channel.flush():
            self._channel.say_goodbye()
            self.stage, self.deadline = Stage.LINGERING, now + LINGER_SECONDS

    def close(self) -> None:
        """Ends the visit at once. May be called twice."""
        self.stage = Stage.CLOSED
        self._channel.close()
