"""What a sandbox shows at which path, besides the machine's own files.

Import rule: `json` and `os` alone, for `first`.
"""

from __future__ import annotations

import json
import os

REBOUND = ("/opt", "/home", "/var/lib")
"""Directories whose entries stay the machine's, while a new entry is the sandbox's own: installed software, users, and
what services keep."""
EMPTIED = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 (they are mounted over, not written to)
"""Directories for everybody that start empty: what units leave there must not stay on the machine."""
SYSTEMD_STATE = "/var/lib/systemd"
"""What systemd keeps for a host, as the key that secrets are encrypted with, which goes with a machine ID: each sandbox
has its own, which starts empty."""
OWN = ("/run", "/etc", *REBOUND, *EMPTIED)
"""Below these a mount point may be made, because it exists in the sandbox alone."""


class Layout:
    """Extra mounts: `binds` are (source outside, place inside, read-only), `tmpfs` are empty directories inside.

    `root` is a directory to boot in the place of the machine's root file system. Raises ValueError for a path that is
    not absolute and normal.
    """

    def __init__(
        self, binds: tuple[tuple[str, str, bool], ...] = (), tmpfs: tuple[str, ...] = (), root: str | None = None
    ) -> None:
        for path in (*tmpfs, *(place for bind in binds for place in bind[:2]), *([root] if root else [])):
            if not os.path.isabs(path) or os.path.normpath(path) != path or path == "/":
                raise ValueError(f"cannot mount {path!r}: it must be an absolute path without . or ..")
        self.binds = binds
        self.tmpfs = tmpfs
        self.root = root

    def __repr__(self) -> str:
        return f"Layout(binds={self.binds!r}, tmpfs={self.tmpfs!r}, root={self.root!r})"

    def to_json(self) -> str:
        """For `from_json` in the process that becomes PID 1."""
        return json.dumps({"binds": self.binds, "tmpfs": self.tmpfs, "root": self.root})


def from_json(text: str) -> Layout:
    """The layout `to_json` wrote."""
    value = json.loads(text)
    binds = tuple((str(source), str(place), bool(read_only)) for source, place, read_only in value["binds"])
    return Layout(binds, tuple(str(place) for place in value["tmpfs"]), value["root"])


def parse_bind(text: str) -> tuple[str, str, bool]:
    """`SOURCE:PLACE` or `SOURCE:PLACE:ro`. Raises ValueError for anything else."""
    source, _, rest = text.partition(":")
    place, _, mode = rest.partition(":")
    if not source or not place or mode not in ("", "ro", "rw"):
        raise ValueError(f"cannot read {text!r} as a bind: it must be SOURCE:PLACE or SOURCE:PLACE:ro")
    return source, place, mode == "ro"
