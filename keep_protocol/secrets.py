"""Secrets that the manager keeps for declared keeps, as clients see them: never their values.

Pure: JSON values in, frozen records out.
"""

from __future__ import annotations

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Flag, Items, Maybe, Nested, Record, Seconds, Text, field
from keep_protocol.patterns import matches
from keep_protocol.workload import MAX_SECRET_BYTES

V1_SECRETS_PATH = "/v1/secrets"
MAX_VALUE_BYTES = MAX_SECRET_BYTES
"""What a workload takes; systemd takes as much for one credential (man 5 systemd.exec)."""
NAME = "[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
"""Also what a credential and a file below /run/secrets may be called."""


class Secret(Record):
    """A secret. encrypted: its value lies on disk encrypted with the host's own key, and else as it is, readable by its
    owner's user alone."""

    name: str = field(Text(63, NAME), about="what it is called; one secret of the host has it")
    owner: str = field(Text(128), about="whose it is: the name of the caller who set it first")
    set_at: float | None = field(Maybe(Seconds()), default=None, about="when its value was set last, or null")
    encrypted: bool = field(Flag(), default=False, about="whether its value is encrypted on disk, with the host's key")
    detail: str = field(Text(), default="", about="why no keep can have it; empty where one can")
    used_by: tuple[str, ...] = field(Items(Text(63), 10_000), default=(), about="the declared keeps that name it")


class SecretList(Record):
    """Secrets by name."""

    secrets: tuple[Secret, ...] = field(Items(Nested(Secret, "secret"), 100_000), about="by name")


def check_secret_name(name: str) -> str:
    """`name` itself. Raises KeepfleetError(BAD_REQUEST) unless a secret may be called so."""
    if not matches(NAME, name):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST,
            f"invalid name {name[:63]!r}: a secret's is 1 to 63 of A-Z, a-z, 0-9, `_`, `.` and -, the first a letter "
            "or digit",
        )
    return name
