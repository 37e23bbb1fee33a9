"""A manager to talk to, in a directory whose name is short enough for Unix sockets."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fakes.fake_pki import FakeAuthority
from tests.fakes.fake_units import FakeUnits
from tests.fakes.manager_house import ManagerHouse, manager_house


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="km") as name:
        yield Path(name)


@pytest.fixture
async def house(place: Path) -> AsyncIterator[ManagerHouse]:
    async with manager_house(place) as made:
        yield made


@pytest.fixture
async def units(place: Path) -> AsyncIterator[FakeUnits]:
    made = FakeUnits(str(place))
    yield made
    await made.close()


@pytest.fixture
def authority(place: Path) -> FakeAuthority:
    made = FakeAuthority(place / "pki")
    made.manager_files()
    return made
