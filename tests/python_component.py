"""CPython as scripts have it, made once for all runs of the tests and kept by its contents, as an installation does."""

from __future__ import annotations

import fcntl
import os

from script_pool.engine import cpython
from script_pool.engine.artifacts import Artifacts

KEPT = "/var/cache/keepfleet"


def python_directory(otherwise: str) -> str:
    """A directory where it is, below the tests' cache or `otherwise`; making it takes half a minute of processor time,
    the first time."""
    below = KEPT if os.access(KEPT, os.W_OK) else otherwise
    directory = os.path.join(below, "scripts-of-tests")
    artifacts = Artifacts(directory)
    with open(os.path.join(directory, "lock.json"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cpython.make(artifacts)
    return directory
