"""The table of routes, and the server made of it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence

from aiohttp import web

from keep_manager.authorize.quotas import QuotaKeeper
from keep_manager.authorize.table import Action
from keep_manager.http import (
    codelets,
    declared,
    handlers,
    inputs,
    middleware,
    openapi,
    pools,
    secrets,
    store,
    streams,
    volumes,
)
from keep_manager.http.acceptor import Acceptor, Hook
from keep_manager.http.connection import Certificates, Connection, Recheck, v1_body
from keep_manager.http.middleware import Admission, ErrorBody, Handler, Rules, legacy_body
from keep_manager.http.operations import DECLARED_PATH, DOCUMENT_PATH, KEEP_PATH, SECRET_PATH, VOLUME_PATH
from keep_manager.keeps.logs import Events
from keep_manager.keeps.manager import Keeps
from keep_manager.keeps.readers import Readers
from keep_manager.keeps.streams import Inputs
from keep_manager.keeps.view import View
from keep_manager.tasks import Group
from keep_protocol.api import MAX_CREATE_BODY, MAX_START_BODY
from keep_protocol.codelets import MAX_LOAD_BODY, V1_CODELETS_PATH
from keep_protocol.constants import LEGACY_PATH, MAX_MANAGER_BODY, V1_EVENTS_PATH, V1_KEEPS_PATH, V1_POOLS_PATH
from keep_protocol.declared import MAX_APPLY_BODY, V1_DECLARED_PATH
from keep_protocol.fields import Record
from keep_protocol.pulling import V1_PULLS_PATH
from keep_protocol.secrets import MAX_VALUE_BYTES, V1_SECRETS_PATH
from keep_protocol.store import MAX_OBJECT_BYTES, V1_STORE_PATH, InUse
from keep_protocol.volumes import V1_VOLUMES_PATH

STOP_SECONDS = 5.0
"""What requests under way get at the end; a creation takes 60 ms, and what is cut off is rolled back."""


class Route(Record):
    """One path and method: what it does, by which the table of `authorize` decides who may (None: its body says what);
    what answers, how errors look, and how long a body it reads."""

    method: str
    path: str
    action: Action | None
    handler: Handler
    error_body: ErrorBody = v1_body
    max_body: int = MAX_MANAGER_BODY


ROUTES = (
    Route("GET", "/", Action.DESCRIBE, handlers.banner),
    Route("POST", LEGACY_PATH, None, handlers.keeps_post, legacy_body),
    Route("POST", f"{LEGACY_PATH}/", None, handlers.keeps_post, legacy_body),
    Route("POST", V1_KEEPS_PATH, Action.CREATE, handlers.create_keep, max_body=MAX_CREATE_BODY),
    Route("GET", V1_KEEPS_PATH, Action.LIST, handlers.list_keeps),
    Route("GET", KEEP_PATH, Action.READ, handlers.get_keep),
    Route("DELETE", KEEP_PATH, Action.REMOVE, handlers.remove_keep),
    Route("POST", f"{KEEP_PATH}/start", Action.START, handlers.start_keep, max_body=MAX_START_BODY),
    Route("POST", f"{KEEP_PATH}/stop", Action.STOP, handlers.stop_keep),
    Route("GET", f"{KEEP_PATH}/logs", Action.LOGS, streams.keep_logs),
    Route("GET", f"{KEEP_PATH}/output", Action.LOGS, streams.keep_output),
    Route("PUT", f"{KEEP_PATH}/input", Action.INPUT, inputs.keep_input, max_body=inputs.MAX_BODY),
    Route("GET", V1_EVENTS_PATH, Action.EVENTS, streams.keep_events),
    Route("GET", V1_DECLARED_PATH, Action.READ_DECLARED, declared.list_declared),
    Route("GET", DECLARED_PATH, Action.READ_DECLARED, declared.get_declared),
    Route("GET", f"{DECLARED_PATH}/runs", Action.READ_DECLARED, declared.get_runs),
    Route("PUT", DECLARED_PATH, Action.DECLARE, declared.put_declared, max_body=MAX_APPLY_BODY),
    Route("DELETE", DECLARED_PATH, Action.DECLARE, declared.delete_declared),
    Route("POST", f"{DECLARED_PATH}/restart", Action.DECLARE, declared.restart_declared),
    Route("POST", f"{DECLARED_PATH}/rollback", Action.DECLARE, declared.roll_back_declared),
    Route("GET", V1_SECRETS_PATH, Action.READ_SECRETS, secrets.list_secrets),
    Route("PUT", SECRET_PATH, Action.CHANGE_SECRETS, secrets.put_secret, max_body=MAX_VALUE_BYTES),
    Route("DELETE", SECRET_PATH, Action.CHANGE_SECRETS, secrets.delete_secret),
    Route("POST", V1_POOLS_PATH, Action.CREATE, pools.create_pool),
    Route("GET", V1_POOLS_PATH, Action.LIST, pools.list_pools),
    Route("GET", pools.POOL_PATH, Action.READ, pools.get_pool),
    Route("DELETE", pools.POOL_PATH, Action.REMOVE, pools.remove_pool),
    Route("GET", V1_VOLUMES_PATH, Action.READ_DECLARED, volumes.list_volumes),
    Route("DELETE", VOLUME_PATH, Action.DECLARE, volumes.remove_volume),
    Route("GET", V1_CODELETS_PATH, Action.READ_CODELETS, codelets.list_applications),
    Route("GET", codelets.SETS_PATH, Action.READ_CODELETS, codelets.list_sets),
    Route("POST", codelets.SETS_PATH, Action.CHANGE_CODELETS, codelets.load_set, max_body=MAX_LOAD_BODY),
    Route("DELETE", codelets.SET_PATH, Action.CHANGE_CODELETS, codelets.unload_set),
    Route("GET", codelets.WATCH_PATH, Action.READ_CODELETS, codelets.watch_sets),
    Route("GET", codelets.STATS_PATH, Action.READ_CODELETS, codelets.list_stats),
    Route("GET", V1_STORE_PATH, Action.STORE_READ, store.list_store),
    Route("POST", store.OBJECTS_PATH, Action.STORE_ADD, store.add_object, max_body=MAX_OBJECT_BYTES),
    Route("GET", store.OBJECT_PATH, Action.STORE_READ, store.get_object),
    Route("DELETE", store.OBJECT_PATH, Action.STORE_REMOVE, store.remove_object),
    Route("POST", store.SIGNATURES_PATH, Action.STORE_ADD, store.attach),
    Route("GET", store.REFERENCE_PATH, Action.STORE_READ, store.get_reference),
    Route("PUT", store.REFERENCE_PATH, Action.STORE_TAG, store.tag),
    Route("DELETE", store.REFERENCE_PATH, Action.STORE_REMOVE, store.untag),
    Route("POST", store.COLLECT_PATH, Action.STORE_REMOVE, store.collect),
    Route("POST", store.VERIFY_PATH, Action.STORE_REMOVE, store.verify),
    Route("GET", store.EXPORT_PATH, Action.STORE_EXPORT, store.export),
    Route("POST", store.IMPORT_PATH, Action.STORE_ADD, store.import_modules, max_body=store.MAX_IMPORT),
    Route("POST", V1_PULLS_PATH, Action.STORE_PULL, store.begin_pull),
    Route("GET", V1_PULLS_PATH, Action.STORE_PULL, store.list_pulls),
    Route("GET", store.PULL_PATH, Action.STORE_PULL, store.get_pull),
    Route("DELETE", store.PULL_PATH, Action.STORE_PULL, store.cancel_pull),
    Route("GET", store.KEYS_PATH, Action.STORE_READ, store.list_keys),
    Route("POST", store.REVOKE_PATH, Action.STORE_REVOKE, store.revoke),
    Route("GET", DOCUMENT_PATH, Action.DESCRIBE, openapi.openapi),
)
"""Every way in."""


def make_app(
    keeps: Keeps,
    view: View,
    output: Readers,
    inputs_of: Inputs,
    events: Events,
    admission: Admission,
    quotas: QuotaKeeper,
    declarations: declared.Declarations,
    kept_volumes: volumes.Volumes,
    modules: store.Modules,
    uses: Callable[[], Sequence[InUse]],
    pulls: store.Pulls,
    secrets_of: secrets.Secrets,
    applications: codelets.Applications,
) -> web.Application:
    """The application that serves ROUTES."""
    app = web.Application(middlewares=[middleware.errors, middleware.access])
    app[handlers.KEEPS] = keeps
    app[declared.DECLARED] = declarations
    app[secrets.SECRETS] = secrets_of
    app[codelets.APPLICATIONS] = applications
    app[volumes.VOLUMES] = kept_volumes
    app[streams.OUTPUT] = output
    app[streams.ENTRY] = view.entry
    app[inputs.INPUTS] = inputs_of
    app[streams.EVENTS] = events
    app[openapi.DOCUMENT] = openapi.document(ROUTES)
    app[streams.STREAMS] = set()
    app.on_shutdown.append(streams.end_streams)
    app[middleware.ADMISSION] = admission
    app[middleware.FIND] = keeps.find
    app[middleware.QUOTAS] = quotas
    store.prepare(app, modules, uses, pulls)
    rules: dict[web.AbstractRoute, Rules] = {}
    for route in ROUTES:
        added = app.router.add_route(route.method, route.path, route.handler, expect_handler=middleware.expect)
        rules[added] = Rules(route.action, route.error_body, route.max_body)
    app[middleware.RULES] = rules
    app.on_response_prepare.append(_headers)
    return app


async def _headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "keepfleet"
    response.headers["Cache-Control"] = "no-store"


class Server:
    """Serves an application over TLS on one listening socket, which it owns."""

    def __init__(
        self, app: web.Application, listener: socket.socket, context: ssl.SSLContext, certificates: Certificates
    ) -> None:
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=STOP_SECONDS, access_log=None)
        self._certificates = certificates
        self._acceptor = Acceptor(listener, context, self._connection)
        self._recheck: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Server({self._acceptor!r})"

    async def open(self, group: Group) -> None:
        """Serves from now on, in tasks of `group`, which a defect ends; `close` ends them all."""
        await self._runner.setup()
        self._acceptor.open(group)
        recheck = Recheck(self._acceptor.established, self._certificates)
        self._recheck = group.start(recheck.run(), name="recheck")

    async def close(self) -> None:
        """Accepts no more, gives requests under way STOP_SECONDS, and closes every connection."""
        if self._recheck is not None:
            self._recheck.cancel()
        await self._acceptor.close()
        await self._runner.cleanup()

    def _connection(self, established: Hook, ended: Hook) -> asyncio.Protocol:
        server = self._runner.server
        if server is None:
            raise ConnectionAbortedError("the server is closing")
        return Connection(server, self._certificates, established, ended)
