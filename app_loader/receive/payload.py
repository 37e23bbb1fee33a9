"""The original's upload, `{"encoding":"wasm","contents":[0,97,115,109,…]}`, parsed as it arrives, in bounded memory.

A list of a hundred million Python numbers would take gigabytes. Bytes in, bytes out; no I/O here.
"""

from __future__ import annotations

import json
import re
from _collections_abc import Callable, Iterator

from app_loader.limits import MAX_PAYLOAD_HEAD, PAYLOAD_SLICE
from keep_protocol.errors import ErrorKind, KeepfleetError

ENCODING = "wasm"
_SPACE = b" \t\r\n"
_NUMBERS = {b"%d" % number: number for number in range(256)}
_STRING = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\.)*"', re.DOTALL)
_LONGEST_NUMBER = 3


def _bad(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read the payload: {why}")


def numbers(text: bytes) -> bytes:
    """The bytes whose decimal numbers stand in `text`, separated by commas. Raises KeepfleetError(BAD_REQUEST)."""
    items = text.split(b",")
    try:
        return bytes(map(_NUMBERS.__getitem__, items))
    except KeyError:
        pass
    try:
        return bytes([_NUMBERS[item.strip(_SPACE)] for item in items])
    except KeyError as error:
        raise _bad(f"{error.args[0][:20]!r} in 'contents' is no number in 0 … 255") from None


class PayloadParser:
    """Feed it the body piece by piece; each call returns the module's next bytes. Call `finish` at the body's end.

    The members come in any order, each once, and no others; white space is allowed where JSON allows it. A call
    that raised KeepfleetError(BAD_REQUEST) leaves the parser of no use.
    """

    def __init__(self) -> None:
        self._text = bytearray()
        self._seen: dict[str, bool] = {}
        self._head = 0
        self._step: Callable[[], bytes | None] = self._open

    def __repr__(self) -> str:
        return f"PayloadParser({self._step.__name__.lstrip('_')}, {len(self._text)} bytes waiting)"

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The module's bytes completed by `data`, in pieces."""
        for start in range(0, len(data), PAYLOAD_SLICE):
            self._text += data[start : start + PAYLOAD_SLICE]
            yield from self._run()

    def _run(self) -> Iterator[bytes]:
        while True:
            step, before = self._step, len(self._text)
            produced = step()
            if produced:
                yield produced
            if step == self._step:
                break
            if step != self._items:
                self._head += before - len(self._text)
        if self._step != self._items and self._head + len(self._text) > MAX_PAYLOAD_HEAD:
            raise _bad(f"there are over {MAX_PAYLOAD_HEAD} bytes besides its numbers")

    def finish(self) -> None:
        """Returns when the body was whole. Raises KeepfleetError(BAD_REQUEST) otherwise."""
        if self._step != self._end:
            raise _bad("it ends too early")

    def _next(self, wanted: bytes) -> int | None:
        """Takes white space and then one byte, which must be of `wanted`; None while it has not arrived."""
        rest = self._text.lstrip(_SPACE)
        if not rest:
            return None
        if rest[0] not in wanted:
            where = bytes(rest[:20]).decode("ascii", "backslashreplace")
            raise _bad(f"{where!r} is where {' or '.join(map(chr, wanted))} must be")
        self._text = rest[1:]
        return rest[0]

    def _string(self) -> str | None:
        """Takes white space and then one string; None while it is not whole."""
        rest = self._text.lstrip(_SPACE)
        if rest and rest[0] != ord('"'):
            raise _bad(f"{bytes(rest[:20])!r} is where a string must be")
        match = _STRING.match(rest)
        if match is None:
            return None
        try:
            value = json.loads(match[0])
        except ValueError as error:
            raise _bad(str(error)) from None
        self._text = rest[match.end() :]
        return str(value)

    def _open(self) -> None:
        if self._next(b"{") is not None:
            self._step = self._name

    def _name(self) -> None:
        name = self._string()
        if name is None:
            return
        if name not in ("encoding", "contents"):
            raise _bad(f"{name[:40]!r} is no member of it")
        if name in self._seen:
            raise _bad(f"{name!r} is given twice")
        self._seen[name] = True
        self._step = self._encoding_colon if name == "encoding" else self._contents_colon

    def _encoding_colon(self) -> None:
        if self._next(b":") is not None:
            self._step = self._encoding

    def _encoding(self) -> None:
        value = self._string()
        if value is None:
            return
        if value != ENCODING:
            raise KeepfleetError(
                ErrorKind.UNSUPPORTED_MEDIA,
                f"cannot read the payload: its encoding {value[:40]!r} is not {ENCODING!r}",
            )
        self._step = self._after

    def _contents_colon(self) -> None:
        if self._next(b":") is not None:
            self._step = self._bracket

    def _bracket(self) -> None:
        if self._next(b"[") is not None:
            self._step = self._first

    def _first(self) -> None:
        """An empty array ends here; anything else is left to `_items`."""
        rest = self._text.lstrip(_SPACE)
        if rest:
            empty = rest[0] == ord("]")
            self._text = rest[1:] if empty else rest
            self._step = self._after if empty else self._items

    def _items(self) -> bytes:
        end = self._text.find(b"]")
        if end >= 0:
            produced = numbers(bytes(self._text[:end]))
            del self._text[: end + 1]
            self._step = self._after
            return produced
        comma = self._text.rfind(b",")
        if comma < 0:
            if len(self._text.strip(_SPACE)) > _LONGEST_NUMBER:
                raise _bad(f"{bytes(self._text[:20])!r} in 'contents' is no number in 0 … 255")
            if len(self._text) > MAX_PAYLOAD_HEAD:
                raise _bad(f"there are over {MAX_PAYLOAD_HEAD} blanks about one number")
            return b""
        produced = numbers(bytes(self._text[:comma]))
        del self._text[: comma + 1]
        return produced

    def _after(self) -> None:
        byte = self._next(b",}")
        if byte == ord(","):
            self._step = self._name
        elif byte is not None:
            if len(self._seen) != 2:
                raise _bad(f"{'contents' if 'encoding' in self._seen else 'encoding'!r} is missing")
            self._step = self._end

    def _end(self) -> None:
        if self._text.strip(_SPACE):
            raise _bad("something follows its end")
        self._text.clear()
