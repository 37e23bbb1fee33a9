"""The reverse proxy of a life-cycle socket: HTTPS with client certificates, roles, limits and audit lines.

    POST   /codeletsets         a descriptor, YAML or JSON: loads it                    operator
    DELETE /codeletsets/{id}    unloads a set                                           operator
    GET    /codeletsets, /codeletsets/{id}, /stats, /interface, /openapi.json           operator, viewer

It holds no code and no state: what it asks an application to load is in the application's store already, and the
application verifies it. Import rule: the standard library, aiohttp, keep_protocol, codelets.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

from aiohttp import web

from codelets.descriptor import MAX_BYTES, CodeletSet, read_descriptor
from codelets.interface import Interface
from codelets.lcm import Client
from codelets.states import HookState, SetState, one_line
from keep_protocol.certificate import check_client, read_certificate
from keep_protocol.codelets import check_set_id
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.identity import Role
from keep_protocol.revocation import RevokedFile
from keep_protocol.schema import record_schema

LOG = logging.getLogger("keepfleet.codelets.proxy")
CHANGES_PER_MINUTE = 60
"""Loads and unloads of one caller: each may compile sixteen modules in the application."""
MAX_CALLERS = 1024
"""Whose rates are kept; the least recent is dropped first."""
CONCURRENT = 4
"""Requests that are with the application, until it has answered, whether the client still waits or not; others wait. An
application takes 16 connections."""
MAX_WAITING = 64
"""Requests that wait for their turn; a client that asks for more is to try again."""
HANDSHAKE_SECONDS, BACKLOG = 10.0, 128
"""What a client may take to show its certificate: until then it is a stranger, whose connection costs memory."""
LINGER_SECONDS = 1.0
"""What a client that was refused may go on sending before its connection is cut."""
READ_SECONDS = 10.0
"""What a client may take for its body."""
_STATUS = {
    ErrorKind.BAD_REQUEST: 400,
    ErrorKind.FORBIDDEN: 403,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.CONFLICT: 409,
    ErrorKind.TOO_LARGE: 413,
    ErrorKind.UNSUPPORTED_MEDIA: 415,
    ErrorKind.INVALID_MODULE: 422,
    ErrorKind.TOO_MANY: 429,
    ErrorKind.UNAVAILABLE: 503,
}
_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "application/json")
_READERS = frozenset({Role.OPERATOR, Role.VIEWER})
_CHANGERS = frozenset({Role.OPERATOR})
T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Caller(Record):
    """Who asks, by its certificate."""

    name: str
    role: Role
    serial: str


class Rates:
    """How many changes each caller has asked for in the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._callers = clock, OrderedDict[str, list[float]]()

    def __repr__(self) -> str:
        return f"Rates({len(self._callers)} callers)"

    def admit(self, name: str) -> None:
        """Counts one. Raises KeepfleetError(TOO_MANY)."""
        now = self._clock()
        times = [each for each in self._callers.pop(name, []) if now - each < 60]
        self._callers[name] = times
        if len(self._callers) > MAX_CALLERS:
            self._callers.popitem(last=False)
        if len(times) >= CHANGES_PER_MINUTE:
            why = f"{CHANGES_PER_MINUTE} changes a minute are allowed"
            raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot take more of {name}: {why}")
        times.append(now)


