"""Wires the manager together: starts its parts in order, stops them in reverse.

1. Certificates, because nothing else matters without them, and the operator must see it first.
2. The listening socket, because of two managers the second must fail before it has touched anything. Clients that
   connect from now on queue, and are served at 5: a restart is a pause, not a refusal.
3. The bus, without which there are no keeps.
4. Rediscovery, so that the log says what was found before anything changes it.
5. The server, whoever removes old keeps, and the watch over all of them, which begins by reading what was told
   before; then READY, as all of it works.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack

from keep_manager import grants, pki
from keep_manager.config import ClientCertificates, Settings
from keep_manager.http.app import Server, make_app
from keep_manager.http.gate import listen
from keep_manager.keeps.manager import Keeps
from keep_manager.keeps.rediscover import census
from keep_manager.keeps.retention import retain
from keep_manager.keeps.terms import Terms
from keep_manager.keeps.watch import Watch
from keep_manager.loader_client import Loaders
from keep_manager.systemd.ledger import Ledger
from keep_manager.systemd.lines import Journal
from keep_manager.systemd.units import SystemdUnits
from keep_protocol.keep import KeepInfo
from keep_protocol.revocation import RevokedFile
from keep_protocol.sdnotify import Notifier

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


def terms(settings: Settings, files: pki.Directory) -> Terms:
    """What the configuration lets keeps have."""
    return Terms(
        client_ca=files.client_ca,
        revoked=files.revoked,
        first_port=settings.keep_ports.first,
        last_port=settings.keep_ports.last,
        start_timeout_seconds=settings.start_timeout_seconds,
        max_keeps=settings.max_keeps,
        max_creations_at_once=settings.max_creations_at_once,
        callers=settings.callers_by_name,
    )


async def run(settings: Settings, notifier: Notifier | None = None) -> None:
    """Serves until SIGTERM or SIGINT. Raises KeepfleetError when a part cannot start; nothing is left then."""
    notifier = notifier or Notifier()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as parts:
        files = pki.Directory(settings.pki)
        files.check()
        required = settings.client_certificates is ClientCertificates.REQUIRED
        context = files.server_context(require_client=required)
        certificates = pki.ClientCertificates(RevokedFile(files.revoked))
        listener = parts.enter_context(listen(settings.address, settings.port))
        units = SystemdUnits(
            bus_address(settings.instance.value), settings.instance.value, runtime_root(settings.instance.value)
        )
        parts.push_async_callback(units.close)
        await units.open()
        loaders, journal = Loaders(runtime_root(settings.instance.value)), Journal(settings.instance.value)
        ledger = Ledger(journal, settings.instance.value)
        watch = Watch(units, loaders, ledger)
        parts.push_async_callback(watch.close)
        keeps = Keeps(units, loaders, terms(settings, files), grants.opened, watch)
        parts.push_async_callback(keeps.settle)
        found = await _rediscover(keeps)
        app = make_app(keeps, journal, ledger, certificates, require_client=required, callers=settings.callers_by_name)
        server = Server(app, listener, context, certificates)
        parts.push_async_callback(server.close)
        await server.open()
        retention = asyncio.create_task(retain(keeps, settings.retention_seconds), name="retention")
        parts.push_async_callback(_cancel, retention)
        watching = asyncio.create_task(watch.open(found), name="watch")
        parts.push_async_callback(_cancel, watching)
        pulse = asyncio.create_task(_pulse(notifier, units), name="pulse")
        parts.push_async_callback(_cancel, pulse)
        notifier.send("READY=1")
        LOG.info("ready on https://%s, client certificates %s", _at(settings), settings.client_certificates.value)
        await stop.wait()
        notifier.send("STOPPING=1", "STATUS=finishing the requests under way; keeps go on")
        LOG.info("stopping; keeps go on")


def _at(settings: Settings) -> str:
    address = f"[{settings.address}]" if ":" in settings.address else settings.address
    return f"{address}:{settings.port}"


async def _rediscover(keeps: Keeps) -> Sequence[KeepInfo]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    keeps_found = (await keeps.list()).keeps
    found = census(keeps_found)
    LOG.info("rediscovered %s in %.0f ms", found, 1000 * (loop.time() - began))
    for line in found.troubled:
        LOG.warning("rediscovered in error: %s", line)
    return keeps_found


async def _pulse(notifier: Notifier, units: SystemdUnits) -> None:
    """Feeds the watchdog from the event loop, so that a loop that hangs is noticed, and keeps the status line true."""
    micro = os.environ.get("WATCHDOG_USEC", "")
    period = int(micro) / 1e6 / WATCHDOG_SHARE if micro.isdecimal() and int(micro) else STATUS_SECONDS
    while True:
        notifier.send("WATCHDOG=1", f"STATUS={len(units.kuuids())} keeps")
        await asyncio.sleep(period)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        LOG.error("the task %s had ended: %s", task.get_name(), error)
