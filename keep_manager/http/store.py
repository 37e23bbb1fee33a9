"""The module store over /v1: what is there, and for operators adding to it, naming, taking out, and revoking keys.

What is long goes piece by piece between the event loop and a thread (`transfer`), in constant memory. What changes the
store leaves a line in the security log.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

from aiohttp import web

from keep_manager.http.middleware import QUOTAS, caller_of, json_response, read_body
from keep_manager.http.transfer import Incoming, Outgoing, Readable, Writable, fed
from keep_manager.model import Caller
from keep_protocol import store as wire
from keep_protocol import strict_json
from keep_protocol.constants import MAX_MANAGER_BODY
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record, parse
from keep_protocol.pulling import V1_PULLS_PATH, Pull, Pulling

OBJECTS_PATH = f"{wire.V1_STORE_PATH}/objects"
OBJECT_PATH = f"{OBJECTS_PATH}/{{digest}}"
SIGNATURES_PATH = f"{OBJECT_PATH}/signatures"
REFERENCE_PATH = f"{wire.V1_STORE_PATH}/references/{{name}}"
COLLECT_PATH, VERIFY_PATH = f"{wire.V1_STORE_PATH}/gc", f"{wire.V1_STORE_PATH}/verify"
EXPORT_PATH, IMPORT_PATH = f"{wire.V1_STORE_PATH}/export", f"{wire.V1_STORE_PATH}/import"
PULL_PATH = f"{V1_PULLS_PATH}/{{id}}"
KEYS_PATH = f"{wire.V1_STORE_PATH}/keys"
REVOKE_PATH = f"{KEYS_PATH}/{{name}}/revoke"
MAX_IMPORT = 1 << 40
"""It is passed on and never held; the disk and the caller's quota end it before."""
MAX_TRANSFERS = 4
"""Concurrent additions, imports and exports; each has a thread and a file."""
MAX_READERS = 2
"""Threads in which everything else is done, one after another: some of it reads the whole store."""
MAX_EXPORTED = 1000
"""Objects that one export may name; all of them it names by none."""
TAR = "application/octet-stream"
"""As a module's: what reads an export knows it by its first file."""
SECURITY = logging.getLogger("keepfleet.security")
Answer = TypeVar("Answer")
R = TypeVar("R", bound=Record)


class Operations(Protocol):
    """What the handlers need of the store. Every method blocks, and raises KeepfleetError alone."""

    def listing(self) -> wire.Listing:
        """What there is."""

    def inspect(self, digest: str) -> wire.Details:
        """One object."""

    def add(
        self,
        source: Readable,
        reference: str = "",
        digest: str = "",
        signatures: Sequence[bytes] = (),
        origin: str = "",
    ) -> wire.Object:
        """Keeps an object, with its signatures and where it came from, and names it."""

    def attach(self, digest: str, signatures: Sequence[bytes]) -> wire.Attached:
        """Keeps signatures with an object."""

    def remove(self, digest: str) -> None:
        """Removes an object that nothing needs."""

    def reference(self, name: str) -> wire.Reference:
        """One reference."""

    def tag(self, name: str, tagging: wire.Tagging) -> wire.Reference:
        """Moves a reference."""

    def untag(self, name: str) -> None:
        """Removes a reference."""

    def collect(self, how: wire.Collection) -> wire.Collected:
        """Removes what nothing needs."""

    def verify(self) -> wire.Findings:
        """Reads every byte."""

    def export(self, output: Writable, wanted: Iterable[str] = ()) -> wire.Moved:
        """Writes objects out."""

    def import_from(self, source: Readable, replace: bool = False) -> wire.Moved:
        """Takes in an export."""

    def requirements(self) -> wire.Requirements:
        """What modules must be, to start."""

    def revoke(self, name: str, reason: str = "") -> wire.Revoked:
        """Has a key count no more."""


class Modules(Protocol):
    """The store, for the caller."""

    def operations(self, who: str, name: str, objects: int, size: int, in_use: Sequence[wire.InUse]) -> Operations:
        """As `who` asks, called `name`, whose objects may be so many and so long; in_use: what runs."""


class Pulls(Protocol):
    """Modules from registries. What they raise is KeepfleetError."""

    def begin(self, asked: Pulling, who: str, store: Operations) -> Pull:
        """Begins one."""

    def listing(self) -> tuple[Pull, ...]:
        """Every one that is known."""

    async def get(self, name: str, *, wait: bool = False) -> Pull:
        """How far one is; wait: after its end, or a moment."""

    async def cancel(self, name: str) -> Pull:
        """Ends one."""


MODULES = web.AppKey("modules", Modules)
PULLS = web.AppKey("pulls", Pulls)
USES: web.AppKey[Callable[[], Sequence[wire.InUse]]] = web.AppKey("uses")
"""What living keeps run."""
READERS = web.AppKey("store-readers", ThreadPoolExecutor)
TRANSFERS = web.AppKey("store-transfers", ThreadPoolExecutor)
UNDER_WAY: web.AppKey[set[object]] = web.AppKey("store-under-way")


