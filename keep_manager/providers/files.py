"""Provides the workload's description, its standard input and its directories."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack

from keep_manager.model import Provision
from keep_manager.providers.opening import check_regular, keep, open_grant
from keep_protocol.api_workload import Grant, GrantKind, WorkloadRequest
from keep_protocol.control import WORKLOAD_DESCRIPTOR
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import Compiler, Profile
from keep_protocol.workload import Workload

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def opened(provision: Provision, held: ExitStack) -> Mapping[str, int]:
    """The descriptors by name. Raises KeepfleetError: FORBIDDEN for what does not lie below one of the caller's roots,
    NOT_FOUND, BAD_REQUEST for what is of another kind, TOO_LARGE, CONFIGURATION for a root that cannot be used."""
    request, spec = provision.workload, provision.spec
    if request is None and spec.profile is Profile.STANDARD and spec.compiler is Compiler.OPTIMIZING:
        return {}
    request = request or WorkloadRequest(Workload())
    workload = request.workload.replace(profile=spec.profile, compiler=spec.compiler)
    if not request.sets_restart:  # a start that names no policy leaves the keep's own in force; it is read from here
        workload = workload.replace(restart=spec.restart)
    found = {WORKLOAD_DESCRIPTOR: _sealed(held, workload.to_json())}
    for name, grant in zip(workload.grant_names, request.grants, strict=True):
        if grant.kind is not GrantKind.SECRET:
            check = _check_directory if grant.kind is GrantKind.DIRECTORY else check_regular
            found[name] = open_grant(held, grant, provision.allowed.grant_roots, provision.caller, check)
    return found


def _sealed(held: ExitStack, data: bytes) -> int:
    """`data` in memory that no process can change any more, read-only."""
    with ExitStack() as own:
        memory = keep(own, os.memfd_create("workload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(memory, rest) :]
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
        return keep(held, os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC))


def _check_directory(grant: Grant, status: os.stat_result) -> None:
    if not stat.S_ISDIR(status.st_mode):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot grant {grant.path}: it is no directory")
