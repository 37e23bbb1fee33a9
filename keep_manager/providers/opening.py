"""Opens the single files that a guest is granted: below the caller's roots, never through a link, and closed again in
every case. Which root a path lies below is decided here for directories too."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from keep_grants.resolve import keep, open_below, open_root, refusal
from keep_manager.callers import GrantRoot
from keep_manager.model import Caller
from keep_protocol.api_workload import Grant
from keep_protocol.errors import ErrorKind, KeepfleetError


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


def open_file(
    held: ExitStack,
    grant: Grant,
    roots: Sequence[GrantRoot],
    caller: Caller,
    check: Callable[[Grant, os.stat_result], None],
) -> int:
    """A file, opened for reading once `check` has accepted what was found. Raises KeepfleetError."""
    root, rest = root_for(grant, roots, caller)
    with ExitStack() as own:
        try:
            place = open_below(own, open_root(own, root.path), rest)
            check(grant, os.fstat(place))
            return keep(held, os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise refusal(grant.path, error) from error


def check_regular(grant: Grant, status: os.stat_result) -> None:
    """Raises KeepfleetError unless a regular file with one name was found, which no other user can have put there."""
    if not stat.S_ISREG(status.st_mode):
        why = f"it is no regular file, and a {grant.kind.value} comes from one"
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot grant {grant.path}: {why}")
    if status.st_nlink > 1:
        why = "the file has a second name (a hard link), which may lie anywhere"
        raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot grant {grant.path}: {why}")
