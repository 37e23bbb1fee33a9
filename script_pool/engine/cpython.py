"""Scripts in CPython: a component that componentize-py makes once, at installation, with the modules that scripts can
import loaded and initialised (python/guest.py), in a fresh instance for each run.

The input's members are the script's global variables; what it leaves of them, and what it adds, is the output: modules,
functions, classes and names that begin with an underscore are left out. What AddCode keeps is the compiled code.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from typing import NoReturn

from script_pool.engine.artifacts import Artifacts
from script_pool.engine.binding import (
    TRAP_INTERRUPT,
    TRAP_OUT_OF_BOUNDS,
    TRAP_STACK_OVERFLOW,
    TRAP_UNREACHABLE,
    EngineError,
    Trap,
)
from script_pool.engine.booted import CLOCK_STEP_NANOSECONDS
from script_pool.engine.components import NEEDED, Component, ComponentEngine, Exited, Opened
from script_pool.engine.interface import Fault, HostCall, HostCallFailed, Limits, Reason, Result, Script, World
from script_pool.engine.plain_runs import PlainRun
from script_pool.engine.stores import OFF, OPEN_SECONDS, Instances, ticks
from script_pool.engine.texts import check_input, check_output, encoded

COMPONENTIZE = "componentize-py 0.25.1"
LEAST_MEMORY_BYTES = 32 * 1024 * 1024
"""What CPython begins with is 21 MiB."""
MAKE_SECONDS = 900.0
"""Making takes some 20 s of processor time, on a host that is busy with much else."""
_KIND = "cpython"
_HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "python")
_NAMES = ("check", "run")
NOT_MADE = "CPython is not made yet: `script-pool --make-python` makes it, once, in about half a minute"
NOT_INSTALLED = "CPython is not there: pip install keepfleet[python], then `script-pool --make-python` makes it, once"


def sources() -> bytes:
    """What the component is made of: the guest's program and its world, what makes it, and how it is compiled."""
    parts = [COMPONENTIZE.encode(), *map(str.encode, (*NEEDED, *OFF))]
    for name in ("guest.py", "script.wit"):
        with open(os.path.join(_HERE, name), "rb") as file:
            parts.append(file.read())
    return b"\0".join(parts)


def can_make() -> bool:
    """Whether componentize-py is installed."""
    return find_spec("componentize_py") is not None


