"""What each caller may ask for, and the limits that come of a request. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from keep_manager.callers import EVERYONE, CallerEntry
from keep_manager.model import Allowance, Caller
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import BOUNDS, DEFAULTS, MIB, Limits

DEFAULT_CEILINGS: dict[str, int] = {
    **DEFAULTS,
    "memory_bytes": 1024 * MIB,
    "table_elements": BOUNDS["table_elements"][1],
    "stack_bytes": BOUNDS["stack_bytes"][1],
    "wall_seconds": 7 * 86400,
    "cpu_seconds": 7 * 86400,
    "tasks": 64,
}
"""What a caller may raise without anybody having said so: its own memory and time, by a factor that suits a host of a
few gigabytes. What its neighbours feel (processors, weight, lines a second) stays at the default."""


def allowance(entries: Mapping[str, CallerEntry], caller: Caller) -> Allowance:
    """What `caller` may ask for: its own entry over that of everybody, over the defaults."""
    common = entries.get(EVERYONE, CallerEntry())
    own = entries.get(caller.name, CallerEntry()) if caller.name else CallerEntry()
    roots = common.grant_roots if own.grant_roots is None else own.grant_roots
    return Allowance(roots or (), {**DEFAULT_CEILINGS, **dict(common.ceilings), **dict(own.ceilings)})


def limits_for(asked: Iterable[tuple[str, int]], allowed: Allowance, caller: Caller) -> Limits:
    """The limits of a keep for which `asked` was asked; the rest has its default, or the ceiling where it is lower.

    Raises KeepfleetError(FORBIDDEN) naming the limit, the value and the ceiling.
    """
    values = {name: min(value, allowed.ceilings[name]) for name, value in DEFAULTS.items()}
    for name, value in asked:
        if value > allowed.ceilings[name]:
            raise KeepfleetError(
                ErrorKind.FORBIDDEN,
                f"cannot make a keep with {name} {value}: the ceiling for {caller.who} is {allowed.ceilings[name]}; "
                "the manager's configuration sets it, under callers",
            )
        values[name] = value
    return Limits(**values)
