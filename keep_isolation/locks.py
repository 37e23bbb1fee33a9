"""Load, then lock: what each process of a keep gives up permanently, in one call each.

The order is always the same: count the threads, since Landlock and the filters bind the calling one alone, and behind
Landlock /proc cannot be listed; Landlock; PR_SET_MDWE; the filter. What the kernel lacks is left out, and
`what_the_kernel_lacks` says it: the filter, which every kernel has, refuses what it can of the same.
Import rule: that of keep_isolation.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from keep_isolation import filters, landlock
from keep_isolation.kernel import MACHINES, prctl
from keep_isolation.landlock import Rights
from keep_protocol.errors import ErrorKind, KeepfleetError

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE, _PR_GET_MDWE = 4, 38, 65, 66
_MDWE_REFUSE_EXEC_GAIN, _MDWE_NO_INHERIT = 1, 2
"""No memory becomes executable (Linux 6.3); of this process alone, not of its forks (Linux 6.6)."""
TEMPORARY_DIRECTORIES = ("/tmp", "/var/tmp")  # noqa: S108 - the keep's own, see the unit's PrivateTmp=


def lock_loader(*, programs: bool = False) -> None:
    """The loader, once everything is open that it has to open, and all its forks, which inherit this.

    It goes on accepting on the sockets it has, forking, signalling and collecting its children, passing descriptors on,
    making files, and, with `programs`, starting programs. Which files its forks may have it does not know yet.
    Raises KeepfleetError(ISOLATION_FAILURE) when that much cannot be had.
    """
    machine = _machine()
    _give_up_being_read()
    landlock.restrict(None)
    if not programs:
        _refuse_new_code(_MDWE_REFUSE_EXEC_GAIN | _MDWE_NO_INHERIT)  # its forks do make code, once
    filters.install(filters.loader_program(machine, programs=programs))


def lock_endpoint(*, programs: bool = False) -> None:
    """The upload endpoint, before it reads a client's first byte: what was passed to it is all it can have.

    It goes on accepting, reading the read-only tree, and making files without a name in the temporary directories;
    with `programs`, for an endpoint that becomes another process by exec, it gives up new sockets and connecting alone.
    Raises as `lock_loader`.
    """
    machine = _machine()
    if not programs:
        _give_up_being_read()
        _restrict_to_tree()
        _refuse_new_code(_MDWE_REFUSE_EXEC_GAIN)
    filters.install(filters.endpoint_program(machine, os.getpid(), programs=programs))


def lock_checker() -> None:
    """The checker, before it reads the module: it makes code, and reads and writes what is open. Raises as
    `lock_loader`."""
    machine = _machine()
    _give_up_being_read()
    landlock.restrict([])
    filters.install(filters.closed_program(machine, os.getpid(), executable_memory=True, files=False))


def lock_runner(files: Sequence[tuple[int, Rights]] = ()) -> None:
    """The runner, before the guest's first instruction. `files`: the open directories that were granted, each with what
    may be done beneath it, as `landlock` names it. Raises as `lock_loader`."""
    machine = _machine()
    _give_up_being_read()
    landlock.restrict(files)
    _refuse_new_code(_MDWE_REFUSE_EXEC_GAIN)
    filters.install(filters.closed_program(machine, os.getpid(), executable_memory=False, files=bool(files)))


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


def _restrict_to_tree() -> None:
    """Landlock: the read-only tree to read, and in the temporary directories files without a name."""
    wanted = [("/", landlock.READ)]
    wanted += [(path, landlock.NAMELESS) for path in TEMPORARY_DIRECTORIES if os.path.isdir(path)]
    rules = [(os.open(path, os.O_PATH | os.O_CLOEXEC), rights) for path, rights in wanted]
    try:
        landlock.restrict(rules)
    finally:
        for descriptor, _ in rules:
            os.close(descriptor)
