"""Server-sent events: a keep's lines, and what happens to keeps, as answers that go on. The shapes are
keep_protocol.sse'."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from keep_manager.http.connection import SEND_SECONDS
from keep_manager.http.handlers import KEEPS
from keep_manager.http.middleware import CERTIFICATES, RULES, peer_of
from keep_manager.keeps.logs import Events, Journal, end_task, followed
from keep_protocol import sse
from keep_protocol.constants import parse_kuuid
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import KeepEvent, LogLine

LOG = logging.getLogger("keepfleet.http")
MAX_LINES = 100_000
FIRST_SECONDS = 0.2
"""A refusal comes in this time; after it a client that follows a silent keep learns that it is served."""
RESUME_HEADER = "Last-Event-ID"
JOURNAL = web.AppKey("journal", Journal)
EVENTS = web.AppKey("events", Events)
STREAMS = web.AppKey("streams", set[asyncio.Task[None]])
_COUNT = re.compile(r"[0-9]{1,6}", re.ASCII)
_ALIVE = b": alive\n\n"
Told = LogLine | KeepEvent | KeepInfo
"""What a stream tells; a keep is its end."""


async def keep_logs(request: web.Request) -> web.StreamResponse:
    """GET /v1/keeps/ID/logs; see keep_protocol.sse."""
    kuuid = parse_kuuid(request.match_info["kuuid"])
    last, follow = _query(request)
    after = request.headers.get(RESUME_HEADER, "")
    await request.app[KEEPS].get(kuuid)
    journal = request.app[JOURNAL]
    if follow:
        return await _answer(request, followed(request.app[KEEPS], journal, kuuid, last, after))
    return await _answer(request, _present(journal, kuuid, last, after))


async def keep_events(request: web.Request) -> web.StreamResponse:
    """GET /v1/events; see keep_protocol.sse. The answer begins when nothing more can be missed."""
    last, follow = _query(request, "keep")
    kuuid = parse_kuuid(request.query["keep"]) if "keep" in request.query else None
    after = request.headers.get(RESUME_HEADER, "")
    async with request.app[EVENTS].events(kuuid, last=last, after=after, follow=follow) as events:
        return await _answer(request, events)


def _query(request: web.Request, *more: str) -> tuple[int | None, bool]:
    query = request.query
    unknown = sorted(set(query) - {"follow", "lines", *more})
    if unknown or len(query) != len(set(query)):
        name = (unknown or sorted(query))[0]
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST, f"cannot read the log: {name[:40]!r} is no parameter of it, or stands twice"
        )
    if query.get("follow", "false") not in ("true", "false"):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, "cannot read the log: follow must be true or false")
    lines = query.get("lines")
    if lines is not None and (not _COUNT.fullmatch(lines) or not 1 <= int(lines) <= MAX_LINES):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read the log: lines must be in 1 … {MAX_LINES}")
    return None if lines is None else int(lines), query.get("follow") == "true"


async def _present(
    journal: Journal, kuuid: int, last: int | None, after: str
) -> AsyncGenerator[LogLine | KeepInfo, None]:
    async with journal.lines(kuuid, last=last, after=after) as lines:
        async for line in lines:
            yield line


async def _answer(request: web.Request, told: AsyncGenerator[Told, None]) -> web.StreamResponse:
    """The stream of `told`, with a sign of life in every silence, until it ends or the client is gone.

    `told` is closed with the answer, wherever that breaks off: a client may go while a line is sent as well as while
    one is waited for. Left to the garbage collector, its journalctl would live on until that looks.

    A refusal before the first thing told is an answer like any other; one after it can only end the stream: the client
    resumes, and is answered.
    """
    response = web.StreamResponse(headers={"Content-Type": sse.CONTENT_TYPE})
    _enlist(request.app)
    async with aclosing(told), aclosing(_alive(told)) as chunks:
        try:
            async for chunk in chunks:
                _check_again(request)
                if not response.prepared:
                    await response.prepare(request)
                await _send(request, response, chunk)
            if not response.prepared:
                await response.prepare(request)
        except KeepfleetError as error:
            if not response.prepared:
                raise
            LOG.info("ended the stream of %s to %s: %s", request.path, peer_of(request), error.message)
            response.force_close()
    return response


def _enlist(app: web.Application) -> None:
    """Notes the running task for `end_streams`. Here and not in its caller, whose frame an exception's traceback keeps:
    a task named there would hold itself.
    """
    task = asyncio.current_task()
    if task is not None:
        app[STREAMS].add(task)
        task.add_done_callback(app[STREAMS].discard)


def _check_again(request: web.Request) -> None:
    """A certificate that was revoked or has expired meanwhile gets nothing more."""
    rules = request.app[RULES].get(request.match_info.route)
    if rules is not None:
        rules.access.check(peer_of(request), request.app[CERTIFICATES])


async def _send(request: web.Request, response: web.StreamResponse, chunk: bytes) -> None:
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await response.write(chunk)
    except TimeoutError:
        LOG.warning("%s does not read its stream; cut off", peer_of(request))
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client does not read") from None


async def _alive(told: AsyncGenerator[Told, None]) -> AsyncGenerator[bytes, None]:
    """What to send: each thing told as an event, and signs of life in every silence, the first one soon."""
    pause = FIRST_SECONDS
    coming: asyncio.Task[Told | None] | None = None
    try:
        while True:
            coming = coming or asyncio.create_task(_next(told))
            await asyncio.wait({coming}, timeout=pause)
            pause = sse.ALIVE_SECONDS
            if not coming.done():
                yield _ALIVE
                continue
            item, coming = coming.result(), None
            if item is None:
                return
            yield _encoded(item)
    finally:
        await end_task(coming)  # before `told` is closed: only one may be at work in it


async def _next(told: AsyncGenerator[Told, None]) -> Told | None:
    return await anext(told, None)


def _encoded(item: Told) -> bytes:
    if isinstance(item, KeepInfo):
        return sse.encode(sse.END, item.to_wire())
    name = sse.KEEP if isinstance(item, KeepEvent) else sse.LINE
    return sse.encode(name, item.to_wire(), item.cursor)


async def end_streams(app: web.Application) -> None:
    """Ends every stream: a manager that stops does not wait for those who listen; they resume at the next one."""
    tasks = app[STREAMS]
    for task in tuple(tasks):
        task.cancel()
