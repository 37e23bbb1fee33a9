"""A script as a keep is sent it: a file of WebAssembly that has nothing but one custom section, with the script in it.

So a script is stored, signed, sent and counted as a module is, and what knows nothing of scripts says that there is
nothing to run in it. Pure. Import rule: `keep_protocol.errors` and `keep_protocol.fields`.
"""

from __future__ import annotations

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record

LANGUAGES = {".js": "javascript", ".mjs": "javascript", ".cjs": "javascript", ".ts": "typescript", ".py": "python"}
"""What a file's name says of its language."""
MAX_SCRIPT_BYTES = 5 * 1024 * 1024
"""As the script pool's: a bundle of a large application has three."""
MAX_NAME = 255
"""The longest name of a file on Linux."""
_MODULE = b"\0asm\1\0\0\0"
_SECTION = b"keepfleet.script"
_HEAD = _MODULE + b"\0"
_SIZE_BYTES = 5
"""A section's size, always written with as many bytes as the largest."""
HEAD_BYTES = len(_HEAD) + _SIZE_BYTES + 1 + len(_SECTION)


def _bad(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.INVALID_MODULE, f"cannot take the script: {why}")


class Program(Record):
    """A script: the language that it is in, what it is called in its messages, and its text.

    Raises KeepfleetError(INVALID_MODULE) for what no engine would take.
    """

    language: str
    name: str
    source: bytes

    def _check(self) -> None:
        if not self.name or len(self.name) > MAX_NAME or not self.name.isprintable():
            raise _bad(f"its name must have 1 to {MAX_NAME} printable characters")
        if len(self.source) > MAX_SCRIPT_BYTES:
            raise _bad(f"it has {len(self.source)} bytes, and may have {MAX_SCRIPT_BYTES}")
        if b"\0" in self.source:
            raise _bad("it has a NUL in it")
        try:
            self.source.decode()
        except UnicodeDecodeError as error:
            raise _bad(f"it is not UTF-8 at byte {error.start}") from None


def wrap(program: Program) -> bytes:
    """The file."""
    contents = _SECTION + f"{program.language}\n{program.name}\n".encode() + program.source
    contents = bytes((len(_SECTION),)) + contents
    size, left = bytearray(), len(contents)
    for _ in range(_SIZE_BYTES - 1):
        size.append(left & 0x7F | 0x80)
        left >>= 7
    size.append(left)
    return _HEAD + bytes(size) + contents


def is_program(head: bytes) -> bool:
    """Whether a file that begins with these HEAD_BYTES is a script's."""
    return head.startswith(_HEAD) and head[len(_HEAD) + _SIZE_BYTES :].startswith(bytes((len(_SECTION),)) + _SECTION)


def unwrap(data: bytes) -> Program:
    """The script in a file that `is_program`; what the manager keeps of it has a seal behind it. Raises
    KeepfleetError(INVALID_MODULE)."""
    begin = len(_HEAD) + _SIZE_BYTES
    end = begin + sum((byte & 0x7F) << 7 * place for place, byte in enumerate(data[len(_HEAD) : begin]))
    if end > len(data):
        raise _bad("its file ends before its section does")
    language, first, rest = data[HEAD_BYTES:end].partition(b"\n")
    name, second, source = rest.partition(b"\n")
    if not first or not second:
        raise _bad("its file does not say which language it is in")
    try:
        return Program(language.decode("ascii"), name.decode(), source)
    except UnicodeDecodeError:
        raise _bad("its language or its name is not text") from None
