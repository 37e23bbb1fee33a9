"""A script on the command line, made into the file that a keep is sent.

Import rule: that of `keepctl run`, and for TypeScript alone the engine that takes its types away.
"""

from __future__ import annotations

import os
from io import FileIO

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.program import LANGUAGES, MAX_SCRIPT_BYTES, Program, wrap
from keepctl.modules import read_file

TYPESCRIPT = LANGUAGES[".ts"]
JAVASCRIPT = LANGUAGES[".js"]


def language_of(path: str) -> str:
    """The language of a file by its name, "" for one that is no script."""
    return LANGUAGES.get(os.path.splitext(path)[1], "")


def wrapped(path: str) -> bytes:
    """The file of a script, of TypeScript without its types. Raises KeepfleetError."""
    language, source = language_of(path), read_file(path, MAX_SCRIPT_BYTES)
    if language == TYPESCRIPT:
        language, source = JAVASCRIPT, _without_types(path, source)
    return wrap(Program(language, os.path.basename(path), source))


def open_script(path: str) -> FileIO:
    """The same as an open file of that name, to be closed by the caller. Raises KeepfleetError."""
    data = wrapped(path)
    file = FileIO(os.memfd_create("script", os.MFD_CLOEXEC), "r+")
    file.write(data)
    file.seek(0)
    file.name = path  # what it is called in the keep
    return file


def _without_types(path: str, source: bytes) -> bytes:
    from script_pool.engine.interface import Fault  # here: it loads the engine's library
    from script_pool.program.types import strip_types

    try:
        return strip_types(source)
    except Fault as fault:
        raise KeepfleetError(
            ErrorKind.INVALID_MODULE, f"cannot read {path} as TypeScript", tuple(fault.message.splitlines())
        ) from fault
