"""One keep's upload endpoint: sends it one workload, after its certificate was compared with the pin."""

from __future__ import annotations

import _ssl
import os
import stat
from _collections_abc import Callable, Iterator
from io import FileIO

from keep_client.channel import Channel
from keep_client.http import NO_HEADERS, Body, Headers, Reply, exchange, nothing
from keep_client.peer import Endpoint
from keep_protocol import sockets as socket
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State

PAYLOAD_PATH = "/payload"
WORKLOAD_PATH = "/workload"
MODULE_NAME_HEADER = "X-Module-Name"
MAX_MODULE_NAME = 255
"""Characters; the longest name of a file (NAME_MAX)."""
PAYLOAD_RECEIVED = "Payload received"
CHUNK = 256 * 1024
"""Bytes of a file in memory at a time."""
UPLOAD_SECONDS = 3600.0
"""For the keep to check and compile a module. It has a deadline of its own (by `compile_seconds`) and answers then; a
host that is gone is noticed within a minute (`channel`)."""
SLOWEST_BYTES_PER_SECOND = 64 * 1024
"""The slowest link an upload is given time for: half a megabit a second."""
MAX_UPLOAD_REPLY = 64 * 1024
"""A keep runs foreign code, so little is read of what it answers; a refusal with its reason is under 8 KiB."""
CLOSED_HINT = "a keep closes its upload endpoint once it has its workload, and when it is stopped; see: keepctl inspect"
Progress = Callable[[int], None]
_FAMILIES = {"0.0.0.0": (socket.AF_INET, "IPv4", "127.0.0.1"), "::": (socket.AF_INET6, "IPv6", "::1")}
"""What listens on every address listens on those of one family: a keep's socket is made with IPV6_V6ONLY."""


class UploadEndpoint(Record):
    """Where one keep receives its workload, and the fingerprint its certificate must have."""

    endpoint: Endpoint
    fingerprint: str


def endpoint_at(host: str, port: int, fingerprint: str) -> UploadEndpoint:
    """The upload endpoint at an address a person gave."""
    return UploadEndpoint(Endpoint(host, port, "the keep", CLOSED_HINT), fingerprint)


