"""TypeScript to JavaScript by taking its types away: OXC in WebAssembly, out of the wheel `quickjs-rs`.

Nothing is checked: a type that is wrong is taken away like one that is right. A fresh instance for each source, since
what it is given is a stranger's.
"""

from __future__ import annotations

from script_pool.engine import guest as wheel
from script_pool.engine.artifacts import Artifacts
from script_pool.engine.binding import TRAP_INTERRUPT, Trap
from script_pool.engine.instance import MAX_MEMORY_BYTES, Guest, HostFunction, Template, WasmEngine
from script_pool.engine.interface import Fault, Reason

TRANSFORM_SHA256 = "c4710d5258585122a70f0b3ee3bc19d085742e6f94f48aa0b8057630ebaca745"
"""Of quickjs-rs 0.2.6."""
NAME = b"script.ts"
"""What messages call the source."""
_CALLED = (
    "qjst_alloc", "qjst_transform", "qjst_result_len", "qjst_result_ptr", "qjst_error_len", "qjst_error_ptr",
)  # fmt: skip
_SOURCE_TS, _STRIP = 1, 1 << 8
_OK, _UNCHANGED, _BAD_INPUT, _PARSE_ERROR = 0, 1, 2, 3
MAX_MESSAGE_BYTES = 16 * 1024
"""Of what is wrong with a source, with the lines it quotes."""


class TypeScript:
    """The transformer. `warm` before any fork."""

    def __init__(self, engine: WasmEngine, imports: dict[tuple[str, str], tuple[str, HostFunction]]) -> None:
        """imports: WASI's, of which it needs a few."""
        self._engine, self._imports = engine, imports
        self._template: Template | None = None

    def __repr__(self) -> str:
        return f"TypeScript({'warm' if self._template else 'cold'})"

    def warm(self, artifacts: Artifacts) -> None:
        """Compiles it, or loads what was. Raises ImportError where the wheel is not there."""
        code = wheel.read("_transform.wasm", TRANSFORM_SHA256)
        kept = artifacts.load("typescript", code)
        if kept is None:
            made = Template(self._engine, code, self._imports, _CALLED)
            kept = {}, made.serialize()
            made.close()
            artifacts.save("typescript", code, *kept)
        self._template = Template(self._engine, kept[1], self._imports, _CALLED, compiled=True)
        Guest(
            self._template, MAX_MEMORY_BYTES, 0
        ).close()  # its memory's first contents are a memfd, which a lock refuses

    def strip(self, source: bytes, ticks: int) -> bytes:
        """The JavaScript of `source`, within `ticks` epochs. Raises Fault."""
        assert self._template is not None  # noqa: S101 - warm has made it
        with Guest(self._template, MAX_MEMORY_BYTES, ticks) as guest:
            try:
                return self._strip(guest, source)
            except Trap as trap:
                if trap.code == TRAP_INTERRUPT:
                    raise Fault(Reason.TIME_LIMIT, "", "its types were not taken away in time") from trap
                raise Fault(Reason.NESTED_TOO_DEEPLY, "", "the source is nested too deeply") from trap
            except ValueError as error:  # an offset outside of its memory
                raise Fault(Reason.CRASHED, "", str(error)) from None

    def _strip(self, guest: Guest, source: bytes) -> bytes:
        name, text = guest.call("qjst_alloc", len(NAME)), guest.call("qjst_alloc", len(source))
        if not name or (source and not text):
            raise Fault(Reason.MEMORY_LIMIT, "", "there is no memory to take its types away")
        guest.write(name, NAME)
        guest.write(text, source)
        status = guest.call("qjst_transform", name, len(NAME), text, len(source), _SOURCE_TS | _STRIP)
        if status == _UNCHANGED:
            return source
        what = "result" if status == _OK else "error"
        size = guest.call(f"qjst_{what}_len")
        found = guest.read(guest.call(f"qjst_{what}_ptr"), size if status == _OK else min(size, MAX_MESSAGE_BYTES))
        if status == _OK:
            return found
        message = found.decode("utf-8", "replace").strip() or f"status {status}"
        if status in (_BAD_INPUT, _PARSE_ERROR):
            raise Fault(Reason.SYNTAX_ERROR, "SyntaxError", message)
        raise Fault(Reason.CRASHED, "", f"its types cannot be taken away: {message}")
