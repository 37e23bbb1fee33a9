"""What the manager asks of the helper and what that answers: one packet each way on a SOCK_SEQPACKET socket.

The answer is `{"granted": […]}` with one descriptor for each directory, then each file and each volume, in order, or
`{"error": …}` and none: a request is granted whole or not at all.

Import rule: the standard library and the light part of keep_protocol.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import time
from contextlib import ExitStack

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire
from keep_protocol.fields import Flag, Items, Maybe, Nested, Record, Text, Whole, field, parse

SOCKET_NAME = "keepfleet-grants.sock"
"""Below /run, or a user's own runtime directory."""
MAX_DIRECTORIES = 16
"""As many as a workload may be granted."""
MAX_FILES = 17
"""Standard input, and as many secrets as a workload may have."""
MAX_VOLUMES = 1
"""A keep has one at most."""
MAX_REQUEST = 192 * 1024
"""What 33 of the longest paths in ASCII take, and a third more; the kernel takes a packet of 208 KiB."""
MAX_ANSWER = 64 * 1024
ANSWER_SECONDS = 15.0
"""A warm helper answers in some milliseconds and a cold one in a tenth of a second: this covers a host a hundred times
busier, and a file system that hangs holds up one start for no longer."""
FIRST_DYNAMIC, LAST_DYNAMIC = 61184, 65519
"""The users that systemd makes for units with DynamicUser= (https://systemd.io/UIDS-GIDS)."""
LAST_ID = 2**32 - 2
_ROOM = socket.CMSG_SPACE((MAX_DIRECTORIES + MAX_FILES + MAX_VOLUMES) * 4)
"""For the descriptors of an answer."""
_WHAT = "request to the grants helper"


def _joined(root: str, rest: str) -> str:
    return root if rest == "." else os.path.join(root, rest)


class DiskIds(Record):
    """Whose the files are on disk: never root's, since a set-user-ID file made by a keep would be root's then."""

    uid: int = field(Whole(1, LAST_ID))
    gid: int = field(Whole(1, LAST_ID))


class KeepIds(Record):
    """Who a keep is: a user that systemd made for it, so that no other can be given other people's files."""

    uid: int = field(Whole(FIRST_DYNAMIC, LAST_DYNAMIC))
    gid: int = field(Whole(FIRST_DYNAMIC, LAST_DYNAMIC))


class Wanted(Record):
    """One directory: `rest` below `root`. disk: whose the files are on disk, the owner of `root` where it is None;
    mapped: False where they are to be the keep's own, whatever that does to them later."""

    root: str = field(Text(4095, r"/[^\0]*"))
    rest: str = field(Text(4095, r"[^\0/][^\0]*"))
    writable: bool = field(Flag())
    disk: DiskIds | None = field(Maybe(Nested(DiskIds, "owner", strict=True)), default=None)
    mapped: bool = field(Flag(), default=True)

    @property
    def path(self) -> str:
        """The directory's own path."""
        return _joined(self.root, self.rest)


class WantedFile(Record):
    """One regular file, to be read: `rest` below `root`."""

    root: str = field(Text(4095, r"/[^\0]*"))
    rest: str = field(Text(4095, r"[^\0/][^\0]*"))

    @property
    def path(self) -> str:
        """The file's own path."""
        return _joined(self.root, self.rest)


class WantedVolume(Record):
    """A volume, by its name in the directory where all are."""

    directory: str = field(Text(4000, r"/[^\0]*"))
    name: str = field(Text(63, r"[a-z0-9-]{1,63}"))


class GrantRequest(Record):
    """What one keep is granted. keep: who it is, None in a user's own instance, where every keep is that user."""

    directories: tuple[Wanted, ...] = field(Items(Nested(Wanted, "directory", strict=True), MAX_DIRECTORIES))
    keep: KeepIds | None = field(Maybe(Nested(KeepIds, "keep", strict=True)), default=None)
    files: tuple[WantedFile, ...] = field(Items(Nested(WantedFile, "file", strict=True), MAX_FILES), default=())
    volumes: tuple[WantedVolume, ...] = field(
        Items(Nested(WantedVolume, "volume", strict=True), MAX_VOLUMES), default=()
    )

    def encode(self) -> bytes:
        """The packet. A helper of before an upgrade, which may be there for moments, knows no volumes."""
        wire = self.to_wire()
        if not self.volumes:
            del wire["volumes"]
        return strict_json.dumps(wire)


class Granted(Record):
    """What became of one directory or file. disk: whose the files in a directory are on disk, None where they are the
    keep's own; lacks: what protects it less than usual, and why, or ""."""

    disk: DiskIds | None = field(Maybe(Nested(DiskIds, "owner")), default=None)
    lacks: str = field(Text(4096), default="")


