"""What is counted of hooks and codelets: as records, and as the context of the hook `report_stats`.

Import rule: codelets.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from codelets.calling import BUCKETS, Hook, quantile
from codelets.loaded import Codelet, Loaded
from codelets.states import CodeletState, HookState

REPORT_STATS = "report_stats"
"""jbpf's name of the hook that every application has: it is called with the counts of each hook."""
REPORTED_NAME_BYTES = 32
"""Of a hook's name, as jbpf has it."""


class HookStatistics(ctypes.LittleEndianStructure):
    """The context of `report_stats`: the counts of one hook since it was declared, in `examples/codelet.h`, too.

    hook_name: its first 32 bytes, zeros behind a shorter one; calls: with codelets loaded; faults, overruns: of its
    codelets' calls; drops: messages that their full output channels did not take; median_ns, p99_ns: as powers of two;
    number: the hook's place in `Runtime.stats`; codelets: that are on it now; times: number n counts the timed calls
    that took less than 2ⁿ ns, the last all that took longer.
    """

    _fields_ = (
        ("hook_name", ctypes.c_char * REPORTED_NAME_BYTES),
        ("calls", ctypes.c_uint64),
        ("faults", ctypes.c_uint64),
        ("overruns", ctypes.c_uint64),
        ("drops", ctypes.c_uint64),
        ("median_ns", ctypes.c_uint64),
        ("p99_ns", ctypes.c_uint64),
        ("number", ctypes.c_uint32),
        ("codelets", ctypes.c_uint32),
        ("times", ctypes.c_uint64 * (BUCKETS + 1)),
    )


def statistics_of(number: int, state: HookState) -> HookStatistics:
    """The context for one hook."""
    times = list(state.times)
    name = state.name.encode()[:REPORTED_NAME_BYTES]
    spread = quantile(times, 0.5), quantile(times, 0.99)
    found = HookStatistics(name, state.calls, state.faults, state.overruns, state.drops, *spread)
    found.number, found.codelets = number, len(state.codelets)
    found.times[: len(times)] = times
    return found


class _Totals:
    """Counts of codelets, summed."""

    def __init__(self) -> None:
        self.faults = self.overruns = self.drops = 0
        self.times = [0] * (BUCKETS + 1)

    def add(self, codelet: Codelet) -> None:
        self.faults, self.overruns = self.faults + codelet.faults, self.overruns + codelet.overruns
        self.drops += lost_by(codelet)
        self.times = [sum(pair) for pair in zip(self.times, codelet.target.times, strict=True)]

    def and_of(self, other: _Totals) -> _Totals:
        found = _Totals()
        found.faults, found.overruns = self.faults + other.faults, self.overruns + other.overruns
        found.drops = self.drops + other.drops
        found.times = [sum(pair) for pair in zip(self.times, other.times, strict=True)]
        return found


class Statistics:
    """Counts of every hook since it was declared: what is loaded counts for itself, and what was unloaded is added
    here, so that no count ever goes back."""

    def __init__(self) -> None:
        self._past: dict[str, _Totals] = {}

    def __repr__(self) -> str:
        return f"Statistics({len(self._past)} hooks had sets that were unloaded)"

    def unloaded(self, loaded: Loaded) -> None:
        """Keeps the counts of a set that goes."""
        for codelet in loaded.codelets.values():
            self._past.setdefault(codelet.descriptor.hook_name, _Totals()).add(codelet)

    def states(self, hooks: Iterable[tuple[str, Hook]], sets: Iterable[Loaded]) -> tuple[HookState, ...]:
        """Of each hook, in order."""
        now: dict[str, _Totals] = {}
        users: dict[str, list[str]] = {}
        for loaded in sets:
            for name, codelet in loaded.codelets.items():
                on = codelet.descriptor.hook_name
                now.setdefault(on, _Totals()).add(codelet)
                users.setdefault(on, []).append(f"{loaded.descriptor.codeletset_id}.{name}")
        return tuple(self._state(name, hook, now.get(name), users.get(name, [])) for name, hook in hooks)

    def _state(self, name: str, hook: Hook, now: _Totals | None, users: list[str]) -> HookState:
        found = self._past.get(name, _Totals()).and_of(now or _Totals())
        times = tuple(found.times) if any(found.times) else ()
        return HookState(name, hook.calls, found.faults, found.overruns, times, tuple(users), found.drops)


def lost_by(codelet: Codelet) -> int:
    """Messages that its full output channels did not take."""
    return sum(codelet.data[each.name].lost for each in codelet.descriptor.out_io_channel)


def codelets_of(loaded: Loaded) -> tuple[CodeletState, ...]:
    """What is shown of each codelet of a set."""
    return tuple(
        CodeletState(
            name,
            codelet.descriptor.hook_name,
            codelet.descriptor.priority,
            codelet.digest,
            codelet.target.calls,
            codelet.faults,
            codelet.overruns,
            lost_by(codelet),
            quantile(codelet.target.times, 0.5),
            quantile(codelet.target.times, 0.99),
            codelet.examined.bound,
            codelet.last_fault,
        )
        for name, codelet in loaded.codelets.items()
    )
