"""Functions' bodies, decoded where a rule or a bound asks: nesting, locals, and how many instructions an export runs.

Work is bounded by a `Budget`, which a report names; one that is used up makes the answer "not known", never a guess.
Runs of instructions without control flow are matched and counted by the regular expressions' C code.
"""

from __future__ import annotations

import re
from array import array
from typing import NamedTuple

from module_store.verify.binary import S32, S33, S64, U32, U64, VALUE_TYPE, Reader, Unreadable
from module_store.verify.loops import turns, turns_by_head
from module_store.verify.module import CoreModule

MAX_LOCALS = 50_000
"""The engine's own limit of one function's (wasmparser's `limits.rs`)."""
PLAIN, IF, ELSE, BLOCK, END, CALL, LOOP = range(7)
"""What a function does, as pairs of one of these and a number: instructions, the function that is called, or how often
the loop runs."""
LOOPS, INDIRECT = "there is a loop on its way", "there is a call through a table on its way"
_MEMORY = U32 + U64
_PLAIN = re.compile(
    rb"(?>[\x00\x01\x0a\x0f\x1a\x1b\x45-\xc4\xd1]|[\x08\x20-\x26\x3f\xd2]%(u32)b|\x41%(s32)b|\x42%(s64)b|\x43.{4}|\x44.{8}"
    rb"|[\x28-\x3e]%(memory)b|\x1c\x01%(type)b|\xd0%(s33)b)"
    % {b"u32": U32, b"s32": S32, b"s64": S64, b"memory": _MEMORY, b"type": VALUE_TYPE, b"s33": S33},
    re.DOTALL,
)
_PLAIN_RUN = re.compile(b"(?:" + _PLAIN.pattern + b")++", re.DOTALL)
_NOTHING, _INDEX, _INDICES = b"", U32, U32 + U32
_AFTER_FC = {
    **dict.fromkeys(range(8), _NOTHING),
    **dict.fromkeys((8, 10, 12, 14), _INDICES),
    **dict.fromkeys((9, 11, 13, 15, 16, 17), _INDEX),
}
"""What follows 0xfc and each number: saturating conversions, bulk memory, tables."""
_AFTER_FD = {
    **dict.fromkeys(range(256), _NOTHING),
    **dict.fromkeys((*range(12), 92, 93), _MEMORY),
    **dict.fromkeys((12, 13), b".{16}"),
    **dict.fromkeys(range(21, 35), b"."),
    **dict.fromkeys(range(84, 92), _MEMORY + b"."),
}
"""What follows 0xfd and each number: vectors."""
_AFTER = {
    prefix: {number: re.compile(after, re.DOTALL) for number, after in table.items()}
    for prefix, table in ((0xFC, _AFTER_FC), (0xFD, _AFTER_FD))
}
_TABLE_GROW = (0xFC, 15)


class Budget(NamedTuple):
    """How much code is decoded at most. A million instructions take a second of processor time, and under 64 MB."""

    code_bytes: int = 4 << 20
    functions: int = 50_000
    instructions: int = 1_000_000


class OverBudget(Exception):
    """There is more code than may be decoded; the message says which part of the budget was used up."""


class Body(NamedTuple):
    """One function. unbounded: why the number of its instructions has no bound, or ""; steps: pairs, see PLAIN."""

    locals: int
    nesting: int
    instructions: int
    unbounded: str
    grows_memory: bool
    steps: array[int]


class _Loop(NamedTuple):
    """A loop that was begun. at: where its bytes begin; step: the place of its number of turns; before: what runs just
    before it; outer: whether no other loop is around it; head: what it begins with, while the arm of the `if` that
    follows is open; end: where its only branch back is, 0 before that was found."""

    at: int
    step: int
    before: list[bytes]
    outer: bool
    head: list[bytes] | None = None
    end: int = 0


