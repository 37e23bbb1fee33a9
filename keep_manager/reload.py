"""SIGHUP: the configuration is read again, and what may change while the manager serves is applied, all or nothing.

What needs another socket, other keys or another service manager needs a restart, in which keeps go on, too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from keep_manager.config import Settings
from keep_protocol.errors import ErrorKind, KeepfleetError

LOG = logging.getLogger("keepfleet.reload")
NEEDS_RESTART = ("address", "port", "client_certificates", "pki", "instance")
"""Keys of what the manager has opened at its start."""


def changes(old: Settings, new: Settings) -> tuple[str, ...]:
    """The keys that differ. Raises KeepfleetError(CONFIGURATION) where one of them needs a restart. Pure."""
    before, after = old.fields(), new.fields()
    changed = tuple(name for name in before if before[name] != after[name])
    fixed = [name for name in changed if name in NEEDS_RESTART]
    if fixed:
        raise KeepfleetError(
            ErrorKind.CONFIGURATION,
            f"cannot change {', '.join(fixed)} while the manager runs: restart it (systemctl restart keep-manager); "
            "keeps go on meanwhile",
        )
    return changed


class Reload:
    """Reads the settings with `load` whenever `request` was called, and has `apply` put them in force.

    `say` notifies systemd, which shows the unit as reloading meanwhile.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        apply: Callable[[Settings], None],
        say: Callable[..., None],
    ) -> None:
        self._settings, self._load, self._apply, self._say = settings, load, apply, say
        self._requested = asyncio.Event()

    def __repr__(self) -> str:
        return f"Reload({'requested' if self._requested.is_set() else 'idle'})"

    def request(self) -> None:
        """Has the settings read again; several requests before that are one."""
        self._requested.set()

    async def run(self) -> None:
        """Serves requests for ever."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            await self._reload()
            self._say("READY=1")

    async def _reload(self) -> None:
        """What is wrong is logged, and the settings in force stay."""
        try:
            new = await asyncio.to_thread(self._load)  # a long file takes its time
            changed = changes(self._settings, new)
        except KeepfleetError as error:
            LOG.error("cannot reload the configuration, the one in force stays: %s", error.message)
            return
        self._apply(new)
        self._settings = new
        LOG.info("reloaded the configuration: changed %s", ", ".join(changed) or "nothing")
