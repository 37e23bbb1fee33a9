"""Provides the workload's secrets, each from a file of the host."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack

from keep_manager.model import Provision
from keep_manager.providers.opening import check_regular, open_file
from keep_protocol.api_workload import Grant, GrantKind
from keep_protocol.errors import ErrorKind, KeepfleetError

MAX_SECRET_BYTES = 1024 * 1024
"""A secret is copied into the keep's memory; a key or a token has a few kilobytes."""


def opened(provision: Provision, held: ExitStack) -> Mapping[str, int]:
    """The descriptors by name. Raises KeepfleetError as `files.opened` does, and TOO_LARGE."""
    request = provision.workload
    if request is None:
        return {}
    return {
        name: open_file(held, grant, provision.allowed.grant_roots, provision.caller, _check)
        for name, grant in zip(request.opened_names, request.grants, strict=True)
        if grant.kind is GrantKind.SECRET
    }


def _check(grant: Grant, status: os.stat_result) -> None:
    check_regular(grant, status)
    if status.st_size > MAX_SECRET_BYTES:
        raise KeepfleetError(
            ErrorKind.TOO_LARGE, f"cannot grant {grant.path}: a secret has at most {MAX_SECRET_BYTES} bytes"
        )