def reachable_host(keep: KeepInfo, manager_host: str) -> str:
    """Where to connect to for a keep; one that listens on every address of a family is met at its manager's of that
    family. Raises KeepfleetError(CONFLICT) where the manager is known by none."""
    if keep.address not in _FAMILIES:
        return keep.address
    family, name, loopback = _FAMILIES[keep.address]
    try:
        return str(socket.getaddrinfo(manager_host, None, family, socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        if manager_host == "::1" or manager_host.startswith("127."):
            return loopback
        raise KeepfleetError(
            ErrorKind.CONFLICT,
            f"cannot send anything to keep {keep.kuuid}: it listens on {keep.address}, which is {name} alone, and "
            f"{manager_host} has no {name} address; start it with --address and the one you reach it by",
        ) from error


def endpoint_of(keep: KeepInfo, manager_host: str) -> UploadEndpoint:
    """The upload endpoint of a keep.

    Raises KeepfleetError(CONFLICT) when the keep has none open, or none that can be reached.
    """
    if keep.state is not State.STARTED or not keep.port or not keep.fingerprint:
        raise KeepfleetError(
            ErrorKind.CONFLICT,
            f"cannot send anything to keep {keep.kuuid}: it is {keep.detail or keep.state.name.lower()}; "
            "only a started keep receives a workload",
        )
    host = reachable_host(keep, manager_host)
    return UploadEndpoint(
        Endpoint(host, keep.port, f"keep {keep.kuuid}", f"{CLOSED_HINT} {keep.kuuid}"), keep.fingerprint
    )


def open_workload(path: str) -> FileIO:
    """The regular file at `path`, open, to be closed by the caller. Raises KeepfleetError(BAD_REQUEST) where it cannot
    be read."""
    try:
        file = FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {path}: it is not a regular file")
    return file


def _chunks(file: FileIO) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(CHUNK):
        yield chunk


def _numbers(file: FileIO) -> Iterator[bytes]:
    decimal = tuple(str(byte).encode("ascii") for byte in range(256))
    yield b'{"encoding":"wasm","contents":['
    separator = b""
    for chunk in _chunks(file):
        yield separator + b",".join([decimal[byte] for byte in chunk])
        separator = b","
    yield b"]}"


def _reported(parts: Iterator[bytes], progress: Progress) -> Iterator[bytes]:
    sent = 0
    for part in parts:
        yield part  # the next one is asked for when this one has gone out
        sent += len(part)
        progress(sent)


def raw_body(file: FileIO, progress: Progress | None = None, before: Callable[[], None] = nothing) -> Body:
    """The file as it is, in parts; `progress` hears how many bytes have gone out, after each. before: called before the
    first byte goes out, and not at all where the keep is not reached."""
    parts = _after(before, _chunks(file))
    return Body("application/wasm", file_size(file), _reported(parts, progress) if progress is not None else parts)


def _after(before: Callable[[], None], parts: Iterator[bytes]) -> Iterator[bytes]:
    before()
    yield from parts


def file_size(file: FileIO) -> int:
    """How many bytes the open file has."""
    return os.fstat(file.fileno()).st_size


def numbers_body(file: FileIO) -> Body:
    """The original's body: `contents` as an array of numbers, made twice over so that it is never whole in memory."""
    return Body("application/json", sum(len(part) for part in _numbers(file)), _numbers(file))


def upload(
    endpoint: UploadEndpoint,
    context: _ssl._SSLContext,
    method: str,
    target: str,
    body: Body,
    headers: Headers = NO_HEADERS,
) -> Reply:
    """Sends one workload and returns the keep's answer, whatever its status.

    Nothing is sent unless the keep's certificate has the endpoint's fingerprint (KeepfleetError CERTIFICATE).
    Raises ConnectionFailed when no answer came; a keep that has its workload listens no more.
    """
    seconds = UPLOAD_SECONDS + (body.length or 0) / SLOWEST_BYTES_PER_SECOND
    with Channel.open(endpoint.endpoint, context, seconds, pin=endpoint.fingerprint) as channel:
        return exchange(channel, endpoint.endpoint, method, target, body, MAX_UPLOAD_REPLY, headers)


def upload_raw(
    endpoint: UploadEndpoint,
    context: _ssl._SSLContext,
    file: FileIO,
    progress: Progress | None = None,
    before: Callable[[], None] = nothing,
) -> Reply:
    """`PUT /workload`: the file as `application/wasm`, with its name, if it has one, for people to see; before: as for
    `raw_body`."""
    name = os.path.basename(file.name) if isinstance(file.name, str) else ""
    headers = {MODULE_NAME_HEADER: name} if name and name.isprintable() and len(name) <= MAX_MODULE_NAME else NO_HEADERS
    return upload(endpoint, context, "PUT", WORKLOAD_PATH, raw_body(file, progress, before), headers)


def received(reply: Reply, file: FileIO) -> str:
    """What the keep says it received, checked against the file; one sentence.

    Raises the error the keep reported, or KeepfleetError(INTERNAL) when it confirms something else.
    """
    if reply.status != 200:
        raise reply.error()
    if reply.text.strip().strip('"') == PAYLOAD_RECEIVED:
        return PAYLOAD_RECEIVED
    from _hashlib import openssl_sha256  # here: when the keep has begun already; `hashlib` would be 2 ms more

    answer, hashed = reply.object(), openssl_sha256()
    for chunk in _chunks(file):
        hashed.update(chunk)
    digest, size = hashed.hexdigest(), os.fstat(file.fileno()).st_size
    if answer.get("sha256") != digest or answer.get("size") != size:
        raise KeepfleetError(
            ErrorKind.INTERNAL,
            f"cannot be sure of the workload: {reply.peer} confirms {answer.get('size')} bytes, sha256 "
            f"{answer.get('sha256')}, but {size} bytes, sha256 {digest} were sent",
        )
    return f"{size} bytes received whole, sha256:{digest}"


def upload_numbers(endpoint: UploadEndpoint, context: _ssl._SSLContext, file: FileIO) -> Reply:
    """`POST /payload`: the file as the original's JSON."""
    return upload(endpoint, context, "POST", PAYLOAD_PATH, numbers_body(file))
