"""Provides the module that a keep of kind stored runs: a descriptor of the store's object, verified a moment ago."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from keep_grants.resolve import keep
from keep_manager.model import Provision
from keep_protocol.control import MODULE

OpenModule = Callable[[str], int]
"""The verified descriptor of the module with this digest, read-only. Raises KeepfleetError."""


def opener(open_module: OpenModule) -> Callable[[Provision, ExitStack], Mapping[str, int]]:
    """The provider of it. A start that is only checked reads nothing: what it would find can change until the start."""

    def opened(provision: Provision, held: ExitStack) -> Mapping[str, int]:
        if MODULE not in provision.brings or provision.user is None:
            return {}
        return {MODULE: keep(held, open_module(provision.spec.digest))}

    return opened
