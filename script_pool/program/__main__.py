"""`python -m script_pool.program`: makes the commands that run scripts in keeps, next to what runs them.

Part of an installation: it takes some seconds once, and every keep maps what it leaves. What is there already, and was
made of the same, stays.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable

from app_loader.check.programs import DIRECTORY, PYTHON, file_name
from app_loader.engine.binding import find_library
from app_loader.engine.compiled import Module
from app_loader.engine.settings import Settings, make_engine
from keep_protocol.spec import Profile
from script_pool.engine import cpython
from script_pool.engine.artifacts import Artifacts

JAVASCRIPT = "javascript"
INSTALLED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "engine", "installed")
MADE_OF = "made-of"
"""The file that says what the commands were made of."""
_SOURCES = ("command.py", "merging.py", "glue.wat", "prelude.js", "python.wat")


def main() -> None:
    """Makes them in the directory that is named, or where this installation looks for them."""
    directory = sys.argv[1] if len(sys.argv) > 1 else DIRECTORY
    os.makedirs(directory, 0o755, exist_ok=True)
    digest = _digest()
    if _read(os.path.join(directory, MADE_OF)) == digest:
        return
    from script_pool.program.command import make, make_python  # here: what is made already takes no engine

    _compile(directory, JAVASCRIPT, make(), Profile)
    _compile(directory, PYTHON, make_python(), (Profile.STANDARD,))
    make_engines(INSTALLED)
    with open(os.path.join(directory, MADE_OF), "w", encoding="ascii") as said:
        said.write(digest)


def _compile(directory: str, language: str, module: bytes, profiles: Iterable[Profile]) -> None:
    """Leaves the command of a language, for each of the profiles that its interpreter can run in."""
    for profile in profiles:
        with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
            settings = Settings(images=True, profile=profile)
            Module.compile(make_engine(settings), module).store(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        os.replace(file.name, os.path.join(directory, file_name(language, profile)))


def make_engines(directory: str) -> None:
    """What a script pool in a keep loads: all that a pool compiles at its first start, and CPython, where what makes
    it is installed."""
    from script_pool.engine.languages import Languages

    os.makedirs(directory, 0o755, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        if cpython.can_make():
            cpython.make(Artifacts(made))
        Languages(made).warm()
        Artifacts(made).install(directory)


def _digest() -> str:
    """Of the sources, the guest's pin among them, and of the library that compiles."""
    library = os.stat(find_library())
    digest = hashlib.sha256(
        f"{library.st_size} {library.st_mtime_ns} {cpython.can_make()}".encode() + cpython.sources()
    )
    here = os.path.dirname(os.path.abspath(__file__))
    engine = sorted(name for name in os.listdir(os.path.join(here, "../engine")) if name.endswith((".py", ".js")))
    for name in (*_SOURCES, *(f"../engine/{each}" for each in engine), "../../app_loader/engine/settings.py"):
        with open(os.path.join(here, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    main()
