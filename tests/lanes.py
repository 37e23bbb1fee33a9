"""The order in which files are given to parallel workers: the longest first, as recorded here; then all others."""

from __future__ import annotations

LONGEST_FIRST: tuple[str, ...] = ()
"""Files that take more than some seconds, by their seconds on a quiet machine of two processors; what is new goes last
until it is recorded (`./run test --durations=60` shows the seconds of each test)."""


def order(path: str) -> int:
    """The place of the file at `path`, which is relative to the checkout."""
    return LONGEST_FIRST.index(path) if path in LONGEST_FIRST else len(LONGEST_FIRST)
