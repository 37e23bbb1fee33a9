"""Every benchmark by name, and one run of some of them."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Sequence

from benchmarks import (
    codelets,
    deadlines,
    declared,
    fleet,
    languages,
    lifecycle,
    memory,
    output,
    podman,
    rate,
    scripts,
    store,
    storing,
    transfer,
    typed,
)
from benchmarks.figures import Figure, NoSamples, Section
from benchmarks.host import Host
from benchmarks.measuring import FULL, QUICK, Effort, MeasurementFailed, report
from keep_protocol.errors import KeepfleetError

_FAILURES = (MeasurementFailed, KeepfleetError, NoSamples, OSError, http.client.HTTPException)
Benchmark = tuple[str, Callable[[Host, Effort], list[Figure]]]
BENCHMARKS: dict[str, Benchmark] = {
    "lifecycle": ("One keep's life, against a unit that only sleeps", lifecycle.measure),
    "typed": ("One whole run from the command line", typed.measure),
    "podman": ("The same against podman, in turns", podman.measure),
    "output": ("What a guest writes, on its way to a client", output.measure),
    "deadlines": ("A limit of time, kept", deadlines.measure),
    "rate": ("Creation rate", rate.measure),
    "memory": ("Private memory of one keep", memory.measure),
    "transfer": ("A large upload", transfer.measure),
    "store": ("The module store", storing.measure),
    "stored": ("Starts from the module store", store.measure),
    "scripts": ("Scripts, against node:vm", scripts.measure),
    "languages": ("Scripts in each language, and host functions", languages.measure),
    "codelets": ("Codelets at a hook, against a plain callback", codelets.measure),
    "declared": ("Many declared keeps, and a boot", declared.measure),
    "fleet": ("Many keeps, and a manager killed", fleet.measure),
}


def _section(host: Host, name: str, effort: Effort) -> Section:
    title, measure = BENCHMARKS[name]
    began = time.monotonic()
    try:
        host.clear()  # of what an earlier one left when it failed
        figures = tuple(measure(host, effort))
    except _FAILURES as error:
        return Section(name, title, failure=f"{type(error).__name__}: {error}", seconds=time.monotonic() - began)
    return Section(name, title, figures, seconds=time.monotonic() - began)


def run_all(host: Host, names: Sequence[str], *, quick: bool) -> list[Section]:
    """Each named benchmark's section, in order; one that fails does not keep the next from running."""
    effort = QUICK if quick else FULL
    sections = []
    for name in names:
        report(f"{name}: {BENCHMARKS[name][0]}")
        section = _section(host, name, effort)
        if section.failure:
            report(f"{name} FAILED: {section.failure}")
        sections.append(section)
    return sections