def prepare(app: web.Application, modules: Modules, uses: Callable[[], Sequence[wire.InUse]], pulls: Pulls) -> None:
    """Gives the application what these handlers need, and has it end their threads."""
    app[PULLS] = pulls
    app[MODULES], app[USES], app[UNDER_WAY] = modules, uses, set()
    app[READERS] = ThreadPoolExecutor(MAX_READERS, "store")
    app[TRANSFERS] = ThreadPoolExecutor(MAX_TRANSFERS, "store-transfer")

    async def end(_: web.Application) -> None:
        for pool in (app[READERS], app[TRANSFERS]):
            pool.shutdown(wait=False, cancel_futures=True)

    app.on_cleanup.append(end)


def _operations(request: web.Request) -> Operations:
    caller = caller_of(request)
    objects, size = request.app[QUOTAS].storage(caller)
    return request.app[MODULES].operations(caller.who, caller.name, objects, size, request.app[USES]())


async def _in_thread(request: web.Request, work: Callable[..., Answer], *arguments: object) -> Answer:
    return await asyncio.get_running_loop().run_in_executor(request.app[READERS], work, *arguments)


async def _asked(request: web.Request, record: type[R]) -> R:
    """The record in the request's body, its defaults where there is none."""
    body = await read_body(request)
    value = strict_json.loads_object(body, MAX_MANAGER_BODY, "the request") if body else {}
    return parse(record, value, "request", strict=True)


def _parameters(request: web.Request, *known: str) -> None:
    unknown = sorted(set(request.query) - set(known))
    if unknown:
        why = f"{unknown[0][:40]!r} is no parameter of it"
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot obey the request: {why}")


def _flag(request: web.Request, name: str) -> bool:
    text = request.query.get(name, "false")
    if text not in ("true", "false"):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot obey the request: {name} must be true or false")
    return text == "true"


def _done(caller: Caller, what: str, *values: object) -> None:
    """One line in the security log about a change."""
    SECURITY.info(f"{what} by %s", *values, caller)


async def list_store(request: web.Request) -> web.StreamResponse:
    """GET /v1/store: every object and reference."""
    _parameters(request)
    return json_response((await _in_thread(request, _operations(request).listing)).to_wire())


async def get_object(request: web.Request) -> web.StreamResponse:
    """GET /v1/store/objects/DIGEST: one object, after reading all of it."""
    found = await _in_thread(request, _operations(request).inspect, request.match_info["digest"])
    return json_response(found.to_wire())


