"""The loader's log: one line a fact on standard error, which is the journal's.

Import rule: `sys` alone.
"""

from __future__ import annotations

import sys


def plain(text: str, limit: int) -> str:
    """`text` on one line of at most `limit` printable characters: fit for a log, a terminal and sd_notify."""
    return "".join(character if character.isprintable() else " " for character in text[:limit]).strip()


def log(line: str) -> None:
    """Writes one line; a journal that has gone away must not take the keep with it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        return
