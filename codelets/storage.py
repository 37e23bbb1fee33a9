"""Maps and channels: what a codelet's imports declare, and how each lies in its memory.

A codelet declares each by the module that it imports its functions from, and names it before the function's name:
`(import "map:hashmap:4:8:1024" "flows.lookup" (func …))`, where the numbers are bytes of a key, bytes of a value, and
entries. The functions are those of storage.wat. State that lasts between calls lives in maps alone: a codelet's own
memory begins again after a fault.

    bytes 0 … 3      which thread's part the next call is for; always 0 where there is one part alone
    bytes 4 … 7      the slot that a call was emptying when it ran out of fuel, and one more; 0 for none
    bytes 64 …       the parts, `region` bytes each:
      hash map       entries that it has, 4 unused bytes, then slots: 1 where it is taken (4 bytes), key, value
      array          8 unused bytes, then slots: the value of key i in slot i
      channel        messages written, read and lost (4 bytes each), 4 unused, then slots: size (4 bytes), message

Import rule: the standard library, keep_protocol.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from enum import Enum

from keep_protocol.fields import Record

MAX_NAME = 255
"""jbpf's: characters of the name of a map, channel, codelet or hook."""
MAX_STORAGE_BYTES = 16 * 1024 * 1024
"""Of one map or channel, all its threads' parts together."""
MAX_ENTRIES = 1 << 20
MAX_ITEM_BYTES = 64 * 1024
THREADS = 16
"""Parts of a map that has one for each thread; threads beyond share the last."""
HEADER, PAGE_BYTES = 64, 65536
_SIZE = struct.Struct("<I")
_NAME = rf"[A-Za-z_][A-Za-z0-9_-]{{0,{MAX_NAME - 1}}}"
_FUNCTION = re.compile(rf"({_NAME})\.([a-z]+)", re.ASCII)
NAME = re.compile(_NAME, re.ASCII)


class Kind(Enum):
    """What holds data, by the word of its declaration."""

    ARRAY = "array"
    HASH_MAP = "hashmap"
    THREAD_ARRAY = "per-thread-array"
    THREAD_HASH_MAP = "per-thread-hashmap"
    OUTPUT = "output"
    INPUT = "input"

    @property
    def is_map(self) -> bool:
        """Whether it is a map and no channel."""
        return self not in (Kind.OUTPUT, Kind.INPUT)

    @property
    def threads(self) -> int:
        """How many parts it has."""
        return THREADS if self in (Kind.THREAD_ARRAY, Kind.THREAD_HASH_MAP) else 1

    @property
    def hashed(self) -> bool:
        """Whether it is a hash map."""
        return self in (Kind.HASH_MAP, Kind.THREAD_HASH_MAP)


