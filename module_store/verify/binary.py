"""The primitives of WebAssembly's binary format, read strictly: every count and size is compared with the bytes left.

A hostile file is the normal input: what is read costs time and memory in proportion to the bytes that are there, never
to a number that they claim, and nothing is raised but `Unreadable`.
"""

from __future__ import annotations

import re
from mmap import mmap
from re import Pattern

from keep_protocol.errors import ErrorKind, KeepfleetError

Buffer = bytes | memoryview | mmap

MAX_NAME_BYTES = 100_000
"""The engine's own (wasmparser's MAX_WASM_STRING_SIZE)."""
MAX_ENTRIES = 2_000_000
"""Of a whole file, over all its modules. A component of 18 MB with CPython in it has 12,000."""
CHEAPER = SECTION_ENTRIES = 10
"""What a cheap entry costs less, and a section more: it is a part of its own, and may be kept by name."""
_OVER = ErrorKind.TOO_COMPLEX
CHUNKS = (4096, 64, 1)
"""Numbers of items that are skipped in one step of C."""

U32 = rb"(?>[\x80-\xff]{0,3}[\x00-\x7f]|[\x80-\xff]{4}[\x00-\x0f])"
U64 = rb"(?>[\x80-\xff]{0,8}[\x00-\x7f]|[\x80-\xff]{9}[\x00\x01])"
S32 = rb"(?>[\x80-\xff]{0,3}[\x00-\x7f]|[\x80-\xff]{4}[\x00-\x07\x78-\x7f])"
S33 = rb"(?>[\x80-\xff]{0,3}[\x00-\x7f]|[\x80-\xff]{4}[\x00-\x0f\x70-\x7f])"
S64 = rb"(?>[\x80-\xff]{0,8}[\x00-\x7f]|[\x80-\xff]{9}[\x00\x7f])"
"""Regular expressions of numbers in LEB128, of which the last possible byte has unused bits: they repeat the sign."""
VALUE_TYPE = rb"(?>[\x69\x6f\x70\x74\x7b-\x7f]|[\x63\x64]" + S33 + rb")"
CONSTANT = (
    rb"(?>\x41%b|\x42%b|\x43.{4}|\x44.{8}|[\x23\xd2]%b|\xd0%b|[\x6a-\x6c\x7c-\x7e]|\xfd(?:\x0c|\x8c\x80{0,3}\x00).{16})*+\x0b"
    % (S32, S64, U32, S33)
)
"""A constant expression: what the engine takes where garbage collection is off."""
_CONSTANT = re.compile(CONSTANT, re.DOTALL)


class Unreadable(KeepfleetError):
    """A file that cannot be described: malformed (INVALID_MODULE), or over the parser's own budget (TOO_COMPLEX)."""

    def __init__(self, at: int, why: str, kind: ErrorKind = ErrorKind.INVALID_MODULE) -> None:
        super().__init__(kind, f"cannot read the module: {why} (at byte {at})")
        self.at = at


def over_budget(at: int, what: str, found: int, most: int) -> Unreadable:
    """The error of what would take too much time or memory to describe."""
    return Unreadable(at, f"it has {found:,} {what}, and at most {most:,} are read", _OVER)


def repeated(item: bytes) -> tuple[tuple[int, Pattern[bytes]], ...]:
    """Patterns that match CHUNKS of `item`, for `Reader.skip_items`."""
    return tuple((chunk, re.compile(rb"(?:%b){%d}" % (item, chunk), re.DOTALL)) for chunk in CHUNKS)


class Allowance:
    """How many entries of a whole file are read one by one: each takes up to two microseconds."""

    __slots__ = ("left",)

    def __init__(self, entries: int = MAX_ENTRIES) -> None:
        self.left = entries

    def take(self, entries: int, at: int) -> None:
        """Counts some. Raises Unreadable where there are too many."""
        self.left -= entries
        if self.left < 0:
            raise Unreadable(at, f"it has more than {MAX_ENTRIES:,} entries, which are read at most", _OVER)


