"""The users in a root's own /etc/passwd and /etc/group, read as files.

The C library would load the root's modules for it (nsswitch.conf), which may be of another C library's version.

Import rule: none but the language's own; for `agent`.
"""

from __future__ import annotations

from typing import NamedTuple


class Account(NamedTuple):
    """A user: `groups` are all it belongs to. `name` and `home` are empty for a number without an entry."""

    uid: int
    gid: int
    groups: list[int]
    name: str = ""
    home: str = ""

    def environment(self) -> dict[str, str]:
        """What a login would set."""
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name} if self.name else {}


def _entries(path: str) -> list[list[str]]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return [fields for line in file if len(fields := line.rstrip("\n").split(":")) >= 4]


def find(user: str, etc: str = "/etc") -> Account:
    """The user called `user`, a name or a number. Raises LookupError for a name that is not there.

    A number without an entry is a user without a name, whose one group has the same number.
    Raises OSError where `etc` has no such files.
    """
    number = user.isdecimal()
    for name, _, uid, gid, _, home, *_ in (entry for entry in _entries(f"{etc}/passwd") if len(entry) >= 6):
        if uid == user if number else name == user:
            further = [int(fields[2]) for fields in _entries(f"{etc}/group") if name in fields[3].split(",")]
            return Account(int(uid), int(gid), sorted({int(gid), *further}), name, home)
    if not number:
        raise LookupError(f"there is no user {user}")
    return Account(int(user), int(user), [int(user)])


def group(name: str, etc: str = "/etc") -> int:
    """The number of the group `name`. Raises LookupError where there is none."""
    for fields in _entries(f"{etc}/group"):
        if fields[0] == name:
            return int(fields[2])
    raise LookupError(f"there is no group {name}")
