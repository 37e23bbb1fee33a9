"""Scripts, which a keep runs as programs: what they are in, and the commands that run them, made at installation.

A command is a module of ours, compiled before any keep is: a script is an argument of it, so that nothing is compiled
for one, and what a script may reach is what a module may.
"""

from __future__ import annotations

import os

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.program import HEAD_BYTES, MAX_NAME, MAX_SCRIPT_BYTES, Program, is_program, unwrap, wrap
from keep_protocol.spec import Profile

DIRECTORY = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "languages")
"""Where the commands are: next to what runs them."""
ENDING = ".cwasm"
_MAX_FILE = HEAD_BYTES + MAX_SCRIPT_BYTES + 4 * MAX_NAME + 64 * 1024
"""With the manager's seal behind it."""


def file_name(language: str, profile: Profile) -> str:
    """The name of a command's compiled file."""
    return f"{language}-{profile.value}{ENDING}"


def _available() -> frozenset[str]:
    try:
        return frozenset(os.listdir(DIRECTORY))
    except FileNotFoundError:
        return frozenset()


AVAILABLE = _available()
"""The compiled files, looked for as this is imported: a checker that is locked can look for none."""


def holds_program(file: int) -> bool:
    """Whether the open file is a script's."""
    return is_program(os.pread(file, HEAD_BYTES, 0))


def read_program(file: int) -> Program:
    """The script in an open file. Raises KeepfleetError(INVALID_MODULE)."""
    data = b""
    while len(data) <= _MAX_FILE and (piece := os.pread(file, _MAX_FILE + 1, len(data))):
        data += piece
    return unwrap(data)


def check_program(module: int, result: int, profile: Profile) -> str:
    """Checks a script, and writes what is run of it, which is itself: there is nothing to compile. What is wrong in the
    script is said as it runs. Raises KeepfleetError(INVALID_MODULE), OSError."""
    program = read_program(module)
    if file_name(program.language, profile) not in AVAILABLE:
        raise KeepfleetError(ErrorKind.INVALID_MODULE, f"cannot take the script: {_missing(program.language)}")
    left = memoryview(wrap(program))
    while left:
        left = left[os.write(result, left) :]
    return ""


def _missing(language: str) -> str:
    if language == "typescript":
        return "it is TypeScript, whose types keepctl takes away before it is sent"
    if language == "python":
        return "a keep runs no Python yet; a program that brings its own, built by componentize-py, it does"
    if language == "javascript":
        return "this installation has no JavaScript; make it: keepctl install"
    return f"it is in {language[:40]!r}, which is no language of a keep's"
