"""The engine, made ready before there is a guest: imported, built, and used once.

The pages that the first compilation and the first call touch, and the engine itself, are then shared by the forks that
check, and by the run.
"""

from __future__ import annotations

import app_loader.check.compiler
import app_loader.run.context  # noqa: F401  # what a run imports
import keep_isolation.locks  # noqa: F401
from app_loader.engine.compiled import Module
from app_loader.engine.settings import make_engine
from app_loader.engine.store import Linker, Store
from app_loader.run.guest import exit_module
from keep_protocol.limits import Limits

_START = "_start"
_SMALLEST = bytes.fromhex("0061736d01000000 0104016000 00 03020100 070a01065f737461727400 00 0a040102000b")
"""A command that does nothing."""


def warm_up(limits: Limits) -> None:
    """Compiles and runs the smallest command. Raises EngineError."""
    engine = make_engine(limits.stack_bytes)
    exit_module(engine)
    store = Store(engine)
    instance = Linker(engine).instantiate(store, Module.compile(engine, _SMALLEST))
    store.call(store.export(instance, _START))
