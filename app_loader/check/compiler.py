"""The checker: a throw-away process that validates and compiles one module inside hard limits, then ends; and how the
runner that waits makes the engine ready, for it and for the run.

A fork of the runner that waits, see `checking`. Before it locks itself it reads two things of the module: its first
eight bytes, which say whether it is a component, since what only components need, 13 ms of imports, can be read from no
file afterwards; and how long each section is, since no limit can be set afterwards. Then, locked, its imports and
exports; then it has the engine validate and compile it.
"""

from __future__ import annotations

import errno
import math
import os
import resource

from app_loader.check import advice
from app_loader.check.checking import GOOD, STORE_DIRECTORIES, over, too_complex
from app_loader.check.checking import refused as refusal
from app_loader.check.imports import check_counts, check_imports, check_link, find_entry, refused
from app_loader.check.outline import HEAD_BYTES, ComponentOutline, CoreOutline, Unreadable, code_bytes
from app_loader.check.programs import check_program, holds_program
from app_loader.engine.compiled import Compiled, Module
from app_loader.engine.foreign import EngineError, GuestExit
from app_loader.engine.settings import Engine, Settings, make_engine, settings_for
from app_loader.engine.store import Linker, Store, Wasi
from app_loader.limits import (
    MAX_EVIDENCE_LINE,
    MAX_EVIDENCE_LINES,
    SMALLEST_MEMORY_SHARE,
    SMALLEST_TIME_SHARE,
    WHOLE_MEMORY_CODE_BYTES,
    WHOLE_TIME_CODE_BYTES,
)
from app_loader.settings import Passed, read_limits, read_workload
from keep_isolation.locks import lock_checker
from keep_protocol import strict_json
from keep_protocol.constants import MODULE, RESULT, WORKLOAD_DESCRIPTOR
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
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


def warm_up(limits: Limits, workload: Workload) -> None:
    """Has the engine loaded, built, and used once: compiles and calls what stands for `proc_exit`, with the engine that
    a core module of this workload will have.

    The pages that the first compilation, the first call and the first trap touch, and the engine itself, are then
    shared by the forks that check, and by the run. Raises ImportError without the engine's library.
    """
    store = Store(make_engine(settings_for(STORE_DIRECTORIES[0], limits, workload)))
    store.take(Wasi())
    try:
        store.call(Linker(store.engine).replace_exit(store), (("i32", 0),))
    except GuestExit:
        return


class Budget(Record):
    """cpu_seconds: processor time; data_bytes: private memory."""

    cpu_seconds: int
    data_bytes: int


def budget(code_bytes: int, limits: Limits) -> Budget:
    """The budget of a module with so much code: all that `limits` give to compiling, or for little code a part of it.

    A part of the limit and not an amount of its own, so that a higher limit gives more to every module.
    """
    time = min(1.0, max(SMALLEST_TIME_SHARE, code_bytes / WHOLE_TIME_CODE_BYTES))
    memory = min(1.0, max(SMALLEST_MEMORY_SHARE, code_bytes / WHOLE_MEMORY_CODE_BYTES))
    return Budget(math.ceil(limits.compile_seconds * time), int(limits.compile_memory_bytes * memory))


def check_head(head: bytes) -> bool:
    """Whether `head`, a file's first eight bytes, begins a component; False for a core module. Pure.

    Raises KeepfleetError(INVALID_MODULE) that says what it is instead. wasmtime itself would take text for a module.
    """
    if head.startswith(MAGIC) and head[4:] in (CORE_VERSION, COMPONENT_VERSION):
        return head[4:] == COMPONENT_VERSION
    if not head:
        what = "it is empty"
    elif head.startswith(MAGIC) and len(head) == HEAD_BYTES and head[6:] == COMPONENT_LAYER:
        what = f"it is a component of another version, {head[4:6].hex()}; build it with current tools"
    elif head.startswith(MAGIC) and len(head) == HEAD_BYTES:
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


