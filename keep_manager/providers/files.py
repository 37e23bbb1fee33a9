"""Provides the workload's description, its standard input, and its directories, which a helper makes mounts of."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from keep_grants.protocol import (
    FIRST_DYNAMIC,
    DiskIds,
    Granted,
    GrantRequest,
    KeepIds,
    Wanted,
    ask,
)
from keep_grants.resolve import keep
from keep_manager.callers import KEEP_ITSELF, GrantRoot, numbers_of
from keep_manager.model import Provision, UnixUser
from keep_manager.providers.opening import check_regular, open_file, root_for
from keep_protocol.api_workload import GrantKind, WorkloadRequest
from keep_protocol.constants import unit_name
from keep_protocol.control import WORKLOAD_DESCRIPTOR
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import Compiler, Profile
from keep_protocol.workload import Workload

LOG = logging.getLogger("keepfleet.grants")
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
NO_KEEP = UnixUser(FIRST_DYNAMIC, FIRST_DYNAMIC)
"""For whom a directory is made that no keep gets: when a root is tried, or a start checked before there is a keep."""


@dataclass(frozen=True)
class Files:
    """Opens what a workload is granted but its secrets. helper: the socket of the helper that makes directories;
    mapped: whether each keep is a user of its own, as in the system's instance."""

    helper: str
    mapped: bool

    def opened(self, provision: Provision, held: ExitStack) -> Mapping[str, int]:
        """The descriptors by name. Raises KeepfleetError: FORBIDDEN for what does not lie below one of the caller's
        roots, NOT_FOUND, BAD_REQUEST for what is of another kind, TOO_LARGE, CONFIGURATION for a root that cannot be
        used, UNSUPPORTED for a file system that cannot, UNAVAILABLE without the helper."""
        request, spec = provision.workload, provision.spec
        if request is None and spec.profile is Profile.STANDARD and spec.compiler is Compiler.OPTIMIZING:
            return {}
        request = request or WorkloadRequest(Workload())
        workload = request.workload.replace(profile=spec.profile, compiler=spec.compiler)
        if not request.sets_restart:  # a start that names none leaves the keep's own in force; it is read from here
            workload = workload.replace(restart=spec.restart)
        found = {WORKLOAD_DESCRIPTOR: _sealed(held, workload.to_json())}
        roots, caller = provision.allowed.grant_roots, provision.caller
        directories: dict[str, Wanted] = {}
        for name, grant in zip(request.opened_names, request.grants, strict=True):
            if grant.kind is GrantKind.DIRECTORY:
                directories[name] = _wanted(*root_for(grant, roots, caller), writable=grant.writable)
            elif grant.kind is GrantKind.STDIN:
                found[name] = open_file(held, grant, roots, caller, check_regular)
        if directories:
            made = self._ask(held, list(directories.values()), provision.user or NO_KEEP)
            for (name, wanted), (descriptor, granted) in zip(directories.items(), made, strict=True):
                found[name] = descriptor
                if provision.user:
                    LOG.info("%s: granted %s", unit_name(provision.kuuid), described(wanted, granted))
        return found

    def tried(self, root: GrantRoot) -> str:
        """What a directory granted from `root` will be. Raises KeepfleetError as `opened` does."""
        wanted = _wanted(root, ".", writable=root.writable)
        with ExitStack() as held:
            ((_, granted),) = self._ask(held, [wanted], NO_KEEP)
        return described(wanted, granted)

    def _ask(self, held: ExitStack, wanted: list[Wanted], user: UnixUser) -> list[tuple[int, Granted]]:
        keep_ids = KeepIds(user.uid, user.gid) if self.mapped else None
        return ask(held, self.helper, GrantRequest(tuple(wanted), keep_ids))


def described(wanted: Wanted, granted: Granted) -> str:
    """One directory in words, for the journal. Pure."""
    how = "for writing" if wanted.writable else "read-only"
    whose = "" if granted.disk is None else f", its files those of {granted.disk.uid}:{granted.disk.gid}"
    return f"{wanted.path} {how}{whose}{granted.lacks and f'; {granted.lacks}'}"


def _wanted(root: GrantRoot, rest: str, *, writable: bool) -> Wanted:
    """What to ask for. Raises KeepfleetError(CONFIGURATION) where the root's owner is no user of this host any more."""
    disk = None
    if root.files_as not in (None, KEEP_ITSELF):
        try:
            disk = DiskIds(*numbers_of(str(root.files_as)))
        except ValueError as error:
            raise KeepfleetError(
                ErrorKind.CONFIGURATION, f"cannot use the grant root {root.path} with files_as {root.files_as}: {error}"
            ) from error
    return Wanted(root.path, rest, writable, disk, root.files_as != KEEP_ITSELF)


def _sealed(held: ExitStack, data: bytes) -> int:
    """`data` in memory that no process can change any more, read-only."""
    with ExitStack() as own:
        memory = keep(own, os.memfd_create("workload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(memory, rest) :]
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
        return keep(held, os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC))
