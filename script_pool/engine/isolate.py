"""One isolate: an instance of the booted guest, and the calls into it: what goes in, and what it returns or throws."""

from __future__ import annotations

import json
import struct
from typing import NoReturn

from script_pool.engine import images
from script_pool.engine.binding import TRAP_INTERRUPT, TRAP_STACK_OVERFLOW, TRAP_UNREACHABLE, Trap
from script_pool.engine.booted import Booted, put
from script_pool.engine.glue import ARGUMENTS, BEGIN_FAILED, END_FAILED, FINISH, GO, INPUT, INPUT_BYTES, OUT, SIZE
from script_pool.engine.instance import Guest
from script_pool.engine.interface import Fault, Limits, Reason
from script_pool.engine.texts import Places, thrown

MAX_REPORT_BYTES = 1 << 20
"""Of an exception."""
MAX_CALLS_BYTES = 8 * 1024 * 1024
"""Of the calls of host functions that a run makes before it waits."""
_REJECTED = 2


class Isolate(Guest):
    """One instance of `booted`; its values are known by handles."""

    __slots__ = ("_booted", "_scratch")

    def __init__(self, booted: Booted, memory_bytes: int, ticks: int) -> None:
        """Stopped `ticks` epochs from now. Raises EngineError."""
        super().__init__(booted.template, memory_bytes, ticks)
        self._booted, self._scratch = booted, booted.scratch

    def __enter__(self) -> Isolate:
        return self

    # --- its memory ------------------------------------------------------------------------------------------------

    def lay(self, image: bytes, begin: int = 0) -> None:
        """Lays an image over it. Raises Fault."""
        images.lay(self, image, begin)

    def lay_session(self, session: bytes) -> None:
        """Lays what a session's last run has left. Raises Fault."""
        if not session.startswith(self._booted.digest):
            raise Fault(Reason.CRASHED, "", "the session is of another version of the engine")
        images.lay(self, session, len(self._booted.digest))

    def changes(self) -> bytes:
        """Its memory, as what a prepared script and a parked run keep."""
        return images.changes(self, self._booted.image)

    def session(self) -> bytes:
        """Its memory, and which engine's it is."""
        return self._booted.digest + self.changes()

    def seed(self, chance: bytes) -> None:
        """Sets the state of Math.random."""
        self.write(self._booted.seed_at, chance)

    # --- values ----------------------------------------------------------------------------------------------------

    def _put(self, data: bytes) -> int:
        try:
            return put(self, data)
        except MemoryError:
            raise Fault(Reason.MEMORY_LIMIT, "", "there is no memory for the input") from None
        except ValueError as error:
            raise Fault(Reason.CRASHED, "", str(error)) from None

    def _put_short(self, data: bytes) -> int:
        """The same for what is read once: where it is short, in memory that is there for it."""
        if len(data) > INPUT_BYTES:
            return self._put(data)
        at = self._scratch + INPUT
        self.write(at, data)
        return at

    def string(self, text: bytes) -> int:
        """A string's handle."""
        return self.call("new_string", self._put(text), len(text))

    def _text(self, handle: int) -> bytes:
        """A report's bytes. Raises Fault(OUTPUT_TOO_LARGE)."""
        if self.call("get_string", handle):
            raise Fault(Reason.MEMORY_LIMIT, "", "there is no memory for the output")
        size = self.call("qjs_last_len")
        if size > MAX_REPORT_BYTES:
            raise Fault(
                Reason.OUTPUT_TOO_LARGE, "", f"the output has {size} bytes; at most {MAX_REPORT_BYTES} are allowed"
            )
        try:
            return self.read(self.call("qjs_last_ptr"), size)
        except ValueError as error:
            raise Fault(Reason.CRASHED, "", str(error)) from None

    def _result(self) -> int:
        return int.from_bytes(self.read(self._scratch + OUT, 4), "little")

    def _exception(self) -> bytes:
        """What its last call has thrown, as the prelude reports it."""
        if self.call("last_exception", self._scratch + OUT):
            raise Fault(Reason.CRASHED, "", "the engine has lost an exception")
        return self._text(self.invoke("report", self._result()))

    # --- calls -----------------------------------------------------------------------------------------------------

    def evaluate(self, how: str, source: bytes, places: Places, name: bytes = b"") -> int:
        """The value's handle. Raises Fault(SYNTAX_ERROR)."""
        at = self._put(source)
        named = (self._put(name), len(name)) if name else ()
        if self.call(how, at, len(source), *named, self._scratch + OUT):
            raise thrown(self._exception(), Reason.SYNTAX_ERROR, places)
        found = self._result()
        self.call("qjs_free", at, len(source))
        return found

    def invoke(self, name: str, *args: int) -> int:
        """One of the prelude's functions; returns a handle. Raises Fault for what it throws."""
        scratch, booted = self._scratch, self._booted
        if args:
            self.write(scratch + ARGUMENTS, struct.pack(f"<{len(args)}I", *args))
        if self.call("call_function", booted.functions[name], booted.undefined, scratch, len(args), scratch + OUT):
            if name == "report":
                raise Fault(Reason.CRASHED, "", "the engine cannot report an exception")
            raise thrown(self._exception(), Reason.EXCEPTION, Places())
        return self._result()

    def offer(self, functions: tuple[str, ...]) -> None:
        """Makes these host functions global ones."""
        self.invoke("offer", self.string(json.dumps(functions).encode()))

    def watch(self, promise: int, places: Places, keep: bool = False) -> None:
        """Has the prelude follow what was evaluated. Raises Fault(SYNTAX_ERROR) for what has failed already."""
        if self.call("promise_state", promise, self._scratch + OUT) or self._result() == _REJECTED:
            self.call("promise_result", promise, self._scratch + OUT)
            report = self.invoke("report", self._result())
            raise thrown(self._text(report), Reason.SYNTAX_ERROR, places)
        self.invoke("watch", promise, *((promise,) if keep else ()))

    # --- runs ------------------------------------------------------------------------------------------------------

    def go(self, text: bytes, console_bytes: int, zone: bytes) -> int:
        """Begins a run with this input; the status of the call that ended it."""
        characters = struct.unpack("<q", struct.pack("<d", float(console_bytes)))[0]
        if zone:
            self.write(self._scratch + ARGUMENTS + 8, self.string(zone).to_bytes(4, "little"))
        return self.call(GO, self._put_short(text), len(text), characters, 3 if zone else 2)

    def answer(self, answers: bytes) -> int:
        """Settles calls of host functions, and goes on; the status of the call that ended it."""
        at = self._put_short(answers)
        self.invoke("answer", self.call("new_string", at, len(answers)))
        return self.call(FINISH)

    def end(self, status: int, limits: Limits) -> tuple[bytes, tuple[str, ...], bytes]:
        """The kind of a run's end, its console, and its output or what it threw; `status`: of the call that ended it.
        Raises Fault."""
        if status in (BEGIN_FAILED, END_FAILED):
            raise thrown(self._exception(), Reason.EXCEPTION, Places())
        if status:
            raise Fault(Reason.MEMORY_LIMIT, "", "there is no memory for the output")
        size, at = struct.unpack("<II", self.read(self._scratch + SIZE, 8))
        # A console's line takes six bytes a character at most, where each of them is escaped.
        if size > max(limits.output_bytes + 6 * limits.console_bytes + 64, MAX_CALLS_BYTES):
            raise Fault(Reason.OUTPUT_TOO_LARGE, "", f"the output has {size} bytes; {limits.output_bytes} are allowed")
        try:
            whole = self.read(at, size)
        except ValueError as error:
            raise Fault(Reason.CRASHED, "", str(error)) from None
        kind, _, rest = whole.partition(b"\n")
        console, _, output = rest.partition(b"\n")
        if console == b"[]":
            return kind, (), output
        try:
            lines = json.loads(console)
        except ValueError:
            raise Fault(Reason.CRASHED, "", "the engine's console is not JSON") from None
        return kind, tuple(str(line) for line in lines), output

    def stopped(self, trap: Trap, limits: Limits) -> NoReturn:
        """Raises the Fault that a trap means."""
        if trap.code == TRAP_INTERRUPT:
            raise Fault(Reason.TIME_LIMIT, "", f"the script ran for more than {limits.wall_seconds:g} s") from trap
        if trap.code == TRAP_STACK_OVERFLOW:
            raise Fault(Reason.NESTED_TOO_DEEPLY, "", "the engine's stack is exhausted") from trap
        if trap.code == TRAP_UNREACHABLE and self.size > limits.memory_bytes * 3 // 4:
            raise Fault(Reason.MEMORY_LIMIT, "", f"more than {limits.memory_bytes} bytes are needed") from trap
        raise Fault(Reason.CRASHED, "", str(trap).splitlines()[-1].strip()) from trap
