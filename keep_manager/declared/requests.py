"""What a declared keep is made by: the request of its specification, and for whom. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from keep_manager.declared.specification import Specification
from keep_manager.model import Caller
from keep_protocol.api import NewKeep, StartKeep
from keep_protocol.api_workload import Grant, GrantKind, WorkloadRequest
from keep_protocol.fields import parse
from keep_protocol.workload import Directory, Workload
from keepctl.job import NO_RESTART, Volume
from module_store.names import parse_wanted


def request_for(wanted: Specification) -> NewKeep:
    """The request for its keep. Its end is the manager's to answer, and not the loader's. Raises KeepfleetError."""
    job = wanted.job.replace(restart=NO_RESTART)
    reference = parse_wanted(job.module).reference
    module = f"{reference}@{wanted.header.module}" if reference else wanted.header.module
    given = {"workload": workload} if (workload := job.workload()) else {}
    optional = {"profile": job.profile, "compiler": job.compiler, "output": job.output}
    asked: dict[str, object] = {
        "name": wanted.name,
        "labels": dict(job.labels),
        "limits": dict(job.limits),
        "module": module,
        "start": given,
        **{name: value for name, value in optional.items() if value},
    }
    request = parse(NewKeep, asked, f"specification {wanted.name}", strict=True)
    start = request.start
    if start is not None and job.volume is not None:
        start = _with_volume(start, job.volume)
    if start is not None and job.stored_secrets:
        start = _with_secrets(start, job.stored_secrets)
    return request.replace(start=start)


def caller_of(wanted: Specification) -> Caller:
    """For whom its keep is made: what the owner may have now."""
    header = wanted.header
    return Caller(header.owner, header.role, "this host", f"{header.owner}, by the declared keep {wanted.name}")


def _with_volume(start: StartKeep, volume: Volume) -> StartKeep:
    """The start, with the volume as the last of the guest's directories. No client can ask for one in a start."""
    asked = start.workload or WorkloadRequest(Workload())
    workload = asked.workload
    workload = workload.replace(directories=(*workload.directories, Directory(volume.guest, True)))
    before = len(asked.grants) - len(workload.secrets)
    grants = (*asked.grants[:before], Grant(GrantKind.VOLUME, volume.name, True), *asked.grants[before:])
    return start.replace(workload=WorkloadRequest(workload, grants, asked.sets_restart))


def _with_secrets(start: StartKeep, secrets: Mapping[str, str]) -> StartKeep:
    """The start, with these secrets of the manager's as the last ones of the guest's, by their names there: they come
    as credentials of the unit. No client can ask for one in a start."""
    asked = start.workload or WorkloadRequest(Workload())
    workload = asked.workload
    workload = workload.replace(secrets=(*workload.secrets, *secrets), credentials=tuple(secrets.values()))
    return start.replace(workload=WorkloadRequest(workload, asked.grants, asked.sets_restart))
