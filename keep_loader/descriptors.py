"""Descriptors by name: held here, and parked in systemd's descriptor store so that they outlive us.

Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
import re
import socket
import stat

from keep_loader.log import log
from keep_protocol.control import COMPILED, JOURNAL, MODULE, OUTPUT, START_DESCRIPTORS
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.record import GRANTED
from keep_protocol.sdnotify import Notifier

IDENTITY, STDIN = "identity", "stdin"
"""Names that `reports` and `workload` define too, which only a started keep imports."""
ENDPOINT_NAMES = (*START_DESCRIPTORS, IDENTITY)
"""What the upload endpoint needs; opened again, it must show the same identity."""
MODULE_NAMES = (COMPILED, MODULE)
"""What running a workload again needs, with what it was given."""
OUTPUT_NAMES = (OUTPUT, JOURNAL)
"""What the output of every run needs."""
STDOUT, STDERR = "stdout", "stderr"
PIPE_NAMES = (STDOUT, STDERR)
"""Our ends of a running workload's pipes: what it had written when its loader was killed is still in them."""
INPUT = "input"
"""A streamed standard input, which is not parked: the next loader could not know what the guest has had of it."""
DIRECTORY = "directory"
"""What a granted directory's name begins with, its number behind it."""


def is_stored_name(name: str) -> bool:
    """Whether one of ours may have that name in systemd's store; what has another is not taken out of it."""
    known = (*ENDPOINT_NAMES, *MODULE_NAMES, *OUTPUT_NAMES, *PIPE_NAMES)
    return name in known or re.fullmatch(GRANTED, name, re.ASCII) is not None


def close_all(descriptors: list[int]) -> None:
    """Closes and removes every descriptor in `descriptors`."""
    while descriptors:
        os.close(descriptors.pop())


def descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a message."""
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(data) - len(data) % 4
            found += memoryview(data[:whole]).cast("i").tolist()
    return found


def is_regular_file(descriptor: int) -> bool:
    """Whether `descriptor` is a regular file: a pipe or a device could block its reader."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def check_socket(descriptor: int, kind: int) -> None:
    """Raises KeepfleetError(BAD_REQUEST) unless `descriptor` is a Unix socket of that kind."""
    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            if sock.family == socket.AF_UNIX and sock.type == kind:
                return
    name = {int(socket.SOCK_DGRAM): "SOCK_DGRAM", int(socket.SOCK_SEQPACKET): "SOCK_SEQPACKET"}[int(kind)]
    raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot take over what is no Unix socket of type {name}")


def rewind(descriptor: int | None) -> None:
    """Puts a file back to its beginning; what a pipe or a socket has given it does not give again. Raises OSError."""
    if descriptor is not None and is_regular_file(descriptor):
        os.lseek(descriptor, 0, os.SEEK_SET)


class DescriptorStore:
    """Owns descriptors by name, here and in systemd's store; both are emptied together."""

    def __init__(self, notifier: Notifier, stored: dict[str, int]) -> None:
        self._notifier = notifier
        self._held: dict[str, int] = {}
        for name, descriptor in stored.items():
            if is_stored_name(name):
                self._held[name] = descriptor
            else:
                os.close(descriptor)

    def __repr__(self) -> str:
        return f"DescriptorStore({', '.join(self._held) or 'empty'})"

    @property
    def names(self) -> frozenset[str]:
        """What is held."""
        return frozenset(self._held)

    @property
    def held(self) -> dict[str, int]:
        """Everything by name, still owned by the store."""
        return dict(self._held)

    def get(self, name: str) -> int | None:
        """The descriptor called `name`, still owned by the store."""
        return self._held.get(name)

    def select(self, names: tuple[str, ...]) -> dict[str, int]:
        """Those of `names` that are held, in that order, still owned by the store."""
        return {name: self._held[name] for name in names if name in self._held}

    def park(self, name: str, descriptor: int) -> None:
        """Takes `descriptor` over. Raises KeepfleetError(SYSTEMD), still owning it, when systemd cannot store it."""
        if name in self._held:
            self._drop(name)
        self._held[name] = descriptor
        try:
            self._notifier.store(name, descriptor)
        except OSError as error:
            raise KeepfleetError(
                ErrorKind.SYSTEMD, f"cannot park the keep's {name} with systemd: {error.strerror}"
            ) from error

    def drop(self, names: tuple[str, ...]) -> None:
        """Closes those of `names` that are held, here and at systemd's."""
        for name in names:
            if name in self._held:
                self._drop(name)

    def drop_all(self) -> None:
        """Closes everything, here and at systemd's: after this the port is free."""
        self.drop(tuple(self._held))

    def _drop(self, name: str) -> None:
        os.close(self._held.pop(name))
        try:
            self._notifier.unstore(name)
        except OSError as error:
            log(f"cannot take the keep's {name} out of systemd's store: {error.strerror}")
