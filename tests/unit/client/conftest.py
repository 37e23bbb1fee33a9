"""What the tests of the client share: a PKI, another one that is not trusted, and a manager in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from keep_client import channel, connection, peer
from keep_client.manager import ManagerClient
from keep_client.peer import Endpoint
from tests.fakes.client_pki import Pki
from tests.fakes.manager_in_memory import ManagerInMemory


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Server and client are threads of one process: how long it has no processor meanwhile says nothing of either."""
    monkeypatch.setattr(channel, "HANDSHAKE_SECONDS", 60.0)
    monkeypatch.setattr(connection, "KEPT_SECONDS", 3600.0)
    monkeypatch.setattr(peer, "REFUSAL_SECONDS", 3600.0)


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("foreign"))


@pytest.fixture
def fake(pki: Pki) -> Iterator[ManagerInMemory]:
    with ManagerInMemory(pki.manager(), pki.keep_pem, pki.fingerprint) as manager:
        yield manager


@pytest.fixture
def client(pki: Pki, fake: ManagerInMemory) -> ManagerClient:
    return ManagerClient(Endpoint("localhost", fake.port, "the manager"), pki.credentials().manager_context())
