"""Which version of keepfleet this is, said without `importlib.metadata`, which costs 30 ms."""

from __future__ import annotations

import os
import sys

_DISTRIBUTION = "keepfleet-"
_INFORMATION = ".dist-info"
"""How the folder is called that every installer makes next to what it installs, the version between the two."""


def installed_version() -> str | None:
    """The version of the distribution that comes first on sys.path; None in a checkout that is not installed."""
    for directory in sys.path:
        try:
            names = os.listdir(directory or ".")
        except OSError:  # a zip file, or nothing
            continue
        for name in names:
            if name.startswith(_DISTRIBUTION) and name.endswith(_INFORMATION):
                return name[len(_DISTRIBUTION) : -len(_INFORMATION)]
    return None


def print_version() -> int:
    """Prints it; the exit code."""
    try:
        print(version_line(), flush=True)
    except OSError as error:
        from keepctl.display import unwritten

        return unwritten(error)
    return 0


def version_line() -> str:
    """What `keepctl --version` prints. A checkout's version is what git says, and not what pyproject.toml does."""
    return f"keepctl {installed_version() or 'unknown (not installed)'}"
