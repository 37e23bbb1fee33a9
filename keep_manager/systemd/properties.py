"""What the manager itself sets on a keep's unit, as (name, D-Bus signature, value), and reads from it again. Pure.

Everything else stands in the installed drop-in keep@.service.d/10-keepfleet.conf. systemd reads drop-ins after a
transient unit's own properties, so what stands in a drop-in wins: none of these may stand in the installed one, and
an operator's own drop-in still has the last word. systemd 252 writes some strings of a transient unit unescaped into a
unit file, so that of a client's text only safe words reach it, each checked here: letters, digits, `.`, `_`, `@`, `-`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from keep_protocol.constants import slice_name, unit_name
from keep_protocol.errors import KeepfleetError
from keep_protocol.spec import NAME, OWNER, SPEC_VARIABLE, START_VARIABLE, KeepSpec, Profile, decode_spec, encode_spec

LOG = logging.getLogger("keepfleet.units")
Property = tuple[str, str, object]
CLAIMED = "spec:"
"""In the description of a spare's unit, before the spec of the keep that it has become; in no safe word."""
CONTROL_GROUP = "/keepfleet/cgroup"
"""Where a keep's root shows its unit's own control group, in which the kernel counts what it ended for memory."""
LINES_DOUBLED, OWN_LINES = 2, 64
"""The loader gives journald at most half of the entries that this takes in a second, so that what has queued up while
journald stood still does not come to more together with what is new; and it has lines of its own."""
USEC_PER_PERCENT = 10_000
"""CPUQuotaPerSecUSec= counts the microseconds of processor time in one second."""


def keep_properties(
    kuuid: int, spec: KeepSpec, root: str | None, groups: str, *, start_follows: bool = False
) -> tuple[Property, ...]:
    """The transient properties of the keep `kuuid` (man systemd.resource-control, man systemd.exec).

    `root` is what RootDirectory= will be; None names none, and then the installed unit cannot start. `groups` is where
    the service manager's control groups are mounted that count memory. start_follows: as START_VARIABLE has it.

    Raises ValueError where its name or owner is no safe word, KeepfleetError(TOO_LARGE) as `encode_spec` does.
    """
    # No memory may become executable, from the first instruction on; compiled code could not run (man systemd.exec).
    strict: tuple[Property, ...] = (("MemoryDenyWriteExecute", "b", True),) if spec.profile is Profile.STRICT else ()
    return (
        ("Description", "s", _description(kuuid, spec)),
        ("Slice", "s", slice_name(kuuid)),
        *_live(spec),
        ("LogRateLimitBurst", "u", LINES_DOUBLED * spec.limits.log_lines_per_second + OWN_LINES),
        ("LogExtraFields", "aay", log_fields(kuuid, spec)),
        *strict,
        ("Environment", "as", [f"{SPEC_VARIABLE}={encode_spec(spec)}", *[f"{START_VARIABLE}=1"] * start_follows]),
        *(() if root is None else _root_properties(kuuid, root, groups)),
    )


def credential_properties(found: Mapping[str, tuple[str, bool]]) -> tuple[Property, ...]:
    """What has systemd give a unit these credentials, each from the file at its path, and whether that is encrypted
    (man systemd.exec, LoadCredential=). The unit shows names and paths, and no value. Pure."""
    plain = [[name, path] for name, (path, encrypted) in found.items() if not encrypted]
    sealed = [[name, path] for name, (path, encrypted) in found.items() if encrypted]
    by_property = (("LoadCredential", plain), ("LoadCredentialEncrypted", sealed))
    return tuple((name, "a(ss)", listed) for name, listed in by_property if listed)


def _live(spec: KeepSpec) -> tuple[Property, ...]:
    """Limits that systemd sets on a unit that runs, too."""
    limits = spec.limits
    return (
        ("MemoryMax", "t", limits.unit_memory_bytes),
        ("TasksMax", "t", limits.tasks),
        ("CPUQuotaPerSecUSec", "t", limits.cpu_percent * USEC_PER_PERCENT),
        ("IOWeight", "t", limits.io_weight),
    )


def narrowed(spec: KeepSpec, now: int) -> tuple[Property, ...]:
    """What is set on the unit of a keep whose guest runs, and that may have `now` bytes: what was left for compiling is
    needed no more. Nothing where it has no more than that: an operator may have given it less."""
    wanted = spec.limits.running_memory_bytes
    return (("MemoryMax", "t", wanted),) if now > wanted else ()


def _description(kuuid: int, spec: KeepSpec) -> str:
    """What people see of the keep in `systemctl status`. Raises ValueError where its name or owner is no safe word."""
    name, owner = NAME.parse(spec.name), OWNER.parse(spec.owner)
    if spec.spare and not owner:
        return f"Spare keep {kuuid}"
    return f"Keep {name or kuuid}" + (f" of {owner}" if owner else "")


def log_fields(kuuid: int, spec: KeepSpec) -> list[bytes]:
    """The fields of the keep's lines in the journal. Raises ValueError where its name or owner is no safe word."""
    fields = {"KEEP_ID": str(kuuid), "KEEP_NAME": NAME.parse(spec.name), "KEEP_OWNER": OWNER.parse(spec.owner)}
    return [f"{field}={word}".encode("ascii") for field, word in fields.items() if word]


def claim_properties(kuuid: int, spec: KeepSpec) -> tuple[Property, ...]:
    """What is set on a spare's unit, in one step, when it becomes the keep that `spec` describes.

    Of what systemd sets on a unit that runs only the description is text of ours: the spec stands there, over the one
    in its environment. It stays over daemon-reload and daemon-reexec. Raises as `keep_properties` does.
    """
    return (("Description", "s", f"{_description(kuuid, spec)} {CLAIMED}{encode_spec(spec)}"), *_live(spec))


def claimed_in(description: object) -> KeepSpec | None:
    """The spec in the description of a spare's unit; None while it is a spare. Raises KeepfleetError(BAD_REQUEST or
    TOO_LARGE) for one that cannot be read."""
    _, claimed, text = str(description).rpartition(CLAIMED)
    return decode_spec(text) if claimed else None


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
