"""The frame of an export: a POSIX tar of regular files, the same bytes for the same files, and nothing else.

Made for exports alone: a header is written from a path and a length, and read by comparing it with the one that would
be written. So no link, no device, no path that leads elsewhere and no extension can be in what is read.
Import rule: that of module_store.
"""

from __future__ import annotations

from keep_protocol.errors import ErrorKind, KeepfleetError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from module_store.objects import Readable

BLOCK = 512
END = bytes(2 * BLOCK)
_TYPES = {
    "1": "a hard link",
    "2": "a symbolic link",
    "3": "a device",
    "4": "a device",
    "5": "a directory",
    "6": "a named pipe",
}


def header(path: str, size: int) -> bytes:
    """The header of a regular file; `path` is at most 100 characters, after a directory of at most 155."""
    prefix, _, name = path.rpartition("/")
    fields = (
        name.encode("ascii").ljust(100, b"\0"), b"0000444\0", b"0000000\0", b"0000000\0", b"%011o\0" % size,
        b"%011o\0" % 0, b" " * 8, b"0", bytes(100), b"ustar\0" b"00", bytes(32), bytes(32), b"0000000\0", b"0000000\0",
        prefix.encode("ascii").ljust(155, b"\0"), bytes(12),
    )  # fmt: skip
    whole = b"".join(fields)
    return whole[:148] + b"%06o\0 " % sum(whole) + whole[156:]


def padding(size: int) -> bytes:
    """What fills the last block of a file."""
    return bytes(-size % BLOCK)


def invalid(why: str) -> KeepfleetError:
    """The refusal of an export."""
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot import: {why}; nothing was changed")


class Reader:
    """Reads the files of an export one after another. Each method raises KeepfleetError(BAD_REQUEST), OSError."""

    def __init__(self, source: Readable) -> None:
        self._source = source

    def exactly(self, count: int) -> bytes:
        """The next `count` bytes."""
        parts = []
        while count:
            part = self._source.read(count)
            if not part:
                raise invalid("the export ends early")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def begin(self, path: str, size: int) -> None:
        """Reads the header of `path`, which must be that file of that length."""
        found = self.exactly(BLOCK)
        if found != header(path, size):
            raise invalid(f"where {path} of {size} bytes must be, there is {_described(found)}")

    def first(self) -> tuple[str, int]:
        """The path and the length of the first file, whatever they are."""
        found = self.exactly(BLOCK)
        prefix, name = (found[at : at + length].rstrip(b"\0") for at, length in ((345, 155), (0, 100)))
        try:
            path, size = (prefix + b"/" + name).decode("ascii"), int(found[124:135], 8)
        except ValueError:
            path, size = "", -1
        if size < 0 or len(name) > 100 or found != header(path, size):
            raise invalid("it does not begin as `keepctl store export` writes it")
        return path, size

    def end_file(self, size: int) -> None:
        """Reads what fills a file's last block."""
        if any(self.exactly(len(padding(size)))):
            raise invalid("there are bytes between two files")

    def end(self) -> None:
        """Reads the end, after which nothing comes."""
        if any(self.exactly(len(END))) or self._source.read(1):
            raise invalid("there are bytes after its last file")


def _described(found: bytes) -> str:
    """What a header is of, for a message."""
    if not any(found):
        return "the end"
    kind = chr(found[156])
    prefix, name = (found[at : at + length].partition(b"\0")[0] for at, length in ((345, 155), (0, 100)))
    path = (prefix + b"/" + name if prefix else name).decode("ascii", "backslashreplace")
    return f"{_TYPES.get(kind, 'another file or no header' if kind != '0' else 'another file')} ({path[:200]!r})"
