"""The calls of codelets in C: built where there is a compiler, and used where it was built.

`python -m codelets build` builds it next to this file. Without it everything works, and a call takes ten times as long.
Import rule: the standard library, keep_protocol.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from typing import Any

from keep_protocol.errors import ErrorKind, KeepfleetError

NAME = "_fast"
INTERFACE = 2
"""What the classes of fast.c take; a module that an earlier version has built takes something else."""
BUILD_SECONDS = 120.0
PACKAGE = DIRECTORY = os.path.dirname(os.path.abspath(__file__))
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers", "-fPIC", "-shared")


def _file() -> str:
    return NAME + str(sysconfig.get_config_var("EXT_SUFFIX"))


def load(directory: str = "") -> Any:
    """The module that was built into `directory`, or next to this file, for this interpreter; None where there is none.

    Raises KeepfleetError(CONFIGURATION) for one that cannot be loaded.
    """
    path = os.path.join(directory or DIRECTORY, _file())
    if not os.path.exists(path):
        return None
    loader = importlib.machinery.ExtensionFileLoader(NAME, path)
    spec = importlib.util.spec_from_file_location(NAME, path, loader=loader)
    try:
        if spec is None:
            raise ImportError("it is no module")
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        if getattr(module, "INTERFACE", 1) != INTERFACE:
            raise ImportError("another version of keepfleet has built it")
    except ImportError as error:
        why = f"{error}; remove it, or run: python -m codelets build"
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot load {path}: {why}") from error
    return module


def build(directory: str = "") -> str:
    """Builds it into `directory`; the file's path. Raises KeepfleetError(UNAVAILABLE), with the compiler's words."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    include = sysconfig.get_path("include")
    if compiler is None or not os.path.exists(os.path.join(include, "Python.h")):
        missing = "C compiler" if compiler is None else f"{include}/Python.h"
        why = f"there is no {missing}; on Debian, run: apt-get install gcc python3-dev"
        raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot build the calls of codelets in C: {why}")
    directory = directory or DIRECTORY
    path = os.path.join(directory, _file())
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as aside:
            made = os.path.join(aside, _file())
            command = [compiler, *_FLAGS, f"-I{include}", os.path.join(PACKAGE, "fast.c"), "-o", made]
            done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
            if done.returncode:
                lines = tuple(done.stderr.strip().splitlines()[-20:])
                why = lines[0] if lines else f"{compiler} exited {done.returncode}"
                raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot build the calls of codelets in C: {why}", lines)
            os.replace(made, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot build the calls of codelets in C: {error}") from error
    return path
