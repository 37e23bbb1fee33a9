"""For all unit tests: the real disk is not waited for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_flushing() -> Iterator[None]:
    """A flush has an effect that a power cut alone shows; what is tested of it is seen on a recorded disk, or by a
    test's own `os.fsync`. The thousands of others took half a minute of the disk's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
