"""The table of routes, and the server made of it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from keep_manager.callers import Callers
from keep_manager.http import handlers, legacy, middleware, openapi, streams
from keep_manager.http.access import Certificates, ClientCertificateIfShown, Policy, WithClientCertificate
from keep_manager.http.connection import Connection
from keep_manager.http.errors import legacy_body, v1_body
from keep_manager.http.gate import Gate
from keep_manager.http.middleware import ErrorBody, Handler, Rules
from keep_manager.keeps.logs import Events, Journal
from keep_protocol.api import MAX_START_BODY
from keep_protocol.constants import LEGACY_PATH, MAX_MANAGER_BODY, V1_EVENTS_PATH, V1_KEEPS_PATH

STOP_SECONDS = 5.0
"""What requests under way get at the end; a creation takes 60 ms, and what is cut off is rolled back."""


@dataclass(frozen=True)
class Route:
    """One path and method: who may use it, what answers, how it tells errors, and how long a body it reads."""

    method: str
    path: str
    access: type[Policy]
    handler: Handler
    error_body: ErrorBody = v1_body
    max_body: int = MAX_MANAGER_BODY


ROUTES = (
    Route("GET", "/", WithClientCertificate, handlers.banner),
    Route("POST", LEGACY_PATH, WithClientCertificate, legacy.keeps_post, legacy_body),
    Route("POST", f"{LEGACY_PATH}/", WithClientCertificate, legacy.keeps_post, legacy_body),
    Route("POST", V1_KEEPS_PATH, WithClientCertificate, handlers.create_keep),
    Route("GET", V1_KEEPS_PATH, WithClientCertificate, handlers.list_keeps),
    Route("GET", f"{V1_KEEPS_PATH}/{{kuuid}}", WithClientCertificate, handlers.get_keep),
    Route("DELETE", f"{V1_KEEPS_PATH}/{{kuuid}}", WithClientCertificate, handlers.remove_keep),
    Route(
        "POST", f"{V1_KEEPS_PATH}/{{kuuid}}/start", WithClientCertificate, handlers.start_keep, max_body=MAX_START_BODY
    ),
    Route("GET", openapi.DOCUMENT_PATH, WithClientCertificate, openapi.openapi),
    Route("GET", f"{V1_KEEPS_PATH}/{{kuuid}}/logs", WithClientCertificate, streams.keep_logs),
    Route("POST", f"{V1_KEEPS_PATH}/{{kuuid}}/stop", WithClientCertificate, handlers.stop_keep),
    Route("GET", V1_EVENTS_PATH, WithClientCertificate, streams.keep_events),
)
"""Every way in. With `client_certificates: optional`, ClientCertificateIfShown stands for WithClientCertificate."""


def make_app(
    keeps: handlers.Keeps,
    journal: Journal,
    events: Events,
    certificates: Certificates,
    *,
    require_client: bool,
    callers: Callers | None = None,
) -> web.Application:
    """The application that serves ROUTES."""
    app = web.Application(middlewares=[middleware.errors, middleware.access])
    app[handlers.KEEPS] = keeps
    app[streams.JOURNAL] = journal
    app[streams.EVENTS] = events
    app[openapi.DOCUMENT] = openapi.document(ROUTES)
    app[streams.STREAMS] = set()
    app.on_shutdown.append(streams.end_streams)
    app[middleware.CERTIFICATES] = certificates
    app[middleware.CALLERS] = callers or {}
    app[middleware.DEFAULT_ACCESS] = _policy(WithClientCertificate, require_client)
    rules: dict[web.AbstractRoute, Rules] = {}
    for route in ROUTES:
        added = app.router.add_route(route.method, route.path, route.handler, expect_handler=middleware.expect)
        rules[added] = Rules(_policy(route.access, require_client), route.error_body, route.max_body)
    app[middleware.RULES] = rules
    app.on_response_prepare.append(_headers)
    return app


def _policy(access: type[Policy], require_client: bool) -> Policy:
    return access() if require_client or access is not WithClientCertificate else ClientCertificateIfShown()


async def _headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "keepfleet"
    response.headers["Cache-Control"] = "no-store"


class Server:
    """Serves an application over TLS on one listening socket, which it owns."""

    def __init__(
        self, app: web.Application, listener: socket.socket, context: ssl.SSLContext, certificates: Certificates
    ) -> None:
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=STOP_SECONDS, access_log=None)
        self._listener = listener
        self._context = context
        self._certificates = certificates
        self._gate: Gate | None = None

    def __repr__(self) -> str:
        return f"Server({self._gate!r})"

    async def open(self) -> None:
        """Serves from now on."""
        await self._runner.setup()
        self._gate = Gate(self._listener, self._context, self._connection)
        self._gate.open()

    async def close(self) -> None:
        """Accepts no more, gives requests under way STOP_SECONDS, and closes every connection."""
        if self._gate is not None:
            await self._gate.close()
        else:
            self._listener.close()
        await self._runner.cleanup()

    def _connection(self, ended: Callable[[], None]) -> asyncio.Protocol:
        server = self._runner.server
        if server is None:
            raise ConnectionAbortedError("the server is closing")
        return Connection(server, self._certificates, ended)
