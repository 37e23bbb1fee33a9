"""The endpoint of a pool's keep: it holds the key, reads what callers send, and is the pool itself.

In this order: descriptors, settings, the identity, LISTENING; then the template process, which the loader forks when it
hears CONNECTED; then the lock, and behind it the first byte of a caller's. It ends with the loader, or when it is asked
to, and answers first what it has been asked.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
from collections.abc import Coroutine
from typing import Any

from app_loader.receive.access import UploadAccess
from app_loader.receive.identity import make_identity, read_identity
from app_loader.settings import Passed, Reporter, Settings, claim, read_settings
from keep_isolation.locks import lock_endpoint
from keep_protocol.constants import CHECKS, CLIENT_CA, IDENTITY, LISTENER, MAX_CA_FILE_BYTES, REVOKED, STDERR
from keep_protocol.errors import KeepfleetError
from keep_protocol.fields import parse
from keep_protocol.forking import REPORT_DESCRIPTOR
from keep_protocol.pools import Console, PoolOptions
from keep_protocol.reports import READY_PACKET, Report, ReportType
from keep_protocol.tls import HANDSHAKE_SECONDS, fingerprint_of, server_context
from script_pool import decisions
from script_pool.console import Journal
from script_pool.keep.https import Exchange
from script_pool.keep.passed import PassedProcesses, first_words
from script_pool.keep.template import limits_of
from script_pool.pool import ScriptPool

MAX_CONNECTIONS = 128
"""Each may hold a request of 5 MiB."""
ACCESS_RECHECK_SECONDS = 1.0
"""A caller whose certificate is revoked, or expires, is ended within this time."""
WARM_SECONDS = 60.0
"""Until the template has loaded its engine: 0.2 s, on a host that is busy with other keeps' starts."""
DRAIN_SECONDS = 2.0
"""What requests have at the end; the loader kills some seconds after it has asked."""


def serve() -> int:
    """The endpoint's life. Returns the exit code."""
    reporter = Reporter()
    try:
        passed = claim(os.environ)
        settings = read_settings(os.environ)
        context = _listening(settings, passed, reporter)
        control = socket.socket(fileno=passed.number(CHECKS))
        reporter.send(Report(ReportType.CONNECTED))
        if os.read(REPORT_DESCRIPTOR, len(READY_PACKET)) != READY_PACKET:
            return 0
        said = first_words(control, WARM_SECONDS)
        options = parse(PoolOptions, said, "pool", strict=True)
        access = UploadAccess(passed.number(REVOKED), settings.kuuid, settings.uploaders)
        listener = socket.socket(fileno=passed.number(LISTENER))
        console = Journal(passed.number(STDERR)) if options.console is Console.JOURNAL else None
        asyncio.run(_Endpoint(settings, options, control, listener, context, access, reporter, console).run())
    except KeepfleetError as error:
        print(f"script-pool: {error.message}", *error.evidence, sep="\n  ", file=sys.stderr, flush=True)
        reporter.fail(error, "cannot serve")
        return 1
    except BaseException as error:
        reporter.fail(error, "cannot serve")
        raise
    return 0


def _listening(settings: Settings, passed: Passed, reporter: Reporter) -> ssl.SSLContext:
    """Makes the keep's identity, or takes that of before, and says that it listens."""
    identity = read_identity(passed.number(IDENTITY)) if IDENTITY in passed else make_identity(settings)
    client_ca = os.pread(passed.number(CLIENT_CA), MAX_CA_FILE_BYTES, 0).decode("ascii")
    context = server_context(identity.path, None, client_ca)
    fingerprint, text = fingerprint_of(identity.der), "loading the script pool"
    reporter.send(
        Report(
            ReportType.LISTENING,
            text,
            fingerprint=fingerprint,
            certificate=identity.certificate,
            descriptors=(IDENTITY,),
        ),
        (identity.descriptor,),
    )
    return context


async def over_or_failed(over: asyncio.Event, meanwhile: Coroutine[Any, Any, None]) -> None:
    """Until `over`, when what goes on meanwhile is ended. Raises the error with which that ends before."""
    task = asyncio.get_running_loop().create_task(meanwhile)
    task.add_done_callback(lambda _: over.set())
    try:
        await over.wait()
        if task.done():
            task.result()
    finally:
        task.cancel()


class _Endpoint:
    """The pool and its callers, to the end."""

    def __init__(
        self,
        settings: Settings,
        options: PoolOptions,
        control: socket.socket,
        listener: socket.socket,
        context: ssl.SSLContext,
        access: UploadAccess,
        reporter: Reporter,
        console: Journal | None,
    ) -> None:
        self._console = console
        self._listener, self._context, self._access, self._reporter = listener, context, access, reporter
        self._control, self._limits = control, limits_of(options)
        self._settings = decisions.Settings(
            options.min,
            options.max,
            options.recycle_after,
            options.queue,
            options.deadline_ms / 1000,
            drain_seconds=DRAIN_SECONDS,
        )
        self._banner = f"keepfleet keep {settings.kuuid}: a script pool\n".encode("ascii")
        self._exchanges: set[Exchange] = set()
        self._accepting: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    def __repr__(self) -> str:
        return f"_Endpoint({len(self._exchanges)} connections)"

    async def run(self) -> None:
        """Serves until it is asked to end, or the loader has gone. Raises KeepfleetError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._over.set)
        loop.add_reader(REPORT_DESCRIPTOR, self._over.set)  # it sends nothing more: this is its end
        pool = ScriptPool(
            self._settings,
            self._limits,
            processes=lambda events: PassedProcesses(self._control, self._limits, events),
            console=self._console,
        )
        lock_endpoint()
        await pool.start()
        self._reporter.send(Report(ReportType.AWAITING, "serving scripts"))
        self._listener.setblocking(False)
        loop.add_reader(self._listener, self._accept, pool)
        await over_or_failed(self._over, self._recheck())
        loop.remove_reader(self._listener)
        for exchange in list(self._exchanges):
            exchange.finish()
        await pool.drain()
        for exchange in list(self._exchanges):
            exchange.abort()

    def _accept(self, pool: ScriptPool) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has gone again before it was accepted
        if len(self._exchanges) >= MAX_CONNECTIONS:
            connection.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(connection, pool))
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)

    async def _serve(self, connection: socket.socket, pool: ScriptPool) -> None:
        connection.setblocking(False)
        exchange = Exchange(pool, self._access, self._banner, self._exchanges.discard)
        self._exchanges.add(exchange)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: exchange, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except OSError:  # a client that TLS has refused, or that is gone
            self._exchanges.discard(exchange)
            connection.close()

    async def _recheck(self) -> None:
        while True:
            await asyncio.sleep(ACCESS_RECHECK_SECONDS)
            for exchange in list(self._exchanges):
                exchange.check()
