"""Images: what a guest's memory has that the booted one has not, and laying that over a fresh instance.

An image comes from another process, and may have been made by one that a script has taken over: every number in it is
bounded before memory is written.
"""

from __future__ import annotations

import ctypes
import struct

from script_pool.engine.binding import EngineError
from script_pool.engine.guest import PAGE
from script_pool.engine.instance import Guest
from script_pool.engine.interface import Fault, Reason

CHUNK_BYTES = 64
"""How finely a memory is compared with the booted one."""
GAP_BYTES = 2048
"""Changes nearer than this are one part: copying them is cheaper than one more call, which costs half a microsecond."""
_BLOCK = PAGE // 16


def changes(guest: Guest, booted: bytes) -> bytes:
    """What the instance's memory has that the booted one had not: its size, its parts' places, the parts."""
    memory = guest.read(0, guest.size)
    base = booted.ljust(len(memory), b"\0")
    parts: list[list[int]] = []
    for block in range(0, len(memory), _BLOCK):
        if memory[block : block + _BLOCK] == base[block : block + _BLOCK]:
            continue
        for at in range(block, block + _BLOCK, CHUNK_BYTES):
            if memory[at : at + CHUNK_BYTES] != base[at : at + CHUNK_BYTES]:
                if parts and at - parts[-1][1] <= GAP_BYTES:
                    parts[-1][1] = at + CHUNK_BYTES
                else:
                    parts.append([at, at + CHUNK_BYTES])
    head = struct.pack("<II", len(memory), len(parts))
    places = b"".join(struct.pack("<II", start, end - start) for start, end in parts)
    return head + places + b"".join(memory[start:end] for start, end in parts)


def lay(guest: Guest, image: bytes, begin: int = 0) -> None:
    """Writes the image that begins at a byte over a fresh instance. Raises Fault(CRASHED) for one that does not fit it:
    growing comes first, since a copy into a smaller memory would be a copy into this process."""
    size = 0
    try:
        size, count = struct.unpack_from("<II", image, begin)
        at = begin + 8
        places = struct.unpack_from(f"<{2 * count}I", image, at)
        guest.grow(size)
        memory, base = guest.size, guest.address(0, size)
    except (struct.error, ValueError) as error:
        raise Fault(Reason.CRASHED, "", f"the script's image is damaged: {error}") from None
    except EngineError:
        raise Fault(Reason.MEMORY_LIMIT, "", f"the script itself needs {size} bytes") from None
    held = ctypes.cast(ctypes.c_char_p(image), ctypes.c_void_p).value or 0
    at += 8 * count
    for start, length in zip(places[::2], places[1::2], strict=True):
        if start + length > memory or at + length > len(image):
            raise Fault(Reason.CRASHED, "", "the script's image is damaged: a part lies outside")
        ctypes.memmove(base + start, held + at, length)
        at += length
