"""What an application offers to codelets: its hooks, helper functions and serialisers, and what runs at its hooks.

Import rule: keep_protocol, codelets.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable
from typing import Any, cast

from codelets.building import Helper
from codelets.calling import Chains, ControlHook, Hook
from codelets.channels import Serializer
from codelets.interface import MAX_HELPERS, MAX_HOOKS, HelperType, HookType, Interface
from codelets.reporting import REPORT_STATS, HookStatistics
from codelets.standard import standard_helpers
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import parse

Context = type[ctypes.Structure] | str | int
"""A context's fields: a structure, a format of `struct`, or a size in bytes."""


class Offer:
    """The hooks, helpers and serialisers of one application. lock: of the application's codelets; in_c: the module of
    calls in C, or None."""

    def __init__(self, lock: threading.RLock, in_c: Any) -> None:
        self._lock, self._in_c = lock, in_c
        self._chains: Chains = []
        self._places: dict[str, int] = {}
        self.hooks: dict[str, Hook] = {REPORT_STATS: self._made(REPORT_STATS, HookStatistics)}
        self.helpers: dict[str, Helper] = {each.name: (each, function) for each, function in standard_helpers()}
        self.serializers: dict[str, Serializer] = {}

    def __repr__(self) -> str:
        return f"Offer({len(self.hooks)} hooks, {len(self.helpers)} helpers)"

    def hook(self, name: str, context: Context, default: int | None, **more: object) -> Hook:
        """Declares a hook, a control hook where there is a default. Raises KeepfleetError."""
        with self._lock:
            if name in self.hooks or len(self.hooks) >= MAX_HOOKS:
                why = "there is one" if name in self.hooks else f"there are {MAX_HOOKS}"
                raise KeepfleetError(ErrorKind.CONFLICT, f"cannot declare the hook {name}: {why}")
            made = self._made(name, context, default, **more)
            report = self.hooks.pop(REPORT_STATS)  # the application's own are shown before it
            self.hooks |= {name: made, REPORT_STATS: report}
        return made

    def _made(self, name: str, context: Context, default: int | None = None, **more: object) -> Hook:
        typed = isinstance(context, type)
        if isinstance(context, str):
            size = struct.calcsize(context)
        else:
            size = ctypes.sizeof(context) if isinstance(context, type) else context
        values = {"name": name, "context_bytes": size, "control": default is not None, **more}
        kind = parse(HookType, values, "hook")
        place = self._places[name] = len(self._chains)
        self._chains.append(())
        if self._in_c is not None:
            call, preset = self._in_c.Call, default or 0
            return cast(Hook, self._in_c.Hook(call, kind, self._chains, place, preset, kind.control, kind.writable))
        if default is None:
            return Hook(kind, self._chains, place, typed=typed)
        return ControlHook(kind, self._chains, place, default, typed=typed)

    def publish(self, wanted: list[tuple[str, Callable[..., int | None]]]) -> None:
        """What runs from the next call of each hook on: (hook, what runs there), in order.

        It is one assignment: a thread that sees what runs at one hook changed sees it at all of them. Under the lock.
        """
        chains: list[list[Callable[..., int | None]]] = [[] for _ in self._chains]
        for hook, run in wanted:
            chains[self._places[hook]].append(run)
        self._chains[:] = map(tuple, chains)

    def helper(self, name: str, function: Callable[..., Any], parameters: tuple[str, ...], result: str) -> None:
        """Offers a function. Raises KeepfleetError."""
        values: dict[str, object] = {"name": name, "parameters": list(parameters), "result": result}
        kind = parse(HelperType, values, "helper")
        with self._lock:
            if name in self.helpers or len(self.helpers) >= MAX_HELPERS:
                why = "there is one" if name in self.helpers else f"there are {MAX_HELPERS}"
                raise KeepfleetError(ErrorKind.CONFLICT, f"cannot offer the helper {name}: {why}")
            self.helpers[name] = (kind, function)

    @property
    def interface(self) -> Interface:
        """As a record."""
        with self._lock:
            hooks = tuple(hook.type for hook in self.hooks.values())
            return Interface(hooks, tuple(kind for kind, _ in self.helpers.values()))
