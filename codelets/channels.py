"""What passes between codelets and their application: streams, messages, and what makes values of them. Pure.

Import rule: the standard library, keep_protocol.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from typing import Any, Protocol

from keep_protocol.errors import ErrorKind, KeepfleetError

STREAM_BYTES = 16
Receiver = Callable[[bytes, Any], None]
"""Takes a stream's ID and a message."""


class Serializer(Protocol):
    """What a stream's messages are to the application."""

    def decode(self, message: bytes) -> Any:
        """The value in a codelet's message. Raises ValueError."""

    def encode(self, value: Any) -> bytes:
        """The message that a codelet reads. Raises ValueError."""


def as_bytes(stream: bytes | str) -> bytes:
    """The 16 bytes of a stream's ID; as text they are hexadecimal digits. Raises KeepfleetError(BAD_REQUEST)."""
    try:
        found = bytes.fromhex(stream.replace("-", "")) if isinstance(stream, str) else bytes(stream)
    except ValueError:
        found = b""
    if len(found) != STREAM_BYTES:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot use {stream!r:.60} as a stream: its ID has 16 bytes")
    return found


def pack(stream: bytes | str, message: bytes) -> bytes:
    """A message as it travels: the stream's ID before it."""
    return as_bytes(stream) + message


def unpack(packet: bytes) -> tuple[bytes, bytes]:
    """The stream's ID and the message of a packet. Raises KeepfleetError(BAD_REQUEST) for one that is too short."""
    if len(packet) < STREAM_BYTES:
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot unpack {len(packet)} bytes: a stream's ID has 16")
    return packet[:STREAM_BYTES], packet[STREAM_BYTES:]


class JsonOf:
    """Messages that are one `ctypes.Structure` of numbers, arrays and structures, as JSON text."""

    def __init__(self, structure: type[ctypes.Structure]) -> None:
        self._structure = structure

    def __repr__(self) -> str:
        return f"JsonOf({self._structure.__name__})"

    def decode(self, message: bytes) -> str:
        if len(message) != ctypes.sizeof(self._structure):
            raise ValueError(f"a {self._structure.__name__} has {ctypes.sizeof(self._structure)} bytes")
        return json.dumps(_plain(self._structure.from_buffer_copy(message)))

    def encode(self, value: str) -> bytes:
        made, given = self._structure(), json.loads(value)
        if not isinstance(given, dict):
            raise ValueError("it must be a JSON object")  # noqa: TRY004 - of every text alike
        _fill(made, given)
        return bytes(made)


def _plain(value: Any) -> Any:
    if isinstance(value, ctypes.Structure):
        return {each[0]: _plain(getattr(value, each[0])) for each in value._fields_}
    if isinstance(value, ctypes.Array):
        return [_plain(each) for each in value]
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _fill(made: Any, given: dict[str, Any]) -> None:
    kinds = {each[0]: each[1] for each in made._fields_}
    for name, value in given.items():
        if name not in kinds:
            raise ValueError(f"there is no field {name!r}; there are {', '.join(kinds)}")
        part = getattr(made, name)
        try:
            if isinstance(part, ctypes.Structure):
                _fill(part, value)
            elif isinstance(part, ctypes.Array):
                part[:] = value
            else:
                setattr(made, name, value)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"field {name!r}: {error}") from None
