"""One HTTP/1.1 request and its answer on a channel, bounded in size and time.

http.client is imported when a request is out: its 9 ms pass while the server works.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from keep_client.channel import Channel
from keep_client.peer import ConnectionFailed, Endpoint, not_whole, translate
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire

if TYPE_CHECKING:
    import socket
    from http.client import HTTPResponse

MAX_REPLY = 16 * 1024 * 1024
"""The longest answer: a list of 2,000 keeps at 8 KiB each (a keep's object with its certificate)."""
STREAM_CHUNK = 64 * 1024
_TARGET = re.compile(r"/[\x21-\x7e]*")
MAX_HEADER = 1024
Headers = Mapping[str, str]
NO_HEADERS: Headers = {}


@dataclass(frozen=True)
class Reply:
    """An answer: its status, its body, and who sent it."""

    status: int
    body: bytes
    peer: str

    @property
    def text(self) -> str:
        """The body as text; bytes that are not UTF-8 are shown as such."""
        return self.body.decode("utf-8", "backslashreplace")

    def object(self) -> dict[str, object]:
        """The body as a JSON object. Raises KeepfleetError(BAD_REQUEST) when it is none."""
        return strict_json.loads_object(self.body, MAX_REPLY, f"the answer of {self.peer}")

    def error(self) -> KeepfleetError:
        """The error the peer reported in `{"error": …}`, or what can be said of an answer that has another shape."""
        try:
            reported = self.object().get("error")
        except KeepfleetError:
            reported = None
        if reported is not None:
            return error_from_wire(reported)
        first = self.text.strip().splitlines()[:5]
        return KeepfleetError(ErrorKind.INTERNAL, f"cannot go on: {self.peer} answered {self.status}", tuple(first))


@dataclass(frozen=True)
class Body:
    """What a request carries: its type, its exact length, and its bytes in parts."""

    type: str
    length: int
    parts: Iterable[bytes]


NO_BODY = Body("application/json", 0, ())


def json_body(value: object) -> Body:
    """`value` as a JSON body."""
    data = strict_json.dumps(value)
    return Body("application/json", len(data), (data,))


def _head(method: str, target: str, endpoint: Endpoint, body: Body, headers: Headers) -> bytes:
    if not _TARGET.fullmatch(target):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot ask for {target!r}: it is no path")
    if any(not value.isprintable() or len(value) > MAX_HEADER for value in headers.values()):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot send a header that is not printable text")
    lines = [
        f"{method} {target} HTTP/1.1",
        f"Host: {endpoint.authority}",
        "Connection: close",
        "Accept: application/json, text/plain, text/event-stream",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if method != "GET":
        lines += [f"Content-Type: {body.type}", f"Content-Length: {body.length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def _send(channel: Channel, head: bytes, body: Body, endpoint: Endpoint) -> None:
    try:
        _send_parts(channel, head, body)
    except (OSError, ValueError) as error:
        raise translate(error, endpoint, channel.seconds()) from error


def _send_parts(channel: Channel, head: bytes, body: Body) -> None:
    sent = 0
    if not channel.send(head):
        return
    for part in body.parts:
        sent += len(part)
        if not channel.send(part):
            return
    if sent != body.length:
        raise KeepfleetError(
            ErrorKind.CONFLICT, f"cannot send the file: it changed while it was read ({sent} of {body.length} bytes)"
        )


@contextmanager
def _translated(channel: Channel, endpoint: Endpoint) -> Iterator[None]:
    from http.client import HTTPException

    try:
        yield
    except (OSError, ValueError) as error:  # RemoteDisconnected is one too
        raise translate(error, endpoint, channel.seconds()) from error
    except HTTPException as error:
        raise not_whole(error, endpoint) from error


def _response(channel: Channel, method: str) -> HTTPResponse:
    from http.client import HTTPResponse

    return HTTPResponse(cast("socket.socket", channel), method=method)


def _read(response: HTTPResponse, peer: str, limit: int) -> Reply:
    from http.client import IncompleteRead

    data = response.read(limit + 1)
    if len(data) > limit:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read the answer of {peer}: it is over {limit} bytes")
    if response.length:  # what the header announced and the connection did not bring
        raise IncompleteRead(data, response.length)
    return Reply(response.status, data, peer)


def _part(response: HTTPResponse, endpoint: Endpoint) -> bytes:
    from http.client import HTTPException

    try:
        return response.read1(STREAM_CHUNK)
    except TimeoutError as error:
        raise ConnectionFailed(ErrorKind.TOO_SLOW, f"cannot read on from {endpoint}: it fell silent") from error
    except (OSError, HTTPException) as error:
        raise ConnectionFailed(
            ErrorKind.UNAVAILABLE, f"cannot read on from {endpoint}: the connection was lost"
        ) from error


def exchange(
    channel: Channel,
    endpoint: Endpoint,
    method: str,
    target: str,
    body: Body = NO_BODY,
    limit: int = MAX_REPLY,
    headers: Headers = NO_HEADERS,
) -> Reply:
    """Sends one request and reads its answer, at most `limit` bytes of it; stops sending when it comes early.

    Raises ConnectionFailed when no answer came, KeepfleetError for one that is too large or not HTTP.
    """
    _send(channel, _head(method, target, endpoint, body, headers), body, endpoint)
    with _translated(channel, endpoint), _response(channel, method) as response:
        response.begin()
        return _read(response, str(endpoint), limit)


def receive(channel: Channel, endpoint: Endpoint, target: str, headers: Headers, idle: float) -> Iterator[bytes]:
    """Sends one GET and yields the body of its answer as it comes, each part within `idle` seconds of the last.

    Raises ConnectionFailed when no answer came, when it breaks off, or falls silent; and the error the peer reported
    where its status is not 200.
    """
    channel.extend(idle)
    _send(channel, _head("GET", target, endpoint, NO_BODY, headers), NO_BODY, endpoint)
    with _translated(channel, endpoint):
        response = _response(channel, "GET")
        response.begin()
    with response:
        if response.status != 200:
            with _translated(channel, endpoint):
                raise _read(response, str(endpoint), MAX_REPLY).error()
        while data := _part(response, endpoint):
            yield data
            channel.extend(idle)
