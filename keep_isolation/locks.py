"""Load, then lock: what each process of a keep gives up permanently, in one call each.

The order is always the same: count the threads, since Landlock and the filters bind the calling one alone, and behind
Landlock /proc cannot be listed; Landlock; PR_SET_MDWE; the filter. What the kernel lacks is left out, and
`what_the_kernel_lacks` says it: the filter, which every kernel has, refuses what it can of the same.
Import rule: that of keep_isolation.
"""

from __future__ import annotations

import errno
import os
from _collections_abc import Sequence

from keep_isolation import filters, landlock
from keep_isolation.kernel import MACHINES, prctl, system_call
from keep_isolation.landlock import Rights
from keep_protocol.errors import ErrorKind, KeepfleetError

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE, _PR_GET_MDWE = 4, 38, 65, 66
_MDWE_REFUSE_EXEC_GAIN, _MDWE_NO_INHERIT = 1, 2
"""No memory becomes executable (Linux 6.3); of this process alone, not of its forks (Linux 6.6)."""
TEMPORARY_DIRECTORIES = ("/tmp", "/var/tmp")  # noqa: S108 - the keep's own, see the unit's PrivateTmp=
NULL = "/dev/null"

NEVER = ("socket", "connect", "bind", "listen", "ioctl", "fcntl", "prlimit64", "fchmodat", "execve")
ALONE = ("clone", "kill", "pidfd_open")
CLOSED = ("accept4", "openat", "mkdirat")
"""What is tried behind a lock, by whom: it must be refused, and could do nothing if it were not. Nothing that the
unit's own filter kills for."""
_TRIED: dict[str, tuple[int, ...]] = {
    "socket": (1, 1, 0),
    "connect": (-1, 0, 0),
    "bind": (-1, 0, 0),
    "listen": (-1, 0),
    "ioctl": (-1, 0x8912, 0),
    "fcntl": (-1, 8, 0),
    "prlimit64": (1, 7, 0, 0),
    "fchmodat": (-1, 0, 0),
    "execve": (0, 0, 0),
    "clone": (0x800, 0, 0, 0, 0),
    "kill": (1, 0),
    "pidfd_open": (1, -1),
    "accept4": (-1, 0, 0, 0),
    "openat": (-100, 0, 0, 0),
    "mkdirat": (-100, 0, 0),
    "mmap": (0, 0, 4, 0x22, -1, 0),
}
"""The arguments: without the filter each is another error than EPERM, or for `socket` a descriptor, `kill` a look."""


def lock_loader() -> None:
    """The loader, once everything is open that it has to open; all its forks inherit this.

    It goes on accepting on the sockets it has, forking, signalling and collecting its children, and passing descriptors
    on. Files stay as they are: which its forks are to have it does not know yet.
    Raises KeepfleetError(ISOLATION_FAILURE) when that much cannot be had.
    """
    machine = _machine()
    _give_up_being_read()
    _refuse_new_code(_MDWE_REFUSE_EXEC_GAIN | _MDWE_NO_INHERIT)  # its forks do make code, once
    filters.install(filters.loader_program(machine))
    _try(machine, NEVER)


def lock_loader_files(granted: Sequence[tuple[int, Rights]], nameless: Sequence[str], named: Sequence[str]) -> None:
    """The loader, once it is certain what its workload is granted, and before a stranger's first byte: it and all that
    it forks from now on have the read-only tree, files without a name in the temporary directories and in `nameless`,
    files beneath `named`, and what is `granted`: as in `lock_runner`, and every file that is to be opened again by its
    descriptor, which may be of a mount that is gone. Its children, which it signals, may be older than this.
    Raises as `lock_loader`.
    """
    _restrict([*_nameless(nameless), *((path, landlock.WRITE) for path in named)], granted, True)


def lock_waiting_runner(nameless: Sequence[str]) -> None:
    """The runner of a spare, once it knows its start: it is older than its loader's lock on files, and has as much from
    here on, nothing granted. It signals its checkers alone. Raises as `lock_loader`."""
    _restrict(_nameless(nameless))


def lock_endpoint() -> None:
    """The upload endpoint, before it reads a client's first byte: what was passed to it is all it can have.

    It goes on accepting, reading the read-only tree, and making files without a name in the temporary directories.
    Raises as `lock_loader`.
    """
    machine = _machine()
    _give_up_being_read()
    _restrict([("/", landlock.READ), *((path, landlock.NAMELESS) for path in TEMPORARY_DIRECTORIES)])
    _refuse_new_code(_MDWE_REFUSE_EXEC_GAIN)
    filters.install(filters.endpoint_program(machine, os.getpid()))
    _try(machine, (*NEVER, *ALONE))


