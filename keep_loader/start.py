"""What START brings, checked before any of it is used, and the secrets that systemd gives the unit for it.

Imported with the first start: an idle keep does without it. Import rule: that of keep_loader.
"""

from __future__ import annotations

import fcntl
import os
import stat

from keep_loader.loop import plain
from keep_loader.settings import ENTRIES, Entries
from keep_loader.state import check_socket, is_regular_file
from keep_protocol import sockets as socket
from keep_protocol.constants import (
    DIRECTORY,
    FOLLOW,
    INPUT,
    JOURNAL,
    LISTENER,
    OUTPUT,
    OUTPUT_DESCRIPTORS,
    RECORD,
    START_DESCRIPTORS,
    STDIN,
    WORKLOAD_DESCRIPTOR,
)
from keep_protocol.control import CommandType, StartMessage
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record, check, table_of
from keep_protocol.keep import MAX_SHOWN_ARGUMENTS, ShownDirectory, WorkloadSummary
from keep_protocol.patterns import matches
from keep_protocol.ring import RingReader
from keep_protocol.spec import ANONYMOUS, KeepSpec, Kind, RestartPolicy
from keep_protocol.workload import MAX_SECRET_BYTES, MAX_WORKLOAD_JSON, Workload, workload_from_json

ANY_UPLOADER = ("*",)
"""Any certificate of the client CA."""


class Start(Record):
    """A start that can be made. address and port: where clients reach it; names: further ones for its certificate;
    uploaders: who may send its workload; granted: the names of the workload's descriptors, in order; restart: the
    policy in force; workload: what it was given, as it is shown, None where nothing was; warm: whether the runner is
    forked immediately; credentials: by the names of their descriptors those of the granted that systemd has given."""

    address: str
    port: int
    names: tuple[str, ...]
    uploaders: tuple[str, ...]
    descriptors: tuple[str, ...]
    granted: tuple[str, ...]
    restart: RestartPolicy
    workload: WorkloadSummary | None
    warm: bool = False
    credentials: tuple[tuple[str, str], ...] = ()


def check_start(
    message: StartMessage, descriptors: list[int], spec: KeepSpec, entries: Entries = ENTRIES[Kind.UPLOAD]
) -> Start:
    """The start that `message` asks for with `descriptors`, in the order of its names.

    Each that its kind needs and each of OUTPUT_DESCRIPTORS must be there, and with them, if anything, what the kind may
    have besides, a workload's description and exactly what that grants. The files must be read-only: a keep that could
    write them would choose who may enter it, or what runs in the keeps that share them.

    Raises KeepfleetError(BAD_REQUEST, or TOO_LARGE for the workload's description).
    """
    names = message.descriptors
    if len(names) != len(descriptors):
        raise _bad(f"it names {len(names)} descriptors and brings {len(descriptors)}")
    passed = dict(zip(names, descriptors, strict=True))
    for name in (*entries.brings, *OUTPUT_DESCRIPTORS):
        if name not in passed:
            raise _bad(f"its descriptor {name} is missing")
    address, port = listening_address(passed[LISTENER]) if LISTENER in entries.brings else ("", 0)
    for name in (*entries.brings, *(name for name in entries.may_bring if name in passed)):
        if name == FOLLOW:
            _check_socket(name, passed[name], socket.SOCK_SEQPACKET)
        elif name != LISTENER:
            _check_file(name, passed[name])
    _check_output(passed)
    described = WORKLOAD_DESCRIPTOR in passed
    workload = workload_from_json(_description(passed[WORKLOAD_DESCRIPTOR])) if described else None
    granted = () if workload is None else (WORKLOAD_DESCRIPTOR, *workload.grant_names)
    credentials = {} if workload is None else workload.credential_names
    brought = tuple(name for name in granted if name not in credentials)
    for name in names:
        if name not in (*entries.brings, *entries.may_bring, *OUTPUT_DESCRIPTORS, *brought):
            raise _bad(f"its descriptor {name} is nothing that its workload is granted")
    for name in brought:
        if name not in passed:
            raise _bad(f"its descriptor {name} is missing, which its workload is granted")
        _check_granted(name, passed[name])
    return Start(
        address=canonical_address(message.address) if message.address and port else address,
        port=port,
        names=message.names,
        uploaders=message.uploaders or uploaders_of(spec) if LISTENER in entries.brings else (),
        descriptors=names,
        granted=granted,
        restart=spec.restart if workload is None else workload.restart,
        workload=None if workload is None else summary_of(workload),
        warm=message.warm,
        credentials=tuple(credentials.items()),
    )


