"""The entry point of `keepctl`: who reads a command line, and how the process ends.

click reads what is rare: --help, completion, mistakes, and commands that are no table. It is imported for those alone.
"""

from __future__ import annotations

import gc
import os
import sys

COMPLETING = "_KEEPCTL_COMPLETE"
"""The variable by which a shell asks for completion."""


def open_standard_streams() -> None:
    """What was closed by `2>&-` is /dev/null: nothing is said there, and no other file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # for the process's life


def exit_code(words: list[str]) -> int:
    """Runs one command line, for its exit code."""
    if words == ["--version"]:
        from keepctl.version import print_version

        return print_version()
    if words and COMPLETING not in os.environ:
        from keepctl.commands import run_table

        code = run_table(words[0], words[1:])
        if code is not None:
            return code
    from keepctl.commands.shared import by_click

    return by_click(words)


def main() -> None:
    """Runs one command and exits with its code, without taking the interpreter apart: that is 20 ms of nothing."""
    gc.disable()  # until all is imported: nothing of that goes away, and looking for it is 2 ms
    open_standard_streams()
    code = exit_code(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a line that matters was flushed when it was printed
            code = code or 1
    os._exit(code)


if __name__ == "__main__":
    main()
