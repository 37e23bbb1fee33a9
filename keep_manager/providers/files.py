"""Provides the workload's description, and what it is granted: standard input, directories and secrets.

A helper opens them, in one request, on the host's own tree: the manager has a mount namespace of its own, in which it
could miss what was mounted later. Which of the caller's roots a path lies below is decided here.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from keep_grants.protocol import (
    FIRST_DYNAMIC,
    DiskIds,
    Granted,
    GrantRequest,
    KeepIds,
    Wanted,
    WantedFile,
    WantedVolume,
    ask,
)
from keep_grants.resolve import keep
from keep_manager.callers import KEEP_ITSELF, GrantRoot, numbers_of
from keep_manager.model import Caller, Provision, UnixUser
from keep_protocol.api_workload import Grant, GrantKind, WorkloadRequest
from keep_protocol.constants import WORKLOAD_DESCRIPTOR, unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.spec import Compiler, Profile
from keep_protocol.workload import MAX_SECRET_BYTES, Workload

LOG = logging.getLogger("keepfleet.grants")
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
NO_KEEP = UnixUser(FIRST_DYNAMIC, FIRST_DYNAMIC)
"""For whom is opened what no keep gets: when a root is tried, or a start checked before there is a keep."""


class Files(Record):
    """Opens what a workload is granted. helper: the socket of the helper that does it;
    mapped: whether each keep is a user of its own, as in the system's instance; volumes: the directory of all volumes.
    """

    helper: str
    mapped: bool
    volumes: str = ""

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
        directories: list[Wanted] = []
        files: list[WantedFile] = []
        volumes: list[WantedVolume] = []
        for grant in request.grants:
            if grant.kind is GrantKind.VOLUME:
                volumes.append(WantedVolume(self.volumes, grant.path))
                continue
            root, rest = root_for(grant, roots, caller)
            if grant.kind is GrantKind.DIRECTORY:
                directories.append(_wanted(root, rest, writable=grant.writable))
            else:
                files.append(WantedFile(root.path, rest))
        if not request.grants or not provision.opens:
            return found
        if provision.user is None:
            volumes.clear()  # a start that is only checked: the keep before may still have it
        made = self._ask(held, directories, provision.user or NO_KEEP, files, volumes)
        opened = {
            GrantKind.DIRECTORY: iter(made[: len(directories)]),
            GrantKind.VOLUME: iter(made[len(directories) + len(files) :]),
        }
        opened_files = iter(made[len(directories) :])
        for name, grant in zip(request.opened_names, request.grants, strict=True):
            if grant.kind is GrantKind.VOLUME and not volumes:
                continue
            descriptor, _ = next(opened.get(grant.kind, opened_files))
            if grant.kind is GrantKind.SECRET and os.fstat(descriptor).st_size > MAX_SECRET_BYTES:
                why = f"a secret has at most {MAX_SECRET_BYTES} bytes"
                raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot grant {grant.path}: {why}")
            found[name] = descriptor
        if provision.user:
            for wanted, (_, granted) in zip(directories, made, strict=False):
                LOG.info("%s: granted %s", unit_name(provision.kuuid), described(wanted, granted))
            for volume in volumes:
                LOG.info("%s: has volume %s", unit_name(provision.kuuid), volume.name)
        return found

    def tried(self, root: GrantRoot) -> str:
        """What a directory granted from `root` will be. Raises KeepfleetError as `opened` does."""
        wanted = _wanted(root, ".", writable=root.writable)
        with ExitStack() as held:
            ((_, granted),) = self._ask(held, [wanted], NO_KEEP)
        return described(wanted, granted)

    def _ask(
        self,
        held: ExitStack,
        directories: Sequence[Wanted],
        user: UnixUser,
        files: Sequence[WantedFile] = (),
        volumes: Sequence[WantedVolume] = (),
    ) -> list[tuple[int, Granted]]:
        if not (directories or files or volumes):
            return []
        keep_ids = KeepIds(user.uid, user.gid) if self.mapped else None
        return ask(held, self.helper, GrantRequest(tuple(directories), keep_ids, tuple(files), tuple(volumes)))


def root_for(grant: Grant, roots: Sequence[GrantRoot], caller: Caller) -> tuple[GrantRoot, str]:
    """The nearest root that `grant` lies below, and the rest of its path. Raises KeepfleetError(FORBIDDEN). Pure."""
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
