"""The module store over /v1: what is there, and for operators adding to it, naming, and collecting garbage.

An addition is written by a thread of its own, piece by piece: a large one costs constant memory, and one whose sender is
slow holds up no start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from aiohttp import web

from keep_manager.http.middleware import caller_of, json_response, read_body
from keep_protocol import strict_json
from keep_protocol.constants import MAX_MANAGER_BODY, MAX_WORKLOAD_BYTES
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record, Text, field, parse
from keep_protocol.spec import FINGERPRINT

STORE_PATH = "/v1/store"
OBJECTS_PATH, COLLECT_PATH = f"{STORE_PATH}/objects", f"{STORE_PATH}/gc"
REFERENCE_PATH = f"{STORE_PATH}/references/{{name}}"
MAX_OBJECT = 4 * MAX_WORKLOAD_BYTES
"""As much as the store itself takes."""
MAX_ADDITIONS = 4
"""Concurrent ones; each has a thread and a file."""
PIECE_BYTES = 1 << 20
SILENT_SECONDS = 30.0
"""Without a byte of an addition it is given up, as its file would stay for ever."""


class Readable(Protocol):
    """What an object is read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, none at the end."""


class Collected(Protocol):
    """What was removed."""

    @property
    def removed(self) -> Sequence[Record]:
        """The objects."""

    @property
    def bytes(self) -> int:
        """Their length."""


class Modules(Protocol):
    """What the handlers need of the store. Every method blocks, and raises KeepfleetError alone."""

    def listed(self) -> tuple[Sequence[Record], Sequence[Record]]:
        """Objects and references."""

    def reference(self, name: str) -> Record:
        """One reference."""

    def add(self, source: Readable) -> Record:
        """Keeps an object."""

    def tag(self, name: str, digest: str, who: str) -> Record:
        """Moves a reference."""

    def untag(self, name: str) -> None:
        """Removes a reference."""

    def collect(self, living: Sequence[str]) -> Collected:
        """Removes what nothing needs."""


class Tagged(Record):
    """What a reference is to name."""

    digest: str = field(FINGERPRINT, about="the object that it is to name")


MODULES = web.AppKey("modules", Modules)
LIVING: web.AppKey[Callable[[], Sequence[str]]] = web.AppKey("living")
"""The digests that living keeps need."""
ADDING = web.AppKey("adding", ThreadPoolExecutor)
ADDITIONS = web.AppKey("additions", asyncio.Semaphore)


def prepare(app: web.Application, modules: Modules, living: Callable[[], Sequence[str]]) -> None:
    """Gives the application what these handlers need, and has it end their threads."""
    app[MODULES], app[LIVING] = modules, living
    app[ADDING] = ThreadPoolExecutor(MAX_ADDITIONS, "store")
    app[ADDITIONS] = asyncio.Semaphore(MAX_ADDITIONS)

    async def end(_: web.Application) -> None:
        app[ADDING].shutdown(wait=False, cancel_futures=True)

    app.on_cleanup.append(end)


async def list_store(request: web.Request) -> web.StreamResponse:
    """GET /v1/store: every object and reference."""
    objects, references = await asyncio.to_thread(request.app[MODULES].listed)
    return json_response(
        {"objects": [each.to_wire() for each in objects], "references": [each.to_wire() for each in references]}
    )


async def get_reference(request: web.Request) -> web.StreamResponse:
    """GET /v1/store/references/NAME:TAG: one reference with its history."""
    found = await asyncio.to_thread(request.app[MODULES].reference, request.match_info["name"])
    return json_response(found.to_wire())


async def tag(request: web.Request) -> web.StreamResponse:
    """PUT /v1/store/references/NAME:TAG: has it name the object of that digest."""
    value = strict_json.loads_object(await read_body(request), MAX_MANAGER_BODY, "the request")
    asked = parse(Tagged, value, "request", strict=True)
    who = caller_of(request).who
    moved = await asyncio.to_thread(request.app[MODULES].tag, request.match_info["name"], asked.digest, who)
    return json_response(moved.to_wire())


async def untag(request: web.Request) -> web.StreamResponse:
    """DELETE /v1/store/references/NAME:TAG."""
    await asyncio.to_thread(request.app[MODULES].untag, request.match_info["name"])
    return web.Response(status=204)


async def collect(request: web.Request) -> web.StreamResponse:
    """POST /v1/store/gc: removes what nothing needs."""
    await read_body(request)
    done = await asyncio.to_thread(request.app[MODULES].collect, request.app[LIVING]())
    return json_response({"removed": [each.to_wire() for each in done.removed], "bytes": done.bytes})


async def add_object(request: web.Request) -> web.StreamResponse:
    """PUT /v1/store/objects: keeps the body, and answers with its digest."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise KeepfleetError(ErrorKind.UNSUPPORTED_MEDIA, "cannot add the module: it must not be encoded")
    if (request.content_length or 0) > MAX_OBJECT:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot add the module: it is over {MAX_OBJECT} bytes")
    if request.app[ADDITIONS].locked():
        raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot add the module: {MAX_ADDITIONS} others are being added")
    async with request.app[ADDITIONS]:
        body = _Body(request, asyncio.get_running_loop())
        adding = asyncio.get_running_loop().run_in_executor(request.app[ADDING], request.app[MODULES].add, body)
        try:
            added = await asyncio.shield(adding)
        except asyncio.CancelledError:
            body.gone = True
            adding.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
    return json_response(added.to_wire(), 201)


class _Body:
    """A request's body as a thread reads it. gone: its sender has, and no more comes."""

    def __init__(self, request: web.Request, loop: asyncio.AbstractEventLoop) -> None:
        self._content, self._loop, self.gone = request.content, loop, False

    def __repr__(self) -> str:
        return f"_Body({'gone' if self.gone else 'coming'})"

    def read(self, size: int, /) -> bytes:
        """The next piece. Raises KeepfleetError: TOO_SLOW, BAD_REQUEST for a body that broke off."""
        if self.gone:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot add the module: it broke off")
        return asyncio.run_coroutine_threadsafe(self._piece(min(size, PIECE_BYTES)), self._loop).result()

    async def _piece(self, size: int) -> bytes:
        piece = bytearray()
        try:
            while len(piece) < size and not self.gone:
                async with asyncio.timeout(SILENT_SECONDS):
                    data = await self._content.read(size - len(piece))
                if not data:
                    break
                piece += data
        except TimeoutError:
            raise KeepfleetError(
                ErrorKind.TOO_SLOW, f"cannot add the module: nothing came for {SILENT_SECONDS:g} s"
            ) from None
        except (web.RequestPayloadError, ConnectionError) as error:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot add the module: it broke off") from error
        if self.gone:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot add the module: it broke off")
        return bytes(piece)
