"""What of an upload is called and what it imports: whether a core module or a WASI 0.2 command component can run here.

A core module's imports are linked on trial. A component has no such check in wasmtime's C interface, so its imports are
compared by name, and the rest by an instantiation in a store that allows no instance: it fails after the check and
before the first instruction. `wasmtime.component`, 2 MB that a core module does not need, is imported in the functions
that need it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import wasmtime

from app_loader.check.signature import NUMBERS, in_words, values
from app_loader.limits import MAX_EVIDENCE_LINE, MAX_EVIDENCE_LINES
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.workload import Workload

if TYPE_CHECKING:
    from wasmtime import component

COMMAND, DEFAULT = "_start", ""
"""What is called where no export is asked for: a command's start function, else the export without a name, as the
original did."""
INITIALIZE = "_initialize"
"""A reactor's own preparation (WASI application ABI), called before any export but a command's."""
_NO_ARGUMENTS = "a command's arguments are its argv"
INTERFACES = {
    "wasi:cli": (
        *("environment", "exit", "stdin", "stdout", "stderr"),
        *("terminal-input", "terminal-output", "terminal-stdin", "terminal-stdout", "terminal-stderr"),
    ),
    "wasi:clocks": ("monotonic-clock", "wall-clock"),
    "wasi:filesystem": ("preopens", "types"),
    "wasi:io": ("error", "poll", "streams"),
    "wasi:random": ("insecure", "insecure-seed", "random"),
    "wasi:sockets": (
        *("instance-network", "ip-name-lookup", "network"),
        *("tcp", "tcp-create-socket", "udp", "udp-create-socket"),
    ),
}
"""Every interface of WASI 0.2 that is there. The sockets' calls fail, see NO_NETWORK."""
RUN, RUN_FUNCTION = "wasi:cli/run", "run"
"""A command's entry (WASI 0.2, wasi:cli/command)."""
NO_NETWORK = "this version gives a guest no network"
_VERSIONED = re.compile(r"([a-z0-9:-]{1,80})/([a-z0-9-]{1,80})@0\.2\.[0-9]{1,9}", re.ASCII)
_PREVIEW_0 = "wasi_unstable"
"""The import module of WASI's first snapshot, which compilers have not used since 2019."""
_NO_INSTANCE = "resource limit exceeded: instance count too high"


class Entry(Record):
    """name: the exported function to call; values: its arguments."""

    name: str
    values: tuple[int | float, ...] = ()


def shown(name: str | None) -> str:
    """A name that a client chose, in ASCII and bounded."""
    return ascii(name or "")[:MAX_EVIDENCE_LINE]


def refused(message: str, lines: list[str] | None = None) -> KeepfleetError:
    """The refusal of a module, with at most as much evidence as a person reads."""
    return KeepfleetError(ErrorKind.INVALID_MODULE, message, tuple((lines or [])[:MAX_EVIDENCE_LINES]))


def check_imports(engine: wasmtime.Engine, linker: wasmtime.Linker, module: wasmtime.Module) -> None:
    """Returns when everything the module imports is there. Raises KeepfleetError(INVALID_MODULE) naming what is not."""
    try:
        linker.instantiate_pre(module)
    except wasmtime.WasmtimeError as error:
        store, missing = wasmtime.Store(engine), []
        for wanted in module.imports:
            try:
                linker.get(store, wanted.module, wanted.name or "")
            except wasmtime.WasmtimeError:
                missing.append(f"{shown(wanted.module)} {shown(wanted.name)}")
        if missing:
            message = missing_in_words("module", missing)
            if any(wanted.module == _PREVIEW_0 for wanted in module.imports):
                message += f"; {_PREVIEW_0} is WASI's first snapshot: build the module for wasm32-wasip1"
            raise refused(message, missing) from error
        reason = str(error).splitlines() or ["an import has another type"]
        raise refused(f"cannot take the module: {reason[0][:MAX_EVIDENCE_LINE]}", reason) from error


def missing_in_words(what: str, missing: list[str]) -> str:
    """The refusal of a `what` whose imports a keep does not have."""
    named = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
    return f"cannot take the {what}: it imports what a keep does not have: {named}"


