"""A codelet set that is loaded, and its codelets: what becomes of them when a call ends early, and when they go.

Import rule: the standard library, codelets.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from codelets.calling import Run, Target
from codelets.descriptor import CodeletDescriptor, CodeletSet
from codelets.engine import EngineFault, Trap
from codelets.storage import Data
from codelets.verification import Examined


class Codelet:
    """One loaded codelet. faults, overruns: how often it ended early, and how often it took too long."""

    def __init__(self, descriptor: CodeletDescriptor, digest: str, examined: Examined, owner: Loaded) -> None:
        self.descriptor, self.digest, self.examined = descriptor, digest, examined
        self.faults = self.overruns = 0
        self.last_fault = ""
        self.target: Target  # set by begin
        self.data: dict[str, Data] = {}
        self._set, self._instantiate = weakref.ref(owner), list[Callable[[], Any]]()
        self._repairs: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"Codelet({self.descriptor.codelet_name}, {self.faults} faults)"

    def begin(self, target: Target, instantiate: Callable[[], Any], repairs: list[Callable[[], None]]) -> None:
        """Its first instance, how another one is made, and what makes its maps whole before that."""
        self.target, self._instantiate, self._repairs = target, [instantiate], repairs

    def faulted(self, end: Trap) -> None:
        """Its memory, globals and stack begin again; maps stay, as whole as before the call."""
        self.faults += 1
        self.last_fault = end.message
        try:
            for repair in self._repairs:
                repair()
            for instantiate in self._instantiate:
                self.target.memory[:] = bytes(len(self.target.memory))
                self.target.enter(instantiate())
        except (Trap, EngineFault) as fault:
            self._failed(f"codelet {self.descriptor.codelet_name} cannot begin again: {fault}", certain=True)
            return
        self._failed(f"codelet {self.descriptor.codelet_name}: {end.message}")

    def overran(self, nanoseconds: int) -> None:
        self.overruns += 1
        threshold = self.descriptor.runtime_threshold
        self.last_fault = f"it took {nanoseconds} ns; its threshold is {threshold} ns"
        self._failed(f"codelet {self.descriptor.codelet_name}: {self.last_fault}")

    def refused(self, why: str) -> None:
        self.faults += 1
        self.last_fault = why
        self._failed(f"codelet {self.descriptor.codelet_name}: {self.last_fault}")

    def _failed(self, why: str, *, certain: bool = False) -> None:
        owner = self._set()
        if owner is not None:  # else it was unloaded while this call ran
            owner.failed(why, certain=certain)

    def close(self) -> None:
        """Lets go of what refers back to it."""
        if self._instantiate:
            self.target.count_in(None)
        self._instantiate.clear()
        self._repairs.clear()


class Loaded:
    """A set with its instances. failed: what reports a fault of one of its codelets; it may unload the set."""

    def __init__(self, descriptor: CodeletSet, report: Callable[[Loaded, str, bool], None]) -> None:
        self.descriptor = descriptor
        self.codelets: dict[str, Codelet] = {}
        self.runs: list[tuple[str, int, Run]] = []  # hook, priority, what runs
        self.outputs: dict[bytes, Data] = {}
        self.inputs: dict[bytes, Data] = {}
        self.faults = 0
        self._report = report

    def __repr__(self) -> str:
        return f"Loaded({self.descriptor.codeletset_id}, {len(self.codelets)} codelets)"

    def failed(self, why: str, *, certain: bool = False) -> None:
        """One more fault; certain: it cannot go on."""
        self.faults += 1
        self._report(self, why, certain)

    def close(self) -> None:
        """Lets go of its instances; a call that runs keeps them until it has ended. Its codelets refer to it, and it
        not to them any more: their memories go now, and not when cycles are collected."""
        self.runs.clear()
        codelets, self.codelets = self.codelets, {}
        for codelet in codelets.values():
            codelet.close()
