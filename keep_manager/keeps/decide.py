"""What follows from what is known about keeps. Pure: data in, data out."""

from __future__ import annotations

from collections.abc import Iterator

from keep_manager.model import LoaderGone, UnitState
from keep_protocol.constants import KUUID_BITS, unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State

LOCALHOST = "127.0.0.1"


def is_keep(unit: UnitState) -> bool:
    """Whether the unit stands for a keep. An inactive one without a job only lingers until systemd collects it."""
    return unit.load == "loaded" and (unit.active != "inactive" or unit.job == "start")


def answers(unit: UnitState) -> bool:
    """Whether a loader can be expected behind the unit."""
    return unit.active in ("active", "reloading")


def shown(info: KeepInfo) -> KeepInfo:
    """A loader's answer as clients see it: the unit is the manager's word, not the loader's."""
    return KeepInfo(**{**info.fields(), "unit": unit_name(info.kuuid)})


def between_loaders(unit: UnitState, error: KeepfleetError | None) -> bool:
    """Whether the unit's loader has just ended and systemd is about to start another, or to give the unit up.

    A unit is "active" still until systemd has noticed, and "deactivating" without a job until it has tidied up.
    """
    if unit.active == "deactivating":
        return unit.job != "stop"
    return unit.sub == "auto-restart" or (answers(unit) and isinstance(error, LoaderGone))


def silent(unit: UnitState, reason: str, error: KeepfleetError | None) -> KeepInfo:
    """A keep whose loader did not answer, or could not be expected to."""
    where = f"the unit is {unit.active} ({unit.sub}{f', {reason}' if reason and reason != 'success' else ''})"
    if between_loaders(unit, error):
        why = f"restarting: its loader has just ended; {where}"
        return KeepInfo(unit.kuuid, State.UNDEFINED, why, unit=unit_name(unit.kuuid))
    if unit.active in ("activating", "inactive"):
        return KeepInfo(unit.kuuid, State.UNDEFINED, f"starting: {where}", unit=unit_name(unit.kuuid))
    if error is None or not answers(unit):
        return KeepInfo(unit.kuuid, State.ERROR, where, unit=unit_name(unit.kuuid))
    return KeepInfo(unit.kuuid, State.ERROR, f"{error.message}; {where}", unit=unit_name(unit.kuuid))


def candidate_ports(address: str, port: int | None, first: int, last: int) -> Iterator[int]:
    """The ports to try in order: where none was asked for, all in first … last; on 127.0.0.1 the one asked for,
    every one after it in first … last, and then from first on; elsewhere exactly the one asked for."""
    if port is None:
        yield from range(first, last + 1)
        return
    yield port
    if address == LOCALHOST:
        yield from range(max(port + 1, first), last + 1)
        yield from range(first, min(port, last + 1))


def check_kuuid_free(kuuid: int, taken: set[int]) -> bool:
    """Whether `kuuid`, just drawn, may become a keep's ID."""
    return 0 < kuuid < 1 << KUUID_BITS and kuuid not in taken


def refuse_start(info: KeepInfo) -> None:
    """Raises KeepfleetError unless a keep that answered `info` may be started now."""
    if info.isolation_failures:
        raise KeepfleetError(
            ErrorKind.ISOLATION_FAILURE,
            f"cannot start keep {info.kuuid}: its isolation check failed; its workload would not be contained",
            info.isolation_failures,
        )
    if info.state is not State.LISTENING:
        raise KeepfleetError(
            ErrorKind.CONFLICT, f"cannot start keep {info.kuuid}: it is {info.state.name.lower()}: {info.detail}"
        )


def refuse_stop(info: KeepInfo, error: KeepfleetError) -> None:
    """Raises what a stop that met `error` is refused with; returns where it may work in a moment, as `info` shows."""
    if error.kind not in (ErrorKind.CONFLICT, ErrorKind.UNAVAILABLE):
        raise error
    if info.state in (State.UNDEFINED, State.STARTED):
        return
    if error.kind is ErrorKind.CONFLICT:
        raise KeepfleetError(
            ErrorKind.CONFLICT,
            f"cannot stop keep {info.kuuid}: nothing runs in it, it is {info.state.name.lower()}: {info.detail}",
        ) from error
    if info.state is State.ERROR:
        raise error


def missing(kuuid: int) -> KeepfleetError:
    """The error for a keep that does not exist."""
    return KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find keep {kuuid}: there is no unit {unit_name(kuuid)}")
