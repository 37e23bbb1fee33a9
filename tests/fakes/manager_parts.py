"""The manager's parts between its HTTP server and systemd, wired as the daemon wires them, with a fake event log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from keep_grants.protocol import SOCKET_NAME
from keep_manager.keeps.interfaces import Quotas
from keep_manager.keeps.manager import Keeps
from keep_manager.keeps.policy import Policy
from keep_manager.keeps.view import View
from keep_manager.keeps.watch import Watch
from keep_manager.loader_client import Loaders
from keep_manager.providers import Providers
from keep_manager.providers.files import Files
from keep_manager.tasks import Group
from tests.fakes.fake_event_log import FakeEventLog
from tests.fakes.fake_units import FakeUnits


class ManagerParts:
    """One manager's; another one over the same units and events is the next manager."""

    def __init__(
        self,
        tasks: Group,
        units: FakeUnits,
        root: str,
        policy: Policy,
        events: FakeEventLog,
        quotas: Quotas | None = None,
    ) -> None:
        self.tasks, self.units, self.policy, self.events = tasks, units, policy, events
        self.view = View()
        loaders = Loaders(root)
        self.watch = Watch(tasks, units, loaders, events, self.view)
        providers = Providers(policy.client_ca, policy.revoked, Files(f"{root}/{SOCKET_NAME}", mapped=False))
        self.keeps = Keeps(tasks, units, loaders, policy, providers, self.watch, self.view, quotas)

    def __repr__(self) -> str:
        return f"ManagerParts({self.keeps!r})"


@asynccontextmanager
async def manager_parts(
    units: FakeUnits, root: str, policy: Policy, events: FakeEventLog | None = None, quotas: Quotas | None = None
) -> AsyncIterator[ManagerParts]:
    """A manager that has found what there is, and watches it while the block runs."""
    async with Group() as tasks:
        parts = ManagerParts(tasks, units, root, policy, events or FakeEventLog(), quotas)
        await parts.keeps.rediscover()
        await parts.watch.open()
        yield parts
        await parts.keeps.settle()
