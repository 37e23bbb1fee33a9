"""Verified code, loaded into a running application at its hooks and unloaded again: jbpf's job, with WebAssembly.

    runtime = Runtime(store="/var/lib/keepfleet/store")
    ingress = runtime.hook("ingress", Packet)
    runtime.load(open("counter.yaml").read())
    ingress(packet)

Only modules of a module store can be loaded, each is verified for its hook first, and what one does cannot stop or
harm its caller: its memory, its time and what it may call are bounded. docs/how-to/codelets.md shows how.

Each name is imported when it is first used: who asks an application over its life-cycle socket, as the manager does,
imports `codelets.lcm` and with it no engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codelets.calling import ControlHook, Hook
    from codelets.channels import JsonOf, pack, unpack
    from codelets.collector import Collector
    from codelets.descriptor import CodeletSet, read_descriptor
    from codelets.faults import CodeletError, Failure
    from codelets.interface import HelperType, HookType, Interface
    from codelets.reporting import HookStatistics
    from codelets.runtime import Runtime

__all__ = [
    "CodeletError",
    "CodeletSet",
    "Collector",
    "ControlHook",
    "Failure",
    "HelperType",
    "Hook",
    "HookStatistics",
    "HookType",
    "Interface",
    "JsonOf",
    "Runtime",
    "pack",
    "read_descriptor",
    "unpack",
]
_MODULES = {
    "codelets.calling": ("ControlHook", "Hook"),
    "codelets.channels": ("JsonOf", "pack", "unpack"),
    "codelets.collector": ("Collector",),
    "codelets.descriptor": ("CodeletSet", "read_descriptor"),
    "codelets.faults": ("CodeletError", "Failure"),
    "codelets.interface": ("HelperType", "HookType", "Interface"),
    "codelets.reporting": ("HookStatistics",),
    "codelets.runtime": ("Runtime",),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _MODULES.items():
        if name in names:
            value: object = getattr(import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
