"""What the keep-loader and its upload endpoint import: each keep on a host pays for it, so the whole list stands here.

A module that is added costs start time and private memory in every keep. Add it to the list only with a reason,
and with `benchmarks/` run before and after.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import keep_loader

# With the first start come start and workload, supervisor, process, running, outcome, streams and reports; with a
# record of a loader before it, outcome. An idle keep has none of them.
MAIN = Path(keep_loader.__file__).parent / "__main__.py"
OURS = {
    "keep_isolation",
    *(f"keep_isolation.{name}" for name in ("filters", "kernel", "landlock", "locks")),
    "keep_loader",
    *(f"keep_loader.{name}" for name in ("control", "isolation", "loader", "loop", "settings", "state")),
    "keep_protocol",
    *(
        f"keep_protocol.{name}"
        for name in (
            "constants",
            "control",
            "enumeration",
            "errors",
            "fields",
            "record",
            "keep",
            "limits",
            "outcome",
            "patterns",
            "sdnotify",
            "sockets",
            "spec",
            "states",
            "strict_json",
        )
    ),
}
# In addition to what `python -I -S` has loaded before our first line.
STANDARD_LIBRARY = {
    "__future__",
    "_collections_abc",
    "_ctypes",
    "_json",
    "_socket",
    "_stat",
    "_struct",
    "binascii",
    "errno",
    "fcntl",
    "genericpath",
    "os",
    "posixpath",
    "select",
    "stat",
    "struct",
}
FORBIDDEN = {
    "array",
    "asyncio",
    "collections",
    "contextlib",
    "ctypes",
    "dataclasses",
    "enum",
    "functools",
    "importlib",
    "inspect",
    "json",
    "logging",
    "pathlib",
    "re",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "traceback",
    "typing",
}


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """The modules a loader has when it is about to open its socket, as `-X importtime` lists them."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", str(MAIN), "none"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2, done.stderr
    names = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    bare = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", "-c", ""], capture_output=True, text=True, timeout=30
    )
    before = {line.rpartition("|")[2].strip() for line in bare.stderr.splitlines() if line.startswith("import time:")}
    return set(names) - before - {"imported package"}


def test_the_loader_imports_these_modules_of_ours_and_no_others(imported: set[str]) -> None:
    assert {name for name in imported if name.startswith(("keep_", "app_"))} == OURS


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the list is that of the release the loader is measured on")
def test_the_loader_imports_these_modules_of_the_standard_library_and_no_others(imported: set[str]) -> None:
    assert imported - OURS == STANDARD_LIBRARY


def test_nothing_heavy_is_imported(imported: set[str]) -> None:
    assert not imported & FORBIDDEN


ENDPOINT = """
import sys
sys.path.append(sys.argv[1])
import keep_loader.loader
loader = set(sys.modules)
import app_loader.receive.service, app_loader.receive.access, app_loader.receive.endpoint, keep_isolation.locks
print(*set(sys.modules) - loader)
"""
NOT_IN_AN_ENDPOINT = {"base64", "email", "hmac", "http", "urllib", "warnings", "wasmtime"}
"""TLS is spoken through `_ssl`, HTTP by a reader of our own, libcrypto called through `_ctypes`."""


def test_an_endpoint_imports_nothing_heavy_either() -> None:
    command = [sys.executable, "-I", "-S", "-c", ENDPOINT, str(MAIN.parent.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    added = set(done.stdout.split())
    assert {"_ssl", "app_loader.receive.http1"} <= added
    assert not added & (FORBIDDEN | NOT_IN_AN_ENDPOINT)


_STARTED = """
import sys
sys.path.insert(0, sys.argv[1])
import keep_loader.loader, keep_loader.process, keep_loader.start, keep_loader.supervisor
from keep_protocol.control import StartMessage, decode_start, start
names = ("listener", "client-ca", "revoked", "output", "record", "journal", "workload", "directory-0", "secret-1")
message = StartMessage("127.0.0.1", ("a.example", "::1"), ("name:admin",), names)
assert decode_start(start(message).contents) == message
print(*sys.modules)
"""


def test_a_start_imports_nothing_that_every_fork_would_then_carry() -> None:
    """A pattern that is not plain has `re` imported for it: 5 ms of each start, and a megabyte of each process."""
    command = [sys.executable, "-I", "-S", "-c", _STARTED, str(MAIN.parent.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    found = set(done.stdout.split())
    assert not sorted(FORBIDDEN & found)


_PREPARED = """
import sys
sys.path.insert(0, sys.argv[1])
import keep_loader.loader, keep_loader.process, keep_loader.start, keep_loader.supervisor
from app_loader.receive import service
service.prepare()
before = set(sys.modules)
from app_loader.receive.access import UploadAccess
from app_loader.receive.endpoint import Endpoint
from keep_isolation.locks import lock_endpoint
print(*sorted(set(sys.modules) - before), "|", *sys.modules)
"""


def test_an_endpoint_that_was_prepared_has_imported_what_serves_a_client() -> None:
    command = [sys.executable, "-I", "-S", "-c", _PREPARED, str(MAIN.parent.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    late, _, known = done.stdout.partition("|")
    assert not late.split()
    assert not sorted((FORBIDDEN | {"hashlib", "hmac"}) & set(known.split()))
