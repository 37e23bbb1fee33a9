"""Unit files from their templates. Pure: text and values in, text out."""

from __future__ import annotations

import re

from keep_protocol.errors import ErrorKind, KeepfleetError

PLACEHOLDERS = ("PREFIX", "PYTHON", "PYTHON_REAL", "PACKAGES", "OPENSSL")
MARK = "# Written by `keepctl install`, which overwrites it: change it with `systemctl edit`, not here.\n"
"""The first line of every file we write; a file without it is not ours."""
_PLACEHOLDER = re.compile(r"@([A-Z][A-Z0-9_]*)@")
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9/._+-]*")
"""What a unit file takes without quoting: no white space, no %, no $, no quotes, no backslash."""


def check_path(path: str, what: str) -> str:
    """`path` when a unit file can hold it as it is. Raises KeepfleetError(CONFIGURATION) otherwise."""
    if not _PLAIN_PATH.fullmatch(path):
        raise KeepfleetError(
            ErrorKind.CONFIGURATION,
            f"cannot name {path!r}, {what}, in a unit: only letters, digits and / . _ + - may stand in it; "
            "install keepfleet elsewhere, for example in /opt/keepfleet",
        )
    return path


def render(name: str, template: str, values: dict[str, str]) -> str:
    """The unit file `name`. Raises KeepfleetError(CONFIGURATION) for a placeholder that is not known."""

    def value_of(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise KeepfleetError(
                ErrorKind.CONFIGURATION,
                f"cannot write {name}: {match[0]} is no placeholder; known are {', '.join(sorted(values))}",
            )
        return check_path(values[match[1]], f"@{match[1]}@")

    return MARK + _PLACEHOLDER.sub(value_of, template)
