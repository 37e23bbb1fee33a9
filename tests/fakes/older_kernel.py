"""The loader of `loader_main.py` on a kernel without Landlock and without PR_SET_MDWE, as a filter makes it look."""

from __future__ import annotations

import errno
import os
import runpy
from pathlib import Path

from keep_isolation import filters, kernel

_PR_SET_MDWE, _PR_GET_MDWE = 65, 66


def without_newer_parts() -> None:
    """Answers as such a kernel does, from now on."""
    machine = os.uname().machine
    column, code = kernel.MACHINES.index(machine), filters.begin(machine)
    options = filters._refused_if(0, _PR_SET_MDWE, _PR_GET_MDWE)
    for name, rule in (("landlock_create_ruleset", [filters.refuse(errno.ENOSYS)]), ("prctl", options)):
        code += filters.only_if(kernel.NUMBERS[name][column], rule)
    filters.install([*code, (filters.RETURN, 0, 0, filters.ALLOW)])


if __name__ == "__main__":
    without_newer_parts()
    runpy.run_path(str(Path(__file__).with_name("loader_main.py")), run_name="__main__")