def lock_checker() -> None:
    """The checker, before it reads the module: it makes code, and reads and writes what is open. Raises as
    `lock_loader`."""
    machine = _machine()
    _give_up_being_read()
    landlock.restrict([])
    filters.install(filters.closed_program(machine, os.getpid(), executable_memory=True, files=False))
    _try(machine, (*NEVER, *ALONE, *CLOSED))


def lock_runner(files: Sequence[tuple[int, Rights]] = ()) -> None:
    """The runner, before the guest's first instruction. `files`: the open directories that were granted, each with what
    may be done beneath it, as `landlock` names it. Raises as `lock_loader`."""
    machine = _machine()
    _give_up_being_read()
    landlock.restrict(files)
    _refuse_new_code(_MDWE_REFUSE_EXEC_GAIN)
    filters.install(filters.closed_program(machine, os.getpid(), executable_memory=False, files=bool(files)))
    _try(machine, (*NEVER, *ALONE, *CLOSED, "mmap"))
    _try_absolute_path(files)


def what_the_kernel_lacks() -> tuple[str, ...]:
    """A sentence for each part of the locks that this kernel does not have, with what stands in for it."""
    found: list[str] = []
    abi = landlock.kernel_abi()
    if abi < 1:
        found.append(
            "the kernel has no Landlock: mounts and filters alone keep a runner to its directories (Linux 5.13)"
        )
    elif abi < landlock.SCOPE_ABI:
        found.append(f"the kernel's Landlock is version {abi}: filters alone keep signals in (6, Linux 6.12)")
    try:
        prctl(_PR_GET_MDWE)
    except OSError:
        found.append("the kernel has no PR_SET_MDWE: filters alone refuse new executable memory (Linux 6.3)")
    return tuple(found)


def _machine() -> str:
    """This machine, as the filters name it; for a process of one thread."""
    if len(os.listdir("/proc/self/task")) != 1:
        raise KeepfleetError(ErrorKind.ISOLATION_FAILURE, "cannot lock the process: it has several threads")
    machine = os.uname().machine
    if machine not in MACHINES:
        raise KeepfleetError(
            ErrorKind.ISOLATION_FAILURE, f"cannot lock the process: no filter is written for {machine}"
        )
    return machine


def _give_up_being_read() -> None:
    """No other process of this user may read or trace this one, and no dump of it is made."""
    try:
        prctl(_PR_SET_DUMPABLE, 0)
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise KeepfleetError(
            ErrorKind.ISOLATION_FAILURE, f"cannot lock the process: {os.strerror(error.errno or 0)}"
        ) from error


def _refuse_new_code(how: int) -> None:
    """PR_SET_MDWE, where the kernel knows it; what stands already stays."""
    try:
        prctl(_PR_SET_MDWE, how)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise KeepfleetError(
                ErrorKind.ISOLATION_FAILURE, f"cannot lock the process: {os.strerror(error.errno or 0)}"
            ) from error


def _try(machine: str, names: Sequence[str]) -> None:
    """The isolation check of a process that was locked, before it goes on: 2 µs for each of `names`.

    Raises KeepfleetError(ISOLATION_FAILURE) naming what is not refused.
    """
    known = {**filters.NEVER, **filters.PROCESSES, **filters.CONNECTIONS, **filters.BENEATH}
    known |= {**filters.CODE, **filters.OTHERS}
    for name in names:
        number = known[name][MACHINES.index(machine)]
        try:
            system_call(-1 if number is None else number, *_TRIED[name])
        except OSError as error:
            if error.errno == errno.EPERM:
                continue
        raise KeepfleetError(ErrorKind.ISOLATION_FAILURE, f"cannot lock the process: {name} is not refused")


def _try_absolute_path(files: Sequence[tuple[int, Rights]]) -> None:
    """The same of a path that leaves a granted directory, where Landlock is what ends it."""
    if not files or not landlock.kernel_abi():
        return
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY, dir_fd=files[0][0]))
    except OSError:
        return
    raise KeepfleetError(ErrorKind.ISOLATION_FAILURE, "cannot lock the process: an absolute path leads out of a grant")


def _nameless(directories: Sequence[str]) -> list[tuple[str, Rights]]:
    """The read-only tree, and files without a name in these directories and the temporary ones."""
    places = (NULL, *TEMPORARY_DIRECTORIES, *directories)
    return [("/", landlock.READ), *((path, landlock.NAMELESS) for path in places)]


def _restrict(
    places: Sequence[tuple[str, Rights]], granted: Sequence[tuple[int, Rights]] = (), signals: bool = False
) -> None:
    """Landlock by paths, where they are there, and by what is open."""
    opened = [(os.open(path, os.O_PATH | os.O_CLOEXEC), rights) for path, rights in places if os.path.exists(path)]
    try:
        landlock.restrict([*opened, *granted], signals=signals)
    finally:
        for descriptor, _ in opened:
            os.close(descriptor)
