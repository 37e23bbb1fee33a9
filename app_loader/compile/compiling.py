"""One module of the store compiled for every keep that will run it: limits, lock, the checks that are the same for each
workload, and the compiled code.

What a workload calls of the module, and with what, is looked for at each start, where the code is loaded.
"""

from __future__ import annotations

import os
import resource

from app_loader.check.compiler import (
    COMPONENT_VERSION,
    MAGIC,
    check_head,
    in_words,
    look_at_component,
    look_at_module,
    store_compiled,
)
from app_loader.check.imports import check_link, refused
from app_loader.check.outline import HEAD_BYTES
from app_loader.engine.compiled import Module
from app_loader.engine.foreign import EngineError
from app_loader.engine.settings import Settings, make_engine
from app_loader.engine.store import Linker
from keep_isolation.locks import lock_checker
from keep_protocol.compiling import Job, too_complex
from keep_protocol.errors import KeepfleetError
from keep_protocol.spec import Compiler, Profile
from keep_protocol.workload import Workload

MAX_RESULT_BYTES = 1024 * 1024 * 1024
"""As much compiled code as the manager keeps of one module (RLIMIT_FSIZE)."""


def compile_module(module: int, result: int, job: Job) -> str | KeepfleetError:
    """Compiles the file `module` into the file `result`; the refusal, or a note on what can run. For a process that
    ends then: it is limited and locked for good."""
    _limit(job)
    if os.pread(module, HEAD_BYTES, 0) == MAGIC + COMPONENT_VERSION:
        import app_loader.check.components  # noqa: F401  # the last moment: no file can be opened behind the lock
    try:
        lock_checker()
        is_component = check_head(os.pread(module, HEAD_BYTES, 0))
        return (_compile_component if is_component else _compile_core)(module, result, job)
    except EngineError as error:
        return in_words(error, job.compiler)
    except MemoryError:
        return too_complex(f"takes more than {job.memory_bytes >> 20} MiB of memory")
    except KeepfleetError as error:
        return error


def _limit(job: Job) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (job.seconds, job.seconds + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (job.memory_bytes, job.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_RESULT_BYTES, MAX_RESULT_BYTES))


def _settings(result: int, job: Job, *, components: bool = False) -> Settings:
    """As a keep will have them, where `result` is on the disk that the code will be mapped from. The size of the stack
    is each keep's own: compiled code fits every one."""
    images = job.profile is Profile.STRICT or not os.fstatvfs(result).f_flag & os.ST_NOEXEC
    return Settings(components=components, images=images, profile=job.profile, compiler=job.compiler)


def _compile_core(module: int, result: int, job: Job) -> str:
    engine = make_engine(_settings(result, job))
    linker = Linker(engine)
    look_at_module(engine, linker, module, None)
    Module.validate(engine, module)
    compiled = Module.compile(engine, module)
    check_link(linker, compiled)
    store_compiled(compiled, result)
    return ""


def _compile_component(module: int, result: int, job: Job) -> str:
    from app_loader.check.components import check_component, check_names, check_run
    from app_loader.engine.component import Component, ComponentLinker

    if job.compiler is Compiler.FAST:
        raise refused(
            "cannot take the component: compiler fast is for core modules alone; leave it out, or build the program as "
            "a core module (wasm32-wasip1)"
        )
    look_at_component(module, Workload())
    engine = make_engine(_settings(result, job, components=True))
    compiled = Component.compile(engine, module)
    check_run(compiled, check_names(compiled.imports(), compiled.exports(), Workload()))
    note = check_component(ComponentLinker(engine), compiled)
    store_compiled(compiled, result)
    return note
