"""What START hands over, checked before any of it is used.

Imported with the first start, and workload.py with the first that describes a workload: an idle keep has neither.
Import rule: that of keep_loader.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat

from keep_loader.fdstore import DIRECTORY, SECRET, STDIN, is_plain_file
from keep_loader.restart import NO
from keep_protocol.control import START_DESCRIPTORS, WORKLOAD_DESCRIPTOR
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record


class Start(Record):
    """What was handed over. address and port: where its listener is bound; granted: the names of what follows
    START_DESCRIPTORS, in order; policy: when the workload is started again."""

    address: str
    port: int
    granted: tuple[str, ...] = ()
    policy: str = NO


def check_start(descriptors: list[int]) -> Start:
    """The start that `descriptors` are for: exactly START_DESCRIPTORS, then perhaps a workload and what it is granted.

    The files must be open for reading alone: a keep that could write them would choose who may enter it.
    Raises KeepfleetError(BAD_REQUEST, or TOO_LARGE for the workload's description) otherwise.
    """
    count = len(START_DESCRIPTORS)
    if len(descriptors) < count:
        raise _bad(f"it takes {count} descriptors, not {len(descriptors)}")
    for name, descriptor in zip(START_DESCRIPTORS[1:], descriptors[1:count], strict=True):
        _check_file(name, descriptor)
    address, port = listening_address(descriptors[0])
    if len(descriptors) == count:
        return Start(address, port)
    return _with_workload(address, port, descriptors[count:])


def _with_workload(address: str, port: int, descriptors: list[int]) -> Start:
    from keep_protocol.workload import MAX_WORKLOAD_JSON, workload_from_json

    _check_file(WORKLOAD_DESCRIPTOR, descriptors[0])
    workload = workload_from_json(_whole(descriptors[0], MAX_WORKLOAD_JSON))
    names = workload.grant_names
    if len(descriptors) != 1 + len(names):
        raise _bad(f"its workload is granted {len(names)} descriptors, not {len(descriptors) - 1}")
    for name, descriptor in zip(names, descriptors[1:], strict=True):
        if name == STDIN:
            _check_stdin(descriptor)
        elif name.startswith(DIRECTORY):
            _check_directory(name, descriptor)
        elif name.startswith(SECRET):
            _check_file(name, descriptor)
    return Start(address, port, (WORKLOAD_DESCRIPTOR, *names), workload.restart.value)


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


def _reads_alone(descriptor: int) -> bool:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    return flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_PATH


def _check_file(name: str, descriptor: int) -> None:
    if not is_plain_file(descriptor):
        raise _bad(f"its descriptor {name} must be a regular file")
    if not _reads_alone(descriptor):
        raise _bad(f"its descriptor {name} must be open for reading alone")


def _check_directory(name: str, descriptor: int) -> None:
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise _bad(f"its descriptor {name} must be a directory")


def _check_stdin(descriptor: int) -> None:
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise _bad(f"its descriptor {STDIN} must be a regular file, a pipe or a socket")
    if not stat.S_ISSOCK(mode) and not _reads_alone(descriptor):
        raise _bad(f"its descriptor {STDIN} must be open for reading alone")


def _whole(descriptor: int, limit: int) -> bytes:
    """The file's content up to one byte over `limit`; its offset, which others share, stays."""
    data = b""
    while len(data) <= limit and (piece := os.pread(descriptor, limit + 1 - len(data), len(data))):
        data += piece
    return data


def _bad(message: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot start the app-loader: {message}")
