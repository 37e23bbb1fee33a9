"""The JSON next to the table: every sample, and what it was measured on."""

from __future__ import annotations

import json
import os
import platform
import ssl
import sys
import time
from collections.abc import Sequence
from importlib import metadata

from benchmarks import dropin
from benchmarks.figures import Section
from benchmarks.host import Host, run

FORMAT = 1
"""Raised when a reader of older files would be misled."""
_DISTRIBUTIONS = ("keepfleet", "wasmtime", "aiohttp", "cryptography")


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def facts(host: Host) -> dict[str, object]:
    """What the figures depend on, as it is now."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load": os.getloadavg(),
        "kernel": platform.release(),
        "systemd": run("systemctl", "--version").splitlines()[0],
        "python": sys.version.split()[0],
        "openssl": ssl.OPENSSL_VERSION,
        "distributions": {name: metadata.version(name) for name in _DISTRIBUTIONS},
        "keep_directives": dropin.directives(host.drop_in),
    }


def write_results(path: str, before: dict[str, object], sections: Sequence[Section], *, quick: bool) -> None:
    """Writes one run; the directory is made."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    value = {
        "format": FORMAT,
        "quick": quick,
        "machine": before,
        "load_after": os.getloadavg(),
        "sections": [section.to_json() for section in sections],
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
