"""WASI 0.2 command components: what they may import, and where their entry is.

A component has no link-time check in wasmtime's C interface, so its imports are compared by name, and the rest by an
instantiation in a store that allows no instance: it fails after the check and before the first instruction.
Imported for components alone.
"""

from __future__ import annotations

import re

from app_loader.check.imports import missing_in_words, refused, shown
from app_loader.engine.component import Component, ComponentLinker
from app_loader.engine.foreign import EngineError
from app_loader.engine.store import Store, Wasi
from app_loader.limits import MAX_EVIDENCE_LINE, MAX_EVIDENCE_LINES
from keep_protocol.wasi import INTERFACES
from keep_protocol.workload import Workload

RUN, RUN_FUNCTION = "wasi:cli/run", "run"
"""A command's entry (WASI 0.2, wasi:cli/command)."""
NO_NETWORK = "this version gives a guest no network"
_VERSIONED = re.compile(r"([a-z0-9:-]{1,80})/([a-z0-9-]{1,80})@0\.2\.[0-9]{1,9}", re.ASCII)
_NO_INSTANCE = "resource limit exceeded: instance count too high"


def _is_there(name: str) -> bool:
    match = _VERSIONED.fullmatch(name)
    return match is not None and match[2] in INTERFACES.get(match[1], ())


def check_component(linker: ComponentLinker, guest: Component) -> str:
    """Returns when everything the component imports is there; what its owner should know, or "".

    Raises KeepfleetError(INVALID_MODULE) naming what is not.
    """
    imports = guest.imports()
    missing = [name for name in imports if not _is_there(name)]
    if missing:
        message = missing_in_words("component", [shown(name) for name in missing])
        if any(name.startswith("wasi:http/") for name in missing):
            message += f"; {NO_NETWORK}"
        raise refused(message, [shown(name) for name in missing])
    store = Store(guest.engine)
    store.limit(instances=0)
    store.take(Wasi())
    try:
        linker.instantiate(store, guest)
    except EngineError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if not lines or not lines[0].startswith(_NO_INSTANCE):
            raise refused(f"cannot take the component: {': '.join(lines)[: 2 * MAX_EVIDENCE_LINE]}", lines) from error
    sockets = [name for name in imports if name.startswith("wasi:sockets/")]
    return f"it imports wasi:sockets, and {NO_NETWORK}: those calls will fail" if sockets else ""


def find_run(guest: Component, workload: Workload) -> str:
    """The name of the component's own RUN interface. Raises KeepfleetError(INVALID_MODULE) when it has none."""
    if workload.export or workload.export_arguments:
        raise refused(
            "cannot call an export of a component by name, only of a core module: wasi:cli/run is a component's entry"
        )
    exports = guest.exports()
    for name in exports:
        is_run = name.startswith(RUN + "@") and _VERSIONED.fullmatch(name)
        if is_run and guest.has_function(name, RUN_FUNCTION):
            return name
    lines = [f"exports {shown(name)}" for name in exports[:MAX_EVIDENCE_LINES]]
    message = f"cannot take the component: it does not export {RUN}@0.2, the entry of a command"
    if any(name.startswith("wasi:http/") for name in exports):
        message += f"; it is a web handler, and {NO_NETWORK}"
    raise refused(message, lines)
