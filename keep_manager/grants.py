"""Opens what a guest is granted: below the caller's roots, never through a link, and closed again in every case.

Import rule: `keep_manager.model` and keep_protocol alone. Every path is resolved by openat2 from a root's descriptor
(man 2 openat2), so that the kernel, and not a comparison of names, keeps it below, whatever is renamed meanwhile.
What was found is looked at before it is opened, as opening a device or a pipe may do something or wait.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from keep_manager.callers import GrantRoot
from keep_manager.model import Allowance, Caller
from keep_protocol.api_workload import Grant, GrantKind, WorkloadRequest
from keep_protocol.errors import ErrorKind, KeepfleetError

SYS_OPENAT2 = 437
"""The same number on every architecture."""
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
STRICTLY = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
ATTEMPTS = 8
"""openat2 says EAGAIN when a rename or mount elsewhere could have hidden an escape; it passes."""
MAX_SECRET_BYTES = 1024 * 1024
"""A secret is copied into the keep's memory; a key or a token has a few kilobytes."""
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
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


@contextmanager
def opened(request: WorkloadRequest, allowed: Allowance, caller: Caller) -> Iterator[tuple[int, ...]]:
    """Descriptors, open while the block runs: of the workload's description, then of each grant in order.

    Raises KeepfleetError: FORBIDDEN for what does not lie below one of the caller's roots, NOT_FOUND, BAD_REQUEST for
    what is of another kind, TOO_LARGE, CONFIGURATION for a root that cannot be used.
    """
    with ExitStack() as held:
        descriptors = [_description(held, request.workload.to_json())]
        descriptors += [_grant(held, grant, allowed.grant_roots, caller) for grant in request.grants]
        yield tuple(descriptors)


def _keep(held: ExitStack, descriptor: int) -> int:
    held.callback(os.close, descriptor)
    return descriptor


def _description(held: ExitStack, data: bytes) -> int:
    """`data` in memory that nobody can change any more, open for reading alone."""
    with ExitStack() as own:
        memory = _keep(own, os.memfd_create("workload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(memory, rest) :]
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
        return _keep(held, os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC))


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
    """The root itself. Not even on the way to it is a link followed: whoever could change it could choose the root."""
    try:
        flags = os.O_PATH | os.O_DIRECTORY
        resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
        return _keep(held, open_strictly(root.path, flags, -100, resolve))
    except OSError as error:
        why = "it is or lies below a symbolic link" if error.errno == errno.ELOOP else str(error.strerror)
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use the grant root {root.path}: {why}") from error


def _grant(held: ExitStack, grant: Grant, roots: Sequence[GrantRoot], caller: Caller) -> int:
    """One grant, opened for reading. A directory is so too and not only as a place (O_PATH): systemd's descriptor
    store refuses such descriptors, and a writable one is written to through its files, not through itself."""
    root, rest = root_for(grant, roots, caller)
    with ExitStack() as own:
        try:
            place = _keep(own, open_strictly(rest, os.O_PATH, _root(own, root)))
            _check(grant, os.fstat(place))
            flags = os.O_DIRECTORY if grant.kind is GrantKind.DIRECTORY else 0
            return _keep(held, os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC | flags))
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


def _check(grant: Grant, status: os.stat_result) -> None:
    """Raises KeepfleetError unless what was found is what `grant` means."""
    kind, why = ErrorKind.BAD_REQUEST, ""
    if grant.kind is GrantKind.DIRECTORY:
        why = "" if stat.S_ISDIR(status.st_mode) else "it is no directory"
    elif not stat.S_ISREG(status.st_mode):
        why = f"it is no plain file, and a {grant.kind.value} comes from one"
    elif status.st_nlink > 1:
        kind, why = ErrorKind.FORBIDDEN, "the file has a second name (a hard link), which may lie anywhere"
    elif grant.kind is GrantKind.SECRET and status.st_size > MAX_SECRET_BYTES:
        kind, why = ErrorKind.TOO_LARGE, f"a secret has at most {MAX_SECRET_BYTES} bytes"
    if why:
        raise KeepfleetError(kind, f"cannot grant {grant.path}: {why}")