def find_entry(module: wasmtime.Module, workload: Workload) -> Entry:
    """What to call of `module`: the export the workload names, else COMMAND or DEFAULT, the first that is there.

    Raises KeepfleetError(INVALID_MODULE) when there is none, or its arguments do not fit its signature.
    """
    functions = {export.name: export.type for export in module.exports if isinstance(export.type, wasmtime.FuncType)}
    if workload.export:
        if workload.export not in functions:
            raise _nothing(f"it exports no function {shown(workload.export)}", functions)
        name = workload.export
    else:
        name = COMMAND if COMMAND in functions else DEFAULT
        if name not in functions:
            raise _nothing("it exports nothing to run: neither _start nor a function with an empty name", functions)
    kind = functions[name]
    params, results = [str(kind) for kind in kind.params], [str(kind) for kind in kind.results]
    signature = in_words(name, params, results)
    if name == COMMAND and (params or results):
        raise refused(f"cannot take the module: its export '_start' takes parameters or returns values: {signature}")
    if name == COMMAND and workload.export_arguments:
        raise refused(f"cannot call {signature}: it takes no arguments; {_NO_ARGUMENTS}")
    for result in results:
        if result not in NUMBERS:
            raise refused(f"cannot call {signature}: a value of type {result} cannot be shown")
    return Entry(name, tuple(values(signature, params, workload.export_arguments)))


def _nothing(why: str, functions: dict[str, wasmtime.FuncType]) -> KeepfleetError:
    """Names alone: asked for the signature of a function that takes vectors, wasmtime's C interface aborts."""
    return refused(f"cannot take the module: {why}", [f"exports {shown(name)}" for name in functions])


def make_component_linker(engine: wasmtime.Engine) -> component.Linker:
    """A linker with everything a component may import: WASI 0.2, without HTTP."""
    from wasmtime import component

    linker = component.Linker(engine)
    linker.add_wasip2()
    return linker


def _is_there(name: str) -> bool:
    match = _VERSIONED.fullmatch(name)
    return match is not None and match[2] in INTERFACES.get(match[1], ())


def check_component(engine: wasmtime.Engine, linker: component.Linker, guest: component.Component) -> str:
    """Returns when everything the component imports is there; what its owner should know, or "".

    Raises KeepfleetError(INVALID_MODULE) naming what is not.
    """
    imports = list(guest.type.imports(engine))
    missing = [name for name in imports if not _is_there(name)]
    if missing:
        message = missing_in_words("component", [shown(name) for name in missing])
        if any(name.startswith("wasi:http/") for name in missing):
            message += f"; {NO_NETWORK}"
        raise refused(message, [shown(name) for name in missing])
    store = wasmtime.Store(engine)
    store.set_limits(instances=0)
    store.set_wasi(wasmtime.WasiConfig())
    try:
        linker.instantiate(store, guest)
    except wasmtime.WasmtimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if not lines or not lines[0].startswith(_NO_INSTANCE):
            raise refused(f"cannot take the component: {': '.join(lines)[: 2 * MAX_EVIDENCE_LINE]}", lines) from error
    sockets = [name for name in imports if name.startswith("wasi:sockets/")]
    return f"it imports wasi:sockets, and {NO_NETWORK}: those calls will fail" if sockets else ""


def find_run(engine: wasmtime.Engine, guest: component.Component, workload: Workload) -> str:
    """The name of the component's own RUN interface. Raises KeepfleetError(INVALID_MODULE) when it has none."""
    if workload.export or workload.export_arguments:
        raise refused(
            "cannot call an export of a component by name, only of a core module: wasi:cli/run is a component's entry"
        )
    from wasmtime import component

    exports = guest.type.exports(engine)
    for name, item in exports.items():
        if not (name.startswith(RUN + "@") and _VERSIONED.fullmatch(name)):
            continue
        if isinstance(item.ty, component.ComponentInstanceType):
            function = item.ty.exports(engine).get(RUN_FUNCTION)
            if function is not None and isinstance(function.ty, component.FuncType) and not function.ty.params:
                return name
    lines = [f"exports {shown(name)}" for name in list(exports)[:MAX_EVIDENCE_LINES]]
    message = f"cannot take the component: it does not export {RUN}@0.2, the entry of a command"
    if any(name.startswith("wasi:http/") for name in exports):
        message += f"; it is a web handler, and {NO_NETWORK}"
    raise refused(message, lines)
