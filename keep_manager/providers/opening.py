"""Opens what a guest is granted: below the caller's roots, never through a link, and closed again in every case.

Every path is resolved by openat2 from a root's descriptor
(man 2 openat2), so that the kernel, and not a comparison of names, keeps it below, whatever is renamed meanwhile.
What was found is looked at before it is opened, as opening a device or a pipe may do something or wait.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from keep_manager.callers import GrantRoot
from keep_manager.model import Caller
from keep_protocol.api_workload import Grant, GrantKind
from keep_protocol.errors import ErrorKind, KeepfleetError

SYS_OPENAT2 = 437
"""The same number on every architecture."""
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
STRICTLY = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
ATTEMPTS = 8
"""openat2 says EAGAIN when a rename or mount elsewhere could have hidden an escape; it passes."""
_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how (man 2 openat2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_strictly(path: str, flags: int, directory: int, resolve: int = STRICTLY) -> int:
    """A descriptor of `path`, resolved from the descriptor `directory` by openat2. Raises OSError."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    for attempt in range(ATTEMPTS):
        descriptor = _libc.syscall(
            SYS_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
        )
        if descriptor >= 0:
            return int(descriptor)
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR) or attempt == ATTEMPTS - 1:
            break
    raise OSError(code, os.strerror(code))


def keep(held: ExitStack, descriptor: int) -> int:
    """`descriptor`, which `held` closes."""
    held.callback(os.close, descriptor)
    return descriptor


def root_for(grant: Grant, roots: Sequence[GrantRoot], caller: Caller) -> tuple[GrantRoot, str]:
    """The nearest root that `grant` lies below, and the rest of its path. Raises KeepfleetError(FORBIDDEN)."""
    above = [root for root in roots if f"{grant.path}/".startswith(f"{root.path.rstrip('/')}/")]
    fit = [root for root in above if root.writable or not grant.writable]
    if not fit:
        why = "may only be read" if above else "lies below no directory from which anything may be granted"
        raise KeepfleetError(
            ErrorKind.FORBIDDEN,
            f"cannot grant {grant.path}: for {caller.who} it {why}; "
            "the manager's configuration sets that, under callers",
        )
    nearest = max(fit, key=lambda root: len(root.path))
    return nearest, grant.path[len(nearest.path.rstrip("/")) :].strip("/") or "."


def _root(held: ExitStack, root: GrantRoot) -> int:
    """The root itself. Not even on the way to it is a link followed: who could change one could choose the root."""
    try:
        flags = os.O_PATH | os.O_DIRECTORY
        resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
        return keep(held, open_strictly(root.path, flags, -100, resolve))
    except OSError as error:
        why = "it is or lies below a symbolic link" if error.errno == errno.ELOOP else str(error.strerror)
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use the grant root {root.path}: {why}") from error


def open_grant(
    held: ExitStack,
    grant: Grant,
    roots: Sequence[GrantRoot],
    caller: Caller,
    check: Callable[[Grant, os.stat_result], None],
) -> int:
    """One grant, opened for reading once `check` has accepted what was found. A directory is so too and not only as a
    place (O_PATH): systemd's descriptor store refuses such descriptors, and a writable one is written to through its
    files, not through itself."""
    root, rest = root_for(grant, roots, caller)
    with ExitStack() as own:
        try:
            place = keep(own, open_strictly(rest, os.O_PATH, _root(own, root)))
            check(grant, os.fstat(place))
            flags = os.O_DIRECTORY if grant.kind is GrantKind.DIRECTORY else 0
            return keep(held, os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC | flags))
        except OSError as error:
            raise _refusal(grant, error) from error


_REFUSALS = {
    errno.ENOENT: (ErrorKind.NOT_FOUND, "there is nothing of this name"),
    errno.ENOTDIR: (ErrorKind.NOT_FOUND, "what stands before a `/` in it is no directory"),
    errno.ELOOP: (ErrorKind.FORBIDDEN, "a symbolic link stands in it, and none is followed"),
    errno.EXDEV: (ErrorKind.FORBIDDEN, "it leads out of the directory from which things may be granted"),
    errno.ENAMETOOLONG: (ErrorKind.BAD_REQUEST, "a name in it is too long"),
    errno.EACCES: (ErrorKind.FORBIDDEN, "the manager itself may not read it"),
}


def _refusal(grant: Grant, error: OSError) -> KeepfleetError:
    kind, why = _REFUSALS.get(error.errno or 0, (ErrorKind.UNAVAILABLE, str(error.strerror)))
    return KeepfleetError(kind, f"cannot grant {grant.path}: {why}")


def check_regular(grant: Grant, status: os.stat_result) -> None:
    """Raises KeepfleetError unless a regular file with one name was found, which no other user can have put there."""
    if not stat.S_ISREG(status.st_mode):
        why = f"it is no regular file, and a {grant.kind.value} comes from one"
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot grant {grant.path}: {why}")
    if status.st_nlink > 1:
        why = "the file has a second name (a hard link), which may lie anywhere"
        raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot grant {grant.path}: {why}")