class _Decoder:
    """Reads one body."""

    def __init__(self, reader: Reader, budget: int, parameters: int) -> None:
        """parameters: how many of its first locals are not zero when it is called."""
        self.reader, self.budget, self.parameters = reader, budget, parameters
        self.frames: list[int] = [BLOCK]
        self.loops: dict[int, _Loop] = {}  # by the place of its frame
        self.run: tuple[int, list[bytes]] = 0, []  # the last run of plain instructions, and where it ended
        self.nesting = self.instructions = 0
        self.unbounded = ""
        self.grows_memory = False
        self.steps = array("Q")

    def decode(self) -> Body:
        locals_ = read_locals(self.reader)
        self.begin = self.reader.at
        while self.frames:
            self.plain()
            self.control()
        self.reader.finish("a body")
        return Body(locals_, self.nesting, self.instructions, self.unbounded, self.grows_memory, self.steps)

    def step(self, kind: int, number: int = 0) -> None:
        if not self.unbounded:
            self.steps.extend((kind, number))

    def count(self, number: int) -> None:
        self.instructions += number
        if self.instructions > self.budget:
            raise OverBudget
        self.step(PLAIN, number)

    def plain(self) -> None:
        reader = self.reader
        run = _PLAIN_RUN.match(reader.data, reader.at, reader.end)
        if run is not None:
            instructions = _PLAIN.findall(reader.data, reader.at, run.end())
            self.count(len(instructions))
            reader.at = run.end()
            self.run = reader.at, instructions

    def control(self) -> None:
        reader = self.reader
        at = reader.at
        before = self.run[1] if self.run[0] == at else []
        opcode = reader.byte()
        if opcode in (0x02, 0x03, 0x04):
            reader.s33()
            self.count(1)
            if opcode == 0x03:
                self.loops[len(self.frames)] = _Loop(reader.at, len(self.steps) + 1, before, not self.loops)
            elif opcode == 0x04 and (loop := self.loops.get(len(self.frames) - 1)) is not None:
                begins = self.run[0] == at and sum(map(len, before)) == at - loop.at
                self.loops[len(self.frames) - 1] = loop._replace(head=before if begins else None)
            self.open({0x02: BLOCK, 0x03: LOOP, 0x04: IF}[opcode])
        elif opcode == 0x1F:
            reader.s33()
            self.count(1)
            self.catches()
            self.open(BLOCK)
        elif opcode == 0x05:
            if self.frames[-1] != IF:
                raise reader.fault("an else belongs to no if")
            self.frames[-1] = ELSE
            self.leave_arm()
            self.step(ELSE)
        elif opcode == 0x0B:
            self.frames.pop()
            self.loops.pop(len(self.frames), None)
            self.leave_arm()
            self.step(END)
        elif opcode in (0x0C, 0x0D):
            self.count(1)
            self.branch(reader.u32(), at, before, opcode == 0x0D)
        elif opcode == 0x0E:
            self.count(1)
            for _ in range(reader.count("targets", reader.left) + 1):
                self.branch(reader.u32())
        else:
            self.other(opcode)

    def other(self, opcode: int) -> None:
        reader = self.reader
        self.count(1)
        if opcode in (0x10, 0x12):
            self.step(CALL, reader.u32())
        elif opcode in (0x11, 0x13):
            reader.u32()
            reader.u32()
            self.unbounded = self.unbounded or INDIRECT
        elif opcode == 0x40:
            reader.u32()
            self.grows_memory = True
        elif opcode == 0x1C:
            for _ in range(reader.count("types", reader.left)):
                reader.s33()
        elif opcode in _AFTER:
            number = reader.u32()
            if number not in _AFTER[opcode]:
                raise reader.fault(f"there is no instruction {opcode:#x} {number} that an engine here takes")
            reader.match(_AFTER[opcode][number], "an instruction")
        else:
            raise reader.fault(f"there is no instruction {opcode:#x} that an engine here takes")

    def open(self, kind: int) -> None:
        self.frames.append(kind)
        self.nesting = max(self.nesting, len(self.frames) - 1)
        self.step(kind, 1)

    def catches(self) -> None:
        """Where exceptions out of a try_table go: to labels around it, of which its own is none."""
        for _ in range(self.reader.count("clauses", self.reader.left, 2)):
            clause = self.reader.byte()
            if clause > 3:
                raise self.reader.fault("a clause that catches is of an unknown kind")
            if clause < 2:  # one tag's; the others catch all
                self.reader.u32()
            self.branch(self.reader.u32())

    def leave_arm(self) -> None:
        """An arm or a block ends, and what comes behind it is in no loop's first arm."""
        place = len(self.frames) - (2 if self.frames and self.frames[-1] == ELSE else 1)
        if place in self.loops:
            self.loops[place] = self.loops[place]._replace(head=None)

    def branch(self, label: int, at: int = 0, tail: list[bytes] | None = None, conditional: bool = True) -> None:
        """A branch at `at`; tail: what runs just before it, where it has one target alone."""
        if label >= len(self.frames):
            raise self.reader.fault("a branch leads out of its function")
        place = len(self.frames) - 1 - label
        if self.frames[place] != LOOP or self.unbounded:
            return
        loop, found = self.loops[place], None
        if tail is not None and not loop.end:
            found = self.turns(loop, place, at, tail, conditional)
        if found is None:
            self.unbounded = LOOPS
            return
        self.steps[loop.step] = found
        self.loops[place] = loop._replace(end=at)

    def turns(self, loop: _Loop, place: int, at: int, tail: list[bytes], conditional: bool) -> int | None:
        """How often a loop runs whose only branch back is at `at`."""
        data = self.reader.data
        body = bytes(data[loop.at : at])
        zeroed = bytes(data[self.begin : loop.at]) if loop.outer else None
        if conditional:
            found = turns(loop.before, tail, body, zeroed, self.parameters)
        elif loop.head is None or place != len(self.frames) - 2 or self.frames[-1] != IF:
            found = None
        else:
            found = turns_by_head(loop.before, loop.head, tail, body, zeroed, self.parameters)
        return found