class Reader:
    """A place in a part of a file. Everything read moves it on, or raises Unreadable.

    allowance: shared by all parts of one file; None where what is read has another budget.
    """

    __slots__ = ("allowance", "at", "data", "end")

    def __init__(self, data: Buffer, at: int, end: int, allowance: Allowance | None = None) -> None:
        self.data, self.at, self.end, self.allowance = data, at, end, allowance

    def __repr__(self) -> str:
        return f"Reader({self.at} of {self.end})"

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return self.end - self.at

    def fault(self, why: str) -> Unreadable:
        """The error of what is here."""
        return Unreadable(self.at, why)

    def byte(self) -> int:
        at = self.at
        if at >= self.end:
            raise self.fault("it ends too early")
        self.at = at + 1
        return self.data[at]

    def u32(self) -> int:
        return self._unsigned(32)

    def u64(self) -> int:
        return self._unsigned(64)

    def _unsigned(self, bits: int) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> bits:
                    raise self.fault(f"a number has more than {bits} bits")
                return value
            shift += 7
            if shift >= bits:
                raise self.fault(f"a number of {bits} bits takes more bytes than it may")

    def s33(self) -> int:
        """An index, or a negative number, which stands for a type."""
        start, value, shift = self.at, 0, 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift >= 35:
                raise self.fault("a number of 33 bits takes more bytes than it may")
        if self.at - start == 5 and not (byte <= 0x0F or byte >= 0x70):
            raise self.fault("a number has more than 33 bits")
        return value - (1 << shift) if byte & 0x40 else value

    def count(self, what: str, most: int, least_bytes: int = 1, *, cheap: bool = False) -> int:
        """A number of items, each of at least so many bytes. `most` is the budget for them.

        cheap: they are passed over by C code or a short loop, at a tenth of what others cost.
        """
        at, count = self.at, self.u32()
        if count * least_bytes > self.left:
            raise Unreadable(at, f"it claims {count:,} {what}, and {self.left:,} bytes are left")
        if count > most:
            raise over_budget(at, what, count, most)
        if self.allowance is not None:
            self.allowance.take(count // CHEAPER if cheap else count, at)
        return count

    def take(self, size: int) -> bytes:
        at = self.skip(size)
        return bytes(self.data[at : at + size])

    def skip(self, size: int) -> int:
        """Passes over `size` bytes; where they began."""
        at = self.at
        if size > self.end - at:
            raise self.fault("it ends too early")
        self.at = at + size
        return at

    def part(self, size: int) -> Reader:
        """The next `size` bytes, to be read on their own."""
        at = self.skip(size)
        return Reader(self.data, at, at + size, self.allowance)

    def name(self) -> str:
        at, size = self.at, self.u32()
        if size > MAX_NAME_BYTES:
            raise Unreadable(at, f"a name has {size:,} bytes, and {MAX_NAME_BYTES:,} are the most")
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise Unreadable(at, "a name is not UTF-8") from None

    def match(self, pattern: Pattern[bytes], what: str) -> None:
        """Passes over what `pattern` matches."""
        found = pattern.match(self.data, self.at, self.end)
        if found is None:
            raise self.fault(f"{what} is malformed")
        self.at = found.end()

    def skip_items(self, count: int, patterns: tuple[tuple[int, Pattern[bytes]], ...], what: str) -> None:
        """Passes over `count` items, by the patterns of `repeated`."""
        for chunk, pattern in patterns:
            while count >= chunk:
                self.match(pattern, what)
                count -= chunk

    def constant(self) -> None:
        """Passes over a constant expression."""
        self.match(_CONSTANT, "a constant expression")

    def finish(self, what: str) -> None:
        """Raises Unreadable where bytes are left."""
        if self.at != self.end:
            raise self.fault(f"{self.left:,} bytes follow the end of {what}")
