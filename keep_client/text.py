"""What a server said, made safe for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with every control character but newline and tab shown as an escape: a guest may have chosen it."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(text: str) -> str:
    """`text` made printable on one line."""
    return printable(" ".join(text.split()))
