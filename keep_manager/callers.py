"""What the configuration says of callers: their role, where things may be granted to them, and how much they may have.

Frozen values, as `model` holds: `config` reads them, `authorize` and `keeps` ask them.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping
from enum import Enum

from keep_protocol.api import AskedLimits
from keep_protocol.fields import Flag, Items, Maybe, Nested, Record, Text, Whole, Word, field
from keep_protocol.identity import Role
from keep_protocol.limits import MIB
from keep_protocol.spec import Lease

DEFAULT_LEASE = Lease(idle_seconds=86400, await_seconds=86400)
"""A day each: who makes a keep in the evening uploads in the morning, and what a crashed client left behind (5 MB while
idle, 15 MB and a port while it awaits its workload) is gone the day after."""
EVERYONE = "*"
"""The entry for callers that have none of their own; what an entry does not name comes from it, too."""
MAX_CALLER_NAME = 64
"""A common name has at most 64 characters (RFC 5280, ub-common-name)."""


MAX_OWNER = 80
"""A user's and a group's name have at most 32 characters each (man 8 useradd), a number 10."""
KEEP_ITSELF = "keep"
"""The files_as that leaves files to whichever user the keep is."""


class DirectoryPath(Text):
    """The absolute path of a directory, `~` resolved and without `..`."""

    def __init__(self) -> None:
        super().__init__(4095, must="the absolute path of a directory")

    def parse(self, value: object) -> str:
        path = os.path.expanduser(super().parse(value))
        if not os.path.isabs(path) or "\0" in path:
            raise ValueError
        return os.path.normpath(path)


class DiskOwner(Text):
    """`keep`, or a user of this host but root, by name or number, with `:` and a group behind it where not its own."""

    def __init__(self) -> None:
        super().__init__(
            MAX_OWNER,
            r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?",
            must="`keep`, or a user of this host other than root: USER, USER:GROUP or UID:GID",
        )

    def parse(self, value: object) -> str:
        text = super().parse(value)
        if text != KEEP_ITSELF and 0 in numbers_of(text):
            raise ValueError
        return text


class GrantRoot(Record):
    """A directory below which a caller may have things granted; writable: for writing, too; files_as: whose the files
    are on disk, None for the directory's own owner."""

    path: str = field(DirectoryPath())
    writable: bool = field(Flag(), default=False)
    files_as: str | None = field(Maybe(DiskOwner()), default=None)


def numbers_of(owner: str) -> tuple[int, int]:
    """The numbers of USER, USER:GROUP or UID:GID. Raises ValueError where this host has no such user or group."""
    user, _, group = owner.partition(":")
    try:
        uid = int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
        if group:
            return uid, int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
        return uid, pwd.getpwuid(uid).pw_gid
    except (KeyError, OverflowError):
        raise ValueError(f"there is no user or group {owner}") from None


class ConfiguredRole(Enum):
    """The roles that the configuration may give to a certificate that says none."""

    OPERATOR = Role.OPERATOR.value
    USER = Role.USER.value
    VIEWER = Role.VIEWER.value


class Quotas(Record):
    """How much one caller may have at a time; the defaults are more than one person or program needs on one host."""

    keeps: int = field(Whole(0, 100_000), default=500, about="living keeps")
    memory_bytes: int = field(
        Whole(0, 1 << 50), default=256 * 1024 * MIB, about="the memory limits of its living keeps together"
    )
    starts_per_minute: int = field(Whole(0, 100_000), default=1200, about="keeps started in a minute")
    followers: int = field(Whole(0, 1000), default=16, about="streams of lines and events open")
    store_objects: int = field(Whole(0, 100_000), default=2000, about="modules that it added to the store")
    store_bytes: int = field(Whole(0, 1 << 50), default=64 * 1024 * MIB, about="the length of those modules together")
    volume_bytes: int = field(
        Whole(0, 1 << 50), default=16 * 1024 * MIB, about="the sizes of the volumes of its declared keeps together"
    )
    first_port: int = field(Whole(1, 65535), default=1, about="the lowest port its keeps may listen on")
    last_port: int = field(Whole(1, 65535), default=65535, about="the highest port its keeps may listen on")
    addresses: tuple[str, ...] = field(
        Items(Text(60), 64), default=(), about="the addresses its keeps may listen on; empty for every one"
    )


class CallerEntry(Record):
    """One entry of `callers`. None, and what is not in `ceilings`, comes from the entry `*`."""

    role: ConfiguredRole | None = field(Maybe(Word(ConfiguredRole)), default=None)
    grant_roots: tuple[GrantRoot, ...] | None = field(
        Maybe(Items(Nested(GrantRoot, "grant root", strict=True), 256)), default=None
    )
    ceilings: tuple[tuple[str, int], ...] = field(AskedLimits(), default=())
    quotas: Quotas | None = field(Maybe(Nested(Quotas, "quotas", strict=True)), default=None)


Callers = Mapping[str, CallerEntry]


def quotas_for(callers: Callers, name: str) -> Quotas:
    """The quotas of the caller called so: its own, or those of everyone, or the defaults."""
    return entry_of(callers, name).quotas or entry_of(callers, EVERYONE).quotas or Quotas()


def entry_of(callers: Callers, name: str) -> CallerEntry:
    """The entry of exactly this name, empty where there is none."""
    return callers.get(name, CallerEntry())
