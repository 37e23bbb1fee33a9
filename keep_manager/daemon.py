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
import fcntl
import logging
import os
import signal
import sys
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
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.revocation import RevokedFile
from keep_protocol.sdnotify import Notifier
from keep_protocol.spec import KeepSpec
from keep_protocol.store import InUse
from keep_root.contents import target_of
from keep_root.trees import SYSTEM as SYSTEM_TREES
from keep_root.trees import VARIABLE as TREES
from keep_root.trees import Trees, user_directory
from module_store.artifacts import Artifacts

LOG = logging.getLogger("keepfleet.daemon")
SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
WATCHDOG_SHARE = 3
"""The watchdog is fed three times in its interval."""
STATUS_SECONDS = 15.0
"""How often `systemctl status` gets a new count where there is no watchdog."""


def runtime_root(instance: str) -> str:
    """The directory below which systemd makes runtime directories."""
    return "/run" if instance == "system" else os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")


def bus_address(instance: str) -> str:
    """The bus the service manager is on; the variables are D-Bus's own."""
    if instance == "system":
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", SYSTEM_BUS)
    return os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime_root(instance)}/bus")


def trees(instance: str) -> Trees:
    """The roots of keeps that run this manager's own version: not the link `current`, which an upgrade switches."""
    directory = os.environ.get(TREES) or (SYSTEM_TREES if instance == "system" else user_directory())
    packages = os.path.join(os.path.dirname(__file__), "..")
    return Trees(directory, target_of(sys.executable, packages))


def state_directory(instance: str) -> str:
    """Where this manager keeps what outlives it: what systemd gave it (StateDirectory=), or a user's own."""
    given = os.environ.get("STATE_DIRECTORY")
    if given or instance == "system":
        return given or "/var/lib/keepfleet"
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "keepfleet")


def hold_declared(directory: str) -> int:
    """Keeps every other manager from what is declared in `directory`, until the descriptor is closed: two of them
    would end each other's keeps. Raises KeepfleetError(CONFIGURATION)."""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)  # which no other user may open, and so lock
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot open {directory}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        why = "another manager does so; see: systemctl status keep-manager"
        raise KeepfleetError(
            ErrorKind.CONFIGURATION, f"cannot work for what is declared in {directory}: {why}"
        ) from None
    return lock


def store_directory(settings: Settings) -> str:
    """Where this manager's module store is: the one in which `keepctl store` works for the same user."""
    if settings.store:
        return settings.store
    system = settings.instance is Instance.SYSTEM
    return os.path.join(state_directory(settings.instance.value), "store") if system else ""


def uses_of(entries: Iterable[Entry]) -> tuple[InUse, ...]:
    """The keeps of the store which are living, each with its module."""
    return tuple(
        InUse(f"keep {entry.info.kuuid} {entry.info.name}".strip(), entry.spec.digest, ())
        for entry in entries
        if entry.spec is not None and entry.spec.digest and entry.info.state not in ENDED
    )


