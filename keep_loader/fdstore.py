"""The descriptors of the keep's door: held here, and parked in systemd's descriptor store so that they outlive us.

Import rule: that of keep_loader.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat

from keep_loader.log import log
from keep_protocol.control import START_DESCRIPTORS
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.sdnotify import Notifier

IDENTITY = "identity"
"""The app-loader's key and certificate, in a file without a name: a door opened again must show the same."""
STORED_NAMES = (*START_DESCRIPTORS, IDENTITY)


def close_all(descriptors: list[int]) -> None:
    """Closes and removes every descriptor in `descriptors`."""
    while descriptors:
        os.close(descriptors.pop())


def is_plain_file(descriptor: int) -> bool:
    """Whether `descriptor` is a regular file: a pipe or a device could block whoever reads it."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _bad(message: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot start the app-loader: {message}")


def listening_address(descriptor: int) -> tuple[str, int]:
    """The address and port a listening TCP socket is bound to. Raises KeepfleetError(BAD_REQUEST) for anything else."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise _bad("its first descriptor must be a listening TCP socket")
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        family = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
        if not family or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise _bad("its first descriptor must be a listening TCP socket")
        name = sock.getsockname()
    return str(name[0]), int(name[1])


def check_start_descriptors(descriptors: list[int]) -> tuple[str, int]:
    """The address and port of what START carries, once it is exactly START_DESCRIPTORS.

    The two files must be open for reading alone: a keep that could write them would choose who may enter it.
    Raises KeepfleetError(BAD_REQUEST) otherwise.
    """
    if len(descriptors) != len(START_DESCRIPTORS):
        raise _bad(f"it takes {len(START_DESCRIPTORS)} descriptors, not {len(descriptors)}")
    for name, descriptor in zip(START_DESCRIPTORS[1:], descriptors[1:], strict=True):
        if not is_plain_file(descriptor):
            raise _bad(f"its descriptor {name} must be a regular file")
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            raise _bad(f"its descriptor {name} must be open for reading alone")
    return listening_address(descriptors[0])


class DescriptorStore:
    """Owns the door's descriptors by name, here and in systemd's store; both are emptied together."""

    def __init__(self, notifier: Notifier, stored: dict[str, int]) -> None:
        self._notifier = notifier
        self._held: dict[str, int] = {}
        for name, descriptor in stored.items():
            if name in STORED_NAMES:
                self._held[name] = descriptor
            else:
                os.close(descriptor)

    def __repr__(self) -> str:
        return f"DescriptorStore({', '.join(self._held) or 'empty'})"

    @property
    def names(self) -> frozenset[str]:
        """What is held."""
        return frozenset(self._held)

    def get(self, name: str) -> int | None:
        """The descriptor called `name`, still owned by the store."""
        return self._held.get(name)

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

    def drop_all(self) -> None:
        """Closes everything, here and at systemd's: after this the port is free."""
        for name in list(self._held):
            self._drop(name)

    def _drop(self, name: str) -> None:
        os.close(self._held.pop(name))
        try:
            self._notifier.unstore(name)
        except OSError as error:
            log(f"cannot take the keep's {name} out of systemd's store: {error.strerror}")
