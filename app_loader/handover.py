"""What a keep is handed for its workload beside the module: a description and the granted descriptors, by number.

The door finds the description at DOOR_WORKLOAD_FD and keeps it, and what follows, for the runner, which finds it at
RUNNER_WORKLOAD_FD: the same numbers whether the door has become the runner or the keep-loader has started it again.
Import rule: `os` and the light part of keep_protocol.
"""

from __future__ import annotations

import os

from app_loader.limits import COMPILED_FD, RUNNER_WORKLOAD_FD, STATUS_FD
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.workload import MAX_WORKLOAD_JSON, Workload, workload_from_json


class Handover(Record):
    """workload: what the guest gets; descriptor: the file that says so; grants: the descriptors of
    `workload.grant_names`, in order."""

    workload: Workload
    descriptor: int
    grants: tuple[int, ...]


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def read_workload(descriptor: int) -> Workload:
    """The description in the file `descriptor`; its offset stays. Raises KeepfleetError when it is none."""
    data = b""
    try:
        while len(data) <= MAX_WORKLOAD_JSON and (piece := os.pread(descriptor, MAX_WORKLOAD_JSON + 1, len(data))):
            data += piece
    except OSError as error:
        raise KeepfleetError(
            ErrorKind.CONFIGURATION, f"cannot read the workload's description: {error.strerror}"
        ) from error
    return workload_from_json(data)


def described(descriptor: int) -> Workload:
    """The description in the file `descriptor`; where there is none, a workload that gets nothing."""
    return read_workload(descriptor) if _is_open(descriptor) else Workload()


def handed_over(descriptor: int) -> Handover | None:
    """What was handed over from `descriptor` on; None when nothing was, and the workload gets nothing.

    Raises KeepfleetError when the description is none, or a descriptor it names is missing.
    """
    if not _is_open(descriptor):
        return None
    workload = read_workload(descriptor)
    grants = tuple(range(descriptor + 1, descriptor + 1 + len(workload.grant_names)))
    for name, grant in zip(workload.grant_names, grants, strict=True):
        if not _is_open(grant):
            raise KeepfleetError(
                ErrorKind.CONFIGURATION, f"cannot give the workload its {name}: it was not handed over"
            )
    return Handover(workload, descriptor, grants)


def place_for_runner(compiled: int, given: Handover | None) -> None:
    """Puts everything where the runner looks for it, to be kept over exec; nothing else is. Raises OSError."""
    os.set_inheritable(STATUS_FD, True)
    os.dup2(compiled, COMPILED_FD)
    os.set_inheritable(COMPILED_FD, True)  # dup2 leaves it as it was where both are one
    if given is None:
        return
    # Upwards, and each to a lower number than its own: what is overwritten has been placed already.
    for target, source in enumerate((given.descriptor, *given.grants), RUNNER_WORKLOAD_FD):
        os.dup2(source, target)
        os.set_inheritable(target, True)
