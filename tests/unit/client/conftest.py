"""What the tests of the client share: a PKI, another one that is not trusted, and a manager in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from keep_client.manager import ManagerClient
from keep_client.peer import Endpoint
from tests.fakes.client_pki import Pki
from tests.fakes.manager_in_memory import ManagerInMemory


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
