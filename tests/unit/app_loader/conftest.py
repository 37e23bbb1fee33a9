"""A CA and its first client for all tests of this directory, and an app-loader that listens for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.pki import Authority
from tests.unit.app_loader.app_loader_process import AppLoaderProcess, listening


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="session")
def client(authority: Authority) -> Path:
    return authority.client("client")


@pytest.fixture
def process(tmp_path: Path, authority: Authority) -> Iterator[AppLoaderProcess]:
    with listening(tmp_path, authority) as started:
        yield started
