"""Whether journald stores what it is given: tried by an entry that is read back.

Who sends journald an entry hears of nothing that becomes of it: with `Storage=none`, a `MaxLevelStore=` above it or a
full disk it is gone. So one is written and looked for at the manager's start, when another journald has started, and
now and then while there are keeps, since a disk fills up without a word.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable

from keep_manager.systemd.event_log import SOCKET, entry, send
from keep_manager.systemd.journal import Journal
from keep_protocol.errors import KeepfleetError

LOG = logging.getLogger("keepfleet.journal")
PROBE = "KEEP_PROBE"
INVOCATION = "/run/systemd/units/invocation:systemd-journald.service"
"""A link that systemd makes again for each start of journald, which itself reads such links of all units; so it is
there for a user's own manager, too, whose bus knows nothing of journald."""
LOOK_SECONDS = 5.0
"""Between two looks at that link, of microseconds each: nothing else says that journald was started again."""
TRY_SECONDS = 300.0
"""Between two trials while there are keeps: each is an entry in the journal, and a journalctl of 20 ms."""
PATIENCE_SECONDS = 5.0
AGAIN_SECONDS = 0.5
"""How long, and how often, the entry is looked for: a journald that is busy, or was frozen, has not come to it yet."""


class Storing:
    """Whether the journal of this host keeps what it is given of priority info. `command` of `journal` reads it.

    stores: true until it is known that it does not.
    """

    def __init__(self, journal: Journal, instance: str, path: str = SOCKET, invocation: str = INVOCATION) -> None:
        self._journal, self._instance, self._path, self._invocation = journal, instance, path, invocation
        self.stores = True

    def __repr__(self) -> str:
        return f"Storing({'stores' if self.stores else 'stores nothing'})"

    async def tend(self, needed: Callable[[], bool], changed: Callable[[], Awaitable[None]]) -> None:
        """Tries the journal for ever, each time that may matter; `needed` says whether there are keeps, `changed` is
        called when it has stopped or begun to store."""
        loop, known, tried = asyncio.get_running_loop(), "", 0.0
        while True:
            now = self._journald()
            if now != known or (loop.time() - tried > TRY_SECONDS and (needed() or not self.stores)):
                known, tried = now, loop.time()
                before = self.stores
                await self.probe()
                if self.stores is not before:
                    await changed()
            await asyncio.sleep(LOOK_SECONDS)

    def _journald(self) -> str:
        """Which start of journald's this is; "none" where it is not there, or nothing says it."""
        try:
            return os.readlink(self._invocation)
        except OSError:
            return "none"

    async def probe(self) -> None:
        """Writes one entry and reads it back; logs where that changes what is known. A journald that takes nothing, or
        has not come to it, is not known to store nothing."""
        mark = secrets.token_hex(16)
        fields = {"MESSAGE": "the journal is tried", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "keep-manager", PROBE: mark}
        try:
            await send(self._path, entry(fields))
            synced = await self._journal.sync()
            stored = await self._found(mark, PATIENCE_SECONDS if not synced else 0.0)
        except KeepfleetError as error:
            LOG.warning("cannot try the journal: %s", error.message)
            return
        if stored and not self.stores:
            LOG.info("the journal stores what it is given again")
        if stored or synced or self._instance == "user":
            self.stores, before = stored, self.stores
            if before and not stored:
                LOG.warning(
                    "the journal shows nothing of priority info that it is given: lines and events of keeps are not in "
                    "it; see MaxLevelStore= and Storage= (man journald.conf), and whether its disk is full%s",
                    ", or this user may not read it" * (self._instance == "user"),
                )

    async def _found(self, mark: str, seconds: float) -> bool:
        """Whether the entry is in the journal, now or within `seconds`."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not await self._journal.cursor((f"{PROBE}={mark}",)):
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(AGAIN_SECONDS)
        return True
