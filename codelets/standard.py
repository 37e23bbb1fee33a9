"""Helper functions that every application offers: jbpf's, by their meaning.

Import rule: the standard library, codelets.
"""

from __future__ import annotations

import logging
import secrets
import time
import zlib
from collections.abc import Callable
from typing import Any

from codelets.interface import HelperType
from codelets.states import one_line

LOG = logging.getLogger("keepfleet.codelets.output")
MAX_PRINTED = 256
"""Bytes of one line that a codelet prints; what is longer is cut."""


def _hash(data: bytes) -> int:
    value = zlib.crc32(data)
    return value - (1 << 32) if value >> 31 else value


def print_line(data: bytes) -> None:
    """What a codelet prints, in the application's log."""
    LOG.info("%s", one_line(data[:MAX_PRINTED].decode("utf-8", "replace").rstrip("\n")))


def standard_helpers() -> tuple[tuple[HelperType, Callable[..., Any]], ...]:
    """Each with its type."""
    return (
        (HelperType("time_ns", (), "i64"), time.monotonic_ns),
        (HelperType("random", (), "i64"), lambda: secrets.randbits(63)),
        (HelperType("hash", ("bytes",), "i32"), _hash),
        (HelperType("print", ("bytes",), ""), print_line),
    )
