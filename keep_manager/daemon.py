"""Wires the manager together: starts its parts in order, stops them in reverse.

1. Certificates, because nothing else matters without them, and the operator must see it first.
2. The listening socket, and the lock of what is declared, because of two managers the second must fail before it has
   touched anything. Clients that connect from now on queue, and are served at 5: a restart is a pause, not a refusal.
3. The bus, without which there are no keeps.
4. Rediscovery, which fills the view of all keeps, and logs what was found before anything changes.
5. The server, what removes old and unused keeps, and the watch over all of them, which begins by reading the latest
   events; then READY, as all of it works.

Every part's tasks are one group's: one that fails ends the manager with its reason logged, and systemd starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack

from keep_grants.protocol import SOCKET_NAME
from keep_manager import log, pki
from keep_manager.authorize.quotas import QuotaKeeper
from keep_manager.callers import quotas_for
from keep_manager.codelets import Applications, directory_of
from keep_manager.compilations import Compilations
from keep_manager.compiled import Compiled, NotKept
from keep_manager.config import ClientCertificates, Instance, Settings
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
from keep_manager.folders import Folders, current_boot
from keep_manager.http.acceptor import listen
from keep_manager.http.app import Server, make_app
from keep_manager.http.middleware import Admission
from keep_manager.keeps.decide import ENDED, census
from keep_manager.keeps.manager import Keeps
from keep_manager.keeps.policy import Policy
from keep_manager.keeps.readers import Readers
from keep_manager.keeps.streams import Inputs
from keep_manager.keeps.upkeep import Retention
from keep_manager.keeps.view import Entry, View
from keep_manager.keeps.watch import Watch
from keep_manager.loader_client import Loaders
from keep_manager.modules import Modules
from keep_manager.places import (
    artifacts_directory,
    bus_address,
    hold_declared,
    runtime_root,
    state_directory,
    store_directory,
    trees,
)
from keep_manager.providers import Providers
from keep_manager.providers.files import Files
from keep_manager.pulls import Pulls
from keep_manager.reload import Reload
from keep_manager.systemd.compile_units import CompileUnits
from keep_manager.systemd.event_log import EventLog
from keep_manager.systemd.journal import Journal
from keep_manager.systemd.programs import Calendar, Sealer
from keep_manager.systemd.pull_units import PullUnits
from keep_manager.systemd.roots import Roots
from keep_manager.systemd.storing import Storing
from keep_manager.systemd.timers import Timers
from keep_manager.systemd.units import SystemdUnits
from keep_manager.tasks import Group, carried_on
from keep_manager.timer_signals import TimerSignals
from keep_protocol.errors import KeepfleetError
from keep_protocol.revocation import RevokedFile
from keep_protocol.sdnotify import Notifier
from keep_protocol.spec import KeepSpec
from keep_protocol.store import InUse
from module_store.artifacts import Artifacts

LOG = logging.getLogger("keepfleet.daemon")
WATCHDOG_SHARE = 3
"""The watchdog is fed three times in its interval."""
STATUS_SECONDS = 15.0
"""How often `systemctl status` gets a new count where there is no watchdog."""


def uses_of(entries: Iterable[Entry]) -> tuple[InUse, ...]:
    """The keeps of the store which are living, each with its module."""
    return tuple(
        InUse(f"keep {entry.info.kuuid} {entry.info.name}".strip(), entry.spec.digest, ())
        for entry in entries
        if entry.spec is not None and entry.spec.digest and entry.info.state not in ENDED
    )


def specs_of(entries: Iterable[Entry]) -> tuple[KeepSpec, ...]:
    """What keeps are that have not ended."""
    return tuple(entry.spec for entry in entries if entry.spec is not None and entry.info.state not in ENDED)


def policy_of(settings: Settings, files: pki.Directory) -> Policy:
    """What the configuration lets keeps have."""
    return Policy(
        client_ca=files.client_ca,
        revoked=files.revoked,
        first_port=settings.keep_ports.first,
        last_port=settings.keep_ports.last,
        start_timeout_seconds=settings.start_timeout_seconds,
        max_keeps=settings.max_keeps,
        max_creations_at_once=settings.max_creations_at_once,
        callers=settings.callers_by_name,
        lease=settings.lease,
        spare_keeps=settings.spare_keeps,
    )


async def run(settings: Settings, load: Callable[[], Settings], notifier: Notifier | None = None) -> None:
    """Serves until SIGTERM or SIGINT; on SIGHUP `load` reads the settings again.

    Raises KeepfleetError when a part cannot start, and what a part failed with.
    """
    pulse, stop = Pulse(notifier or Notifier()), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Group() as tasks, AsyncExitStack() as parts:
        manager = Manager(settings, tasks, parts)
        await manager.open_host()
        await manager.open_keeps()
        await manager.open_declared()
        await manager.serve()
        manager.go_on(load, pulse)
        pulse.say("READY=1")
        LOG.info("ready on https://%s, client certificates %s", _at(settings), settings.client_certificates.value)
        await stop.wait()
        pulse.say("STOPPING=1", "STATUS=finishing the requests under way; keeps go on")
        LOG.info("stopping; keeps go on")


class Manager:
    """The parts of one manager, opened stage by stage, each with those before it; `parts` closes them in reverse."""

    def __init__(self, settings: Settings, tasks: Group, parts: AsyncExitStack) -> None:
        self._settings, self._tasks, self._parts = settings, tasks, parts
        self._instance, self._is_system = settings.instance.value, settings.instance is Instance.SYSTEM
        self._bus, self._view = bus_address(self._instance), View()

    def __repr__(self) -> str:
        return f"Manager({self._instance}, {self._view!r})"

    def _below(self, name: str) -> str:
        """The directory of this name, among those that outlive this process."""
        return os.path.join(state_directory(self._instance), name)

    async def open_host(self) -> None:
        """Certificates, the listening socket, the lock of what is declared, the bus, and the files of keeps."""
        settings, parts, instance = self._settings, self._parts, self._instance
        self._files = pki.Directory(settings.pki)
        self._files.check()
        required = settings.client_certificates is ClientCertificates.REQUIRED
        self._context = self._files.server_context(require_client=required)
        self._certificates = pki.ClientCertificates(RevokedFile(self._files.revoked))
        self._admission = Admission(self._certificates, required)
        self._listener = parts.enter_context(listen(settings.address, settings.port))
        parts.callback(os.close, hold_declared(self._below("declared")))
        self._roots = Roots(trees(instance))
        self._units = SystemdUnits(self._tasks, self._bus, instance, runtime_root(instance), self._roots)
        parts.push_async_callback(self._units.close)
        await self._units.open()
        journal = Journal(instance)
        self._event_log, self._storing = EventLog(journal, instance), Storing(journal, instance)
        self._folders = Folders(self._below("keeps"), current_boot())
        await asyncio.to_thread(self._folders.open)

    async def open_keeps(self) -> None:
        """What keeps are given and run, and then all keeps that there are, in the view."""
        tasks, units, folders, view = self._tasks, self._units, self._folders, self._view
        loaders, policy = Loaders(runtime_root(self._instance)), policy_of(self._settings, self._files)
        self._quotas = QuotaKeeper(policy.callers, lambda: view)
        helper = Files(
            os.path.join(runtime_root(self._instance), SOCKET_NAME),
            mapped=self._is_system,
            volumes=self._below("volumes"),
        )
        self._modules = Modules(store_directory(self._settings))
        await self._open_oneshots()
        self._providers = Providers(policy.client_ca, policy.revoked, helper, folders.make, self._modules.open)
        providers, readers, inputs = self._providers, Readers(loaders, folders, view), Inputs()
        self._readers, self._inputs = readers, inputs
        self._watch = Watch(tasks, units, loaders, providers, folders, self._event_log, view, readers, inputs)
        self._keeps = Keeps(
            tasks,
            units,
            loaders,
            policy,
            providers,
            folders,
            self._watch,
            view,
            readers,
            inputs,
            self._modules,
            self._compiled,
            self._quotas,
        )
        self._parts.push_async_callback(self._keeps.settle)
        began = time.monotonic()
        found = census(await self._keeps.rediscover())
        LOG.info("rediscovered %s in %.0f ms", found, 1000 * (time.monotonic() - began))
        for line in found.troubled:
            LOG.warning("rediscovered in error: %s", line)

    async def _open_oneshots(self) -> None:
        """Compilations and pulls, in units of their own. Where compiled code cannot be kept each keep compiles its own:
        nothing else of the manager needs it."""
        oneshots = CompileUnits(self._tasks, self._bus)
        self._parts.push_async_callback(oneshots.close)
        await oneshots.open()
        self._compiled: Compiled | NotKept = NotKept()
        try:
            cache = await asyncio.to_thread(Artifacts, artifacts_directory(self._instance))
        except KeepfleetError as error:
            LOG.warning("keeps compile their modules themselves: %s", error.message)
        else:
            self._parts.callback(cache.close)
            compilations = Compilations(self._tasks, cache, self._modules.open, oneshots, self._roots.path)
            await compilations.open()
            self._compiled = Compiled(self._tasks, compilations, cache)
        self._pulls = Pulls(self._tasks, PullUnits(oneshots), self._roots.path, self._settings.registries)
        self._parts.push_async_callback(self._pulls.close)
        await self._pulls.open()

    async def open_declared(self) -> None:
        """What is declared: keeps, with their volumes and secrets, and jobs."""
        view, quotas = self._view, self._quotas
        declared = Catalogue(Specifications(self._below("declared")), self._modules)
        volumes = Volumes(
            self._below("volumes"),
            lambda owner: quotas_for(quotas.callers, owner).volume_bytes,
            mounts=self._is_system,
        )
        reconciler = Reconciler(self._tasks, self._keeps, view.entries, declared, volumes, self._readers)
        self._reconciler = reconciler
        view.on_change, view.on_unfit = reconciler.keep_changed, self._compiled.unfit
        sealer = Sealer(system=self._is_system)
        self._secrets = Secrets(self._below("secrets"), sealer, declared.readable, reconciler.retry)
        await self._secrets.open()
        reconciler.check_use, self._units.credentials = self._secrets.check_use, self._secrets.credentials
        await self._open_jobs()
        await reconciler.open()
        self._parts.push_async_callback(reconciler.close)
        self._parts.push_async_callback(self._jobs.close)
        self._declarations, self._volumes = Declarations(reconciler, self._jobs), DeclaredVolumes(volumes, reconciler)

    async def _open_jobs(self) -> None:
        """The declared jobs, and what says when it is time for them."""
        timers, lines = Timers(self._tasks, self._bus), LastLines(self._folders)
        self._parts.push_async_callback(timers.close)
        await timers.open()
        history, calendar = History(self._below("jobs")), Calendar()
        self._jobs = Jobs(
            self._tasks, self._reconciler, self._keeps, self._view.entries, history, calendar, timers, lines.of
        )
        signals = TimerSignals(runtime_root(self._instance), self._jobs.due)
        signals.open()
        self._parts.callback(signals.close)
        await self._jobs.open()

    async def serve(self) -> None:
        """Answers clients from now on."""
        app = make_app(
            self._keeps,
            self._view,
            self._readers,
            self._inputs,
            self._event_log,
            self._admission,
            self._quotas,
            self._declarations,
            self._volumes,
            self._modules,
            self._uses,
            self._pulls,
            self._secrets,
            Applications(directory_of(self._instance)),
        )
        server = Server(app, self._listener, self._context, self._certificates)
        self._parts.push_async_callback(server.close)
        await server.open(self._tasks)

    def _uses(self) -> tuple[InUse, ...]:
        return uses_of(self._view.entries())

    def go_on(self, load: Callable[[], Settings], pulse: Pulse) -> None:
        """Starts what goes on for as long as the manager does."""
        retention = Retention(self._keeps, self._view.entries, self._settings.retention_seconds)
        reload = self._reload(load, pulse, retention)
        modules, compiled, view = self._modules, self._compiled, self._view
        parts_that_go_on: dict[str, Callable[[], Coroutine[None, None, None]]] = {
            "retention": retention.run,
            "reload": reload.run,
            "watch": self._watch.open,
            "resting": self._watch.tend_resting,
            "journal": lambda: self._storing.tend(view.any_living, self._journal_changed),
            "spares": self._keeps.tend_spares,
            "declared": self._reconciler.run,
            "jobs": self._jobs.run,
            "timers of jobs": self._jobs.timers.tend,
            "roots": self._units.tend_roots,
            "modules": lambda: modules.tend(lambda: [use.digest for use in self._uses()]),
            "compiled code": lambda: compiled.prepare(specs_of(view.entries())),
            "pulse": lambda: pulse.beat(view),
        }
        for name, run_part in parts_that_go_on.items():
            self._tasks.start(carried_on(run_part, name), name=name)
        self._try_roots(self._settings)

    async def _journal_changed(self) -> None:
        self._providers.journal_stores = self._storing.stores
        if not self._storing.stores:
            await self._watch.journal_stores_nothing()

    def _try_roots(self, settings: Settings) -> None:
        self._tasks.start(self._providers.try_roots(settings.grant_roots), name="grant roots")

    def _reload(self, load: Callable[[], Settings], pulse: Pulse, retention: Retention) -> Reload:
        """What reads the settings again on SIGHUP, and has the parts work by them."""

        def apply(new: Settings) -> None:
            log.set_level(new.log_level.value)
            self._quotas.apply(new.callers_by_name)
            self._keeps.apply(policy_of(new, self._files))
            retention.apply(new.retention_seconds)
            self._pulls.apply(new.registries)
            self._try_roots(new)

        reload = Reload(self._settings, load, apply, pulse.say)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.request)
        return reload


def _at(settings: Settings) -> str:
    address = f"[{settings.address}]" if ":" in settings.address else settings.address
    return f"{address}:{settings.port}"


class Pulse:
    """Feeds the watchdog from the event loop, so that a loop that hangs is noticed, and keeps the status line true."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._failure = ""

    def __repr__(self) -> str:
        return f"Pulse({self._notifier!r})"

    def say(self, *assignments: str) -> None:
        """Notifies systemd. Where it takes nothing now (ENOBUFS, a full queue) that is logged once; the next beat may
        pass, and without any the watchdog ends the manager."""
        try:
            self._notifier.send(*assignments)
        except OSError as error:
            if str(error) != self._failure:
                LOG.warning("cannot notify systemd, trying again: %s", error)
            self._failure = str(error)
        else:
            self._failure = ""

    async def beat(self, view: View) -> None:
        """Notifies systemd for ever, WATCHDOG_SHARE times in each of the watchdog's intervals."""
        micro = os.environ.get("WATCHDOG_USEC", "")
        period = int(micro) / 1e6 / WATCHDOG_SHARE if micro.isdecimal() and int(micro) else STATUS_SECONDS
        while True:
            self.say("WATCHDOG=1", f"STATUS={len(view)} keeps")
            await asyncio.sleep(period)
