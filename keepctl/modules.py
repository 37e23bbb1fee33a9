"""Files that people name on the command line, read whole: modules, their signatures, policies, keys."""

from __future__ import annotations

import os
import stat

from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl.files import explained

MAX_MODULE_BYTES = 1 << 30
"""The engine's own limit of a module (wasmparser's MAX_WASM_MODULE_SIZE)."""


def read_file(path: str, most: int) -> bytes:
    """The bytes of a regular file. Raises KeepfleetError."""
    with explained("read the file"), open(path, "rb", opener=_open) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read {path}: it has more than {most:,} bytes")
    return data


def _open(path: str, flags: int) -> int:
    """A regular file, which a device or a pipe is not: they have no end, or none yet."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(22, "it is not a regular file", path)
    return descriptor
