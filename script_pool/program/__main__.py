"""`python -m script_pool.program`: makes the commands that run scripts in keeps, next to what runs them.

Part of an installation: it takes some seconds once, and every keep maps what it leaves. What is there already, and was
made of the same, stays; and what another installation of this machine has left in `$KEEPFLEET_COMPILED`, a directory of
the caller's own, is copied from there.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable

from app_loader.check.programs import DIRECTORY, PYTHON, file_name
from app_loader.engine.binding import find_library
from app_loader.engine.compiled import Module
from app_loader.engine.settings import Settings, make_engine
from keep_protocol.spec import Profile
from script_pool.engine import cpython
from script_pool.engine.artifacts import Artifacts, processor

JAVASCRIPT = "javascript"
INSTALLED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "engine", "installed")
MADE_OF = "made-of"
"""The file that says what the commands were made of."""
KEPT = "KEEPFLEET_COMPILED"
COMMANDS_KEPT, ENGINES_KEPT = "commands", "engines"
"""The directories below one there, which is named by the digest of what they are made of."""
_SOURCES = ("command.py", "merging.py", "glue.wat", "prelude.js", "python.wat")


def main() -> None:
    """Makes them in the directory that is named, or where this installation looks for them."""
    directory = sys.argv[1] if len(sys.argv) > 1 else DIRECTORY
    os.makedirs(directory, 0o755, exist_ok=True)
    digest = digest_of_all()
    if _read(os.path.join(directory, MADE_OF)) == digest:
        return
    kept = os.environ.get(KEPT, "")
    place = os.path.join(kept, digest)
    if not kept:
        _make(directory, INSTALLED)
    else:
        if not os.path.isdir(place):
            _keep(place)
        with contextlib.suppress(PermissionError):  # what is used last is removed last, by its owner
            os.utime(place)
        for part, target in ((COMMANDS_KEPT, directory), (ENGINES_KEPT, INSTALLED)):
            _copy(os.path.join(place, part), target)
    with open(os.path.join(directory, MADE_OF), "w", encoding="ascii") as said:
        said.write(digest)


def _make(commands: str, engines: str) -> None:
    from script_pool.program.command import make, make_python  # here: what is made already takes no engine

    _compile(commands, JAVASCRIPT, make(), Profile)
    _compile(commands, PYTHON, make_python(), (Profile.STANDARD,))
    make_engines(engines)


def _keep(place: str) -> None:
    """Makes all of it there, whole or not at all; of two that do so concurrently, one wins."""
    os.makedirs(os.path.dirname(place), 0o755, exist_ok=True)
    made = tempfile.mkdtemp(dir=os.path.dirname(place))
    try:
        commands, engines = os.path.join(made, COMMANDS_KEPT), os.path.join(made, ENGINES_KEPT)
        os.mkdir(commands)
        _make(commands, engines)
        os.chmod(made, 0o755)  # noqa: S103  # an installation can be read by all who run it
        os.rename(made, place)
    except OSError:
        shutil.rmtree(made)
        if not os.path.isdir(place):
            raise


def _copy(source: str, target: str) -> None:
    """Each file is replaced whole: a process may map what it replaces."""
    os.makedirs(target, 0o755, exist_ok=True)
    for name in os.listdir(source):
        shutil.copyfile(os.path.join(source, name), os.path.join(target, f"{name}.new"))
        os.chmod(os.path.join(target, f"{name}.new"), 0o644)
        os.replace(os.path.join(target, f"{name}.new"), os.path.join(target, name))


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


def digest_of_all() -> str:
    """Of the sources, the guest's pin among them, of the library that compiles, of the processor's features, and of
    whether CPython can be made."""
    digest = hashlib.sha256(f"{_library()} {processor()} {cpython.can_make()}".encode() + cpython.sources())
    here = os.path.dirname(os.path.abspath(__file__))
    engine = sorted(name for name in os.listdir(os.path.join(here, "../engine")) if name.endswith((".py", ".js")))
    for name in (*_SOURCES, *(f"../engine/{each}" for each in engine), "../../app_loader/engine/settings.py"):
        with open(os.path.join(here, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def _library() -> str:
    """What the library's wheel says of its bytes, which would take a tenth of a second to read."""
    library = find_library()
    packages = os.path.dirname(os.path.dirname(os.path.dirname(library)))
    for record in glob.glob(os.path.join(glob.escape(packages), "wasmtime-*.dist-info", "RECORD")):
        for line in _read(record).splitlines():
            if line.startswith(f"{os.path.relpath(library, packages)},sha256="):
                return line
    found = os.stat(library)  # laid out by someone else
    return f"{found.st_size} {found.st_mtime_ns}"


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    main()
