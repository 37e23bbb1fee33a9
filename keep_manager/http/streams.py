"""Answers that go on: a keep's output as it is, and as server-sent events a keep's lines, and what happens to keeps.
The shapes are keep_protocol.output's and sse's."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from aiohttp import web

from keep_manager.authorize.table import Action, authorize, may
from keep_manager.http.connection import SEND_SECONDS, Flood
from keep_manager.http.handlers import KEEPS
from keep_manager.http.middleware import ADMISSION, QUOTAS, caller_of, peer_of
from keep_manager.keeps import logs
from keep_manager.keeps.logs import Chosen, Events, place_of
from keep_manager.keeps.readers import Readers, Reading
from keep_manager.keeps.streams import BLOCK_BYTES
from keep_manager.keeps.view import Entry
from keep_manager.tasks import Group
from keep_protocol import output, sse, strict_json
from keep_protocol.constants import parse_kuuid
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import KeepEvent, LogLine

LOG = logging.getLogger("keepfleet.http")
MAX_LINES = 100_000
FIRST_SECONDS = 0.2
"""A refusal comes in this time; after it a client that follows a silent keep learns that it is served."""
RESUME_HEADER = "Last-Event-ID"
OUTPUT = web.AppKey("output", Readers)
ENTRY: web.AppKey[Callable[[int], Entry]] = web.AppKey("entry")
"""All that is known of a keep. Raises KeepfleetError(NOT_FOUND)."""
EVENTS = web.AppKey("events", Events)
STREAMS = web.AppKey("streams", set[asyncio.Task[None]])
_COUNT = re.compile(r"[0-9]{1,6}", re.ASCII)
_ALIVE = b": alive\n\n"
_POSITION = re.compile(r"[0-9]{1,19}", re.ASCII)
_MOMENT = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?", re.ASCII)
OUTPUT_SEND_SECONDS = 600.0
"""How long a reader of output may take nothing: a person may look at a page of it. The workload waits for it no longer
than output.STALL_SECONDS; the client resumes where it was cut off."""
TURN_BYTES = 1024 * 1024
"""Sent to a reader that takes as fast as there is more, until others have their turn: two milliseconds."""
CHECK_SECONDS, CHECKS = 0.1, 2
"""In so many seconds it is checked so many times at most whether a reader of output still may: what comes seldom is
sent after a check each time, and a flood is looked at twenty times a second."""
Item = tuple[LogLine, ...] | KeepEvent | KeepInfo | bytes
"""What a stream sends; a keep is its end, bytes are events as they are."""
Produce = Callable[[Callable[[Item], Awaitable[None]]], Awaitable[None]]
"""Sends one thing after another to the function it is given."""


async def keep_logs(request: web.Request) -> web.StreamResponse:
    """GET /v1/keeps/ID/logs; see keep_protocol.sse."""
    kuuid = parse_kuuid(request.match_info["kuuid"])
    query = _Query(request, "follow", "lines", "stream", "since", "until", "all")
    chosen = Chosen(
        last=query.lines(),
        after=request.headers.get(RESUME_HEADER, ""),
        source=query.word("stream", (sse.STDOUT_SOURCE, sse.STDERR_SOURCE)),
        since=query.moment("since"),
        until=query.moment("until"),
        own=query.flag("all"),
    )
    position = place_of(chosen.after).position if chosen.after else 0
    keeps, follow = request.app[KEEPS], query.flag("follow")
    async with _reading(request, kuuid, position, follow=follow) as (keep, reading):
        clock = logs.clock_of(request.app[ENTRY](kuuid))

        async def produce(send: Callable[[Item], Awaitable[None]]) -> None:
            if follow:
                await logs.follow(keeps, kuuid, reading, chosen, clock, send)
            else:
                await logs.present(reading, chosen, clock, send)

        return await answer(request, produce, lambda: authorize(caller_of(request), Action.LOGS, keep))


@asynccontextmanager
async def _reading(
    request: web.Request, kuuid: int, position: int, *, follow: bool, holds: bool = False
) -> AsyncIterator[tuple[KeepInfo, Reading]]:
    """A keep and a reading of its output, which takes one of the caller's places for streams."""
    keep = await request.app[KEEPS].get(kuuid)
    with request.app[QUOTAS].following(caller_of(request)):
        async with request.app[OUTPUT].reading(kuuid, position, holds=holds, follows=follow) as reading:
            yield keep, reading


