"""What the manager itself sets on a keep's unit, as (name, D-Bus signature, value). Pure.

Everything else stands in the installed drop-in keep@.service.d/10-keepfleet.conf. systemd reads drop-ins after a
transient unit's own properties, so what stands in a drop-in wins: none of these may stand in the installed one, and
an operator's own drop-in still has the last word. No text of a client's ever reaches a unit: systemd 252 writes some
strings of a transient unit unescaped into a unit file.
"""

from __future__ import annotations

import os

from keep_protocol.constants import slice_name
from keep_protocol.limits import Limits

Property = tuple[str, str, object]
LIMITS_VARIABLE = "KEEPFLEET_LIMITS"
"""Through it the loader learns what the keep may use; letters, digits, `=`, `_` and commas alone."""
PACKAGES_VARIABLE = "KEEPFLEET_PACKAGES"
"""The drop-in's ExecStart= expands it: a keep runs the packages of the manager that made it, after an upgrade too."""
PACKAGES = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
"""This manager's own packages: the version itself, not the link `current`, which the next upgrade points elsewhere."""
USEC_PER_PERCENT = 10_000
"""CPUQuotaPerSecUSec= counts the microseconds of processor time in one second."""


def keep_properties(kuuid: int, limits: Limits) -> tuple[Property, ...]:
    """The transient properties of the keep `kuuid` (man systemd.resource-control, man systemd.exec)."""
    return (
        ("Description", "s", f"Keep {kuuid}"),
        ("Slice", "s", slice_name(kuuid)),
        ("MemoryMax", "t", limits.unit_memory_bytes),
        ("TasksMax", "t", limits.tasks),
        ("CPUQuotaPerSecUSec", "t", limits.cpu_percent * USEC_PER_PERCENT),
        ("IOWeight", "t", limits.io_weight),
        ("LogRateLimitBurst", "u", limits.log_lines_per_second),
        ("LogExtraFields", "aay", [f"KEEP_ID={kuuid}".encode("ascii")]),
        ("Environment", "as", [f"{LIMITS_VARIABLE}={limits.to_text()}", f"{PACKAGES_VARIABLE}={PACKAGES}"]),
    )
