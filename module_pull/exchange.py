"""Between the manager and the unit that pulls for it: what is asked, what is passed on, and what went wrong.

Asked for: one JSON object in a file in memory, the unit's standard input, with the password in it; so that it is in
no command line, no environment and no log. Passed on, on its standard output: a line that says how long what follows
is, the manifests, and the module. Gone wrong: one line of JSON on its standard error. What comes is a stranger's: each
length is bounded before it is read, and the module is what the manifests name, or nothing.
Import rule: that of module_pull.
"""

from __future__ import annotations

import os

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError, error_from_wire
from keep_protocol.fields import Flag, Record, Text, field, parse
from keep_protocol.store import MAX_OBJECT_BYTES
from module_pull.artifact import (
    MAX_ADDRESS,
    MAX_MANIFEST_BYTES,
    MAX_MANIFESTS,
    Address,
    Artifact,
    Body,
    lied,
    look,
    parse_address,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from module_pull.artifact import Readable
    from module_pull.registry import Fetched

MAX_CA_BYTES = 1024 * 1024
"""A distribution's CAs are 220 KB."""
MAX_REQUEST_BYTES = 2 * MAX_CA_BYTES
MAX_REPORT_BYTES = 16 * 1024
MAX_MESSAGE = 1000
PIECE_BYTES = 1 << 18
_MAX_HEAD = 100
_REPORTED = (
    ErrorKind.BAD_REQUEST,
    ErrorKind.NOT_FOUND,
    ErrorKind.FORBIDDEN,
    ErrorKind.TOO_LARGE,
    ErrorKind.TOO_MANY,
    ErrorKind.UNSUPPORTED,
    ErrorKind.UNSUPPORTED_MEDIA,
    ErrorKind.UNAVAILABLE,
    ErrorKind.CONFIGURATION,
)
"""What a pull may say that it ended for; anything else is a fault."""


class Request(Record):
    """What is to be pulled. plain: without TLS; login: `USER:PASSWORD` in base64, "" for none; ca: whose certificates
    are believed, in PEM."""

    address: str = field(Text(MAX_ADDRESS))
    plain: bool = field(Flag(), default=False)
    login: str = field(Text(8192), default="")
    ca: str = field(Text(MAX_CA_BYTES), default="")

    def __repr__(self) -> str:
        return f"Request({self.address})"

    @property
    def meant(self) -> Address:
        """The artifact. Raises KeepfleetError."""
        return parse_address(self.address, plain=self.plain)


def encode_request(request: Request) -> bytes:
    return strict_json.dumps(request.to_wire())


def read_request(data: bytes) -> Request:
    """Raises KeepfleetError(BAD_REQUEST)."""
    return parse(Request, strict_json.loads_object(data, MAX_REQUEST_BYTES, "the request"), "request", strict=True)


def head(manifests: Sequence[bytes], size: int) -> bytes:
    """The line before manifests and a module of that size."""
    return strict_json.dumps({"manifests": [len(each) for each in manifests], "size": size}) + b"\n"


def encode_error(error: KeepfleetError) -> bytes:
    return strict_json.dumps(KeepfleetError(error.kind, error.message[:MAX_MESSAGE]).to_wire()) + b"\n"


def read_error(data: bytes) -> KeepfleetError | None:
    """What a pull has reported, of all that it wrote; None where it did not come to that."""
    last = data[:MAX_REPORT_BYTES].rstrip(b"\0\n").rpartition(b"\n")[2]
    try:
        value = strict_json.loads_object(last, MAX_REPORT_BYTES, "the report of a pull")
    except KeepfleetError:
        return None
    error = error_from_wire(value)
    message = "".join(c if " " <= c <= "~" else "?" for c in error.message[:MAX_MESSAGE])
    return KeepfleetError(error.kind if error.kind in _REPORTED else ErrorKind.INTERNAL, message)


def hand_over(found: Fetched, output: int) -> None:
    """Writes to `output` what a registry sends. Raises KeepfleetError, OSError where no one reads it."""
    _write(output, head(found.manifests, found.artifact.size) + b"".join(found.manifests))
    while data := found.body.read(PIECE_BYTES):
        _write(output, data)


def _write(output: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(output, view) :]


class Incoming:
    """What a unit passes on of the artifact at `address`. Its methods raise KeepfleetError, and what `source` does."""

    def __init__(self, address: Address, source: Readable) -> None:
        self._address, self._source = address, source
        self._rest = b""
        self._body: Body | None = None

    def __repr__(self) -> str:
        return f"Incoming({self._address}, {self._body!r})"

    @property
    def count(self) -> int:
        """How much of the module has come."""
        return self._body.count if self._body else 0

    def begin(self) -> Artifact:
        """The module that comes, as the manifests say that come before it."""
        manifests, size = self._head()
        found = look(self._address, self._exactly(manifests[0]))
        if isinstance(found, Address) and len(manifests) == MAX_MANIFESTS:
            found = look(found, self._exactly(manifests[1]), nested=True)
        elif len(manifests) != 1:
            raise self._strange()
        if isinstance(found, Address) or found.size != size:
            raise self._strange()
        self._body = Body(found, self)
        return found

    def body(self) -> Body:
        """The module, after `begin`."""
        if self._body is None:
            raise self._strange()
        return self._body

    def read(self, size: int, /) -> bytes:
        """The next bytes of what comes, for `body`."""
        data, self._rest = self._rest[:size], self._rest[size:]
        return data or self._source.read(size)

    def _head(self) -> tuple[list[int], int]:
        while b"\n" not in self._rest:
            data = self._source.read(_MAX_HEAD)
            self._rest += data
            if not data or len(self._rest) > _MAX_HEAD + MAX_MANIFEST_BYTES:
                raise self._strange()
        line, _, self._rest = self._rest.partition(b"\n")
        value = strict_json.loads_object(line, _MAX_HEAD, "what a pull passes on")
        lengths, size = value.get("manifests"), value.get("size")
        if (
            isinstance(lengths, list)
            and 0 < len(lengths) <= MAX_MANIFESTS
            and all(type(each) is int and 0 < each <= MAX_MANIFEST_BYTES for each in lengths)
            and type(size) is int
            and 0 <= size <= MAX_OBJECT_BYTES
        ):
            return lengths, size
        raise self._strange()

    def _exactly(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            data = self.read(size - len(found))
            if not data:
                raise lied(self._address, "it broke off")
            found += data
        return bytes(found)

    def _strange(self) -> KeepfleetError:
        return KeepfleetError(ErrorKind.INTERNAL, f"cannot pull {self._address}: what its unit passes on is no module")
