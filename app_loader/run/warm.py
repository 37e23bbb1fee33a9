"""The engine, made ready before there is a guest: loaded, built, and used once.

The pages that the first compilation, the first call and the first trap touch, and the engine itself, are then shared by
the forks that check, and by the run.
"""

from __future__ import annotations

import keep_isolation.locks  # noqa: F401  # what a check and a run import
from app_loader.check.checking import STORE_DIRECTORIES
from app_loader.engine.foreign import GuestExit
from app_loader.engine.settings import make_engine, settings_for
from app_loader.engine.store import Linker, Store, Wasi
from keep_protocol.limits import Limits
from keep_protocol.workload import Workload


def warm_up(limits: Limits, workload: Workload) -> None:
    """Compiles and calls what stands for `proc_exit`, with the engine that a core module of this workload will have.

    Raises ImportError without the engine's library.
    """
    store = Store(make_engine(settings_for(STORE_DIRECTORIES[0], limits, workload)))
    store.take(Wasi())
    try:
        store.call(Linker(store.engine).replace_exit(store), (("i32", 0),))
    except GuestExit:
        return