def make(artifacts: Artifacts) -> str:
    """Makes the component, compiles it and keeps it, where that has not been done; the path of the code.
    Raises ImportError where it cannot be made."""
    found = artifacts.mapped(_KIND, sources())
    if found is not None:
        return found
    if not can_make():
        raise ImportError(NOT_INSTALLED)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "python.wasm")
        program = "import sys, componentize_py; sys.argv[0] = 'componentize-py'; componentize_py.script()"
        wit = ("--wit-path", os.path.join(_HERE, "script.wit"), "--world", "script")
        made = subprocess.run(
            [sys.executable, "-c", program, "-q", *wit, "componentize", "--python-path", _HERE, "-o", path, "guest"],
            check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=MAKE_SECONDS, cwd=directory,
            env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        if made.returncode:
            said = made.stderr.decode("utf-8", "replace").strip()
            raise ImportError(f"cannot make CPython: {COMPONENTIZE} says: {said[-2000:]}")
        with open(path, "rb") as file:
            component = file.read()
    code = Component.compile(ComponentEngine(), component)
    return artifacts.keep_mapped(_KIND, sources(), code)


class CPython:
    """The engine for `python`."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self._component: Component | None = None
        self._instances = Instances(self._open)
        self._run: _Run | None = None

    def __repr__(self) -> str:
        return f"CPython({'warm' if self._component else 'cold'})"

    def warm(self) -> None:
        """Loads what was made. Raises ImportError where nothing was."""
        path = self._artifacts.mapped(_KIND, sources())
        if path is None:
            raise ImportError(NOT_MADE if can_make() else NOT_INSTALLED)
        self._engine = ComponentEngine()
        self._component = Component(self._engine, path, _NAMES, CLOCK_STEP_NANOSECONDS)
        self._component.host = self._asked
        self._component.occupy()

    def begin(self) -> None:
        """Starts the clock that stops scripts."""
        self._engine.start_clock()

    def settle(self) -> None:
        """Closes the instance that the last answer came from, and opens the next."""
        self._instances.settle()

    def _open(self, memory_bytes: int) -> Opened:
        assert self._component is not None  # noqa: S101 - warm has made it
        return Opened(self._component, memory_bytes, ticks(OPEN_SECONDS))

    def prepare(self, name: str, source: str, language: str, limits: Limits, functions: tuple[str, ...] = ()) -> Script:
        """Compiles. Raises Fault."""
        text = encoded(source)
        if "\0" in source:
            raise Fault(Reason.SYNTAX_ERROR, "SyntaxError", "the source has a NUL")
        script = Script(name, language, b"", hashlib.sha256(text).hexdigest(), (), functions)
        made = self._go(_Run(script, limits, None, None), "check", text)
        if made[:1] != b"c":
            raise _thrown(made[:1], made[1:], ())
        return Script(name, language, made[1:], script.digest, (), functions)

    def run(
        self, script: Script, input_text: bytes, limits: Limits, host: HostCall | None, world: World | None = None
    ) -> Result:
        """Runs a script once. Raises Fault."""
        check_input(input_text, limits)
        if world is not None and world.keep:
            raise Fault(Reason.EXCEPTION, "Error", "scripts in python have no sessions")
        run = _Run(script, limits, host, world)
        functions = json.dumps(script.functions).encode() if script.functions else b""
        whole = self._go(run, "run", script.image, input_text, functions, limits.console_bytes)
        kind, _, rest = whole.partition(b"\n")
        lines, _, text = rest.partition(b"\n")
        try:
            console = () if lines == b"[]" else tuple(str(line) for line in json.loads(lines))
            if kind == b"o":
                check_output(text, limits)
        except ValueError:
            raise Fault(Reason.CRASHED, "", "the interpreter's console is not JSON") from None
        except Fault as fault:
            fault.console = console
            raise
        if kind != b"o":
            raise _thrown(kind, text, console)
        return Result(text, console, run.seconds())

    def resume(self, script: Script, parked: bytes, answers: bytes, limits: Limits, world: World) -> Result:
        """It parks nothing."""
        raise Fault(Reason.CRASHED, "", "a run in python cannot have been parked")

    def _go(self, run: _Run, name: str, *args: bytes | int) -> bytes:
        """Calls into a fresh instance. Raises Fault."""
        assert self._component is not None  # noqa: S101 - warm has made it
        limits = run.limits
        opened = self._instances.take(max(limits.memory_bytes, LEAST_MEMORY_BYTES))
        self._run = run
        run.opened = opened
        self._component.clock = run.now
        opened.extend(ticks(limits.wall_seconds))
        try:
            return opened.call(name, *args)
        except Exited as error:
            raise Fault(Reason.EXCEPTION, "SystemExit", str(error)) from None
        except Trap as trap:
            _stopped(trap, limits)
        except UnicodeDecodeError:
            raise Fault(Reason.CRASHED, "", "the script's image is damaged") from None
        except EngineError as error:
            raise Fault(Reason.CRASHED, "", str(error).splitlines()[-1].strip()) from None
        finally:
            self._run = None
            self._instances.used(opened)

    def _asked(self, operation: str, text: str) -> str:
        run = self._run
        if run is None:
            raise ValueError("nothing runs")
        if operation == "sleep":
            return run.sleep(text)
        return run.call(text)


class _Run(PlainRun):
    """A run in `opened`."""

    opened: Opened | None = None

    def sleep(self, text: str) -> str:
        """Sleeps until its limit at most, which ends it then."""
        wanted, left = max(0.0, float(text)), self.left()
        time.sleep(min(wanted, left))
        if wanted >= left and self.opened is not None:
            self.opened.extend(0)
        return ""

    def call(self, text: str) -> str:
        """Calls a host function: [done, value]."""
        try:
            value = self.call_host(text)
        except HostCallFailed as failed:
            return json.dumps([False, {"message": failed.message, "refused": failed.refused}])
        if self.opened is not None:
            self.opened.extend(ticks(self.left()))
        return f"[true,{value.decode()}]"


def _thrown(kind: bytes, text: bytes, console: tuple[str, ...]) -> Fault:
    """The Fault of what the guest reports."""
    try:
        name, message, stack = json.loads(text)
        fault = Fault(Reason.EXCEPTION, str(name), str(message), tuple(str(line) for line in stack))
    except (ValueError, TypeError):
        return Fault(Reason.CRASHED, "", "the interpreter's report of an exception is not JSON")
    if kind == b"n":
        fault.reason = Reason.NESTED_TOO_DEEPLY if name == "RecursionError" else Reason.NOT_SERIALISABLE
    elif kind == b"s" and name != "MemoryError":
        fault.reason = Reason.NESTED_TOO_DEEPLY if name == "RecursionError" else Reason.SYNTAX_ERROR
    elif name == "HostCallRefused":
        fault.reason = Reason.HOST_CALL_REFUSED
    if name == "MemoryError":
        nested = message.startswith("Parser stack overflowed")
        fault.reason = Reason.NESTED_TOO_DEEPLY if nested else Reason.MEMORY_LIMIT
    fault.console = console
    return fault


def _stopped(trap: Trap, limits: Limits) -> NoReturn:
    """Raises the Fault that a trap means."""
    if trap.code == TRAP_INTERRUPT:
        raise Fault(Reason.TIME_LIMIT, "", f"the script ran for more than {limits.wall_seconds:g} s") from None
    if trap.code in (TRAP_STACK_OVERFLOW, TRAP_OUT_OF_BOUNDS):
        raise Fault(Reason.NESTED_TOO_DEEPLY, "", "the interpreter's stack is exhausted") from None
    if trap.code == TRAP_UNREACHABLE:
        raise Fault(Reason.CRASHED, "", "the interpreter has aborted") from None
    raise Fault(Reason.CRASHED, "", str(trap).splitlines()[-1].strip()) from None
