"""What there can be: the kinds of keep, what the configuration lets keeps have, what each caller may ask for, and what
follows for a request. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from keep_manager.callers import DEFAULT_LEASE, EVERYONE, Callers, entry_of
from keep_manager.model import Allowance, Caller
from keep_protocol.api import StartKeep
from keep_protocol.constants import LAST_KEEP_PORT, MODULE, START_DESCRIPTORS
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.identity import ANY_CERTIFICATE, Role
from keep_protocol.limits import BOUNDS, DEFAULTS, MIB, TEN_YEARS, Limits
from keep_protocol.spec import KeepSpec, Kind, Lease

DEFAULT_CEILINGS: dict[str, int] = {
    **DEFAULTS,
    "memory_bytes": 1024 * MIB,
    "table_elements": BOUNDS["table_elements"][1],
    "stack_bytes": BOUNDS["stack_bytes"][1],
    "wall_seconds": 7 * 86400,
    "cpu_seconds": 7 * 86400,
    "tasks": 64,
    "compile_seconds": 600,
    "compile_memory_bytes": 3072 * MIB,
}
"""What a caller may raise without a word of the configuration: its own memory and time, by a factor that suits a host
of a few gigabytes. What its neighbours feel (processors, weight, lines a second) stays at the default."""


WITHOUT_END = {"wall_seconds": TEN_YEARS, "cpu_seconds": TEN_YEARS}
"""What a declared keep has of time, unless its manifest says otherwise: no limit that it would live to see."""


class KindOfKeep(Record):
    """What of a kind of keep the manager goes by. listens: whether its start binds a socket; brings: the descriptors
    that its start must bring, in the order in which a loader of the version before takes them; uploaded: whether a
    client sends what it runs, which is a line of the security log; of_spares: whether a spare can become one, whose
    loader has forked what takes uploads; pool: whether it is one of `/v1/pools`. What its forks call, the loader knows.
    """

    kind: Kind
    listens: bool
    brings: tuple[str, ...]
    uploaded: bool = False
    of_spares: bool = True
    pool: bool = False

    def check_start(self, request: StartKeep) -> None:
        """Raises KeepfleetError(BAD_REQUEST) where the start says how a keep is reached that cannot be."""
        if not self.listens:
            request.check_unreached()

    def check_descriptors(self, names: tuple[str, ...]) -> None:
        """Raises KeepfleetError(INTERNAL) unless `names` begin with all that a start must bring."""
        if names[: len(self.brings)] != self.brings:
            raise KeepfleetError(
                ErrorKind.INTERNAL,
                f"cannot start a keep of kind {self.kind.value}: it takes {', '.join(self.brings)}, "
                f"not {', '.join(names)}",
            )


REGISTRY = {
    row.kind: row
    for row in (
        KindOfKeep(Kind.UPLOAD, listens=True, brings=START_DESCRIPTORS, uploaded=True),
        KindOfKeep(Kind.SCRIPTS, listens=True, brings=START_DESCRIPTORS, of_spares=False, pool=True),
        KindOfKeep(Kind.STORED, listens=False, brings=(MODULE,)),
    )
}
"""Every kind there is: the one place that asks which kind a keep is."""


def kind_of(kind: Kind) -> KindOfKeep:
    """The kind's row. Raises KeepfleetError(UNSUPPORTED) for one that this manager does not know."""
    try:
        return REGISTRY[kind]
    except KeyError:
        raise KeepfleetError(
            ErrorKind.UNSUPPORTED, f"cannot start a keep of kind {kind.value}: this manager does not know it"
        ) from None


class Policy(Record):
    """Limits, and where things lie. client_ca and revoked: the files whose descriptors each upload endpoint gets;
    callers: what each may ask for; lease: of keeps whose creator asked for none; spare_keeps: how many are made before
    anyone asks for them."""

    client_ca: str
    revoked: str
    first_port: int
    last_port: int
    start_timeout_seconds: float = 15.0
    max_keeps: int = 2000
    max_creations_at_once: int = 8
    callers: Callers = MappingProxyType({})
    lease: Lease = DEFAULT_LEASE
    spare_keeps: int = 0

    def allowance(self, caller: Caller, *, lasts: bool = False) -> Allowance:
        """What `caller` may ask for: its own entry over that of everyone, over the defaults. lasts: for a declared
        keep, which runs as long as it is declared, unless an entry says otherwise."""
        common, own = entry_of(self.callers, EVERYONE), entry_of(self.callers, caller.name)
        roots = common.grant_roots if own.grant_roots is None else own.grant_roots
        ceilings = {**DEFAULT_CEILINGS, **(WITHOUT_END if lasts else {}), **dict(common.ceilings), **dict(own.ceilings)}
        return Allowance(roots or (), ceilings, {**DEFAULTS, **(WITHOUT_END if lasts else {})})


class Unlimited:
    """Quotas that refuse nothing."""

    def admit_creation(self, caller: Caller, spec: KeepSpec, replaced: int | None = None) -> None:
        """See Quotas."""

    def check_start(self, caller: Caller, kuuid: int, address: str, port: int | None) -> tuple[int, int]:
        """See Quotas."""
        return 1, LAST_KEEP_PORT

    admit_start = check_start


def limits_for(asked: Iterable[tuple[str, int]], allowed: Allowance, caller: Caller) -> Limits:
    """The limits of a keep for which `asked` was asked; the rest has its default, or the ceiling where it is lower.

    Raises KeepfleetError(FORBIDDEN) naming the limit, the value and the ceiling.
    """
    values = {name: min(value, allowed.ceilings[name]) for name, value in allowed.defaults.items()}
    for name, value in asked:
        if value > allowed.ceilings[name]:
            raise KeepfleetError(
                ErrorKind.FORBIDDEN,
                f"cannot make a keep with {name} {value}: the ceiling for {caller.who} is {allowed.ceilings[name]}; "
                "the manager's configuration sets it, under callers",
            )
        values[name] = value
    return Limits(**values)


def uploaders_for(asked: tuple[str, ...], spec: KeepSpec, caller: Caller, *, given: bool = False) -> tuple[str, ...]:
    """Who may send the workload of a keep that `caller` starts: as `asked`, or as the keep was made for, or the caller
    alone. A caller without a certificate cannot show one later, so every certificate may.

    given: the start gives the workload something. Where the keep is another's, that is for no one whom its owner chose.

    Raises KeepfleetError(FORBIDDEN) where a caller with a certificate would let all others in.
    """
    check_uploaders(asked, caller)
    chosen = asked or (() if given and spec.owner != caller.name else spec.uploaders)
    if chosen:
        return chosen
    return (ANY_CERTIFICATE,) if caller.role is Role.ANONYMOUS else (f"name:{caller.name}",)


def check_uploaders(asked: tuple[str, ...], caller: Caller) -> None:
    """Raises KeepfleetError(FORBIDDEN) where a caller with a certificate would let every certificate in."""
    if ANY_CERTIFICATE in asked and caller.role is not Role.ANONYMOUS:
        raise KeepfleetError(
            ErrorKind.FORBIDDEN,
            "cannot let every certificate upload: only keeps of clients without one are open to all; name the callers",
        )
