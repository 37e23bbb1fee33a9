"""Runs of scripts in an engine in the test's own process, as the tests of each engine make them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from script_pool.engine.cpython import CPython
from script_pool.engine.interface import Engine, Fault, HostCallFailed, Limits, Result, World
from script_pool.engine.micropython import MicroPython
from script_pool.engine.quickjs import QuickJS

DEFAULTS: dict[type, tuple[str, float]] = {
    QuickJS: ("js", 20.0),
    MicroPython: ("micropython", 20.0),
    CPython: ("python", 20.0),
}
"""Of each engine: its language, and the seconds that a run has on a busy machine, where its test is not about them."""


def host(name: str, arguments: bytes) -> bytes:
    """`twice` doubles; anything else fails."""
    if name == "twice":
        return json.dumps(json.loads(arguments)[0] * 2).encode()
    raise HostCallFailed("not now", refused=name == "refused")


def ran(
    engine: Engine,
    source: str,
    sandbox: str = "{}",
    limits: Limits | None = None,
    functions: Sequence[str] = (),
    world: World | None = None,
    language: str | None = None,
) -> Result:
    """The result of a script that is prepared and run once. Raises Fault."""
    default, seconds = DEFAULTS[type(engine)]
    limits = limits or Limits(wall_seconds=seconds)
    script = engine.prepare("script", source, language or default, limits, tuple(functions))
    try:
        outcome = engine.run(script, sandbox.encode(), limits, host, world)
    finally:
        engine.settle()
    assert isinstance(outcome, Result)
    return outcome


def output(engine: Engine, source: str, sandbox: str = "{}", **more: Any) -> Any:
    """The same result's output, read."""
    return json.loads(ran(engine, source, sandbox, **more).output_text)


def fault(engine: Engine, source: str, sandbox: str = "{}", **more: Any) -> Fault:
    """What one that has no result raises."""
    with pytest.raises(Fault) as caught:
        ran(engine, source, sandbox, **more)
    return caught.value
