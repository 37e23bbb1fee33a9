"""What crosses into and out of a guest, as text: bounds of an input and an output, directives, and stacks whose lines
are the script's own. Pure.

Import rule: the standard library alone.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

from script_pool.engine.interface import Fault, Limits, Reason

MAX_SOURCE_BYTES = 5 * 1024 * 1024
"""As the input."""
MAX_STACK_LINES = 32
"""Of an exception's stack, in the reply."""
LIBRARY = "keepfleet"
"""What the engine calls its own lines in a stack; they are left out."""

_PROGRAM = r"(?:eval_script|<input>|<evalScript>|<main>)"
"""What the guest calls a script in its stacks."""
_BEFORE_DIRECTIVE = re.compile(rb"\s+|//[^\n]*|/\*.*?\*/|;", re.DOTALL)
_DIRECTIVE = re.compile(rb"(\"[^\"\\\n]*\"|'[^'\\\n]*')[ \t\r]*(?:[;\n}]|$)")
_MODULE = re.compile(r"(?:^|[ (])([^\s()]+):(\d+):(\d+)\)?$")
_CONTROL = bytes((*range(32), 127))
_NOT_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[^][{}"]++', re.DOTALL)


def is_strict(source: bytes) -> bool:
    """Whether a script begins with the directive "use strict"; comments and other directives may precede it."""
    at = 0
    while True:
        found = _BEFORE_DIRECTIVE.match(source, at) or _DIRECTIVE.match(source, at)
        if found is None:
            return False
        if found.lastindex and found[1][1:-1] == b"use strict":
            return True
        at = found.end()


def depth_of(text: bytes) -> int:
    """How deep JSON nests, or more where its strings are not closed."""
    brackets = _NOT_BRACKETS.sub(b"", text)
    steps = [0] * 256
    for byte in b"[{":
        steps[byte] = 1
    for byte in b"]}":
        steps[byte] = -1
    return max(accumulate(map(steps.__getitem__, brackets)), default=0)


def nests_deeper(text: bytes, limit: int) -> bool:
    """Whether JSON nests deeper than `limit`."""
    return text.count(b"[") + text.count(b"{") > limit and depth_of(text) > limit


def encoded(source: str) -> bytes:
    """A source's bytes. Raises Fault for one that is too long, or is no text."""
    text = source.encode("utf-8", "surrogatepass")
    if len(text) > MAX_SOURCE_BYTES:
        raise Fault(Reason.SYNTAX_ERROR, "SyntaxError", f"the source has more than {MAX_SOURCE_BYTES} bytes")
    try:
        text.decode()
    except UnicodeDecodeError:
        raise Fault(Reason.SYNTAX_ERROR, "SyntaxError", "the source has a lone surrogate") from None
    return text


def check_input(text: bytes, limits: Limits) -> None:
    """Raises Fault for an input sandbox that is not to be parsed."""
    if len(text) > limits.input_bytes:
        raise ValueError(f"the input has {len(text)} bytes; at most {limits.input_bytes} are allowed")
    if nests_deeper(text, limits.depth):
        raise Fault(Reason.NESTED_TOO_DEEPLY, "", f"the input nests deeper than {limits.depth}")


def check_output(text: bytes, limits: Limits) -> None:
    """Raises Fault for an output that is not to be sent: too large or deep, or not what an intact engine writes."""
    if len(text) > limits.output_bytes:
        raise Fault(Reason.OUTPUT_TOO_LARGE, "", f"the output has {len(text)} bytes; at most {limits.output_bytes}")
    if len(text.translate(None, _CONTROL)) != len(text):  # ten times as fast as an expression
        raise Fault(Reason.CRASHED, "", "the engine's output has control bytes")
    try:
        text.decode()
    except UnicodeDecodeError:
        raise Fault(Reason.CRASHED, "", "the engine's output is not UTF-8") from None
    if nests_deeper(text, limits.depth):
        raise Fault(Reason.NESTED_TOO_DEEPLY, "", f"the output nests deeper than {limits.depth}")


class Places:
    """From the lines of what was run to those of its source: `prefix` characters were put before its first line, and,
    where types were taken away, `map` says at which offsets of line and column its parts stood."""

    def __init__(
        self,
        prefix: int = 0,
        map: Sequence[tuple[int, int, int, int]] = (),
        modules: Mapping[str, Places] | None = None,
    ) -> None:
        """map: row and column of what was run, row and column of the source; ascending, all from 1. modules: the
        places of those that the script imports."""
        self._prefix, self.map, self._modules = prefix, map, modules or {}

    def __repr__(self) -> str:
        return f"Places({self._prefix}, {len(self.map)} parts)"

    def own(self, row: int, column: int) -> tuple[int, int]:
        """Where it stands in the source."""
        if row == 1:
            column = max(column - self._prefix, 1)
        at = bisect_right(self.map, (row, column, 1 << 30, 0)) - 1
        if at < 0:
            return row, column
        part_row, part_column, source_row, source_column = self.map[at]
        if part_row == row:
            return source_row, source_column + column - part_column
        return source_row + row - part_row, column

    def line(self, line: str) -> str:
        """A stack's line as of the source."""

        def of_the_script(found: re.Match[str]) -> str:
            row, column = self.own(int(found[1]), int(found[2]))
            return f"script:{row}:{column}"

        module = _MODULE.search(line)
        if module is not None and (places := self._modules.get(module[1])) is not None:
            row, column = places.own(int(module[2]), int(module[3]))
            return f"{line[: module.start(2)]}{row}:{column}{line[module.end(3) :]}"
        return re.sub(rf"(?:{_PROGRAM}|script):(\d+):(\d+)", of_the_script, line)


def thrown(report: bytes, reason: Reason, places: Places) -> Fault:
    """The Fault of what the prelude reports: name, message and stack as JSON."""
    try:
        name, message, stack = (str(part) for part in json.loads(report))
    except ValueError:
        return Fault(Reason.CRASHED, "", "the engine's report of an exception is not JSON")
    if name == "InternalError" and message == "out of memory":
        reason = Reason.MEMORY_LIMIT
    elif name == "HostCallRefused":
        reason = Reason.HOST_CALL_REFUSED
    lines = [places.line(line.strip()) for line in _own_lines(stack)[:MAX_STACK_LINES]]
    return Fault(reason, name, message, tuple(line for line in lines if line))


def _own_lines(stack: str) -> list[str]:
    """A stack without the engine's lines and what is below them: that is not the script's."""
    lines = list[str]()
    for line in stack.splitlines():
        if "at eval (native)" in line or "at parse (native)" in line:
            break
        if f"{LIBRARY}:" not in line:
            lines.append(line)
    return lines
