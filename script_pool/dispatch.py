"""Requests on their way: from the queue to a child, over the host functions that a run waits for, to an answer.

What is to be done is computed by `decisions`; this does it. Every request is answered exactly once. A run that waits
for host functions stays in its child for a moment, and then is parked here, so that the child is free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count

from script_pool import decisions, frames
from script_pool.children import Children
from script_pool.decisions import Assign, Expire, Kill, Park, Refuse, Retire, Settings, Spawn, Waiting
from script_pool.engine.interface import Reason
from script_pool.frames import Frame, FrameError, Kind
from script_pool.hostcalls import Calls
from script_pool.jobs import Job, Member, answer_of_killed, frame_of_preparation, frames_of_run
from script_pool.processes import Events, Processes
from script_pool.protocol import NO_SUCH_SCRIPT, QUEUE_FULL, SHUTTING_DOWN, Answer

MAX_PARKED_BYTES = 512 * 1024 * 1024
"""Of all runs that wait for host functions outside of a child: 15 KB for a small one."""


class Dispatch:
    """`outcome`: what a child's last frame of a request is as an answer, with the memory that its run has left; it
    raises FrameError. `answered`: takes each request with its answer."""

    def __init__(
        self,
        settings: Settings,
        processes: Callable[[Events], Processes],
        say: Callable[[str], None],
        outcome: Callable[[Job, Frame, bytes | None], Answer],
        answered: Callable[[Job, Answer], None],
    ) -> None:
        self._settings, self._outcome, self._answered = settings, outcome, answered
        self.children = Children(processes, self, say)
        self._queue: dict[int, Waiting] = {}
        self._jobs: dict[int, Job] = {}
        self._numbers = count(1)
        self._parked_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self.draining = self._stopped = self._deciding = self._again = False
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"Dispatch({len(self.children)} children, {len(self._queue)} waiting)"

    def __len__(self) -> int:
        """The requests that are not answered."""
        return len(self._jobs)

    @property
    def queued(self) -> int:
        """The requests that wait for a child."""
        return len(self._queue)

    async def start(self) -> None:
        """Returns when a child can run. Raises KeepfleetError."""
        self._loop = asyncio.get_running_loop()
        await self.children.start()
        self.turn()

    async def drained(self) -> None:
        """Returns when every request is answered; no child is started any more for its own sake."""
        self.draining = True
        while self._jobs:
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        """Refuses what is not answered, kills the children, and returns when they have ended."""
        self.draining = self._stopped = True
        for ticket in list(self._jobs):
            self.reply(ticket, Answer(SHUTTING_DOWN))
        await self.children.stop()
        if self._timer is not None:
            self._timer.cancel()

    # --- requests -----------------------------------------------------------------------------------------------

    def number(self) -> int:
        """The next one: of a request, of what a name stands for, or of a host function's call."""
        return next(self._numbers)

    def deadline(self) -> float:
        """Of a request that is made now."""
        return self._loop.time() + self._settings.deadline_seconds

    def later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Calls something then."""
        return self._loop.call_later(seconds, call)

    def add(self, job: Job) -> None:
        """Has a request wait, for a `turn`; a run not before `make_ready`."""
        self._jobs[job.ticket] = job
        self._queue[job.ticket] = Waiting(job.ticket, job.deadline, job.prepares)

    def waiting(self, ticket: int) -> Job | None:
        """The request, where it waits for a child."""
        return self._jobs.get(ticket) if ticket in self._queue else None

    def make_ready(self, ticket: int) -> None:
        """It is certain what this request runs."""
        self._queue[ticket].ready = True
        self.turn()

    def reply(self, ticket: int, answer: Answer) -> None:
        """Answers a request, once: where it is not known, it has been."""
        self._queue.pop(ticket, None)
        job = self._jobs.pop(ticket, None)
        if job is None:
            return
        if job.calls is not None:
            job.calls.close()
        self._unpark(job)
        self._answered(job, answer)
        if self.draining:
            self._changed.set()

    # --- decisions ----------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Does what is to be done now. What it does may call it again, which is done behind it."""
        self._again = True
        if self._deciding or self._stopped:
            return
        self._deciding = True
        try:
            while self._again:
                self._again = False
                now, spawn_from = self._loop.time(), self.children.spawn_from
                views, queue = self.children.views.values(), self._queue.values()
                for action in decisions.decide(
                    views, queue, self._settings, now, spawn_from=spawn_from, draining=self.draining
                ):
                    self._apply(action, now)
                    self._again = self._again or not isinstance(action, Assign)
            self._arm(decisions.wake(views, queue, self._settings, now, self.children.spawn_from))
        finally:
            self._deciding = False

    def _apply(self, action: decisions.Action, now: float) -> None:
        match action:
            case Assign(ticket, child):
                self._assign(ticket, self.children[child], now)
            case Expire(ticket):
                waited = f"the request waited {self._settings.deadline_seconds:g} s for a child"
                self.reply(ticket, Answer(Reason.TIME_LIMIT.value, message=waited))
            case Refuse(ticket):
                self.reply(ticket, Answer(QUEUE_FULL, message=f"{self._settings.queue} requests wait already"))
            case Spawn():
                self.children.add()
            case Retire(child):
                self.children.retire(child)
            case Park(child):
                self.children[child].park(now)
            case Kill(child):
                self.children.kill(child)

    def _assign(self, ticket: int, member: Member, now: float) -> None:
        del self._queue[ticket]
        job = self._jobs[ticket]
        if not job.prepares and job.version.script is None:
            self.reply(ticket, Answer(NO_SUCH_SCRIPT))
            self._again = True  # the child is idle as before
            return
        until = job.allow(now)
        if job.prepares:
            member.process.send(frame_of_preparation(job))
        else:
            member.process.send(*frames_of_run(job, self._unpark(job), member.held, now))
        member.begin(job, until)

    def _arm(self, when: float) -> None:
        """One timer, set again only where it would come too late; one that comes too early finds nothing to do."""
        if self._timer is not None and not self._timer.cancelled():
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = None if when == decisions.NEVER else self._loop.call_at(when, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self.turn()

    # --- what the children report -------------------------------------------------------------------------------

    def came(self, member: Member, job: Job, frame: Frame) -> None:
        """A child's frame about the request that it has."""
        try:
            if frame.kind is Kind.CALLS and not job.prepares:
                self._called(member, job, frame)
            elif frame.kind is Kind.PARKED and job.calls is not None:
                self._parked(member, job, frame.body)
            elif frame.kind is Kind.MEMORY and job.session is not None:
                member.memory = frame.body
            else:
                answer = self._outcome(job, frame, member.memory)
                member.free(self._loop.time())
                self.reply(job.ticket, answer)
        except FrameError as error:
            self.children.distrust(member, str(error))
        view, queue = member.view, self._queue.values()
        if decisions.may_rest(view, queue, self._settings, self._timer):
            return
        if view.held is not None and decisions.may_wait(view.held + decisions.HOLD_SECONDS, queue, self._timer):
            return
        self.turn()

    def lost(self, member: Member, job: Job, how: str) -> None:
        """A child has ended with the request that it had."""
        self.reply(job.ticket, answer_of_killed(member, how, job))

    # --- host functions -----------------------------------------------------------------------------------------

    def _called(self, member: Member, job: Job, frame: Frame) -> None:
        """A run waits for host functions. Raises FrameError."""
        asked = frames.calls_of(frame)
        if job.calls is None:
            job.calls = Calls(job.version.functions, job.settings.caller, self.later, lambda: self._go_on(job))
        member.wait(job, frame.seconds, self._loop.time())
        job.calls.make(asked, self.number)
        self._go_on(job)

    def _parked(self, member: Member, job: Job, memory: bytes) -> None:
        """A run that waits is here; its child is free."""
        member.free(self._loop.time())
        if self._parked_bytes + len(memory) > MAX_PARKED_BYTES:
            full = "too many runs wait for host functions"
            self.reply(job.ticket, Answer(Reason.HOST_CALL_REFUSED.value, message=full))
            return
        job.parked = memory
        self._parked_bytes += len(memory)
        self._go_on(job)

    def _unpark(self, job: Job) -> bytes | None:
        parked, job.parked = job.parked, None
        self._parked_bytes -= len(parked or b"")
        return parked

    def _go_on(self, job: Job) -> None:
        """A run goes on, where there are answers for it and it waits, here or in its child."""
        if job.ticket not in self._jobs or job.calls is None or not job.calls.answers:
            return
        now, member = self._loop.time(), job.member
        job.end_wait(now)
        if job.parked is not None and job.ticket not in self._queue:
            first = Waiting(job.ticket, job.deadline)  # it has had its place before
            others = dict(self._queue)
            self._queue.clear()
            self._queue |= {job.ticket: first, **others}
            self.turn()
        elif member is not None and member.waits(job):
            member.go_on(job, now)
            if not decisions.may_wait(decisions.must_act_by(member.view), self._queue.values(), self._timer):
                self.turn()