def artifacts_directory(instance: str) -> str | None:
    """Where this manager keeps compiled code: below its state directory, a user's below the XDG cache home."""
    return os.path.join(state_directory(instance), "artifacts") if instance == Instance.SYSTEM.value else None


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
    pulse = Pulse(notifier or Notifier())
    stop = _asked_to_stop()
    async with Group() as tasks, AsyncExitStack() as parts:
        files = pki.Directory(settings.pki)
        files.check()
        required = settings.client_certificates is ClientCertificates.REQUIRED
        context = files.server_context(require_client=required)
        certificates = pki.ClientCertificates(RevokedFile(files.revoked))
        listener = parts.enter_context(listen(settings.address, settings.port))
        instance = settings.instance.value
        declared_at = os.path.join(state_directory(instance), "declared")
        parts.callback(os.close, hold_declared(declared_at))
        roots = Roots(trees(instance))
        units = await _units(tasks, parts, instance, roots)
        loaders, journal, view = Loaders(runtime_root(instance)), Journal(instance), View()
        event_log, storing = EventLog(journal, instance), Storing(journal, instance)
        folders = Folders(os.path.join(state_directory(instance), "keeps"), current_boot())
        await asyncio.to_thread(folders.open)
        policy = policy_of(settings, files)
        quotas = QuotaKeeper(policy.callers, lambda: view)
        volumes_at = os.path.join(state_directory(instance), "volumes")
        mapped = settings.instance is Instance.SYSTEM
        helper = Files(os.path.join(runtime_root(instance), SOCKET_NAME), mapped=mapped, volumes=volumes_at)
        modules = Modules(store_directory(settings))
        oneshots = CompileUnits(tasks, bus_address(instance))
        parts.push_async_callback(oneshots.close)
        await oneshots.open()
        compiled = await _compiled(tasks, parts, instance, roots, modules, oneshots)
        pulls = Pulls(tasks, PullUnits(oneshots), roots.path, settings.registries)
        parts.push_async_callback(pulls.close)
        await pulls.open()
        providers = Providers(policy.client_ca, policy.revoked, helper, folders.make, modules.open)
        readers, inputs = Readers(loaders, folders, view), Inputs()
        watch = Watch(tasks, units, loaders, providers, folders, event_log, view, readers, inputs)
        keeps = Keeps(
            tasks,
            units,
            loaders,
            policy,
            providers,
            folders,
            watch,
            view,
            readers,
            inputs,
            modules,
            compiled,
            quotas,
        )
        parts.push_async_callback(keeps.settle)
        await _rediscover(keeps)
        declared = Catalogue(Specifications(declared_at), modules)
        volumes = Volumes(volumes_at, lambda owner: quotas_for(quotas.callers, owner).volume_bytes, mounts=mapped)
        reconciler = Reconciler(tasks, keeps, view.entries, declared, volumes, readers)
        view.on_change = reconciler.keep_changed
        view.on_unfit = compiled.unfit
        secrets = await _secrets(instance, reconciler, units)
        jobs = await _jobs(tasks, parts, instance, reconciler, keeps, view, folders)
        await reconciler.open()
        parts.push_async_callback(reconciler.close)
        parts.push_async_callback(jobs.close)
        declarations, kept_volumes = Declarations(reconciler, jobs), DeclaredVolumes(volumes, reconciler)
        admission = Admission(certificates, required)
        app = make_app(
            keeps,
            view,
            readers,
            inputs,
            event_log,
            admission,
            quotas,
            declarations,
            kept_volumes,
            modules,
            lambda: uses_of(view.entries()),
            pulls,
            secrets,
            Applications(directory_of(instance)),
        )
        server = Server(app, listener, context, certificates)
        parts.push_async_callback(server.close)
        await server.open(tasks)
        retention = Retention(keeps, view.entries, settings.retention_seconds)

        async def journal_changed() -> None:
            providers.journal_stores = storing.stores
            if not storing.stores:
                await watch.journal_stores_nothing()

        def try_roots(new: Settings) -> None:
            tasks.start(providers.try_roots(new.grant_roots), name="grant roots")

        reload = _reload(settings, load, files, pulse, keeps, quotas, retention, pulls, try_roots)
        parts_that_go_on: dict[str, Callable[[], Coroutine[None, None, None]]] = {
            "retention": retention.run,
            "reload": reload.run,
            "watch": watch.open,
            "resting": watch.tend_resting,
            "journal": lambda: storing.tend(view.any_living, journal_changed),
            "spares": keeps.tend_spares,
            "declared": reconciler.run,
            "jobs": jobs.run,
            "timers of jobs": jobs.timers.tend,
            "roots": units.tend_roots,
            "modules": lambda: modules.tend(lambda: [use.digest for use in uses_of(view.entries())]),
            "compiled code": lambda: compiled.prepare(specs_of(view.entries())),
            "pulse": lambda: pulse.beat(view),
        }
        for name, run_part in parts_that_go_on.items():
            tasks.start(carried_on(run_part, name), name=name)
        try_roots(settings)
        pulse.say("READY=1")
        LOG.info("ready on https://%s, client certificates %s", _at(settings), settings.client_certificates.value)
        await stop.wait()
        pulse.say("STOPPING=1", "STATUS=finishing the requests under way; keeps go on")
        LOG.info("stopping; keeps go on")


