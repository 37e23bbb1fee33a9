"""Server-sent events: a keep's lines, and what happens to keeps, as answers that go on. The shapes are
keep_protocol.sse'."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing

from aiohttp import web

from keep_manager.authorize.table import Action, authorize, may
from keep_manager.http.connection import SEND_SECONDS
from keep_manager.http.handlers import KEEPS
from keep_manager.http.middleware import ADMISSION, QUOTAS, caller_of, peer_of
from keep_manager.keeps import logs
from keep_manager.keeps.logs import Events, Journal
from keep_manager.tasks import Group
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
Item = LogLine | KeepEvent | KeepInfo
"""What a stream sends; a keep is its end."""
Produce = Callable[[Callable[[Item], Awaitable[None]]], Awaitable[None]]
"""Sends one thing after another to the function it is given."""


async def keep_logs(request: web.Request) -> web.StreamResponse:
    """GET /v1/keeps/ID/logs; see keep_protocol.sse."""
    kuuid = parse_kuuid(request.match_info["kuuid"])
    last, follow = _query(request)
    after = request.headers.get(RESUME_HEADER, "")
    keeps, journal, caller = request.app[KEEPS], request.app[JOURNAL], caller_of(request)
    keep = await keeps.get(kuuid)

    def check() -> None:
        authorize(caller_of(request), Action.LOGS, keep)

    if not follow:
        return await _answer(request, lambda send: logs.present(journal, kuuid, last, after, send, caller.name), check)
    with request.app[QUOTAS].following(caller):
        return await _answer(
            request, lambda send: logs.follow(keeps, journal, kuuid, last, after, send, caller.name), check
        )


async def keep_events(request: web.Request) -> web.StreamResponse:
    """GET /v1/events; see keep_protocol.sse. The answer begins when nothing more can be missed."""
    last, follow = _query(request, "keep")
    kuuid = parse_kuuid(request.query["keep"]) if "keep" in request.query else None
    after = request.headers.get(RESUME_HEADER, "")
    caller = caller_of(request)
    async with AsyncExitStack() as held:
        if follow:
            held.enter_context(request.app[QUOTAS].following(caller))

        def visible(keep: KeepInfo) -> bool:
            return may(caller_of(request), Action.EVENTS, keep)

        source = request.app[EVENTS].events(
            kuuid, last=last, after=after, follow=follow, visible=visible, caller=caller.name
        )
        events = await held.enter_async_context(source)

        async def produce(send: Callable[[Item], Awaitable[None]]) -> None:
            async with aclosing(events):
                async for event in events:
                    await send(event)

        return await _answer(request, produce, lambda: authorize(caller_of(request), Action.EVENTS))


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


async def _answer(request: web.Request, produce: Produce, check: Callable[[], None]) -> web.StreamResponse:
    """The stream of what `produce` sends, with a sign of life in every silence, until it ends or the client is gone.

    `produce` is ended with the answer, wherever that breaks off: a client may go while a line is sent as well as while
    one is waited for. A refusal before the first thing sent is an answer like any other; one after it can only end the
    stream: the client resumes, and is answered.
    """
    response = web.StreamResponse(headers={"Content-Type": sse.CONTENT_TYPE})
    _enlist(request.app)
    try:
        queue: asyncio.Queue[Item | None] = asyncio.Queue(1)
        async with Group() as producing:
            producing.start(_produced(produce, queue))
            await _forward(request, response, queue, check)
    except KeepfleetError as error:
        if not response.prepared:
            raise
        LOG.info("ended the stream of %s to %s: %s", request.path, peer_of(request), error.message)
        response.force_close()
    return response


async def _produced(produce: Produce, queue: asyncio.Queue[Item | None]) -> None:
    await produce(queue.put)
    await queue.put(None)


async def _forward(
    request: web.Request, response: web.StreamResponse, queue: asyncio.Queue[Item | None], check: Callable[[], None]
) -> None:
    """Sends what comes through the queue until None does; in every silence, the first one soon, a sign of life."""
    loop = asyncio.get_running_loop()
    alive_at = loop.time() + FIRST_SECONDS
    while True:
        chunk = _ALIVE
        try:
            async with asyncio.timeout_at(alive_at):
                item = await queue.get()
            chunk = b"" if item is None else _encoded(item)
        except TimeoutError:
            LOG.debug("nothing to send to %s; a sign of life", peer_of(request))
        _check_again(request, check)
        if not response.prepared:
            await response.prepare(request)
        if not chunk:
            return
        await _send(request, response, chunk)
        alive_at = loop.time() + sse.ALIVE_SECONDS


def _enlist(app: web.Application) -> None:
    """Notes the running task for `end_streams`. Here and not in its caller, whose frame an exception's traceback keeps:
    a task named there would hold itself.
    """
    task = asyncio.current_task()
    if task is not None:
        app[STREAMS].add(task)
        task.add_done_callback(app[STREAMS].discard)


def _check_again(request: web.Request, check: Callable[[], None]) -> None:
    """A certificate that was revoked or has expired meanwhile, or whose role was taken away, gets nothing more."""
    request.app[ADMISSION].check(peer_of(request))
    check()


async def _send(request: web.Request, response: web.StreamResponse, chunk: bytes) -> None:
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await response.write(chunk)
    except TimeoutError:
        LOG.warning("%s does not read its stream; cut off", peer_of(request))
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client does not read") from None


def _encoded(item: Item) -> bytes:
    if isinstance(item, KeepInfo):
        return sse.encode(sse.END, item.to_wire())
    name = sse.KEEP if isinstance(item, KeepEvent) else sse.LINE
    return sse.encode(name, item.to_wire(), item.cursor)


async def end_streams(app: web.Application) -> None:
    """Ends every stream: a manager that stops does not wait for those who listen; they resume at the next one."""
    tasks = app[STREAMS]
    for task in tuple(tasks):
        task.cancel()
