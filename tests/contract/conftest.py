"""The two service managers that must behave alike: the fake and a real systemd."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from keep_manager.keeps.interfaces import Units
from keep_manager.systemd.units import SystemdUnits
from keep_manager.tasks import Group
from tests.fakes.fake_units import FakeUnits
from tests.fakes.real_systemd import RealSystemd
from tools.sandbox.sandbox import Sandbox


@dataclass(frozen=True)
class Subject:
    """A service manager under test, and how a test makes its loaders behave."""

    units: Units
    behave: Callable[[str], None]
    install: Callable[[bool], None]
    mask: Callable[[bool], None]


@pytest.fixture(scope="session")
def systemd() -> Iterator[RealSystemd]:
    with Sandbox(f"contract-{os.getpid()}") as sandbox:
        yield RealSystemd(sandbox)


@asynccontextmanager
async def systemd_units(systemd: RealSystemd) -> AsyncIterator[SystemdUnits]:
    """The adapter to the sandbox's systemd, connected while the block runs."""
    async with Group() as tasks:
        units = SystemdUnits(tasks, systemd.address, "system", systemd.runtime_root)
        await units.open()
        yield units
        await units.close()


@pytest.fixture
def fake_place() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="kc") as name:
        yield name


@pytest.fixture(params=["fake", "systemd"])
async def subject(request: pytest.FixtureRequest, fake_place: str) -> AsyncIterator[Subject]:
    if request.param == "fake":
        fake = FakeUnits(fake_place)
        yield Subject(
            fake,
            lambda how: setattr(fake, "behaviour", how),
            lambda on: setattr(fake, "installed", on),
            lambda on: setattr(fake, "masked", on),
        )
        await fake.close()
        return
    systemd: RealSystemd = request.getfixturevalue("systemd")
    async with systemd_units(systemd) as units:
        yield Subject(units, systemd.behave, lambda on: systemd.install() if on else systemd.uninstall(), systemd.mask)
    systemd.install()
    systemd.clear()
