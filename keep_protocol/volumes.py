"""Volumes as clients see them: directories that last, each of its own size, for declared keeps.

Pure: JSON values in, frozen records out.
"""

from __future__ import annotations

from keep_protocol.fields import Flag, Items, Record, Seconds, Text, Whole, field, parse
from keep_protocol.limits import MIB

V1_VOLUMES_PATH = "/v1/volumes"
NAME_PATTERN = "[a-z0-9-]{1,63}"
SIZES = (16 * MIB, 1024 * 1024 * MIB)
"""Below, the file system and its journal would take most of it; above, a volume is a disk of its own."""
INODES = (64, 1 << 28)
BYTES_PER_INODE = 16 * 1024
"""Where no number of inodes is asked for: what mke2fs takes for a disk of this size."""
MAX_USERS = 2000
"""As many as keeps may be declared."""


def usual_inodes(size: int) -> int:
    """How many a volume of that size has room for where no number is asked for."""
    return max(INODES[0], size // BYTES_PER_INODE)


class Volume(Record):
    """A volume."""

    name: str = field(Text(63, NAME_PATTERN), about="what it is called; one volume of the host has it")
    owner: str = field(Text(128), about="whose it is: the owner of the declared keep that had it first")
    size_bytes: int = field(Whole(*SIZES), about="how much of the host's disk it has, its file system included")
    inodes: int = field(Whole(*INODES), about="how many files and directories it has room for, at least")
    created_at: float = field(Seconds(), about="seconds of the epoch")
    declared: tuple[str, ...] = field(
        Items(Text(63), MAX_USERS), default=(), about="its owner's declared keeps whose manifest names it"
    )
    in_use: bool = field(Flag(), default=False, about="whether a keep has it now")
    detail: str = field(Text(), default="", about="a sentence for people: why it cannot be used, or empty")


def volume_from_wire(value: dict[str, object]) -> Volume:
    """The volume another process described. Raises KeepfleetError(BAD_REQUEST) on another shape."""
    return parse(Volume, value, "volume")
