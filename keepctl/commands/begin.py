"""The beginning of `keepctl run`: a keep with its workload in it, or none at all."""

from __future__ import annotations

import os
from functools import partial

import click

from keep_client.failures import ConnectionFailed
from keep_client.keep import open_workload
from keep_client.manager import ManagerClient
from keep_client.text import one_line
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keepctl.commands.access import Access
from keepctl.job import Job
from keepctl.sending import send


def begin(access: Access, client: ManagerClient, job: Job, address: str, port: int | None) -> KeepInfo:
    """A keep that has received the job's module; or none, when anything fails.

    Where its answer to the creation is lost, the manager is asked with the same key once more what it made.
    """
    create = partial(client.create, "wasi", job.name, job.labels, job.limits, os.urandom(16).hex())
    keep: KeepInfo | None = None
    with open_workload(job.module) as file:
        try:
            keep = create()
            started = client.start(keep.kuuid, address, port, (), job.workload())
            send(access.credentials.keep_context(), started, client.endpoint.host, file)
        except (KeepfleetError, KeyboardInterrupt) as error:
            if keep is None and _may_have_worked(error):
                keep = _again(create)
            if keep is not None:
                _undo(client, keep.kuuid)
            raise
    return started


def _may_have_worked(error: KeepfleetError | KeyboardInterrupt) -> bool:
    """Whether a creation that ended like this may have made a keep. One that took too long has not: the manager undoes
    what its client does not wait for."""
    return not isinstance(error, KeepfleetError) or (
        isinstance(error, ConnectionFailed) and error.kind is not ErrorKind.TOO_SLOW
    )


def _again(create: partial[KeepInfo]) -> KeepInfo | None:
    try:
        return create()
    except KeepfleetError:
        return None  # the first error is the one to tell


def _undo(client: ManagerClient, kuuid: int) -> None:
    """Removes the keep; where that fails, or the person does not wait for it, says that it is there."""
    try:
        client.remove(kuuid, patient=True)
    except (KeepfleetError, KeyboardInterrupt) as error:
        why = f": {error.message}" if isinstance(error, KeepfleetError) else ""
        click.echo(one_line(f"keepctl: left keep {kuuid}{why}; remove it: keepctl rm {kuuid}"), err=True)
