"""The checker: a throw-away process that validates and compiles one module inside hard limits, then ends.

A fork of the runner that waits, see `checking`. What the module is, a core module or a component, is read from its
first eight bytes, before the checker locks itself, since what only components need, 13 ms of imports, can be read from
no file afterwards; nothing else of the module is read before.
"""

from __future__ import annotations

import errno
import os
import resource

from app_loader.check.budget import Budget, budget, too_complex
from app_loader.check.checking import GOOD
from app_loader.check.checking import refused as refusal
from app_loader.check.imports import check_imports, find_entry, refused
from app_loader.engine.compiled import Compiled, Module
from app_loader.engine.foreign import EngineError
from app_loader.engine.settings import make_engine, settings_for
from app_loader.engine.store import Linker
from app_loader.limits import MAX_EVIDENCE_LINE, MAX_EVIDENCE_LINES
from app_loader.settings import Passed, read_limits, read_workload
from keep_isolation.locks import lock_checker
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.forking import REPORT_DESCRIPTOR
from keep_protocol.limits import Limits
from keep_protocol.spec import Compiler
from keep_protocol.workload import Workload

MAGIC = b"\0asm"
CORE_VERSION = b"\x01\x00\x00\x00"
COMPONENT_VERSION = b"\x0d\x00\x01\x00"
"""The one version of the component binary format so far."""
COMPONENT_LAYER = b"\x01\x00"
"""Bytes six and seven of a component: its layer; a core module has zero there."""
ZIP = b"PK\x03\x04"
PACKED = (b"\x1f\x8b", ZIP)
"""How what people fetch packed begins."""
_HEAD = 8


def check_head(head: bytes) -> bool:
    """Whether `head`, a file's first eight bytes, begins a component; False for a core module. Pure.

    Raises KeepfleetError(INVALID_MODULE) that says what it is instead. wasmtime itself would take text for a module.
    """
    if head.startswith(MAGIC) and head[4:] in (CORE_VERSION, COMPONENT_VERSION):
        return head[4:] == COMPONENT_VERSION
    if not head:
        what = "it is empty"
    elif head.startswith(MAGIC) and len(head) == _HEAD and head[6:] == COMPONENT_LAYER:
        what = f"it is a component of another version, {head[4:6].hex()}; build it with current tools"
    elif head.startswith(MAGIC) and len(head) == _HEAD:
        what = f"its version {head[4:].hex()} is not 1"
    elif MAGIC.startswith(head[:4]):
        what = "it ends within its first eight bytes"
    elif head.startswith(b"\x7fELF"):
        what = "it is a native program (ELF), not WebAssembly"
    elif head.startswith(PACKED):
        what = f"it is a {'zip' if head.startswith(ZIP) else 'gzip'} file; unpack it first"
    elif head.lstrip().startswith((b"(", b";;")):
        what = "it is WebAssembly text; convert it first: wat2wasm FILE.wat"
    else:
        what = f"it does not begin as a WebAssembly file does, but with {head.hex(' ')}"
    raise KeepfleetError(ErrorKind.INVALID_MODULE, f"cannot take the module: {what}")


def _limit(allowed: Budget) -> None:
    """Sets the limits."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (allowed.cpu_seconds, allowed.cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (allowed.data_bytes, allowed.data_bytes))


def in_words(error: EngineError, compiler: Compiler) -> KeepfleetError:
    lines = [line[:MAX_EVIDENCE_LINE] for line in str(error).splitlines() if line.strip()][:MAX_EVIDENCE_LINES]
    shown = ": ".join(line.strip() for line in lines if line.strip() != "Caused by:")[: 2 * MAX_EVIDENCE_LINE]
    hint = "; compiler fast knows less of WebAssembly: try without it" if compiler is Compiler.FAST else ""
    return KeepfleetError(ErrorKind.INVALID_MODULE, f"cannot take the module: {shown}{hint}", tuple(lines))


def store_compiled(compiled: Compiled, result: int) -> None:
    try:
        compiled.store(result)
    except OSError as error:
        kind = ErrorKind.NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ErrorKind.INTERNAL
        raise KeepfleetError(kind, f"cannot store the compiled module: {error.strerror}") from error


def _examine_module(module: int, result: int, limits: Limits, workload: Workload) -> str:
    engine = make_engine(settings_for(result, limits, workload))
    compiled = Module.compile(engine, module)
    check_imports(Linker(engine), compiled)
    find_entry(compiled, workload)
    store_compiled(compiled, result)
    return ""


def _examine_component(module: int, result: int, limits: Limits, workload: Workload) -> str:
    from app_loader.check.components import check_component, find_run
    from app_loader.engine.component import Component, ComponentLinker

    if workload.compiler is Compiler.FAST:
        raise refused(
            "cannot take the component: compiler fast is for core modules alone; leave it out, or build the program as "
            "a core module (wasm32-wasip1)"
        )
    engine = make_engine(settings_for(result, limits, workload, components=True))
    compiled = Component.compile(engine, module)
    note = check_component(ComponentLinker(engine), compiled)
    find_run(compiled, workload)
    store_compiled(compiled, result)
    return note


def examine(module: int, result: int, limits: Limits, workload: Workload) -> str | KeepfleetError:
    """Checks and compiles the file `module` into the file `result`; the refusal, or a note on what can run."""
    allowed = budget(os.fstat(module).st_size, limits.unit_memory_bytes)
    try:
        is_component = check_head(os.pread(module, _HEAD, 0))
        return (_examine_component if is_component else _examine_module)(module, result, limits, workload)
    except EngineError as error:
        return in_words(error, workload.compiler)
    except MemoryError:
        return too_complex(allowed.over_data())
    except KeepfleetError as error:
        return error


def check(passed: Passed) -> int:
    """The process: limits, lock, result, end."""
    limits = read_limits(os.environ)
    module, result = passed.number("module"), passed.number("result")
    workload = read_workload(passed.number("workload")) if "workload" in passed else Workload()
    _limit(budget(os.fstat(module).st_size, limits.unit_memory_bytes))
    if os.pread(module, _HEAD, 0) == MAGIC + COMPONENT_VERSION:
        import app_loader.check.components  # noqa: F401  # the last moment: no file can be opened behind the lock
    lock_checker()
    found = examine(module, result, limits, workload)
    packet = GOOD + strict_json.dumps({"note": found}) if isinstance(found, str) else refusal(found)
    os.write(REPORT_DESCRIPTOR, packet)
    return 0