def read_locals(reader: Reader) -> int:
    """The number of locals that a body declares, which are at its beginning."""
    total = 0
    for _ in range(reader.count("groups of locals", MAX_LOCALS, 2)):
        total += reader.u32()
        reader.s33()
    if total > MAX_LOCALS:
        raise reader.fault(f"a function has {total:,} locals, and {MAX_LOCALS:,} are the most")
    return total


def _parameters(module: CoreModule, number: int) -> int:
    """Of a module's own function; more than there can be where its type is not there."""
    try:
        return len(module.signature(module.functions[number])[0])
    except (IndexError, Unreadable):
        return MAX_LOCALS


class Bodies(NamedTuple):
    """All the bodies of some modules: the largest of each figure, and what was decoded."""

    modules: tuple[tuple[Body, ...], ...]
    locals: int
    nesting: int
    instructions: int
    code_bytes: int
    grows_memory: bool


def decode(modules: tuple[CoreModule, ...], budget: Budget) -> Bodies:
    """Every body of the modules. Raises OverBudget, or Unreadable where one is malformed."""
    code_bytes = sum(module.code.total for module in modules)
    if code_bytes > budget.code_bytes:
        raise OverBudget(f"it has {code_bytes:,} bytes of code, and {budget.code_bytes:,} are decoded at most")
    functions = sum(module.code.number for module in modules)
    if functions > budget.functions:
        raise OverBudget(f"it has {functions:,} functions, and {budget.functions:,} are decoded at most")
    found, left = [], budget.instructions
    for module in modules:
        bodies: list[Body] = []
        for number, reader in enumerate(module.bodies()):
            try:
                bodies.append(_Decoder(reader, left, _parameters(module, number)).decode())
            except OverBudget:
                message = f"it has more than {budget.instructions:,} instructions, which are decoded at most"
                raise OverBudget(message) from None
            left -= bodies[-1].instructions
        found.append(tuple(bodies))
    every = [body for bodies in found for body in bodies]
    return Bodies(
        tuple(found),
        max((body.locals for body in every), default=0),
        max((body.nesting for body in every), default=0),
        budget.instructions - left,
        code_bytes,
        any(body.grows_memory for body in every),
    )
