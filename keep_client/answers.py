"""Answers off a channel, bounded in size and time: the half of an exchange that takes http.client."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from keep_client.channel import Channel
from keep_client.endpoint import Endpoint
from keep_client.failures import ConnectionFailed, not_whole, translate
from keep_client.http import MAX_REPLY, Reply
from keep_protocol.errors import ErrorKind, KeepfleetError

STREAM_CHUNK = 64 * 1024


@contextmanager
def _translated(endpoint: Endpoint) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # RemoteDisconnected is one too
        raise translate(error, endpoint) from error
    except http.client.HTTPException as error:
        raise not_whole(error, endpoint) from error


def _response(channel: Channel, method: str) -> http.client.HTTPResponse:
    return http.client.HTTPResponse(cast(socket.socket, channel), method=method)


def _read(response: http.client.HTTPResponse, peer: str, limit: int) -> Reply:
    data = response.read(limit + 1)
    if len(data) > limit:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read the answer of {peer}: it is over {limit} bytes")
    if response.length:  # what the header announced and the connection did not bring
        raise http.client.IncompleteRead(data, response.length)
    return Reply(response.status, data, peer)


def whole(channel: Channel, endpoint: Endpoint, method: str, limit: int) -> Reply:
    """The answer to a request that is out. Raises as `http.exchange`."""
    with _translated(endpoint), _response(channel, method) as response:
        response.begin()
        return _read(response, str(endpoint), limit)


def parts(channel: Channel, endpoint: Endpoint, idle: float) -> Iterator[bytes]:
    """The body of the answer to a GET that is out, as it comes. Raises as `http.receive`."""
    with _translated(endpoint):
        response = _response(channel, "GET")
        response.begin()
    with response:
        if response.status != 200:
            with _translated(endpoint):
                raise _read(response, str(endpoint), MAX_REPLY).error()
        while data := _part(response, endpoint):
            yield data
            channel.extend(idle)


def _part(response: http.client.HTTPResponse, endpoint: Endpoint) -> bytes:
    try:
        return response.read1(STREAM_CHUNK)
    except TimeoutError as error:
        raise ConnectionFailed(ErrorKind.TOO_SLOW, f"cannot read on from {endpoint}: it fell silent") from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionFailed(
            ErrorKind.UNAVAILABLE, f"cannot read on from {endpoint}: the connection was lost"
        ) from error