def _asked_to_stop() -> asyncio.Event:
    """Set by SIGTERM and SIGINT from now on."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _units(tasks: Group, parts: AsyncExitStack, instance: str, roots: Roots) -> SystemdUnits:
    """The keeps' units, on the bus until `parts` end. Raises KeepfleetError(UNAVAILABLE)."""
    units = SystemdUnits(tasks, bus_address(instance), instance, runtime_root(instance), roots)
    parts.push_async_callback(units.close)
    await units.open()
    return units


async def _compiled(
    tasks: Group, parts: AsyncExitStack, instance: str, roots: Roots, modules: Modules, units: CompileUnits
) -> Compiled | NotKept:
    """The compiled code of the store's modules. Where that cannot be kept each keep compiles its own: nothing else of
    the manager needs it. Raises KeepfleetError."""
    try:
        cache = await asyncio.to_thread(Artifacts, artifacts_directory(instance))
    except KeepfleetError as error:
        LOG.warning("keeps compile their modules themselves: %s", error.message)
        return NotKept()
    parts.callback(cache.close)
    compilations = Compilations(tasks, cache, modules.open, units, roots.path)
    await compilations.open()
    return Compiled(tasks, compilations, cache)


async def _secrets(instance: str, reconciler: Reconciler, units: SystemdUnits) -> Secrets:
    """The secrets of declared keeps. Raises KeepfleetError."""
    sealer = Sealer(system=instance == Instance.SYSTEM.value)
    directory = os.path.join(state_directory(instance), "secrets")
    secrets = Secrets(directory, sealer, reconciler.declared.readable, reconciler.retry)
    await secrets.open()
    reconciler.check_use, units.credentials = secrets.check_use, secrets.credentials
    return secrets


async def _jobs(
    tasks: Group,
    parts: AsyncExitStack,
    instance: str,
    reconciler: Reconciler,
    keeps: Keeps,
    view: View,
    folders: Folders,
) -> Jobs:
    """The declared jobs, and what says when it is time for them. Raises KeepfleetError."""
    timers = Timers(tasks, bus_address(instance))
    parts.push_async_callback(timers.close)
    await timers.open()
    history = History(os.path.join(state_directory(instance), "jobs"))
    lines = LastLines(folders)
    jobs = Jobs(tasks, reconciler, keeps, view.entries, history, Calendar(), timers, lines.of)
    signals = TimerSignals(runtime_root(instance), jobs.due)
    signals.open()
    parts.callback(signals.close)
    await jobs.open()
    return jobs


def _reload(
    settings: Settings,
    load: Callable[[], Settings],
    files: pki.Directory,
    pulse: Pulse,
    keeps: Keeps,
    quotas: QuotaKeeper,
    retention: Retention,
    pulls: Pulls,
    try_roots: Callable[[Settings], None],
) -> Reload:
    """What reads the settings again on SIGHUP, and has these parts work by them."""

    def apply(new: Settings) -> None:
        log.set_level(new.log_level.value)
        quotas.apply(new.callers_by_name)
        keeps.apply(policy_of(new, files))
        retention.apply(new.retention_seconds)
        pulls.apply(new.registries)
        try_roots(new)

    reload = Reload(settings, load, apply, pulse.say)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.request)
    return reload


def _at(settings: Settings) -> str:
    address = f"[{settings.address}]" if ":" in settings.address else settings.address
    return f"{address}:{settings.port}"


async def _rediscover(keeps: Keeps) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    found = census(await keeps.rediscover())
    LOG.info("rediscovered %s in %.0f ms", found, 1000 * (loop.time() - began))
    for line in found.troubled:
        LOG.warning("rediscovered in error: %s", line)


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