class Proxy:
    """Answers requests for the application at `address`; revoked: the list of revoked certificates, or None."""

    def __init__(self, address: str, revoked: RevokedFile | None = None, rates: Rates | None = None) -> None:
        self._address, self._revoked, self._rates = address, revoked, rates or Rates()
        self._free, self._waiting = asyncio.Semaphore(CONCURRENT), 0

    def __repr__(self) -> str:
        return f"Proxy({self._address})"

    def application(self) -> web.Application:
        """Paths, who may use them, and what answers, in one table."""
        made = web.Application(client_max_size=MAX_BYTES, middlewares=[self._middleware])
        for method, path, roles, handler in (
            ("POST", "/codeletsets", _CHANGERS, self._load),
            ("DELETE", "/codeletsets/{id}", _CHANGERS, self._unload),
            ("GET", "/codeletsets", _READERS, self._list),
            ("GET", "/codeletsets/{id}", _READERS, self._show),
            ("GET", "/stats", _READERS, self._stats),
            ("GET", "/interface", _READERS, self._interface),
            ("GET", "/openapi.json", _READERS, self._openapi),
        ):
            made.router.add_route(method, path, self._for(roles, handler))
        return made

    # --- who asks ----------------------------------------------------------------------------------------------------

    def _caller(self, request: web.Request) -> Caller:
        """Raises KeepfleetError(FORBIDDEN) for who may not ask now, CERTIFICATE where that cannot be found out."""
        transport = request.transport
        tls = transport.get_extra_info("ssl_object") if transport is not None else None
        der = tls.getpeercert(binary_form=True) if isinstance(tls, ssl.SSLObject) else None
        if not der:
            raise KeepfleetError(ErrorKind.FORBIDDEN, "cannot accept the request: it comes without a certificate")
        certificate = read_certificate(der)
        identity = check_client(certificate, time.time())
        if self._revoked is not None and certificate.serial in self._revoked.serials():
            raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot accept the certificate of {certificate}: it was revoked")
        if identity is None:
            why = "it names no role; issue one: keepctl pki issue NAME --role operator"
            raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot accept the certificate of {certificate}: {why}")
        return Caller(identity.name, identity.role, f"{certificate.serial:x}")

    def _for(self, roles: frozenset[Role], handler: Callable[[web.Request, Caller], Awaitable[object]]) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            caller = self._caller(request)
            if caller.role not in roles:
                what = one_line(f"{request.method} {request.path[:200]}")
                LOG.warning("refused %s to %s (%s)", what, caller.name, caller.role.value)
                allowed = " and ".join(sorted(role.value for role in roles))
                why = f"it is for {allowed}, and {caller.name} is {caller.role.value}"
                raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot {request.method} {request.path}: {why}")
            status = 201 if request.method == "POST" else 200
            return web.json_response(await handler(request, caller), status=status)

        return handle

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except KeepfleetError as error:
            return _refusal(error)
        except web.HTTPRequestEntityTooLarge:
            return _refusal(
                KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read the descriptor: {MAX_BYTES} bytes at most")
            )
        except web.HTTPException as error:
            known = {404: ErrorKind.NOT_FOUND}.get(error.status, ErrorKind.BAD_REQUEST)
            words = KeepfleetError(known, f"cannot {request.method} {request.path[:200]}: {error.reason}")
            return _refusal(words, error.status)

    # --- what is asked -----------------------------------------------------------------------------------------------

    async def _load(self, request: web.Request, caller: Caller) -> object:
        if request.content_type not in _TYPES:
            why = f"its type must be one of {', '.join(_TYPES)}"
            raise KeepfleetError(ErrorKind.UNSUPPORTED_MEDIA, f"cannot read the descriptor: {why}")
        self._rates.admit(caller.name)
        try:
            data = await asyncio.wait_for(request.read(), READ_SECONDS)
        except TimeoutError:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot read the descriptor: it did not arrive") from None
        wanted = await asyncio.to_thread(read_descriptor, data)  # what is none never reaches the application
        name = await self._change("load", wanted.codeletset_id, caller, lambda client: client.load(data.decode()))
        return {"codeletset_id": name}

    async def _unload(self, request: web.Request, caller: Caller) -> object:
        name = check_set_id(request.match_info["id"])
        self._rates.admit(caller.name)
        await self._change("unload", name, caller, lambda client: client.unload(name))
        return {"codeletset_id": name}

    async def _list(self, _: web.Request, caller: Caller) -> object:
        return {"codeletsets": [each.to_wire() for each in await self._ask(Client.sets)]}

    async def _show(self, request: web.Request, caller: Caller) -> object:
        name = request.match_info["id"]
        for each in await self._ask(Client.sets):
            if each.codeletset_id == name:
                return each.to_wire()
        raise KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find the codelet set {name[:255]}")

    async def _stats(self, _: web.Request, caller: Caller) -> object:
        return {"hooks": [each.to_wire() for each in await self._ask(Client.stats)]}

    async def _interface(self, _: web.Request, caller: Caller) -> object:
        return (await self._ask(lambda client: client.interface)).to_wire()

    async def _openapi(self, _: web.Request, caller: Caller) -> object:
        return openapi()

    async def _change(self, what: str, name: str, caller: Caller, work: Callable[[Client], T]) -> T:
        """Asks for a change, which is one audit line, whatever becomes of it."""
        by = f"by {caller.name}, {caller.role.value}, certificate {caller.serial}"
        try:
            found = await self._ask(work)
        except KeepfleetError as error:
            why = one_line(error.message)
            LOG.warning("audit: %s of codelet set %s %s: %s: %s", what, name, by, error.kind.value, why)
            raise
        LOG.info("audit: %s of codelet set %s %s: done", what, name, by)
        return found

    async def _ask(self, work: Callable[[Client], T]) -> T:
        """Does `work` with a connection of its own, in a thread. A client that goes ends nothing that was begun, and
        makes no room for another request either."""

        def done() -> T:
            with Client(self._address) as client:
                return work(client)

        if self._waiting >= MAX_WAITING:
            raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot ask the application: {MAX_WAITING} requests wait")
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        doing = asyncio.ensure_future(asyncio.to_thread(done))
        doing.add_done_callback(self._done)
        return await asyncio.shield(doing)

    def _done(self, doing: asyncio.Future[T]) -> None:
        self._free.release()
        if not doing.cancelled() and (error := doing.exception()) is not None:
            LOG.debug("the application refused a request: %s", error)  # its client has the answer, if it is still there


