"""CPython as scripts have it, made once for all runs of the tests and kept by its contents, as an installation does."""

from __future__ import annotations

import fcntl
import os

import pytest

from script_pool.engine import cpython
from script_pool.engine.artifacts import Artifacts


@pytest.fixture(scope="session")
def python_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory where it is; making it takes half a minute of processor time, the first time."""
    below = (
        "/var/cache/keepfleet" if os.access("/var/cache/keepfleet", os.W_OK) else str(tmp_path_factory.getbasetemp())
    )
    directory = os.path.join(below, "scripts-of-tests")
    artifacts = Artifacts(directory)
    with open(os.path.join(directory, "lock.json"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cpython.make(artifacts)
    return directory