def uploaders_of(spec: KeepSpec) -> tuple[str, ...]:
    """Who may send a workload where START does not say it: whom the spec names, else the owner alone.

    A keep without an owner, of a manager of version 1, or of the anonymous one, takes any certificate of the client CA.
    """
    if spec.uploaders:
        return spec.uploaders
    return ANY_UPLOADER if spec.owner in ("", ANONYMOUS) else (f"name:{spec.owner}",)


def summary_of(workload: Workload) -> WorkloadSummary:
    """What of a workload's description is shown: no value of its environment; of its arguments at most
    MAX_SHOWN_ARGUMENTS characters in all, each counted as one more than it has."""
    shown: list[str] = []
    room = MAX_SHOWN_ARGUMENTS
    for argument in workload.arguments:
        if room <= 0:
            break
        shown.append(argument[: room - 1])
        room -= len(argument) + 1
    return WorkloadSummary(
        arguments=tuple(shown),
        export=workload.export,
        directories=tuple(ShownDirectory(known.guest, known.writable) for known in workload.directories),
        secrets=workload.secrets,
        stdin=workload.stdin or workload.streams_input,
    )


def canonical_address(text: str) -> str:
    """The IPv4 or IPv6 address in `text`, in its usual form. Raises KeepfleetError(BAD_REQUEST)."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, text))
        except (OSError, ValueError):
            continue
    raise _bad(f"{plain(text, 60)!r} is no IPv4 or IPv6 address")


def _description(descriptor: int) -> bytes:
    """The workload's description."""
    _check_file(WORKLOAD_DESCRIPTOR, descriptor)
    return _whole(descriptor, MAX_WORKLOAD_JSON)


def listening_address(descriptor: int) -> tuple[str, int]:
    """The address and port a listening TCP socket is bound to. Raises KeepfleetError(BAD_REQUEST) for anything else."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise _bad("its descriptor listener must be a listening TCP socket")
    with socket.socket(fileno=os.dup(descriptor)) as sock:
        family = sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM
        if not family or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise _bad("its descriptor listener must be a listening TCP socket")
        name = sock.getsockname()
    return str(name[0]), int(name[1])


def _is_read_only(descriptor: int) -> bool:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    return flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_PATH


def _check_granted(name: str, descriptor: int) -> None:
    if name == STDIN:
        _check_stdin(descriptor)
    elif name == INPUT:
        _check_socket(name, descriptor, socket.SOCK_SEQPACKET)
    elif name.startswith(f"{DIRECTORY}-"):
        _check_directory(name, descriptor)
    else:
        _check_file(name, descriptor)


def _check_file(name: str, descriptor: int) -> None:
    if not is_regular_file(descriptor):
        raise _bad(f"its descriptor {name} must be a regular file")
    if not _is_read_only(descriptor):
        raise _bad(f"its descriptor {name} must be read-only")


def _check_output(passed: dict[str, int]) -> None:
    for name in (OUTPUT, RECORD):
        flags = fcntl.fcntl(passed[name], fcntl.F_GETFL)
        if not is_regular_file(passed[name]) or flags & (os.O_ACCMODE | os.O_PATH) != os.O_RDWR:
            raise _bad(f"its descriptor {name} must be a regular file, open for reading and writing")
    try:
        RingReader(passed[OUTPUT])
    except KeepfleetError as error:
        raise _bad(error.message) from error
    _check_socket(JOURNAL, passed[JOURNAL], socket.SOCK_DGRAM)


def _check_socket(name: str, descriptor: int, kind: int) -> None:
    try:
        check_socket(descriptor, kind)
    except KeepfleetError as error:
        raise _bad(f"its descriptor {name}: {error.message}") from error


def _check_directory(name: str, descriptor: int) -> None:
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise _bad(f"its descriptor {name} must be a directory")


def _check_stdin(descriptor: int) -> None:
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise _bad(f"its descriptor {STDIN} must be a regular file, a pipe or a socket")
    if not stat.S_ISSOCK(mode) and not _is_read_only(descriptor):
        raise _bad(f"its descriptor {STDIN} must be read-only")


def _whole(descriptor: int, limit: int) -> bytes:
    """The file's content up to one byte over `limit`; its offset, which others share, stays."""
    data = b""
    while len(data) <= limit and (piece := os.pread(descriptor, limit + 1 - len(data), len(data))):
        data += piece
    return data


