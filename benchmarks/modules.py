"""Modules of any size, made from a small one. Pure."""

from __future__ import annotations

from collections.abc import Iterator

CUSTOM = 0
"""The id of a custom section, which may stand anywhere and means nothing to who does not know it (Wasm core 2.5.3)."""
_NAME = b"\x07padding"
PIECE = 1024 * 1024


def leb128(value: int) -> bytes:
    """`value` as an unsigned LEB128 (Wasm core 5.2.2)."""
    encoded = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        encoded.append(low | (0x80 if value else 0))
        if not value:
            return bytes(encoded)


def padded(module: bytes, size: int, filler: bytes) -> Iterator[bytes]:
    """The pieces of a valid module of exactly `size` bytes: `module` and one custom section of repeated `filler`.

    Raises ValueError when `size` has no room for a section.
    """
    head, content = _section(size - len(module))
    yield module + head
    while content:
        piece = (filler * (PIECE // len(filler) + 1))[: min(content, PIECE)]
        content -= len(piece)
        yield piece


def _section(room: int) -> tuple[bytes, int]:
    """The first bytes of a section that takes exactly `room` bytes, and how many are to follow."""
    for length in range(1, 6):
        payload = room - 1 - length
        if payload < len(_NAME):
            break
        encoded = leb128(payload)
        if len(encoded) <= length:  # a longer encoding than needed is allowed, up to five bytes
            filled = encoded[:-1] + bytes([encoded[-1] | 0x80]) + b"\x80" * (length - len(encoded) - 1) + b"\x00"
            head = bytes([CUSTOM]) + (encoded if len(encoded) == length else filled) + _NAME
            return head, payload - len(_NAME)
    raise ValueError(f"a section does not fit {room} bytes")
