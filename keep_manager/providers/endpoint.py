"""Provides what an upload endpoint judges its clients by: the client CA and the list of revoked certificates."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from keep_grants.resolve import keep
from keep_manager.model import Provision
from keep_protocol.control import CLIENT_CA, REVOKED
from keep_protocol.errors import ErrorKind, KeepfleetError


def opener(client_ca: str, revoked: str) -> Callable[[Provision, ExitStack], Mapping[str, int]]:
    """The provider of these two files."""

    def opened(provision: Provision, held: ExitStack) -> Mapping[str, int]:
        if CLIENT_CA not in provision.brings:
            return {}
        return {CLIENT_CA: _open(held, client_ca), REVOKED: _open(held, revoked)}

    return opened


def _open(held: ExitStack, path: str) -> int:
    try:
        return keep(held, os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
    except OSError as error:
        raise KeepfleetError(
            ErrorKind.CERTIFICATE, f"cannot open {path}: {error.strerror}; run: keepctl init"
        ) from error