async def keep_output(request: web.Request) -> web.StreamResponse:
    """GET /v1/keeps/ID/output; see keep_protocol.output. The answer begins when nothing more can be missed; to make the
    workload wait takes the right to stop it."""
    kuuid = parse_kuuid(request.match_info["kuuid"])
    query = _Query(request, "from", "follow", "hold")
    position, follow, holds = query.position("from"), query.flag("follow"), query.flag("hold")
    actions = (Action.LOGS, Action.STOP) if holds else (Action.LOGS,)

    def check(keep: KeepInfo) -> None:
        caller = caller_of(request)
        for action in actions:
            authorize(caller, action, keep)

    check(await request.app[KEEPS].get(kuuid))
    async with _reading(request, kuuid, position, follow=follow, holds=holds) as (keep, reading):
        response = web.StreamResponse(headers={"Content-Type": output.CONTENT_TYPE})
        enlist(request.app)
        try:
            async with Group() as tasks:
                end: asyncio.Task[KeepInfo] | None = None
                if follow:
                    end = tasks.start(logs.ended(request.app[KEEPS], kuuid))
                    end.add_done_callback(lambda _: reading.wake())
                await _copy(request, response, reading, end, _Checks(request, lambda: check(keep)))
                last = request.app[KEEPS].find(kuuid) if end is None else await end
                data = strict_json.dumps(last.to_wire())
                await _send(request, response, output.encode_frame(output.END, data), OUTPUT_SEND_SECONDS)
        except KeepfleetError as error:
            if not response.prepared:
                raise
            LOG.info("ended the output of keep %d to %s: %s", kuuid, peer_of(request), error.message)
            response.force_close()
        return response


class _Checks:
    """What the reader of a flood is checked for, see CHECKS."""

    def __init__(self, request: web.Request, check: Callable[[], None]) -> None:
        self._request, self._check = request, check
        self._since, self._count = 0.0, 0

    def again(self) -> None:
        """Checks, unless it was checked just before. Raises KeepfleetError."""
        now = asyncio.get_running_loop().time()
        if now - self._since >= CHECK_SECONDS:
            self._since, self._count = now, 0
        if self._count < CHECKS:
            _check_again(self._request, self._check)
            self._count += 1


async def _copy(
    request: web.Request,
    response: web.StreamResponse,
    reading: Reading,
    end: asyncio.Task[KeepInfo] | None,
    checks: _Checks,
) -> None:
    """Sends blocks until the keep has ended, or without `end` those that are there; a sign of life in each silence."""
    flood = Flood(request, BLOCK_BYTES)
    turn = 0

    def push() -> bool:
        """As the loop below, for as long as it waits; what fails here fails there again, and what has to wait for the
        client does so there."""
        if flood.is_full:
            return False
        try:
            block = reading.take(flood.room)
            if block is None:
                return True
            checks.again()
            flood.write(len(block.data))
            reading.sent(block)
            return reading.has_all()
        except (KeepfleetError, ConnectionResetError):
            return False

    while True:
        over = end is None or end.done()
        block = reading.take(flood.room)
        checks.again()
        if not response.prepared:
            flood.begin(await response.prepare(request))
        if block is not None:
            flood.write(len(block.data))
            if flood.is_full:
                with reading.sending():
                    async with _in_time(request, OUTPUT_SEND_SECONDS):
                        await flood.drain()
                turn = 0
            reading.sent(block)
            turn += len(block.data)
            if turn >= TURN_BYTES:
                turn = 0
                await asyncio.sleep(0)
        elif over:
            return
        else:
            try:
                async with asyncio.timeout(output.ALIVE_SECONDS):
                    await reading.more(push)
            except TimeoutError:
                await _send(request, response, output.encode_frame(output.ALIVE, b""), OUTPUT_SEND_SECONDS)


