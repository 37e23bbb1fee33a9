"""A whole manager in this process, over real TLS and real control sockets; only systemd is a fake."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from keep_manager import grants, pki
from keep_manager.http.app import Server, make_app
from keep_manager.http.gate import listen
from keep_manager.keeps.manager import Keeps
from keep_manager.keeps.terms import Terms
from keep_manager.loader_client import Loaders
from keep_protocol import tls
from keep_protocol.revocation import RevokedFile
from tests.fakes.fake_journal import FakeJournal
from tests.fakes.fake_ledger import FakeLedger, FakeWitness
from tests.fakes.fake_pki import FakeAuthority, Identity
from tests.fakes.fake_units import FakeUnits


class ManagerHouse:
    """What a test needs: the manager's parts, its authority, and clients."""

    def __init__(self, directory: Path, *, require_client: bool = True, first_port: int = 42000) -> None:
        self.authority = FakeAuthority(directory / "pki")
        self.authority.manager_files()
        self.files = pki.Directory(str(directory / "pki"))
        self.runtime_root = str(directory / "run")
        self.units = FakeUnits(self.runtime_root)
        self.terms = Terms(self.files.ca, self.files.revoked, first_port, 65535, 2.0, max_keeps=20)
        self.keeps = Keeps(self.units, Loaders(self.runtime_root), self.terms, grants.opened, FakeWitness())
        self.journal = FakeJournal()
        self.ledger = FakeLedger()
        self.require_client = require_client
        self.operator = self.authority.issue("operator")
        self.url = ""
        self.port = 0
        self.server: Server | None = None

    def __repr__(self) -> str:
        return f"ManagerHouse({self.url})"

    async def open(self) -> None:
        """Serves."""
        certificates = pki.ClientCertificates(RevokedFile(self.files.revoked))
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        context = self.files.server_context(require_client=self.require_client)
        app = make_app(self.keeps, self.journal, self.ledger, certificates, require_client=self.require_client)
        self.server = Server(app, listener, context, certificates)
        await self.server.open()

    async def close(self) -> None:
        """Ends everything."""
        if self.server is not None:
            await self.server.close()
        await self.keeps.settle()
        await self.units.close()

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
async def manager_house(directory: Path, *, require_client: bool = True) -> AsyncIterator[ManagerHouse]:
    """A manager that serves while the block runs."""
    house = ManagerHouse(directory, require_client=require_client)
    await house.open()
    try:
        yield house
    finally:
        await house.close()
