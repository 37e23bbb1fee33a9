"""WASI 0.2 command components: what they may import, and where their entry is.

A component has no link-time check in wasmtime's C interface, so its imports are compared by name, and the rest by an
instantiation in a store that allows no instance: it fails after the check and before the first instruction.
Imported for components alone.
"""

from __future__ import annotations

import re

from app_loader.check import advice
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


def check_names(imports: list[str], exports: list[str], workload: Workload) -> str:
    """Returns when everything is there that a component imports, and it has the entry of a command: that one's name.

    Raises KeepfleetError(INVALID_MODULE) naming what is not.
    """
    missing = [name for name in imports if not _is_there(name)]
    if missing:
        message = missing_in_words("component", [shown(name) for name in missing])
        raise refused(message + advice.on_imports(missing), [shown(name) for name in missing])
    return find_run(exports, workload)


def check_component(linker: ComponentLinker, guest: Component) -> str:
    """Returns when everything the component imports is of the type that is there; what its owner should know, or "".

    Raises KeepfleetError(INVALID_MODULE) that says what is not.
    """
    store = Store(guest.engine)
    store.limit(instances=0)
    store.take(Wasi())
    try:
        linker.instantiate(store, guest)
    except EngineError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if not lines or not lines[0].startswith(_NO_INSTANCE):
            raise refused(f"cannot take the component: {': '.join(lines)[: 2 * MAX_EVIDENCE_LINE]}", lines) from error
    sockets = [name for name in guest.imports() if name.startswith("wasi:sockets/")]
    return f"it imports wasi:sockets, and {NO_NETWORK}: those calls will fail" if sockets else ""


def find_run(exports: list[str], workload: Workload) -> str:
    """The name of RUN among a component's exports. Raises KeepfleetError(INVALID_MODULE) when it is not there."""
    if workload.export or workload.export_arguments:
        raise refused(
            "cannot call an export of a component by name, only of a core module: wasi:cli/run is a component's entry"
        )
    for name in exports:
        if name.startswith(RUN + "@") and _VERSIONED.fullmatch(name):
            return name
    lines = [f"exports {shown(name)}" for name in exports[:MAX_EVIDENCE_LINES]]
    message = f"cannot take the component: it does not export {RUN}@0.2, the entry of a command"
    if any(advice.is_wasi_0_3(name) for name in exports):
        message += f"; {advice.WASI_0_3}"
    elif any(name.startswith("wasi:http/") for name in exports):
        message += f"; it is a web handler, and {NO_NETWORK}"
    raise refused(message, lines)


def check_run(guest: Component, name: str) -> None:
    """Raises KeepfleetError(INVALID_MODULE) where what `find_run` has found is no entry."""
    if not guest.has_function(name, RUN_FUNCTION):
        raise refused(f"cannot take the component: its {name} has no function {RUN_FUNCTION}, the entry of a command")
