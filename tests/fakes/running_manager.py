"""A whole manager in this process, over real TLS and real control sockets; only systemd is a fake."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from keep_manager import pki
from keep_manager.authorize.quotas import QuotaKeeper
from keep_manager.callers import Callers
from keep_manager.codelets import Applications
from keep_manager.daemon import uses_of
from keep_manager.http.acceptor import listen
from keep_manager.http.app import Server, make_app
from keep_manager.http.middleware import Admission
from keep_manager.keeps.policy import Policy
from keep_manager.pulls import Pulls
from keep_manager.tasks import Group
from keep_protocol import tls
from keep_protocol.revocation import RevokedFile
from tests.fakes.fake_event_log import FakeEventLog
from tests.fakes.fake_pki import FakeAuthority, Identity
from tests.fakes.fake_units import FakeUnits
from tests.fakes.local_pull_units import LocalPullUnits
from tests.fakes.manager_parts import ManagerParts


class RunningManager:
    """What a test needs: the manager's parts, its authority, and clients."""

    def __init__(
        self,
        directory: Path,
        *,
        require_client: bool = True,
        first_port: int = 42000,
        callers: Callers | None = None,
    ) -> None:
        self.authority = FakeAuthority(directory / "pki")
        self.authority.manager_files()
        self.files = pki.Directory(str(directory / "pki"))
        self.runtime_root = str(directory / "run")
        self.units = FakeUnits(self.runtime_root)
        self.policy = Policy(
            self.files.client_ca, self.files.revoked, first_port, 65535, 60.0, max_keeps=20, callers=callers or {}
        )
        self.quotas = QuotaKeeper(self.policy.callers, lambda: self.parts.view)
        self.tasks, self.events = Group(), FakeEventLog()
        self.parts = ManagerParts(self.tasks, self.units, self.runtime_root, self.policy, self.events, self.quotas)
        self.keeps = self.parts.keeps
        self.pull_units = LocalPullUnits()
        self.pulls = Pulls(self.tasks, self.pull_units, self._root)
        self.attached = directory / "codelets.d"
        self.applications = Applications(str(self.attached))
        self.require_client = require_client
        self.operator = self.authority.issue("operator")
        self.loop: asyncio.AbstractEventLoop | None = None  # where it is another thread's
        self.url = ""
        self.port = 0
        self.server: Server | None = None

    def __repr__(self) -> str:
        return f"RunningManager({self.url})"

    async def _root(self) -> str:
        return "/"

    async def open(self) -> None:
        """Serves."""
        await self.tasks.__aenter__()
        certificates = pki.ClientCertificates(RevokedFile(self.files.revoked))
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        context = self.files.server_context(require_client=self.require_client)
        admission = Admission(certificates, self.require_client)
        app = make_app(
            self.keeps,
            self.parts.view,
            self.parts.readers,
            self.parts.inputs,
            self.events,
            admission,
            self.quotas,
            self.parts.declarations,
            self.parts.kept_volumes,
            self.parts.modules,
            lambda: uses_of(self.parts.view.entries()),
            self.pulls,
            self.parts.secrets,
            self.applications,
        )
        await self.parts.secrets.open()
        await self.parts.reconciler.open()
        self.tasks.start(self.parts.reconciler.run(), name="declared")
        await self.parts.jobs.open()
        self.tasks.start(self.parts.jobs.run(), name="jobs")
        self.tasks.start(self.parts.jobs.timers.tend(), name="timers of jobs")
        self.server = Server(app, listener, context, certificates)
        await self.server.open(self.tasks)

    async def close(self) -> None:
        """Ends everything."""
        if self.server is not None:
            await self.server.close()
            await self._let_go(self.server)
        await self.parts.jobs.close()
        await self.pulls.close()
        await self.parts.reconciler.close()
        await self.keeps.settle()
        await self.tasks.__aexit__(None, None, None)
        await self.units.close()

    async def _let_go(self, server: Server) -> None:
        """Cuts off the connections whose other end has not answered their end, as the end of a manager's process does:
        the loop ends next, and what is open then is found to be so in a later test."""
        for connection in tuple(server._acceptor.established()):
            connection.cut_off()
        while "(0 connections, 0 handshakes)" not in repr(server):  # noqa: ASYNC110 # no event says so
            await asyncio.sleep(0)

    def revoke(self, identity: Identity) -> None:
        """Appends the serial number to the list, as keepctl does."""
        with open(self.files.revoked, "a", encoding="ascii") as file:
            file.write(f"{identity.certificate.serial_number:x}\n")

    def context(self, identity: Identity | None) -> ssl.SSLContext:
        """A client's TLS with `identity`."""
        file = None if identity is None else identity.file
        return tls.client_context(self.authority.file, file, file)

    @asynccontextmanager
    async def client(
        self, identity: Identity | None = None, *, anonymous: bool = False
    ) -> AsyncIterator[aiohttp.ClientSession]:
        """A session with `identity`, or the operator's."""
        context = self.context(None if anonymous else identity or self.operator)
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(self.url, connector=connector) as session:
            yield session


@asynccontextmanager
async def running_manager(
    directory: Path, *, require_client: bool = True, callers: Callers | None = None
) -> AsyncIterator[RunningManager]:
    """A manager that serves while the block runs."""
    manager = RunningManager(directory, require_client=require_client, callers=callers)
    await manager.open()
    try:
        yield manager
    finally:
        await manager.close()
