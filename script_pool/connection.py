"""One client of a pool: its lines in, its answers out.

A client costs what its requests cost: it is read no further while many of its requests are open or its answers are not
read, and ended when it leaves a line or its answers for too long.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable

from script_pool import protocol
from script_pool.hostcalls import HostCall
from script_pool.jobs import RunSettings
from script_pool.pool import ScriptPool
from script_pool.protocol import AddCode, Answer, ExecCode, HostResult, Lines, ListCode, RemoveCode, SessionRequest

MAX_OPEN = 512
"""Requests of one connection that are not answered; more are read when some are. Above the queue's length, so that a
client that asks for too much learns it."""
MAX_UNREAD = 64 * 1024 * 1024
"""Bytes of answers that a client has not read, before it is ended."""
LINE_SECONDS = 30.0
"""From a line's first byte to its end: 5 MiB at 1.4 Mbit/s."""
UNREAD_SECONDS = 30.0
"""From the moment answers do not fit the socket any more to the moment that they do."""


class Connection(asyncio.Protocol):
    """One client. `ended`: called once it has no more requests and all are answered, or it is gone; `owner`: whose
    sessions it uses."""

    def __init__(self, pool: ScriptPool, ended: Callable[[Connection], None], owner: str = "") -> None:
        self._pool, self._ended, self._owner = pool, ended, owner
        self._calls: dict[int, HostCall] = {}
        limit = pool.limits.input_bytes
        self._lines = Lines(limit + protocol.BESIDE_THE_INPUT)
        self._in_order: deque[list[Answer]] = deque()
        self._open = 0
        self._reading: asyncio.ReadTransport | None = None
        self._writing: asyncio.WriteTransport | None = None
        self._unread = self._finished = self._gone = self._paused = False
        self._line_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._waiting: deque[bytes | None] = deque()

    def __repr__(self) -> str:
        return f"Connection({self._open} open requests)"

    def attach(self, reading: asyncio.ReadTransport | None, writing: asyncio.WriteTransport) -> None:
        """What it is read from and written to, where the two differ."""
        self._reading, self._writing = reading, writing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self.attach(transport, transport)

    def data_received(self, data: bytes) -> None:
        self._waiting.extend(self._lines.feed(data))
        self._take()
        if self._lines.partial:
            if self._line_timer is None:
                self._line_timer = asyncio.get_running_loop().call_later(LINE_SECONDS, self._silent)
        elif self._line_timer is not None:
            self._line_timer.cancel()
            self._line_timer = None

    def eof_received(self) -> bool:
        """The client asks for no more; what it asked for is answered before the connection ends."""
        if self._lines.partial:
            self._waiting.append(b"")  # a line without its end is no request
            self._take()
        self._finished = True
        self._end_if_done()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._leave()

    def pause_writing(self) -> None:
        self._unread = True
        self._unread_timer = asyncio.get_running_loop().call_later(UNREAD_SECONDS, self.abort)
        self._pace()

    def resume_writing(self) -> None:
        self._unread = False
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        self._take()

    def finish(self) -> None:
        """No more is read; ends once all is answered and written."""
        self._finished = True
        self._waiting.clear()
        if self._reading is not None and not self._reading.is_closing():
            self._pause(True)
        self._end_if_done()

    def abort(self) -> None:
        """Ends without another byte."""
        if self._writing is not None:
            self._writing.abort()
        self._leave()

    def _leave(self) -> None:
        if not self._gone:
            self._gone = True
            calls, self._calls = self._calls, {}
            for call in calls.values():
                call.fail("the client has gone", refused=True)
            for timer in (self._line_timer, self._unread_timer):
                if timer is not None:
                    timer.cancel()
            if self._reading is not None:
                self._reading.close()
            self._ended(self)

    def _silent(self) -> None:
        """A line has begun and not ended in its time."""
        self._line_timer = None
        late = f"the line had not ended {LINE_SECONDS:.0f} s after it began"
        self._respond(None, Answer(protocol.MALFORMED, message=late))
        self.finish()

    def _take(self) -> None:
        """Takes up the lines that there is room for."""
        while self._waiting and self._open < MAX_OPEN and not self._unread and not self._gone:
            self._request(self._waiting.popleft())
        self._pace()

    def _pace(self) -> None:
        """Reads on, or not."""
        if self._reading is None or self._reading.is_closing() or self._finished:
            return
        self._pause(bool(self._waiting) or self._open >= MAX_OPEN or self._unread)

    def _pause(self, paused: bool) -> None:
        """Python 3.11's pipe transports do not say whether they read, and 3.12's must not be paused twice."""
        if self._reading is not None and paused != self._paused:
            self._paused = paused
            self._reading.pause_reading() if paused else self._reading.resume_reading()

    def _request(self, line: bytes | None) -> None:
        request = protocol.parse(line, self._pool.limits.input_bytes)
        if isinstance(request, HostResult):
            self._host_result(request)
            return
        reply = self._promise(request.id)
        match request:
            case ExecCode(id, name, input_text, session, clock, zone):
                caller = None if id is None else functools.partial(self._ask, id)
                settings = RunSettings(caller, self._owner, session, clock, zone)
                self._pool.run(name, input_text, reply, settings)
            case AddCode(_, name, code, language, functions):
                self._pool.add(name, code, language, reply, functions)
            case RemoveCode(_, name):
                self._pool.remove(name, reply)
            case ListCode():
                reply(Answer(scripts=self._pool.scripts))
            case SessionRequest(_, "SaveSession", session):
                reply(self._pool.sessions.on_save(self._owner, session))
            case SessionRequest(_, "LoadSession", session, saved):
                reply(self._pool.sessions.on_load(self._owner, session, saved))
            case SessionRequest(_, _, session):
                reply(self._pool.sessions.on_end(self._owner, session))
            case _:
                reply(Answer(request.reason, message=request.message))

    def _ask(self, id: str, call: HostCall) -> None:
        """Asks the client for a host function's value."""
        if self._gone or self._writing is None or self._writing.is_closing():
            call.fail("the client has gone", refused=True)
            return
        self._calls[call.number] = call
        self._writing.write(protocol.host_call(id, call))

    def _host_result(self, result: HostResult) -> None:
        """A call may have ended before, by its time or its run's end: such an answer, or a second one, is dropped."""
        call = self._calls.pop(result.call, None)
        if call is None:
            return
        if result.done:
            call.answer(result.text)
        else:
            call.fail(result.text)

    def _promise(self, id: str | None) -> Callable[[Answer], None]:
        """What answers a request: with its id immediately, without one when those before it are answered."""
        self._open += 1
        if id is not None:
            return lambda answer: self._respond(id, answer, 1)
        place: list[Answer] = []
        self._in_order.append(place)

        def reply(answer: Answer) -> None:
            place.append(answer)
            while self._in_order and self._in_order[0]:
                self._respond(None, self._in_order.popleft()[0], 1)

        return reply

    def _respond(self, id: str | None, answer: Answer, closed: int = 0) -> None:
        self._open -= closed
        writing = self._writing
        if writing is None or self._gone or writing.is_closing():
            return
        writing.write(protocol.encode(id, answer))
        if writing.get_write_buffer_size() > MAX_UNREAD:
            self.abort()
        elif self._waiting:
            asyncio.get_running_loop().call_soon(self._take)
        else:
            self._pace()
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._finished and not self._open and not self._waiting and self._writing is not None:
            self._writing.close()  # behind what is not written yet
