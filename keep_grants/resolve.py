"""Finds what is granted: below a root, never through a link, and judged before it is opened.

Every path is resolved by openat2 from the root's descriptor, so that the kernel, and not a comparison of names, keeps
it below, whatever is renamed meanwhile. What was found is looked at first, as opening a device or a pipe may do
something or wait. Import rule: that of keep_grants; the manager imports this file for `keep` alone.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

from keep_grants.kernel import AT_FDCWD, NO_LINKS, open_strictly
from keep_protocol.errors import ErrorKind, KeepfleetError


def keep(held: ExitStack, descriptor: int) -> int:
    """`descriptor`, which `held` closes."""
    held.callback(os.close, descriptor)
    return descriptor


def open_root(held: ExitStack, root: str) -> int:
    """The root as a place (O_PATH). Not even on the way to it is a link followed: who could change one could choose the
    root. Raises KeepfleetError(CONFIGURATION)."""
    try:
        return keep(held, open_strictly(root, os.O_PATH | os.O_DIRECTORY, AT_FDCWD, NO_LINKS))
    except OSError as error:
        why = "it is or lies below a symbolic link" if error.errno == errno.ELOOP else str(error.strerror)
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot use the grant root {root}: {why}") from error


def open_below(held: ExitStack, root: int, rest: str) -> int:
    """What lies at `rest` below the place `root`, as a place too. Raises OSError, which `refusal` explains."""
    return keep(held, open_strictly(rest, os.O_PATH, root))


_REFUSALS = {
    errno.ENOENT: (ErrorKind.NOT_FOUND, "there is nothing of this name"),
    errno.ENOTDIR: (ErrorKind.NOT_FOUND, "what stands before a `/` in it is no directory"),
    errno.ELOOP: (ErrorKind.FORBIDDEN, "a symbolic link stands in it, and none is followed"),
    errno.EXDEV: (ErrorKind.FORBIDDEN, "it leads out of the directory from which things may be granted"),
    errno.ENAMETOOLONG: (ErrorKind.BAD_REQUEST, "a name in it is too long"),
    errno.ENOSYS: (ErrorKind.UNSUPPORTED, "this kernel lacks the calls for it, which Linux 5.12 has"),
    errno.EACCES: (ErrorKind.FORBIDDEN, "it may not be read, or a directory above it not be passed"),
}


def refusal(path: str, error: OSError) -> KeepfleetError:
    """Why `path` cannot be granted."""
    kind, why = _REFUSALS.get(error.errno or 0, (ErrorKind.UNAVAILABLE, str(error.strerror)))
    return KeepfleetError(kind, f"cannot grant {path}: {why}")
