"""What a keep is given, as descriptors by name: each provider is one file and one function,
`(provision, held) → named descriptors`, which `held` closes.

They run in a thread: a file system that hangs holds up one start, and not the manager. Import rule:
`keep_manager.model`, the client's side of keep_grants, and keep_protocol alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager

from keep_manager.callers import GrantRoot
from keep_manager.model import Provision
from keep_manager.providers import endpoint, module, output, secrets
from keep_manager.providers.files import Files
from keep_manager.providers.module import OpenModule
from keep_manager.providers.output import JOURNAL_SOCKET, MakeFiles
from keep_protocol.errors import KeepfleetError

LOG = logging.getLogger("keepfleet.grants")
Provider = Callable[[Provision, ExitStack], Mapping[str, int]]


class Providers:
    """Opens what a start asks for; client_ca and revoked are the files that every upload endpoint gets, make_output
    makes those that a keep's output goes into, open_module opens what the store has, and journal is the path of journald's
    socket."""

    def __init__(
        self,
        client_ca: str,
        revoked: str,
        files: Files,
        make_output: MakeFiles,
        open_module: OpenModule,
        journal: str = JOURNAL_SOCKET,
    ) -> None:
        self._files, self._journal = files, journal
        self._providers: tuple[Provider, ...] = (
            endpoint.opener(client_ca, revoked),
            module.opener(open_module),
            files.opened,
            secrets.opened,
            output.opener(make_output, journal),  # last: what another one refuses has left nothing behind
        )

    def __repr__(self) -> str:
        return f"Providers({len(self._providers)})"

    async def try_roots(self, roots: Iterable[GrantRoot]) -> None:
        """Logs for each root what a directory granted from it will be, or that none can be: now, and not at a start."""
        for root in roots:
            try:
                said = await asyncio.to_thread(self._files.tried, root)
            except KeepfleetError as error:
                LOG.warning("grant root: %s", error.message)
            else:
                LOG.info("grant root: %s", said)

    @contextmanager
    def journal(self) -> Iterator[int]:
        """A datagram socket to journald, open while the block runs."""
        with ExitStack() as held:
            yield output.connected(held, self._journal)

    @asynccontextmanager
    async def opened(self, provision: Provision) -> AsyncIterator[Mapping[str, int]]:
        """Descriptors by name, open while the block runs. Raises KeepfleetError as the providers do."""
        held = ExitStack()
        opening = asyncio.get_running_loop().run_in_executor(None, self.open_now, provision, held)
        try:
            found = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_closer(held))  # the thread cannot be cancelled
            raise
        except BaseException:
            held.close()
            raise
        with held:
            yield found

    def open_now(self, provision: Provision, held: ExitStack) -> Mapping[str, int]:
        """Descriptors by name, which `held` closes. Raises KeepfleetError as the providers do."""
        found: dict[str, int] = {}
        for provider in self._providers:
            found |= provider(provision, held)
        return found


def _closer(held: ExitStack) -> Callable[[asyncio.Future[Mapping[str, int]]], None]:
    def close(done: asyncio.Future[Mapping[str, int]]) -> None:
        if not done.cancelled():
            done.exception()  # looked at, or asyncio logs that it was not
        held.close()

    return close
