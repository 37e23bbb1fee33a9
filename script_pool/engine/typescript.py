"""TypeScript to JavaScript by taking its types away: OXC in WebAssembly, out of the wheel `quickjs-rs`.

It lays out again what it leaves, so that what was run is compared with its source, word by word, to know where each
part of it stood.

Nothing is checked: a type that is wrong is taken away like one that is right. A fresh instance for each source, since
what it is given is a stranger's.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from script_pool.engine import guest as wheel
from script_pool.engine.artifacts import Artifacts
from script_pool.engine.binding import TRAP_INTERRUPT, Trap
from script_pool.engine.instance import Guest, HostFunction, Template
from script_pool.engine.interface import Fault, Reason
from script_pool.engine.stores import MAX_MEMORY_BYTES, WasmEngine
from script_pool.engine.texts import Places

TRANSFORM_SHA256 = "c4710d5258585122a70f0b3ee3bc19d085742e6f94f48aa0b8057630ebaca745"
"""Of quickjs-rs 0.2.6."""
NAME = b"script.ts"
"""What messages call the source."""
_CALLED = (
    "qjst_alloc", "qjst_transform", "qjst_result_len", "qjst_result_ptr", "qjst_error_len", "qjst_error_ptr",
)  # fmt: skip
_SOURCE_TS, _STRIP, _CONST_TO_VAR = 1, 1 << 8, 1 << 9
_OK, _UNCHANGED, _BAD_INPUT, _PARSE_ERROR = 0, 1, 2, 3
MAX_MESSAGE_BYTES = 16 * 1024
"""Of what is wrong with a source, with the lines it quotes."""


MAX_WORDS = 20_000
"""Of a source that is compared: 0.1 s. The stacks of a longer one have the lines of what was run."""
_WORD = re.compile(r"[A-Za-z_$][\w$]*|\d[\w.]*|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Changed:
    """JavaScript that was made of a source, and where its parts stood there: see texts.Places."""

    text: bytes
    map: tuple[tuple[int, int, int, int], ...] = ()

    def over(self, before: Sequence[tuple[int, int, int, int]]) -> tuple[tuple[int, int, int, int], ...]:
        """The map to the source of this one's source."""
        if not before:
            return self.map
        first = Places(0, before)
        return tuple((row, column, *first.own(*source)) for row, column, *source in self.map)


def compare(source: bytes, made: bytes) -> Changed:
    """`made` with the places that its words had in `source`."""
    old, new = source.decode("utf-8", "replace"), made.decode("utf-8", "replace")
    blank = _COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), old)
    olds, news = list(_WORD.finditer(blank)), list(_WORD.finditer(new))
    if max(len(olds), len(news)) > MAX_WORDS:
        return Changed(made)
    made_words, source_words = ([word[0].replace("'", '"') for word in words] for words in (news, olds))
    starts = [[0, *(found.end() for found in re.finditer("\n", text))] for text in (new, old)]
    parts = list[tuple[int, int, int, int]]()
    for at, begin, size in SequenceMatcher(None, made_words, source_words).get_matching_blocks():
        for step in range(size):
            row, column = _place(starts[0], news[at + step].start())
            source_row, source_column = _place(starts[1], olds[begin + step].start())
            last = parts[-1] if parts else (0, 0, 0, 0)
            if (row, row - last[0], column - last[1]) != (last[0], source_row - last[2], source_column - last[3]):
                parts.append((row, column, source_row, source_column))
    return Changed(made, tuple(parts))


def _place(starts: Sequence[int], at: int) -> tuple[int, int]:
    row = bisect_right(starts, at)
    return row, at - starts[row - 1] + 1


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
        self._template.occupy(1)

    def strip(self, source: bytes, ticks: int) -> Changed:
        """The JavaScript of `source`, within `ticks` epochs. Raises Fault."""
        return compare(source, self._transform(source, ticks, _SOURCE_TS | _STRIP))

    def unfix(self, source: bytes, ticks: int) -> Changed | None:
        """A script with each `const` at its top a `var`; None where it has none, or is not to be read."""
        if b"const" not in source:
            return None
        try:
            return compare(source, self._transform(source, ticks, _SOURCE_TS | _STRIP | _CONST_TO_VAR))
        except Fault as fault:
            if fault.reason is Reason.SYNTAX_ERROR:  # JavaScript that is no TypeScript
                return None
            raise

    def _transform(self, source: bytes, ticks: int, flags: int) -> bytes:
        assert self._template is not None  # noqa: S101 - warm has made it
        with Guest(self._template, MAX_MEMORY_BYTES, ticks) as guest:
            try:
                return self._made(guest, source, flags)
            except Trap as trap:
                if trap.code == TRAP_INTERRUPT:
                    raise Fault(Reason.TIME_LIMIT, "", "its types were not taken away in time") from trap
                raise Fault(Reason.NESTED_TOO_DEEPLY, "", "the source is nested too deeply") from trap
            except ValueError as error:  # an offset outside of its memory
                raise Fault(Reason.CRASHED, "", str(error)) from None

    def _made(self, guest: Guest, source: bytes, flags: int) -> bytes:
        name, text = guest.call("qjst_alloc", len(NAME)), guest.call("qjst_alloc", len(source))
        if not name or (source and not text):
            raise Fault(Reason.MEMORY_LIMIT, "", "there is no memory to take its types away")
        guest.write(name, NAME)
        guest.write(text, source)
        status = guest.call("qjst_transform", name, len(NAME), text, len(source), flags)
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