class _Answer(Record):
    granted: tuple[Granted, ...] = field(Items(Nested(Granted, "granted"), MAX_DIRECTORIES + MAX_FILES + MAX_VOLUMES))


def decode_request(packet: bytes) -> GrantRequest:
    """The request in a packet. Raises KeepfleetError(BAD_REQUEST or TOO_LARGE) for anything else."""
    return parse(GrantRequest, strict_json.loads_object(packet, MAX_REQUEST, f"the {_WHAT}"), _WHAT, strict=True)


def encode_answer(granted: tuple[Granted, ...]) -> bytes:
    """The answer that the descriptors come with."""
    return strict_json.dumps(_Answer(granted).to_wire())


def encode_error(error: KeepfleetError) -> bytes:
    """The answer instead of them."""
    return strict_json.dumps({"error": error.to_wire()})


def ask(
    held: ExitStack, path: str, request: GrantRequest, seconds: float = ANSWER_SECONDS
) -> list[tuple[int, Granted]]:
    """The directories, files and volumes, in this order, that `request` asks the helper at `path` for; `held` closes
    them.

    It blocks for at most `seconds`, so call it in a thread. Raises the helper's error, or KeepfleetError(UNAVAILABLE)
    where it does not answer.
    """
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
        try:
            _limit(sock, deadline)
            sock.connect(path)
            _limit(sock, deadline)
            sock.send(request.encode())
            _limit(sock, deadline)
            packet, ancillary, flags, _ = sock.recvmsg(MAX_ANSWER, _ROOM, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise _unreachable(path, error) from error
    descriptors = [number for _, _, data in ancillary for number in memoryview(data).cast("i").tolist()]
    for descriptor in descriptors:
        held.callback(os.close, descriptor)
    if not packet:
        raise _unreachable(path, ConnectionResetError())
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise _distrusted("its answer is too long")
    return _checked(packet, descriptors, request)


def _limit(sock: socket.socket, deadline: float) -> None:
    """Has the next calls fail with EAGAIN at `deadline`. Raises TimeoutError when that is past.

    Not `settimeout`: with that a connect to a full queue fails immediately.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    value = struct.pack("@ll", int(left), int(left % 1 * 1e6) or 1)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, value)


def _checked(packet: bytes, descriptors: list[int], request: GrantRequest) -> list[tuple[int, Granted]]:
    answer = strict_json.loads_object(packet, MAX_ANSWER, "the answer of the grants helper")
    if "error" in answer:
        raise error_from_wire(answer["error"])
    granted = parse(_Answer, answer, "answer of the grants helper").granted
    first = len(request.directories)
    behind = first + len(request.files)
    count = behind + len(request.volumes)
    if not len(granted) == len(descriptors) == count:
        raise _distrusted(f"it was asked for {count} directories and files and brings {len(descriptors)}")
    directories = descriptors[:first] + descriptors[behind:]
    if not all(stat.S_ISDIR(os.fstat(descriptor).st_mode) for descriptor in directories):
        raise _distrusted("not all that it brings are directories")
    if not all(_is_file_for_reading(descriptor) for descriptor in descriptors[first:behind]):
        raise _distrusted("not all that it brings are regular files, opened read-only")
    return list(zip(descriptors, granted, strict=True))


def _is_file_for_reading(descriptor: int) -> bool:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    readable = flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_PATH
    return readable and stat.S_ISREG(os.fstat(descriptor).st_mode)


def _distrusted(why: str) -> KeepfleetError:
    return KeepfleetError(
        ErrorKind.INTERNAL, f"cannot grant directories or files: cannot trust the grants helper: {why}"
    )


def _unreachable(path: str, error: OSError) -> KeepfleetError:
    """Why the helper at `path` did not answer, and what to do."""
    start = "run: systemctl restart keepfleet-grants.socket"
    look = "the journal says why: journalctl -u keepfleet-grants.service"
    known = {
        errno.ENOENT: f"there is no socket {path}; {start}",
        errno.ECONNREFUSED: f"no process listens at {path}; {start}",
    }
    if isinstance(error, TimeoutError) or error.errno == errno.EAGAIN:
        why = f"the grants helper did not answer within {ANSWER_SECONDS:g} s; a file system may hang, or {look}"
    elif isinstance(error, (ConnectionResetError, BrokenPipeError)):
        why = f"the grants helper ended before it answered; {look}"
    else:
        why = known.get(error.errno or 0, f"the grants helper cannot be reached at {path}: {error.strerror}")
    return KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot grant directories or files: {why}")
