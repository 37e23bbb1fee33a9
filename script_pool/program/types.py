"""TypeScript without its types, for who sends a script to a keep: on that host, in an instance of its own."""

from __future__ import annotations

import os

from script_pool.__main__ import cache_directory
from script_pool.engine.artifacts import Artifacts
from script_pool.engine.booted import Booted
from script_pool.engine.stores import WasmEngine, ticks
from script_pool.engine.typescript import TypeScript

SECONDS = 10.0
"""5 MiB take two."""


def strip_types(source: bytes) -> bytes:
    """The JavaScript of `source`. The transformer is compiled once, and kept where a script pool keeps it. Raises
    Fault."""
    engine = WasmEngine()
    transformer = TypeScript(engine, Booted(engine).imports())
    transformer.warm(Artifacts(cache_directory(os.environ)))
    engine.start_clock()
    return transformer.strip(source, ticks(SECONDS)).text
