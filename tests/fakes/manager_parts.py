"""The manager's parts between its HTTP server and systemd, wired as the daemon wires them, with a fake event log."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from keep_grants.protocol import SOCKET_NAME
from keep_manager.declared.catalogue import Catalogue
from keep_manager.declared.declarations import Declarations
from keep_manager.declared.history import History
from keep_manager.declared.jobs import Jobs
from keep_manager.declared.last_lines import LastLines
from keep_manager.declared.reconciler import Reconciler
from keep_manager.declared.secrets import Secrets
from keep_manager.declared.specifications import Specifications
from keep_manager.declared.volume_service import DeclaredVolumes
from keep_manager.declared.volumes import Volumes
from keep_manager.folders import Folders
from keep_manager.keeps.interfaces import Quotas
from keep_manager.keeps.manager import Keeps
from keep_manager.keeps.policy import Policy
from keep_manager.keeps.readers import Readers
from keep_manager.keeps.streams import Inputs
from keep_manager.keeps.view import View
from keep_manager.keeps.watch import Watch
from keep_manager.loader_client import Loaders
from keep_manager.modules import Modules
from keep_manager.providers import Providers
from keep_manager.providers.files import Files
from keep_manager.tasks import Group
from keep_protocol.errors import KeepfleetError
from keep_protocol.spec import KeepSpec
from tests.fakes.fake_calendar import FakeCalendar, FakeTimers
from tests.fakes.fake_event_log import FakeEventLog
from tests.fakes.fake_sealer import FakeSealer
from tests.fakes.fake_units import FakeUnits

THIS_BOOT = "this boot"


class FakeArtifacts:
    """Compiled code by the digest of its module; asked: the patience of each who did; refusal: what they get."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.asked: list[float | None] = []
        self.refusal: KeepfleetError | None = None

    @asynccontextmanager
    async def held(self, spec: KeepSpec, patience: float | None = None) -> AsyncIterator[int | None]:
        """See keep_manager.keeps.interfaces.Artifacts."""
        self.asked.append(patience)
        if self.refusal is not None:
            raise self.refusal
        path = self.files.get(spec.digest)
        file = None if path is None else os.open(path, os.O_RDONLY)
        try:
            yield file
        finally:
            if file is not None:
                os.close(file)


class ManagerParts:
    """One manager's; another one over the same units and events is the next manager; `boot` is the ID of the
    host's boot it runs in."""

    def __init__(
        self,
        tasks: Group,
        units: FakeUnits,
        root: str,
        policy: Policy,
        events: FakeEventLog,
        quotas: Quotas | None = None,
        boot: str = THIS_BOOT,
    ) -> None:
        self.tasks, self.units, self.policy, self.events = tasks, units, policy, events
        self.view, self.inputs = View(), Inputs()
        loaders = Loaders(root)
        self.folders = Folders(f"{root}/state/keeps", boot)
        self.folders.open()
        helper = Files(f"{root}/{SOCKET_NAME}", mapped=False, volumes=f"{root}/state/volumes")
        self.modules, self.artifacts = Modules(f"{root}/state/store"), FakeArtifacts()
        self.journal = f"{root}/journal.sock"
        self.providers = providers = Providers(
            policy.client_ca, policy.revoked, helper, self.folders.make, self.modules.open, self.journal
        )
        self.readers = Readers(loaders, self.folders, self.view)
        self.watch = Watch(tasks, units, loaders, providers, self.folders, events, self.view, self.readers, self.inputs)
        self.keeps = Keeps(
            tasks,
            units,
            loaders,
            policy,
            providers,
            self.folders,
            self.watch,
            self.view,
            self.readers,
            self.inputs,
            self.modules,
            self.artifacts,
            quotas,
        )
        self.volumes = Volumes(f"{root}/state/volumes", lambda _: 1 << 30)
        self.reconciler = Reconciler(
            tasks,
            self.keeps,
            self.view.entries,
            Catalogue(Specifications(f"{root}/state/declared"), self.modules),
            self.volumes,
            self.readers,
        )
        self.view.on_change = self.reconciler.keep_changed
        self.calendar, self.timers = FakeCalendar(), FakeTimers()
        history = History(f"{root}/state/jobs")
        history.open()
        lines = LastLines(self.folders)
        self.jobs = Jobs(
            tasks,
            self.reconciler,
            self.keeps,
            self.view.entries,
            history,
            self.calendar,
            self.timers,
            lines.of,
            lambda: self.calendar.now,
        )
        self.sealer = FakeSealer()
        self.secrets = Secrets(
            f"{root}/state/secrets", self.sealer, self.reconciler.declared.readable, self.reconciler.retry
        )
        self.reconciler.check_use = self.secrets.check_use
        self.declarations = Declarations(self.reconciler, self.jobs, lambda: self.calendar.now)
        self.kept_volumes = DeclaredVolumes(self.volumes, self.reconciler)

    def __repr__(self) -> str:
        return f"ManagerParts({self.keeps!r})"


@asynccontextmanager
async def manager_parts(
    units: FakeUnits,
    root: str,
    policy: Policy,
    events: FakeEventLog | None = None,
    quotas: Quotas | None = None,
    boot: str = THIS_BOOT,
) -> AsyncIterator[ManagerParts]:
    """A manager that has found what there is, and watches it while the block runs."""
    async with Group() as tasks:
        parts = ManagerParts(tasks, units, root, policy, events or FakeEventLog(), quotas, boot)
        await parts.keeps.rediscover()
        await parts.watch.open()
        yield parts
        await parts.keeps.settle()
