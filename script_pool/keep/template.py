"""The keep's runner, which is the pool's template process: it loads the engine and forks children that lock themselves.

A fork of the keep-loader, it has never held a key or read a byte of a stranger's. The endpoint asks it for children,
and to end them: that one may send no signal.
"""

from __future__ import annotations

import gc
import json
import os
import socket

from app_loader.settings import Reporter, claim, read_workload
from keep_protocol.constants import CHECKS
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.pools import PoolOptions, options_from_text
from script_pool.engine.interface import Limits
from script_pool.engine.languages import Languages
from script_pool.template import Template

INSTALLED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "engine", "installed")
"""Where the engines are that were compiled with the installation."""


def run() -> int:
    """The process: load, say so, fork until the endpoint has gone."""
    reporter = Reporter()
    try:
        passed = claim(os.environ)
        arguments = read_workload(passed.number("workload")).arguments if "workload" in passed else ()
        options = options_from_text(arguments[0]) if arguments else PoolOptions()
        control = socket.socket(fileno=passed.number(CHECKS))
        engine = Languages(INSTALLED)
        engine.warm()
        if len(os.listdir("/proc/self/task")) != 1:
            raise KeepfleetError(ErrorKind.INTERNAL, "cannot fork children: loading the engine has started a thread")
    except KeepfleetError as error:
        reporter.fail(error, "cannot load the engine")
        return 1
    except Exception as error:
        reporter.fail(error, "cannot load the engine")
        raise
    gc.collect()
    gc.disable()  # a collection in this process would only unshare the memory of its children
    control.send(json.dumps({"warm": True, "options": options.to_wire()}).encode("ascii"))
    Template(engine, limits_of(options), control).serve()
    return 0


def limits_of(options: PoolOptions) -> Limits:
    """What a run may use."""
    return Limits(options.time_ms / 1000, options.memory_bytes, options.input_bytes, options.output_bytes)
