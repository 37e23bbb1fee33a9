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
PYTHON = "python"
"""MicroPython's, which throws by WebAssembly's exceptions: the strict profile, which has none, has no Python."""
_HEAP_OF_MEMORY = 3 / 4
"""What a Python script's objects may take of a keep's memory; the interpreter asks for it as it begins, and touches a
64th of it then. The rest is for the script's text, which is there twice, and the interpreter's own."""
_PRELUDE = """
import sys
name, source = sys.argv[1:3]
del sys.argv[:2]
sys.argv[0] = name
try:
    exec(compile(source, name, "exec"), {"__name__": "__main__", "__file__": name})
except SystemExit as left:
    code = left.args[0] if left.args else 0
    if code is None or isinstance(code, int):
        raise
    sys.stderr.write(str(code) + "\\n")
    sys.exit(1)
except BaseException as error:
    import io
    text = io.StringIO()
    sys.print_exception(error, text)
    own = [line for line in text.getvalue().splitlines() if 'File "<stdin>"' not in line]
    sys.stderr.write("\\n".join(own) + "\\n")
    sys.exit(1)
"""
"""What runs a Python script: its traceback begins at its own lines, and what it leaves with is as CPython has it."""


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


def words_of(program: Program, memory_bytes: int) -> tuple[str, ...]:
    """What the arguments of the command that runs a script begin with. memory_bytes: what its guest may have."""
    script = (program.name, program.source.decode())
    if program.language != PYTHON:
        return script
    heap = int(memory_bytes * _HEAP_OF_MEMORY) >> 10
    return ("micropython", "-X", f"heapsize={heap}K", "-c", _PRELUDE, *script)


def check_program(module: int, result: int, profile: Profile) -> str:
    """Checks a script, and writes what is run of it, which is itself: there is nothing to compile. What is wrong in the
    script is said as it runs. Raises KeepfleetError(INVALID_MODULE), OSError."""
    program = read_program(module)
    if file_name(program.language, profile) not in AVAILABLE:
        raise KeepfleetError(ErrorKind.INVALID_MODULE, f"cannot take the script: {_missing(program.language, profile)}")
    left = memoryview(wrap(program))
    while left:
        left = left[os.write(result, left) :]
    return ""


def _missing(language: str, profile: Profile) -> str:
    if language == "typescript":
        return "it is TypeScript, whose types keepctl takes away before it is sent"
    if language == PYTHON and profile is Profile.STRICT:
        return "it is Python, which the strict profile has not: MicroPython throws by WebAssembly's exceptions"
    if language in ("javascript", PYTHON):
        return f"this installation has nothing that runs {language}; make it: keepctl install"
    return f"it is in {language[:40]!r}, which is no language of a keep's"
