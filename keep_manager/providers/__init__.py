"""What a keep is given, as descriptors by name: each provider is a function, `(provision, held) → named descriptors`,
which `held` closes. Those of what is granted are in `files`; here are the upload endpoint's, the module's and the
output's.

They run in a thread: a file system that hangs holds up one start, and not the manager. Import rule:
`keep_manager.model`, the client's side of keep_grants, and keep_protocol alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager

from keep_grants.resolve import keep
from keep_manager.callers import GrantRoot
from keep_manager.model import Provision
from keep_manager.providers.files import Files
from keep_protocol.constants import CLIENT_CA, JOURNAL, MODULE, OUTPUT, RECORD, REVOKED
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.spec import KeepSpec

LOG = logging.getLogger("keepfleet.grants")
JOURNAL_LOG = logging.getLogger("keepfleet.journal")
JOURNAL_SOCKET = "/run/systemd/journal/socket"
"""Where journald takes entries with fields of the sender's own (systemd's "Native Journal Protocol")."""
Provider = Callable[[Provision, ExitStack], Mapping[str, int]]
MakeFiles = Callable[[int, KeepSpec], tuple[int, int]]
"""The descriptors of a new ring and a new record of a keep. Raises KeepfleetError."""
OpenModule = Callable[[str], int]
"""The verified descriptor of the module with this digest, read-only. Raises KeepfleetError."""


class Providers:
    """Opens what a start asks for; client_ca and revoked are the files that every upload endpoint gets, make_output
    makes those that a keep's output goes into, open_module opens what the store has, and journal is the path of
    journald's socket.

    journal_stores: whether journald stores what it is given, as far as is known.
    """

    def __init__(
        self,
        client_ca: str,
        revoked: str,
        files: Files,
        make_output: MakeFiles,
        open_module: OpenModule,
        journal: str = JOURNAL_SOCKET,
    ) -> None:
        self._client_ca, self._revoked, self._files = client_ca, revoked, files
        self._make_output, self._open_module, self._journal = make_output, open_module, journal
        self.journal_stores = True
        self._providers: tuple[Provider, ...] = (
            self._of_the_endpoint,
            self._of_the_module,
            files.opened,
            self._of_the_output,  # last: what another one refuses has left nothing behind
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
            yield connected(held, self._journal)

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

    def _of_the_endpoint(self, provision: Provision, held: ExitStack) -> Mapping[str, int]:
        """What an upload endpoint judges its clients by: the client CA and the list of revoked certificates."""
        if CLIENT_CA not in provision.brings:
            return {}
        return {CLIENT_CA: _open(held, self._client_ca), REVOKED: _open(held, self._revoked)}

    def _of_the_module(self, provision: Provision, held: ExitStack) -> Mapping[str, int]:
        """The module that a keep of kind stored runs, verified a moment ago. A start that is only checked reads
        nothing: what it would find can change until the start."""
        if MODULE not in provision.brings or provision.user is None:
            return {}
        return {MODULE: keep(held, self._open_module(provision.spec.digest))}

    def _of_the_output(self, provision: Provision, held: ExitStack) -> Mapping[str, int]:
        """What a loader keeps its workload's output with: the ring, the record, and a socket to journald."""
        if not provision.keeps_output:
            return {}
        output, record = self._make_output(provision.kuuid, provision.spec)
        return {OUTPUT: keep(held, output), RECORD: keep(held, record), JOURNAL: connected(held, self._journal)}


def _open(held: ExitStack, path: str) -> int:
    try:
        return keep(held, os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
    except OSError as error:
        raise KeepfleetError(
            ErrorKind.CERTIFICATE, f"cannot open {path}: {error.strerror}; run: keepctl init"
        ) from error


def connected(held: ExitStack, path: str) -> int:
    """A datagram socket to journald, or where that is not there one that says so of each datagram: a keep is started
    all the same, and its loader reports it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
    except OSError as error:
        JOURNAL_LOG.warning("cannot reach journald at %s: %s", path, error.strerror)
        sock.close()
        sock, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        other.close()
    return keep(held, sock.detach())


def _closer(held: ExitStack) -> Callable[[asyncio.Future[Mapping[str, int]]], None]:
    def close(done: asyncio.Future[Mapping[str, int]]) -> None:
        if not done.cancelled():
            done.exception()  # looked at, or asyncio logs that it was not
        held.close()

    return close
