"""What compiles and loads modules in a keep's root, as one word: artifacts made by another are not its own.

wasmtime accepts compiled code whose version, target, processor features and settings are its own, and says so only
when it loads that. Here the same is known beforehand by what decides it: the engine's library and our settings of
it, byte by byte, and the processor. More is taken for different than need be, and never less.
Import rule: that of module_store.
"""

from __future__ import annotations

import glob
import hashlib
import os
from functools import cache

from keep_protocol.errors import ErrorKind, KeepfleetError

_PACKAGES = "keepfleet/packages"
_LIBRARY, _SETTINGS = "wasmtime/*/_libwasmtime.so", "app_loader/engine/settings.py"
_FEATURES = ("flags", "Features")
"""How /proc/cpuinfo calls them, on x86-64 and on aarch64."""


def engine_of(root: str, processor: str = "/proc/cpuinfo") -> str:
    """The engine of the keeps' root `root`, on this machine. Raises KeepfleetError(CONFIGURATION) where there is none.

    The library has 30 MB: call it in a thread. It is read once as long as it stays the same file.
    """
    hashed = hashlib.sha256()
    for pattern in (_LIBRARY, _SETTINGS):
        found = glob.glob(pattern, root_dir=os.path.join(root, _PACKAGES))
        if len(found) != 1:
            raise KeepfleetError(
                ErrorKind.CONFIGURATION,
                f"cannot find the engine: {root}/{_PACKAGES} has {len(found)} files {pattern}; run: keepctl install",
            )
        path = os.path.join(root, _PACKAGES, found[0])
        try:
            status = os.stat(path)
            hashed.update(_digest(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError as error:
            raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot read {path}: {error.strerror}") from error
    hashed.update(os.uname().machine.encode())
    hashed.update(features(processor).encode())
    return hashed.hexdigest()


def features(processor: str) -> str:
    """The features of the processors that the file `processor` lists, in one order; "" where it names none."""
    found: set[str] = set()
    try:
        with open(processor, encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, words = line.partition(":")
                if name.strip() in _FEATURES:
                    found.update(words.split())
    except OSError:
        return ""
    return " ".join(sorted(found))


@cache
def _digest(path: str, *_: int) -> bytes:
    """Of a file of this identity."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