def _refusal(error: KeepfleetError, status: int = 0) -> web.Response:
    return web.json_response({"error": error.to_wire()}, status=status or _STATUS.get(error.kind, 500))


def openapi() -> dict[str, object]:
    """The interface as OpenAPI 3.1, from the records that travel over it."""
    named = {"codeletset_id": {"type": "string"}}
    sets = {"type": "array", "items": record_schema(SetState, answer=True)}
    hooks = {"type": "array", "items": record_schema(HookState, answer=True)}
    loaded = {"type": "object", "properties": named, "required": ["codeletset_id"]}
    identifier = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "maxLength": 255}}
    body = {"required": True, "content": {kind: {"schema": record_schema(CodeletSet)} for kind in _TYPES}}

    def operation(about: str, schema: object, status: str = "200", **more: object) -> dict[str, object]:
        answers = {status: {"description": "done", "content": {"application/json": {"schema": schema}}}}
        answers["default"] = {"description": "the error", "content": {"application/json": {"schema": _error()}}}
        return {"summary": about, "responses": answers, **more}

    def listed(name: str, items: object) -> dict[str, object]:
        return {"type": "object", "properties": {name: items}, "required": [name]}

    return {
        "openapi": "3.1.0",
        "info": {"title": "codelets-proxy", "version": "1", "description": "Codelet sets of one application."},
        "paths": {
            "/codeletsets": {
                "get": operation("Every set.", listed("codeletsets", sets)),
                "post": operation("Loads a set.", loaded, "201", requestBody=body),
            },
            "/codeletsets/{id}": {
                "get": operation("One set.", record_schema(SetState, answer=True), parameters=[identifier]),
                "delete": operation("Unloads a set.", loaded, parameters=[identifier]),
            },
            "/stats": {"get": operation("Every hook.", listed("hooks", hooks))},
            "/interface": {"get": operation("What the application offers.", record_schema(Interface, answer=True))},
        },
    }


def _error() -> dict[str, object]:
    return {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "kind": {"type": "string"},
                    "message": {"type": "string"},
                    "evidence": {"type": "array", "items": {"type": "string"}},
                    "failure": {"type": "string"},
                    "number": {"type": "integer", "description": "jbpf's"},
                },
                "required": ["kind", "message", "evidence"],
            }
        },
        "required": ["error"],
    }


async def serve(
    proxy: Proxy,
    context: ssl.SSLContext,
    host: str,
    port: int,
    ready: Callable[[int], None],
    listener: socket.socket | None = None,
) -> None:
    """Serves until it is cancelled, on `listener` where one was passed; `ready` is called with the port. Raises
    KeepfleetError where it cannot listen."""
    runner = web.AppRunner(
        proxy.application(), access_log=None, handle_signals=False, keepalive_timeout=30, lingering_time=LINGER_SECONDS
    )
    await runner.setup()
    loop = asyncio.get_running_loop()
    try:
        where: dict[str, Any] = {"sock": listener} if listener is not None else {"host": host, "port": port}
        try:
            server = await loop.create_server(
                cast(web.Server, runner.server),
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                backlog=BACKLOG,
                **where,
            )
        except OSError as error:
            why = error.strerror or str(error)
            raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot listen on {host}:{port}: {why}") from error
        try:
            ready(server.sockets[0].getsockname()[1])
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        finally:
            server.close()
    finally:
        await runner.cleanup()