async def keep_events(request: web.Request) -> web.StreamResponse:
    """GET /v1/events; see keep_protocol.sse. The answer begins when nothing more can be missed."""
    query = _Query(request, "follow", "lines", "keep")
    last, follow = query.lines(), query.flag("follow")
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

        return await answer(request, produce, lambda: authorize(caller_of(request), Action.EVENTS))


class _Query:
    """The parameters of a request for a stream. Every method raises KeepfleetError(BAD_REQUEST)."""

    def __init__(self, request: web.Request, *names: str) -> None:
        self._query = request.query
        unknown = sorted(set(self._query) - set(names))
        if unknown or len(self._query) != len(set(self._query)):
            name = (unknown or sorted(self._query))[0]
            raise _unreadable(f"{name[:40]!r} is no parameter of it, or is given twice")

    def flag(self, name: str) -> bool:
        """Whether it is true."""
        return self.word(name, ("true", "false")) == "true"

    def word(self, name: str, words: tuple[str, ...]) -> str:
        """One of `words`, or "" where it is not given."""
        text = self._query.get(name)
        if text is not None and text not in words:
            raise _unreadable(f"{name} must be {' or '.join(words)}")
        return text or ""

    def lines(self) -> int | None:
        """How many lines."""
        text = self._query.get("lines")
        if text is not None and (not _COUNT.fullmatch(text) or not 1 <= int(text) <= MAX_LINES):
            raise _unreadable(f"lines must be in 1 … {MAX_LINES}")
        return None if text is None else int(text)

    def moment(self, name: str) -> float | None:
        """Seconds of the epoch."""
        text = self._query.get(name)
        if text is not None and not _MOMENT.fullmatch(text):
            raise _unreadable(f"{name} must be seconds of the epoch")
        return None if text is None else float(text)

    def position(self, name: str) -> int:
        """A position in the output."""
        text = self._query.get(name, "0")
        if not _POSITION.fullmatch(text):
            raise _unreadable(f"{name} must be a position, which an answer before this one has named")
        return int(text)


def _unreadable(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read the log: {why}")


async def answer(request: web.Request, produce: Produce, check: Callable[[], None]) -> web.StreamResponse:
    """The stream of what `produce` sends, with a sign of life in every silence, until it ends or the client is gone.

    `produce` is ended with the answer, wherever that breaks off: a client may go while a line is sent as well as while
    one is waited for. A refusal before the first thing sent is an answer like any other; one after it can only end the
    stream: the client resumes, and is answered.
    """
    response = web.StreamResponse(headers={"Content-Type": sse.CONTENT_TYPE})
    enlist(request.app)
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


def enlist(app: web.Application) -> None:
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


async def _send(
    request: web.Request, response: web.StreamResponse, chunk: bytes, seconds: float = SEND_SECONDS
) -> None:
    async with _in_time(request, seconds):
        await response.write(chunk)


@asynccontextmanager
async def _in_time(request: web.Request, seconds: float) -> AsyncIterator[None]:
    """Cuts a client off that does not take what the block waits to send in so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        LOG.warning("%s does not read its stream; cut off", peer_of(request))
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client does not read") from None


def _encoded(item: Item) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, KeepInfo):
        return sse.encode(sse.END, item.to_wire())
    if isinstance(item, KeepEvent):
        return sse.encode(sse.KEEP, item.to_wire(), item.cursor)
    return b"".join(map(sse.encode_line, item))


async def end_streams(app: web.Application) -> None:
    """Ends every stream: a manager that stops does not wait for those who listen; they resume at the next one."""
    tasks = app[STREAMS]
    for task in tuple(tasks):
        task.cancel()