async def remove_object(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/store/objects/DIGEST: where nothing needs it."""
    digest = request.match_info["digest"]
    await _in_thread(request, _operations(request).remove, digest)
    _done(caller_of(request), "removed %s from the module store", digest)
    return web.Response(status=204)


async def get_reference(request: web.Request) -> web.StreamResponse:
    """GET /v1/store/references/NAME:TAG: one reference with its history."""
    found = await _in_thread(request, _operations(request).reference, request.match_info["name"])
    return json_response(found.to_wire())


async def tag(request: web.Request) -> web.StreamResponse:
    """PUT /v1/store/references/NAME:TAG: has it name the object of that digest."""
    tagging, name = await _asked(request, wire.Tagging), request.match_info["name"]
    moved = await _in_thread(request, _operations(request).tag, name, tagging)
    forced = ", forced: it may start although a newer version was seen," if tagging.force else ""
    _done(caller_of(request), f"tagged %s as %s{forced}", moved.digest, moved.name)
    return json_response(moved.to_wire())


async def untag(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/store/references/NAME:TAG."""
    name = request.match_info["name"]
    await _in_thread(request, _operations(request).untag, name)
    _done(caller_of(request), "removed the reference %s", name)
    return web.Response(status=204)


async def collect(request: web.Request) -> web.StreamResponse:
    """POST /v1/store/gc: removes what nothing needs."""
    how = await _asked(request, wire.Collection)
    done = await _in_thread(request, _operations(request).collect, how)
    if not how.dry_run:
        _done(caller_of(request), "collected %d modules of %d bytes as garbage", len(done.removed), done.bytes)
    return json_response(done.to_wire())


async def verify(request: web.Request) -> web.StreamResponse:
    """POST /v1/store/verify: reads every byte of the store."""
    await read_body(request)
    return json_response((await _in_thread(request, _operations(request).verify)).to_wire())


async def attach(request: web.Request) -> web.StreamResponse:
    """POST /v1/store/objects/DIGEST/signatures: keeps a signature with an object."""
    asked, digest = await _asked(request, wire.Signature), request.match_info["digest"]
    attached = await _in_thread(request, _operations(request).attach, digest, (asked.signature.encode(),))
    _done(caller_of(request), "attached a signature of %s to %s", ", ".join(attached.keys), digest)
    return json_response(attached.to_wire())


async def list_keys(request: web.Request) -> web.StreamResponse:
    """GET /v1/store/keys: what is required of modules, and what runs that could not start any more."""
    _parameters(request)
    return json_response((await _in_thread(request, _operations(request).requirements)).to_wire())


async def revoke(request: web.Request) -> web.StreamResponse:
    """POST /v1/store/keys/NAME/revoke: has a key count no more."""
    asked = await _asked(request, wire.Revoking)
    revoked = await _in_thread(request, _operations(request).revoke, request.match_info["name"], asked.reason)
    _done(caller_of(request), "revoked the key %s, which %d keeps need,", revoked.key.name, len(revoked.affected))
    return json_response(revoked.to_wire())


# --- what is long ----------------------------------------------------------------------------------------------------


@contextmanager
def _transfer(request: web.Request, what: str) -> Iterator[None]:
    """One of the places for transfers, while the block runs. Raises KeepfleetError(TOO_MANY)."""
    under_way, own = request.app[UNDER_WAY], object()
    if len(under_way) >= MAX_TRANSFERS:
        why = f"{MAX_TRANSFERS} transfers with the module store are under way; try again"
        raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot {what}: {why}")
    under_way.add(own)
    try:
        yield
    finally:
        under_way.discard(own)


async def _taken_in(request: web.Request, what: str, limit: int, work: Callable[[Readable], Answer]) -> Answer:
    """What `work` makes of the request's body in a thread. Raises KeepfleetError."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise KeepfleetError(ErrorKind.UNSUPPORTED_MEDIA, f"cannot {what}: it must not be encoded")
    if (request.content_length or 0) > limit:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot {what}: it is over {limit} bytes")
    with _transfer(request, what):
        incoming = Incoming(asyncio.get_running_loop(), what)
        return await fed(request, incoming, request.app[TRANSFERS], lambda: work(incoming))


async def add_object(request: web.Request) -> web.StreamResponse:
    """POST /v1/store/objects: keeps the body, with its signatures, and names it; all of that or nothing."""
    _parameters(request, "reference", "digest")
    if "" in (request.query.get("reference"), request.query.get("digest")):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, "invalid query: a reference or digest that is empty; leave it out")
    operations, query = _operations(request), request.query
    signatures = _signatures(request)
    added = await _taken_in(
        request,
        "add the module",
        wire.MAX_OBJECT_BYTES,
        lambda source: operations.add(source, query.get("reference", ""), query.get("digest", ""), signatures),
    )
    _done(caller_of(request), "added %s, %d bytes, as %r", added.digest, added.size, query.get("reference", ""))
    response = json_response(added.to_wire(), 201)
    response.headers["Location"] = f"{OBJECTS_PATH}/{added.digest}"
    return response


def _signatures(request: web.Request) -> tuple[bytes, ...]:
    given = request.headers.get(wire.SIGNATURES_HEADER, "")
    try:
        return tuple(base64.b64decode(each.strip(), validate=True) for each in given.split(",") if each.strip())
    except (binascii.Error, ValueError):
        why = f"{wire.SIGNATURES_HEADER} must be signatures in Base64, with commas between them"
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot add the module: {why}") from None


async def import_modules(request: web.Request) -> web.StreamResponse:
    """POST /v1/store/import: takes in an export, all of it or nothing."""
    _parameters(request, "replace")
    operations, replace = _operations(request), _flag(request, "replace")
    moved = await _taken_in(request, "import", MAX_IMPORT, lambda source: operations.import_from(source, replace))
    _done(caller_of(request), "imported %d modules and %d references", moved.objects, moved.references)
    return json_response(moved.to_wire())


async def export(request: web.Request) -> web.StreamResponse:
    """GET /v1/store/export: what each `what` means, or everything, as a tar."""
    _parameters(request, "what")
    wanted, operations = request.query.getall("what", []), _operations(request)
    if len(wanted) > MAX_EXPORTED:
        raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot export over {MAX_EXPORTED} modules that are named")
    with _transfer(request, "export"):
        outgoing = Outgoing(asyncio.get_running_loop())
        response = await outgoing.sent(
            request, TAR, request.app[TRANSFERS], lambda: operations.export(outgoing, wanted)
        )
    _done(caller_of(request), "exported %s", ", ".join(wanted)[:200] or "every module")
    return response


# --- from registries -------------------------------------------------------------------------------------------------


async def begin_pull(request: web.Request) -> web.StreamResponse:
    """POST /v1/store/pulls: begins to pull a module from a registry."""
    asked = await _asked(request, Pulling)
    pull = request.app[PULLS].begin(asked, str(caller_of(request)), _operations(request))
    response = json_response(pull.to_wire(), 202)
    response.headers["Location"] = f"{V1_PULLS_PATH}/{pull.id}"
    return response


async def list_pulls(request: web.Request) -> web.StreamResponse:
    """GET /v1/store/pulls: those that are under way, and the last that have ended."""
    _parameters(request)
    return json_response({"pulls": [each.to_wire() for each in request.app[PULLS].listing()]})


async def get_pull(request: web.Request) -> web.StreamResponse:
    """GET /v1/store/pulls/ID: how far one is; with `wait`, after its end or a second."""
    _parameters(request, "wait")
    found = await request.app[PULLS].get(request.match_info["id"], wait=_flag(request, "wait"))
    return json_response(found.to_wire())


async def cancel_pull(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/store/pulls/ID: ends one that is under way; nothing of it is kept."""
    found = await request.app[PULLS].cancel(request.match_info["id"])
    return json_response(found.to_wire())
