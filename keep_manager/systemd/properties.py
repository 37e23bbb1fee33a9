"""What the manager itself sets on a keep's unit, as (name, D-Bus signature, value), and reads from it again. Pure.

Everything else stands in the installed drop-in keep@.service.d/10-keepfleet.conf. systemd reads drop-ins after a
transient unit's own properties, so what stands in a drop-in wins: none of these may stand in the installed one, and
an operator's own drop-in still has the last word. systemd 252 writes some strings of a transient unit unescaped into a
unit file, so that of a client's text only safe words reach it, each checked here: letters, digits, `.`, `_`, `@`, `-`.
"""

from __future__ import annotations

import logging

from keep_protocol.constants import slice_name, unit_name
from keep_protocol.errors import KeepfleetError
from keep_protocol.spec import NAME, OWNER, SPEC_VARIABLE, KeepSpec, Profile, decode_spec, encode_spec

LOG = logging.getLogger("keepfleet.units")
Property = tuple[str, str, object]
CONTROL_GROUP = "/keepfleet/cgroup"
"""Where a keep's root shows its unit's own control group, in which the kernel counts what it ended for memory."""
USEC_PER_PERCENT = 10_000
"""CPUQuotaPerSecUSec= counts the microseconds of processor time in one second."""


def keep_properties(kuuid: int, spec: KeepSpec, root: str | None, groups: str) -> tuple[Property, ...]:
    """The transient properties of the keep `kuuid` (man systemd.resource-control, man systemd.exec).

    `root` is what RootDirectory= will be; None names none, and then the installed unit cannot start. `groups` is where
    the service manager's control groups are mounted that count memory.

    Raises ValueError where its name or owner is no safe word, KeepfleetError(TOO_LARGE) as `encode_spec` does.
    """
    name, owner, limits = NAME.parse(spec.name), OWNER.parse(spec.owner), spec.limits
    fields = {"KEEP_ID": str(kuuid), "KEEP_NAME": name, "KEEP_OWNER": owner}
    # No memory may become executable, from the first instruction on; compiled code could not run (man systemd.exec).
    strict: tuple[Property, ...] = (("MemoryDenyWriteExecute", "b", True),) if spec.profile is Profile.STRICT else ()
    return (
        ("Description", "s", f"Keep {name or kuuid}" + (f" of {owner}" if owner else "")),
        ("Slice", "s", slice_name(kuuid)),
        ("MemoryMax", "t", limits.unit_memory_bytes),
        ("TasksMax", "t", limits.tasks),
        ("CPUQuotaPerSecUSec", "t", limits.cpu_percent * USEC_PER_PERCENT),
        ("IOWeight", "t", limits.io_weight),
        ("LogRateLimitBurst", "u", limits.log_lines_per_second),
        ("LogExtraFields", "aay", [f"{field}={word}".encode("ascii") for field, word in fields.items() if word]),
        *strict,
        ("Environment", "as", [f"{SPEC_VARIABLE}={encode_spec(spec)}"]),
        *(() if root is None else _root_properties(kuuid, root, groups)),
    )


def _root_properties(kuuid: int, root: str, groups: str) -> tuple[Property, ...]:
    """The keep's root, and in it, read-only, the control group of its unit alone; where there is none, as in a user's
    control groups without memory, the keep starts without it."""
    own = f"{groups}/keep.slice/{slice_name(kuuid)}/{unit_name(kuuid)}"
    return (("RootDirectory", "s", root), ("BindReadOnlyPaths", "a(ssbt)", [[own, CONTROL_GROUP, True, 0]]))


def spec_in(environment: object, unit: str) -> KeepSpec | None:
    """The spec in a unit's property Environment; None where there is none, or one that cannot be read."""
    for entry in environment if isinstance(environment, list) else []:
        name, _, text = str(entry).partition("=")
        if name == SPEC_VARIABLE:
            try:
                return decode_spec(text)
            except KeepfleetError as error:
                LOG.error("%s: only operators may touch it, as nothing says whose it is: %s", unit, error.message)
    return None
