"""Applications whose codelets the manager looks after, as clients see them, and the file that makes one known.

Pure: JSON values in, frozen records out.
"""

from __future__ import annotations

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Items, Nested, Pairs, Record, Text, Type, field
from keep_protocol.identity import is_name
from keep_protocol.patterns import matches

V1_CODELETS_PATH = "/v1/codelets"
SET_EVENT = "codeletset"
"""The events of `/v1/codelets/NAME/watch`."""
SYSTEM_DIRECTORY = "/etc/keepfleet/codelets.d"
NAME = "[a-z0-9-]{1,63}"
SUFFIX = ".yaml"
MAX_APPLICATIONS = 256
MAX_ATTACHMENT_BYTES = 4096
"""Of an application's file, which has three lines."""
MAX_SOCKET = 107
"""What fits into a sockaddr_un (man 7 unix)."""
MAX_DESCRIPTOR = 256 * 1024
"""Characters of a set's descriptor."""
MAX_LOAD_BODY = 1024 * 1024
"""A descriptor as a string of JSON, with its variables."""
SET_ID = "[A-Za-z_][A-Za-z0-9_-]{0,254}"
USER = "[a-z_][a-z0-9_-]{0,31}|[0-9]{1,10}"


class _Owner(Text):
    """The name of a caller, or none."""

    def __init__(self) -> None:
        super().__init__(64, must="a caller's name, or empty")

    def parse(self, value: object) -> str:
        name = super().parse(value)
        if name and not is_name(name):
            raise ValueError
        return name


_SOCKET: Type = Text(MAX_SOCKET, "(/[^/\\0-\\x1f\\x7f]+)+", f"an absolute path of at most {MAX_SOCKET} characters")


class Attachment(Record):
    """What an application's file says."""

    socket: str = field(_SOCKET, about="its life-cycle socket")
    user: str = field(Text(32, USER, "a user's name or ID"), about="as whom it listens there")
    owner: str = field(_Owner(), default="", about="who besides operators may load and unload; a caller's name")


class Application(Record):
    """An application that was attached."""

    name: str = field(Text(63, NAME), about="what it is called here")
    owner: str = field(Text(64), about="who besides operators may load and unload; empty: no one")
    socket: str = field(Text(MAX_SOCKET), about="its life-cycle socket on the manager's host")
    user: str = field(Text(32), about="as whom it listens there")
    detail: str = field(Text(), default="", about="why it cannot be asked, as far as its file says; empty otherwise")


class ApplicationList(Record):
    """Applications by name."""

    applications: tuple[Application, ...] = field(
        Items(Nested(Application, "application"), MAX_APPLICATIONS), about="by name"
    )


class LoadSet(Record):
    """A codelet set to load."""

    descriptor: str = field(Text(MAX_DESCRIPTOR), about="the set's descriptor, YAML or JSON")
    variables: tuple[tuple[str, str], ...] = field(
        Pairs(Text(64), Text(4096), 64), default=(), about="what `${NAME}` in it stands for"
    )


class LoadedSet(Record):
    """A codelet set that was loaded."""

    codeletset_id: str = field(Text(255, SET_ID), about="its ID, one in the application")


def check_application_name(name: str) -> str:
    """`name` itself. Raises KeepfleetError(BAD_REQUEST) unless an application may be called so."""
    if not matches(NAME, name):
        why = "an application's is 1 to 63 of a-z, 0-9 and -"
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"invalid name {name[:63]!r}: {why}")
    return name


def check_set_id(name: str) -> str:
    """`name` itself. Raises KeepfleetError(BAD_REQUEST) unless a set may be called so."""
    if not matches(SET_ID, name):
        why = "a codelet set's ID is 1 to 255 of A-Z, a-z, 0-9, _ and -, not a digit or - first"
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"invalid ID {name[:63]!r}: {why}")
    return name
