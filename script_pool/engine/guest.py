"""QuickJS as WebAssembly, out of the wheel `quickjs-rs`: its bytes, and the same module with a booted engine in it.

The wheel's Python is not imported: it would compile the guest at run time and keep one instance for many calls.
Import rule: the standard library alone.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator

PAGE = 65_536
GUEST_SHA256 = "647ab11ae29cc6d39a6d17d3aa1e7a6a0b5fb9c44b4864475a18bc644f926050"
"""Of quickjs-rs 0.2.6. The snapshot depends on the guest's layout, so another guest is refused, and not tried."""

_MEMORY, _GLOBAL, _CODE, _DATA, _DATA_COUNT = 5, 6, 10, 11, 12
"""Sections of a module."""
_I32_CONST, _END = 0x41, 0x0B


def read(name: str, sha256: str, package: str = "quickjs_rs", wheel: str = "quickjs-rs 0.2.6") -> bytes:
    """A file of a wheel's. Raises ImportError where it is missing or is another."""
    for directory in sys.path:
        path = os.path.join(directory, package, name)
        if os.path.exists(path):
            with open(path, "rb") as file:
                data = file.read()
            if hashlib.sha256(data).hexdigest() != sha256:
                raise ImportError(f"cannot run scripts: {path} is not that of {wheel}; install that version")
            return data
    raise ImportError(f"cannot run scripts: {wheel} is not installed; pip install keepfleet brings it")


def _unsigned(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _signed(value: int) -> bytes:
    out = bytearray()
    while not -64 <= value < 64:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


def _read_unsigned(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return value, at


def sections(module: bytes) -> Iterator[tuple[int, bytes]]:
    """Each section's number and contents, in order."""
    at = 8
    while at < len(module):
        number = module[at]
        size, at = _read_unsigned(module, at + 1)
        yield number, module[at : at + size]
        at += size


def _segments(image: bytes, near: int = 256) -> list[tuple[int, bytes]]:
    """The image without its long runs of zeros: where each part begins, and the part."""
    found: list[tuple[int, bytes]] = []
    at, zeros = 0, bytes(near)
    while at < len(image):
        gap = len(image) - at - len(image[at:].lstrip(b"\0")) if image[at] == 0 else 0
        at += gap
        end = image.find(zeros, at)
        end = len(image) if end < 0 else end
        if end > at:
            found.append((at, image[at:end]))
        at = end
    return found


def with_image(module: bytes, image: bytes) -> bytes:
    """`module` with a memory that begins as `image`: its size, and all of its data.

    The module's own data is active and has been laid down in the image already; the only mutable global that it has is
    its stack pointer, which rests where it began.
    """
    if len(image) % PAGE:
        raise ValueError("an image is whole pages")
    segments = _segments(image)
    data = b"".join(
        bytes((0, _I32_CONST)) + _signed(at) + bytes((_END,)) + _unsigned(len(part)) + part for at, part in segments
    )
    out = bytearray(module[:8])
    for number, held in sections(module):
        contents = held
        if number == _DATA_COUNT:
            raise ValueError("the guest names its data segments")
        if number == _MEMORY:
            contents = b"\1\0" + _unsigned(len(image) // PAGE)
        elif number == _DATA:
            contents = _unsigned(len(segments)) + data
        out += bytes((number,)) + _unsigned(len(contents)) + contents
    return bytes(out)
