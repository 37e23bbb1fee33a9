"""What a declared keep is made by: the request of its specification, and for whom. Pure."""

from __future__ import annotations

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
    start = {"workload": given} if (given := job.workload()) else {}
    optional = {"profile": job.profile, "compiler": job.compiler, "output": job.output}
    asked: dict[str, object] = {
        "name": wanted.name,
        "labels": dict(job.labels),
        "limits": dict(job.limits),
        "module": module,
        "start": start,
        **{name: value for name, value in optional.items() if value},
    }
    request = parse(NewKeep, asked, f"specification {wanted.name}", strict=True)
    if wanted.job.volume is None or request.start is None:
        return request
    return request.replace(start=_with_volume(request.start, wanted.job.volume))


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