def limit(allowed: Budget) -> None:
    """Sets the limits of this process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (allowed.cpu_seconds, allowed.cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (allowed.data_bytes, allowed.data_bytes))


def in_words(error: EngineError, compiler: Compiler) -> KeepfleetError:
    lines = [line[:MAX_EVIDENCE_LINE] for line in str(error).splitlines() if line.strip()][:MAX_EVIDENCE_LINES]
    shown = ": ".join(line.strip() for line in lines if line.strip() != "Caused by:")[: 2 * MAX_EVIDENCE_LINE]
    hint = advice.on_features(str(error))
    if compiler is Compiler.FAST and not hint:
        hint = "; compiler fast knows less of WebAssembly: try without it"
    return KeepfleetError(ErrorKind.INVALID_MODULE, f"cannot take the module: {shown}{hint}", tuple(lines))


def store_compiled(compiled: Compiled, result: int) -> None:
    try:
        compiled.store(result)
    except OSError as error:
        raise not_stored(error) from error


def not_stored(error: OSError) -> KeepfleetError:
    kind = ErrorKind.NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ErrorKind.INTERNAL
    return KeepfleetError(kind, f"cannot store the compiled module: {error.strerror}")


def look_at_module(engine: Engine, linker: Linker, module: int, workload: Workload | None) -> None:
    """Raises KeepfleetError for a module that can never run, with None whatever is called of it, or EngineError where
    it cannot be read."""
    try:
        outline = CoreOutline(module)
        check_counts(outline)
        check_imports(linker, Store(engine), outline.imports)
        if workload is not None:
            find_entry(outline, workload)
    except Unreadable as error:
        Module.validate(engine, module)  # says why
        raise refused("cannot take the module: it cannot be read in front of its code") from error


def compile_core(settings: Settings, module: int, result: int, workload: Workload | None) -> str:
    """Checks and compiles a core module, for one workload, or with None for any. Raises KeepfleetError, EngineError."""
    engine = make_engine(settings)
    linker = Linker(engine)
    look_at_module(engine, linker, module, workload)
    Module.validate(engine, module)
    compiled = Module.compile(engine, module)
    check_link(linker, compiled)
    store_compiled(compiled, result)
    return ""


def look_at_component(module: int, workload: Workload) -> None:
    """Raises KeepfleetError for a component that can never run."""
    from app_loader.check.components import check_names

    try:
        outline = ComponentOutline(module)
    except Unreadable:
        return  # the engine says why
    check_names(outline.imports, outline.exports, workload)


def compile_component(settings: Settings, module: int, result: int, workload: Workload) -> str:
    """The same of a component; a note on what can run."""
    from app_loader.check.components import check_component, check_names, check_run
    from app_loader.engine.component import Component, ComponentLinker

    if settings.compiler is Compiler.FAST:
        raise refused(
            "cannot take the component: compiler fast is for core modules alone; leave it out, or build the program as "
            "a core module (wasm32-wasip1)"
        )
    look_at_component(module, workload)
    engine = make_engine(settings)
    compiled = Component.compile(engine, module)
    check_run(compiled, check_names(compiled.imports(), compiled.exports(), workload))
    note = check_component(ComponentLinker(engine), compiled)
    store_compiled(compiled, result)
    return note


def examine(module: int, result: int, limits: Limits, workload: Workload) -> str | KeepfleetError:
    """Checks and compiles the file `module` into the file `result`; the refusal, or a note on what can run."""
    try:
        if holds_program(module):
            return check_program(module, result, workload.profile)
        is_component = check_head(os.pread(module, HEAD_BYTES, 0))
        settings = settings_for(result, limits, workload, components=is_component)
        return (compile_component if is_component else compile_core)(settings, module, result, workload)
    except EngineError as error:
        return in_words(error, workload.compiler)
    except MemoryError:
        return too_complex(over("compile_memory_bytes", limits))
    except OSError as error:
        return not_stored(error)
    except KeepfleetError as error:
        return error


def check(passed: Passed) -> int:
    """The process: limits, lock, result, end."""
    limits = read_limits(os.environ)
    module, result = passed.number(MODULE), passed.number(RESULT)
    workload = read_workload(passed.number(WORKLOAD_DESCRIPTOR)) if WORKLOAD_DESCRIPTOR in passed else Workload()
    component = os.pread(module, HEAD_BYTES, 0) == MAGIC + COMPONENT_VERSION
    limit(budget(code_bytes(module, component=component), limits))
    if component:
        import app_loader.check.components  # noqa: F401  # the last moment: no file can be opened behind the lock
    lock_checker()
    found = examine(module, result, limits, workload)
    packet = GOOD + strict_json.dumps({"note": found}) if isinstance(found, str) else refusal(found)
    os.write(REPORT_DESCRIPTOR, packet)
    return 0