Signatures = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""Functions by name: the types of their parameters and results."""
_MAP_FUNCTIONS: Signatures = {
    "lookup": (("i32", "i32"), ("i32",)),
    "update": (("i32", "i32"), ("i32",)),
    "delete": (("i32",), ("i32",)),
    "clear": ((), ("i32",)),
}
_FUNCTIONS: dict[Kind, Signatures] = {
    Kind.OUTPUT: {"send": (("i32", "i32"), ("i32",))},
    Kind.INPUT: {"receive": (("i32", "i32"), ("i32",))},
}
_DECLARED = {
    "map": re.compile(
        r"map:(array|hashmap|per-thread-array|per-thread-hashmap):([0-9]{1,7}):([0-9]{1,7}):([0-9]{1,7})"
    ),
    "output": re.compile(r"(output):([0-9]{1,7}):([0-9]{1,7})"),
    "input": re.compile(r"(input):([0-9]{1,7}):([0-9]{1,7})"),
}


class Unfit(ValueError):
    """Why an import declares no map and no channel."""


class Declaration(Record):
    """What one import's module says. key: bytes of a key, 0 for a channel; value: of a value, at most of a message."""

    kind: Kind
    key: int
    value: int
    entries: int

    def __str__(self) -> str:
        if self.kind.is_map:
            return f"map:{self.kind.value}:{self.key}:{self.value}:{self.entries}"
        return f"{self.kind.value}:{self.value}:{self.entries}"

    @property
    def functions(self) -> Signatures:
        """The functions that may be imported, with parameters and results."""
        return _FUNCTIONS.get(self.kind, _MAP_FUNCTIONS)

    @property
    def repair(self) -> str:
        """What is called in storage.wat after a call that did not end by itself; "" for what is always whole."""
        return "hashmap.repair" if self.kind.hashed else ""

    @property
    def prefix(self) -> str:
        """What its functions are called in storage.wat, before the dot."""
        if self.kind.hashed:
            return "hashmap"
        return self.kind.value if not self.kind.is_map else "array"

    @property
    def slots(self) -> int:
        """A power of two where slots are found by masking: at least twice the entries of a hash map, so that each
        probe ends, and the messages of a channel, which has its entries rounded up."""
        if self.kind.is_map and not self.kind.hashed:
            return self.entries
        least = self.entries * 2 if self.kind.hashed else self.entries
        return 1 << (least - 1).bit_length()

    @property
    def stride(self) -> int:
        """From one slot to the next."""
        if not self.kind.is_map:
            return _rounded(4 + self.value)
        return _rounded(4 + self.key + self.value) if self.kind.hashed else _rounded(self.value)

    @property
    def region(self) -> int:
        """Bytes of one thread's part."""
        return (8 if self.kind.is_map else 16) + self.slots * self.stride

    @property
    def numbers(self) -> tuple[int, ...]:
        """The constants that storage.wat imports, in order."""
        return self.key, self.value, self.entries, self.stride, self.slots, self.region

    @property
    def pages(self) -> int:
        """Of its memory."""
        return -(-(HEADER + self.kind.threads * self.region) // PAGE_BYTES)


def _rounded(size: int) -> int:
    return -(-size // 8) * 8


def declared(module: str) -> Declaration | None:
    """The map or channel that an import's module declares; None where it is another's. Raises Unfit."""
    pattern = _DECLARED.get(module.partition(":")[0])
    if pattern is None:
        return None
    match = pattern.fullmatch(module)
    if match is None:
        raise Unfit("it must be map:KIND:KEY-BYTES:VALUE-BYTES:ENTRIES, output:BYTES:MESSAGES or input:BYTES:MESSAGES")
    kind, *numbers = match.groups()
    key, value, entries = map(int, numbers) if len(numbers) == 3 else (0, *map(int, numbers))
    found = Declaration(Kind(kind), key, value, entries)
    _check(found)
    return found


def _check(found: Declaration) -> None:
    if not 1 <= found.entries <= MAX_ENTRIES:
        raise Unfit(f"it has {found.entries} entries; allowed: 1 to {MAX_ENTRIES}")
    if not 1 <= found.value <= MAX_ITEM_BYTES or (found.kind.is_map and not 1 <= found.key <= MAX_ITEM_BYTES):
        raise Unfit(f"keys, values and messages have 1 to {MAX_ITEM_BYTES} bytes")
    if found.kind.is_map and not found.kind.hashed and found.key != 4:
        raise Unfit("the key of an array is a number of 4 bytes")
    if found.pages * PAGE_BYTES > MAX_STORAGE_BYTES:
        raise Unfit(f"it takes {found.pages * PAGE_BYTES} bytes; allowed: {MAX_STORAGE_BYTES}")


def function_of(name: str) -> tuple[str, str]:
    """The map's or channel's name and the function in an import's name. Raises Unfit."""
    match = _FUNCTION.fullmatch(name)
    if match is None:
        raise Unfit("it must be NAME.FUNCTION, as in flows.lookup")
    return match[1], match[2]


class Data:
    """A map's or channel's memory, as the application reads and writes it, between calls."""

    def __init__(self, declaration: Declaration, memory: memoryview, world: object) -> None:
        """world: whose memory it is, which is kept as long as this."""
        self.declaration, self._memory, self._world = declaration, memory, world

    def __repr__(self) -> str:
        return f"Data({self.declaration})"

    def _part(self, thread: int) -> memoryview:
        begin = HEADER + thread * self.declaration.region
        return self._memory[begin : begin + self.declaration.region]

    def choose_thread(self, thread: int) -> None:
        """Whose part the next call reads and writes."""
        self._memory[0:4] = thread.to_bytes(4, "little")

    def items(self) -> list[tuple[bytes, bytes]]:
        """Keys and values of a map, all threads' parts in turn."""
        return [item for thread in range(self.declaration.kind.threads) for item in self._items(thread)]

    def _items(self, thread: int) -> list[tuple[bytes, bytes]]:
        declaration, part = self.declaration, memoryview(bytes(self._part(thread)))  # no call comes between its slots
        found, at = [], 8
        for number in range(declaration.slots):
            slot = part[at : at + declaration.stride]
            at += declaration.stride
            if not declaration.kind.hashed:
                found.append((number.to_bytes(4, "little"), bytes(slot[: declaration.value])))
            elif _number(slot, 0):
                value_at = 4 + declaration.key
                found.append((bytes(slot[4:value_at]), bytes(slot[value_at : value_at + declaration.value])))
        return found

    def lookup(self, key: bytes, thread: int = 0) -> bytes | None:
        """The value of a map's key, None where it has none."""
        return dict(self._items(thread)).get(key)

    # --- channels ----------------------------------------------------------------------------------------------------

    def receive(self, most: int) -> list[bytes]:
        """Takes up to `most` messages out of an output channel."""
        part, declaration = self._memory[HEADER:], self.declaration
        written, read = _number(part, 0), _number(part, 4)
        stop = read + min((written - read) & 0xFFFFFFFF, most)
        stride, mask, limit, unpack = declaration.stride, declaration.slots - 1, declaration.value, _SIZE.unpack_from
        messages = []
        for number in range(read, stop):
            at = 16 + (number & mask) * stride
            begin = at + 4
            messages.append(part[begin : begin + min(unpack(part, at)[0], limit)].tobytes())
        part[4:8] = (stop & 0xFFFFFFFF).to_bytes(4, "little")
        return messages

    def give_up(self) -> None:
        """Counts what is unread in an output channel as lost."""
        part = self._memory[HEADER:]
        written, unread = part[0:4], (_number(part, 0) - _number(part, 4)) & 0xFFFFFFFF
        part[8:12], part[4:8] = ((self.lost + unread) & 0xFFFFFFFF).to_bytes(4, "little"), written

    def send(self, message: bytes) -> bool:
        """Puts a message into an input channel; False where it is full, which is counted. Raises ValueError for one
        that is too long."""
        part, declaration = self._memory[HEADER:], self.declaration
        if len(message) > declaration.value:
            raise ValueError(f"a message of {len(message)} bytes is too long; the channel takes {declaration.value}")
        written, read = _number(part, 0), _number(part, 4)
        if (written - read) & 0xFFFFFFFF >= declaration.entries:
            part[8:12] = ((self.lost + 1) & 0xFFFFFFFF).to_bytes(4, "little")
            return False
        at = 16 + (written & (declaration.slots - 1)) * declaration.stride
        part[at : at + 4 + len(message)] = len(message).to_bytes(4, "little") + message
        part[0:4] = ((written + 1) & 0xFFFFFFFF).to_bytes(4, "little")
        return True

    @property
    def lost(self) -> int:
        """Messages that a full channel did not take."""
        return _number(self._memory, HEADER + 8)


def _number(data: memoryview, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")
