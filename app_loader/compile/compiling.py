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
    compile_component,
    compile_core,
    in_words,
    not_stored,
)
from app_loader.check.outline import HEAD_BYTES
from app_loader.check.programs import check_program, holds_program
from app_loader.engine.foreign import EngineError
from app_loader.engine.settings import Settings
from keep_isolation.locks import lock_checker
from keep_protocol.compiling import Job, too_complex
from keep_protocol.errors import KeepfleetError
from keep_protocol.spec import Profile
from keep_protocol.workload import Workload

MAX_RESULT_BYTES = 1024 * 1024 * 1024
"""As much compiled code as the manager keeps of one module (RLIMIT_FSIZE)."""


def compile_module(module: int, result: int, job: Job) -> str | KeepfleetError:
    """Compiles the file `module` into the file `result`; the refusal, or a note on what can run. For a process that
    ends then: it is limited and locked permanently."""
    _limit(job)
    if os.pread(module, HEAD_BYTES, 0) == MAGIC + COMPONENT_VERSION:
        import app_loader.check.components  # noqa: F401  # the last moment: no file can be opened behind the lock
    try:
        lock_checker()
        if holds_program(module):
            return check_program(module, result, job.profile)
        is_component = check_head(os.pread(module, HEAD_BYTES, 0))
        settings = _settings(result, job, components=is_component)
        if is_component:
            return compile_component(settings, module, result, Workload())
        return compile_core(settings, module, result, None)
    except EngineError as error:
        return in_words(error, job.compiler)
    except MemoryError:
        return too_complex(f"takes more than {job.memory_bytes >> 20} MiB of memory")
    except OSError as error:
        return not_stored(error)
    except KeepfleetError as error:
        return error


def _limit(job: Job) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (job.seconds, job.seconds + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (job.memory_bytes, job.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_RESULT_BYTES, MAX_RESULT_BYTES))


def _settings(result: int, job: Job, *, components: bool) -> Settings:
    """As a keep will have them, where `result` is on the disk that the code will be mapped from. The size of the stack
    is each keep's own: compiled code fits every one."""
    images = job.profile is Profile.STRICT or not os.fstatvfs(result).f_flag & os.ST_NOEXEC
    return Settings(components=components, images=images, profile=job.profile, compiler=job.compiler)
