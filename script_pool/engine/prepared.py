"""A prepared script as bytes: how it is run, its source, where that stood before its types were taken away, and the
memory that compiling it changed.

Import rule: the standard library alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum

from script_pool.engine.interface import Fault, Reason
from script_pool.engine.texts import Places

_HEAD = struct.Struct("<BBxxII")
_PART = struct.Struct("<4I")
Map = Sequence[tuple[int, int, int, int]]


class Kind(IntEnum):
    """SLOPPY is evaluated in each run, STRICT waits at its gate in the image, MODULE is linked before it runs."""

    SLOPPY = 0
    STRICT = 1
    MODULE = 2


class Prepared:
    """`at`: where in `image` the memory's changes begin; `prefix`: characters put before the source's first line."""

    def __init__(self, kind: Kind, prefix: int, source: bytes, map: Map, image: bytes, at: int = 0) -> None:
        self.kind, self.prefix, self._source, self.map, self.image, self.at = kind, prefix, source, map, image, at

    def __repr__(self) -> str:
        return f"Prepared({self.kind.name}, {len(self.image) - self.at} bytes)"

    @property
    def source(self) -> bytes:
        """As it was compiled."""
        return self._source

    def places(self) -> Places:
        """Where its lines were."""
        return Places(self.prefix, self.map)

    def encode(self) -> bytes:
        """One run of bytes."""
        parts = b"".join(_PART.pack(*part) for part in self.map)
        head = _HEAD.pack(self.kind, self.prefix, len(self.map), len(self._source))
        return b"".join((head, parts, self._source, self.image[self.at :]))

    @classmethod
    def decode(cls, image: bytes) -> Prepared:
        """Raises Fault(CRASHED) for what is none."""
        try:
            kind, prefix, parts, size = _HEAD.unpack_from(image)
            begin = _HEAD.size + parts * _PART.size
            if begin + size > len(image):
                raise ValueError("it is too short")
            return _Stored(Kind(kind), prefix, image, parts, begin, begin + size)
        except (struct.error, ValueError) as error:
            raise Fault(Reason.CRASHED, "", f"the script's image is damaged: {error}") from None


class _Stored(Prepared):
    """What is read of an image only where it is needed: a run needs neither the source nor the map."""

    def __init__(self, kind: Kind, prefix: int, image: bytes, parts: int, begin: int, at: int) -> None:
        self.kind, self.prefix, self.image, self.at = kind, prefix, image, at
        self._parts, self._begin = parts, begin

    @property
    def source(self) -> bytes:
        return self.image[self._begin : self.at]

    @property
    def map(self) -> Map:  # type: ignore[override] # the same, read late
        return [_PART.unpack_from(self.image, _HEAD.size + at * _PART.size) for at in range(self._parts)]