class Version1Start(Record):
    """What a manager of version 1 has said before its START; port: 0 where it did not say it."""

    address: str = ""
    port: int = 0
    names: tuple[str, ...] = ()

    def set(self, kind: CommandType, contents: str) -> Version1Start:
        """The same with one more thing said. Raises KeepfleetError(BAD_REQUEST)."""
        if kind is CommandType.ADDR:
            return self.replace(address=canonical_address(contents))
        if kind is CommandType.PORT:
            if not matches("[1-9][0-9]{0,4}", contents) or int(contents) > 65535:
                raise _bad(f"port {plain(contents, 20)!r} must be in 1 … 65535")
            return self.replace(port=int(contents))
        names = contents.split(",") if contents else []
        return self.replace(names=check(table_of(StartMessage)["names"], names, "start"))

    def message(self, descriptors: list[int]) -> StartMessage:
        """The message of a START that brings `descriptors`, whose order says what each is. Raises as check_start."""
        known: tuple[str, ...] = (*START_DESCRIPTORS, *OUTPUT_DESCRIPTORS)
        if len(descriptors) > len(known):
            workload = workload_from_json(_description(descriptors[len(known)]))
            known += (WORKLOAD_DESCRIPTOR, *workload.grant_names)
        if len(descriptors) != len(known):
            raise _bad(f"it takes {len(known)} descriptors, not {len(descriptors)}")
        _, port = listening_address(descriptors[0])
        if self.port not in (0, port):
            raise _bad(f"it is to listen on port {self.port}, and the socket that was passed is bound to {port}")
        return StartMessage(address=self.address, names=self.names, descriptors=known)


def _bad(message: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot start the keep: {message}")


def open_credential(name: str, directory: str) -> int:
    """A read-only descriptor of a copy of the credential `name`, in `directory`. Raises
    KeepfleetError(CONFIGURATION) naming the secret, never it.

    A file in memory that no name leads to, so that it is kept like every other descriptor of a start. systemd unmounts
    what it made for the unit's credentials (man 5 systemd.exec, LoadCredential=) with each end of the loader, and what
    is open there would keep it from that.
    """
    given = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not given:
        raise _cannot_give(name, "systemd has given this unit no credentials")
    try:
        with open(f"{given}/{name}", "rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise _cannot_give(name, f"{error.strerror}; are the host's mounts shared (man 7 mount_namespaces)?") from error
    if len(data) > MAX_SECRET_BYTES:
        raise _cannot_give(name, f"it is over {MAX_SECRET_BYTES} bytes")
    try:
        writable = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o400)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(writable, view) :]
            return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(writable)
    except OSError as error:
        raise _cannot_give(name, str(error.strerror)) from error


def _cannot_give(name: str, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot give the workload its secret {name}: {why}")
