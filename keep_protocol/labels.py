"""What a keep may be called: its name and its labels, checked. Pure; nothing of it ever reaches a unit's property."""

from __future__ import annotations

import re
from collections.abc import Iterable

from keep_protocol.errors import ErrorKind, KeepfleetError

MAX_LABELS = 16
MAX_LABEL_VALUE = 255
_NAME = re.compile(r"[a-z0-9-]{1,63}", re.ASCII)
_KEY = re.compile(r"[a-z0-9./-]{1,63}", re.ASCII)
Labels = tuple[tuple[str, str], ...]


def _bad(message: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, message)


def check_name(name: str) -> str:
    """`name` when a keep may be called so; "" is a keep without a name. Raises KeepfleetError(BAD_REQUEST)."""
    if name and not _NAME.fullmatch(name):
        raise _bad(f"cannot name a keep {name[:63]!r}: a name is 1 to 63 of a-z, 0-9 and -")
    return name


def check_label(key: str, value: object) -> tuple[str, str]:
    """The label, when a keep may have it. Raises KeepfleetError(BAD_REQUEST)."""
    if not _KEY.fullmatch(key):
        raise _bad(f"cannot label a keep {key[:63]!r}: a label's key is 1 to 63 of a-z, 0-9, `.`, `/` and -")
    if not isinstance(value, str) or len(value) > MAX_LABEL_VALUE or not value.isprintable():
        raise _bad(f"cannot label a keep {key!r}: its value must be at most {MAX_LABEL_VALUE} printable characters")
    return key, value


def check_labels(labels: Iterable[tuple[str, object]]) -> Labels:
    """The labels, each once, sorted by key. Raises KeepfleetError(BAD_REQUEST)."""
    checked = [check_label(key, value) for key, value in labels]
    if len(checked) > MAX_LABELS:
        raise _bad(f"cannot label a keep {len(checked)} times: at most {MAX_LABELS} labels fit")
    if len(dict(checked)) != len(checked):
        raise _bad("cannot label a keep: a key stands twice")
    return tuple(sorted(checked))
