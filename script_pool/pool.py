"""The pool: the scripts by name, the requests that wait, and the children that run them.

What is to be done is computed by `decisions`; this does it. Every request is answered exactly once, by a call.
A name is bound when a request arrives: one that comes after an AddCode runs that code, wherever it runs, and one that
came before it the code before. One event loop; nothing here blocks.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count

from keep_protocol.errors import ErrorKind, KeepfleetError
from script_pool import decisions, frames
from script_pool.console import Journal
from script_pool.decisions import Assign, Child, Expire, Kill, Park, Phase, Refuse, Retire, Settings, Spawn, Waiting
from script_pool.engine.interface import Limits, Reason, Script
from script_pool.frames import Frame, FrameError, Kind, Order
from script_pool.hostcalls import PLAIN_CALLS, Allowance, Calls
from script_pool.jobs import PLAIN, Job, Member, Reply, RunSettings, answer_of_killed, answer_of_run
from script_pool.names import Names
from script_pool.processes import Events, Processes
from script_pool.protocol import (
    DONE,
    NO_SUCH_SCRIPT,
    QUEUE_FULL,
    SESSION_REFUSED,
    SHUTTING_DOWN,
    TOO_MANY_SCRIPTS,
    Answer,
)
from script_pool.sessions import MAX_BYTES, Sessions
from script_pool.versions import Version, bind

ENGINE = "script_pool.engine.languages:Languages"
MAX_PARKED_BYTES = 512 * 1024 * 1024
"""Of all runs that wait for host functions outside of a child: 15 KB for a small one."""
_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.1, 5.0
"""Between children that could not start, doubled each time: what ails them seldom ends within milliseconds."""


class ScriptPool:
    """`engine`: MODULE:CLASS, loaded in the template process alone. `say`: where a line for the operator goes; `cache`:
    the directory for compiled code, which is compiled at each start without one; `processes`: makes the pool's side of
    a template process that is there already; `console`: takes what scripts print, which their answers have without."""

    def __init__(
        self,
        settings: Settings | None = None,
        limits: Limits | None = None,
        engine: str = ENGINE,
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
        cache: str | None = None,
        processes: Callable[[Events], Processes] | None = None,
        session_key: bytes | None = None,
        console: Journal | None = None,
    ) -> None:
        self.settings, self.limits, self._say = settings or Settings(), limits or Limits(), say
        self._processes = processes(self) if processes else Processes(engine, self.limits, self, cache)
        self._names, self._console = Names(self._dropped), console
        self._parked_bytes = 0
        self.sessions = Sessions(self._later, session_key, self.settings.session_seconds)
        self._members: dict[int, Member] = {}
        self._views: dict[int, Child] = {}
        self._queue: dict[int, Waiting] = {}
        self._jobs: dict[int, Job] = {}
        self._numbers = count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._failures, self._spawn_from = 0, 0.0
        self._draining = self._stopped = self._deciding = self._again = False
        self._changed = asyncio.Event()
        self._restart: asyncio.Task[None] | None = None
        self._unable = ""

    def __repr__(self) -> str:
        return f"ScriptPool({len(self._members)} children, {len(self._names)} scripts, {len(self._queue)} waiting)"

    @property
    def children(self) -> dict[int, int]:
        """The children's process IDs by their numbers."""
        return {number: member.process.pid for number, member in self._members.items()}

    @property
    def scripts(self) -> tuple[tuple[str, str], ...]:
        """The name and the language of each script that is there by now, sorted."""
        found = ((name, version.script) for name, version in self._names.items())
        return tuple(sorted((name, script.language) for name, script in found if script is not None))

    async def start(self) -> None:
        """Returns when a child can run. Raises KeepfleetError where none can, and has stopped then."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._processes.start()
            self._add_child()
            while not any(view.phase is Phase.READY for view in self._views.values()):
                if self._failures:
                    raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot start the script pool: {self._unable}")
                self._changed.clear()
                await self._changed.wait()
        except BaseException:
            await self.stop()
            raise
        self._turn()

    def add(
        self, name: str, code: str, language: str, reply: Reply, functions: Mapping[str, Allowance] | None = None
    ) -> None:
        """Makes `name` stand for `code`, which may call these host functions, for every later request, or leaves it as
        it was and says why."""
        if self._draining:
            reply(Answer(SHUTTING_DOWN))
            return
        version = self._names.add(next(self._numbers), name, language, functions)
        if version is None:
            reply(Answer(TOO_MANY_SCRIPTS, message=f"there are {len(self._names)}; remove some"))
            return
        source = code.encode("utf-8", "surrogatepass")  # JSON can say half a surrogate pair
        self._enqueue(Job(version, source, reply, self._deadline(), prepares=True))

    def remove(self, name: str, reply: Reply) -> None:
        """Makes `name` stand for nothing for every later request."""
        before = self._names.get(name)
        if before is None:
            reply(Answer(NO_SUCH_SCRIPT))
            return
        self._names.remove(next(self._numbers), before, lambda known: reply(DONE if known else Answer(NO_SUCH_SCRIPT)))

    def run(self, name: str, input_text: bytes, reply: Reply, settings: RunSettings = PLAIN) -> None:
        """Runs what `name` stands for by now with this input sandbox."""
        version = self._names.get(name)
        if self._draining:
            reply(Answer(SHUTTING_DOWN))
        elif version is None:
            reply(Answer(NO_SUCH_SCRIPT))
        else:
            job = Job(version, input_text, reply, self._deadline(), settings=settings, left=self.limits.wall_seconds)
            if settings.session is not None:
                job.session = self.sessions.open(settings.owner, settings.session)
                if job.session is None:
                    reply(Answer(SESSION_REFUSED, message="there are too many sessions; end some"))
                    return
            self._enqueue(job)

    async def drain(self) -> None:
        """Takes no more requests, answers those that are there within the settings' time, and stops."""
        self._draining = True
        try:
            async with asyncio.timeout(self.settings.drain_seconds):
                while self._jobs:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self._say(f"script-pool: {len(self._jobs)} requests were not answered in time, and are refused")
        await self.stop()

    async def stop(self) -> None:
        """Refuses what is not answered, kills the children, and returns when they have ended."""
        self._draining = self._stopped = True
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.gather(self._restart, return_exceptions=True)
        for ticket in list(self._jobs):
            self._reply(ticket, Answer(SHUTTING_DOWN))
        self.sessions.close()
        await self._processes.stop()
        if self._console is not None:
            self._console.close()
        if self._timer is not None:
            self._timer.cancel()

    # --- requests -----------------------------------------------------------------------------------------------

    def _deadline(self) -> float:
        return self._loop.time() + self.settings.deadline_seconds

    def _later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(seconds, call)

    def _enqueue(self, job: Job) -> None:
        ticket = next(self._numbers)
        self._jobs[ticket] = job
        self._queue[ticket] = Waiting(ticket, job.deadline, job.prepares)
        if job.session is not None:
            job.session.turns.append(ticket)
        if job.prepares or not self._prepare_run(ticket):
            self._turn()

    def _prepare_run(self, ticket: int) -> bool:
        """Makes a waiting run ready once it is certain what it runs, and its session's earlier ones have ended;
        whether it is, and what is to be done was done."""
        waiting, job = self._queue.get(ticket), self._jobs.get(ticket)
        if waiting is None or job is None:
            return False

        def again() -> None:
            self._prepare_run(ticket)

        if not job.version.settled:
            job.version.when_settled(again)
            return False
        script = job.version.script
        missing = bind(self._names, script, job.modules) if script is not None and script.imports else None
        if isinstance(missing, Version):
            missing.when_settled(again)
        elif missing is not None:
            self._reply(ticket, Answer(NO_SUCH_SCRIPT, message=missing))
        elif job.session is None or job.session.turns[0] == ticket:
            waiting.ready = True
            self._turn()
            return True
        return False

    def _reply(self, ticket: int, answer: Answer) -> None:
        """Answers a request, once: where it is not known, it has been."""
        self._queue.pop(ticket, None)
        job = self._jobs.pop(ticket, None)
        if job is None:
            return
        if job.prepares and not job.version.settled:
            job.version.fall_back()
            job.version.when_settled(lambda: self._names.forget(job.version))
        if job.calls is not None:
            job.calls.close()
        self._parked_bytes -= len(job.parked or b"")
        if job.session is not None:
            job.session.turns.remove(ticket)
            self.sessions.drop_empty(job.session)
            if job.session.turns:
                self._prepare_run(job.session.turns[0])
        if self._console is not None and answer.console:
            self._console.write(job.version.name, ticket, answer.console)
            answer = replace(answer, console=())
        job.reply(answer)
        if self._draining:
            self._changed.set()

    def _dropped(self, number: int) -> None:
        """The children that hold this script need not any more."""
        for member in self._members.values():
            if number in member.held:
                member.held.discard(number)
                member.process.send(Frame(Kind.FORGET, number))

    # --- decisions ----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Does what is to be done now. What it does may call it again, which is done behind it."""
        self._again = True
        if self._deciding or self._stopped:
            return
        self._deciding = True
        try:
            while self._again:
                self._again = False
                now = self._loop.time()
                views, queue = self._views.values(), self._queue.values()
                spawn_from = self._spawn_from if self._restart is None else decisions.NEVER
                for action in decisions.decide(
                    views, queue, self.settings, now, spawn_from=spawn_from, draining=self._draining
                ):
                    self._apply(action, now)
                    self._again = self._again or not isinstance(action, Assign)
            self._arm(decisions.wake(views, queue, self.settings, now, self._spawn_from))
        finally:
            self._deciding = False

    def _apply(self, action: decisions.Action, now: float) -> None:
        match action:
            case Assign(ticket, child):
                self._assign(ticket, self._members[child], now)
            case Expire(ticket):
                waited = f"the request waited {self.settings.deadline_seconds:g} s for a child"
                self._reply(ticket, Answer(Reason.TIME_LIMIT.value, message=waited))
            case Refuse(ticket):
                self._reply(ticket, Answer(QUEUE_FULL, message=f"{self.settings.queue} requests wait already"))
            case Spawn():
                self._add_child()
            case Retire(child):
                member = self._members[child]
                member.view.phase, member.view.since = Phase.ENDING, now
                member.process.close()
            case Park(child):
                member = self._members[child]
                member.view.held, member.view.until = None, now + decisions.PARK_SECONDS
                assert member.ticket is not None  # noqa: S101 - it keeps its run
                member.process.send(Frame(Kind.PARK, member.ticket))
            case Kill(child):
                self._kill(self._members[child], now)

    def _assign(self, ticket: int, member: Member, now: float) -> None:
        del self._queue[ticket]
        job = self._jobs[ticket]
        version, script = job.version, job.version.script
        job.seconds = max(0.01, min(self.limits.wall_seconds if job.prepares else job.left, job.deadline - now))
        if not job.prepares and script is None:
            self._reply(ticket, Answer(NO_SUCH_SCRIPT))
            self._again = True  # the child is idle as before
            return
        if script is None:
            asked = Script(version.name, version.language, b"", "", (), tuple(version.functions))
            member.process.send(Frame(Kind.PREPARE, ticket, frames.script_text(asked), job.body, job.seconds))
        else:
            self._send_run(ticket, job, member, now)
        member.ticket, member.job = ticket, job
        member.view.until = now + job.seconds
        member.view.runs += 1

    def _send_run(self, ticket: int, job: Job, member: Member, now: float) -> None:
        """The run, or what it was parked as; before it the scripts that the child does not hold."""
        sent, after = list[Frame](), list[Frame]()
        for version in (job.version, *job.modules.values()):
            script = version.script
            if script is None or version.number in member.held:
                continue
            sent.append(Frame(Kind.SCRIPT, version.number, frames.script_text(script), script.image))
            if version.dropped:  # this run had it before
                after.append(Frame(Kind.FORGET, version.number))
            else:
                member.held.add(version.number)
        job.began, job.had = job.began or now, job.left
        settings, session = job.settings, job.session
        clock = None if settings.clock is None else settings.clock + 1000 * (now - job.began)
        answers = job.calls.take() if job.parked is not None and job.calls is not None else ""
        modules = {name: version.number for name, version in job.modules.items()}
        order = Order(job.version.number, modules, session is not None, clock, settings.zone, answers)
        if job.parked is not None:
            sent.append(Frame(Kind.RESUME, ticket, order.encode(), job.parked, job.seconds))
            self._parked_bytes -= len(job.parked)
            job.parked = None
        else:
            if session is not None and session.memory is not None:
                sent.append(Frame(Kind.MEMORY, ticket, body=session.memory))
            sent.append(Frame(Kind.RUN, ticket, order.encode(), job.body, job.seconds))
        member.process.send(*sent, *after)

    def _add_child(self) -> None:
        number = next(self._numbers)
        view = self._views[number] = Child(number, since=self._loop.time())
        self._members[number] = Member(view, self._processes.fork(number))

    def _kill(self, member: Member, now: float) -> None:
        """Its request is answered when it has ended."""
        member.why = member.why or Reason.TIME_LIMIT.value
        member.view.phase, member.view.since, member.view.killed = Phase.ENDING, now, True
        member.process.kill()

    def _arm(self, when: float) -> None:
        """One timer, set anew only where it would come too late; one that comes too early finds nothing to do."""
        if self._timer is not None and not self._timer.cancelled():
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = None if when == decisions.NEVER else self._loop.call_at(when, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self._turn()

    # --- what the processes report ------------------------------------------------------------------------------

    def said(self, number: int, frame: Frame) -> None:
        """A frame of a child."""
        member = self._members[number]
        if member.view.phase is Phase.ENDING:
            return  # what it was asked is answered when it has ended
        if frame.kind is Kind.READY and member.view.phase is Phase.STARTING:
            member.view.phase, member.view.since = Phase.READY, self._loop.time()
            self._failures, self._spawn_from = 0, 0.0
            self._changed.set()
        elif frame.kind is Kind.UNABLE and member.view.phase is Phase.STARTING:
            member.why = frame.text[:1000].decode("utf-8", "replace")
        elif member.job is None or frame.number != member.ticket:
            self._distrust(member, "it answered what it was not asked")
        else:
            self._answered(member, member.job, frame)
            view, queue = member.view, self._queue.values()
            if decisions.may_rest(view, queue, self.settings, self._timer):
                return
            if view.held is not None and decisions.may_wait(view.held + decisions.HOLD_SECONDS, queue, self._timer):
                return
        self._turn()

    def _answered(self, member: Member, job: Job, frame: Frame) -> None:
        try:
            if frame.kind is Kind.CALLS and not job.prepares:
                self._called(member, job, frame)
                return
            if frame.kind is Kind.PARKED and job.calls is not None:
                self._parked(member, job, frame)
                return
            if frame.kind is Kind.MEMORY and job.session is not None:
                member.memory = frame.body
                return
            answer = (
                self._names.prepared(job.version, frame)
                if job.prepares
                else answer_of_run(frame, self.limits.output_bytes)
            )
        except FrameError as error:
            self._distrust(member, str(error))
            return
        if job.session is not None and answer.reason is None:
            memory = member.memory
            if memory is None or not self.sessions.keep(job.session, memory):
                too_much = f"the session would take over {MAX_BYTES} bytes, and stays as it was"
                answer = Answer(Reason.MEMORY_LIMIT.value, message=too_much)
        ticket = member.ticket
        self._free(member)
        assert ticket is not None  # noqa: S101 - it has a job
        self._reply(ticket, answer)

    def _free(self, member: Member) -> None:
        member.ticket = member.job = member.memory = None
        member.view.until, member.view.held, member.view.since = None, None, self._loop.time()

    # --- host functions -----------------------------------------------------------------------------------------

    def _called(self, member: Member, job: Job, frame: Frame) -> None:
        """A run waits for host functions, and its clock stands still. Raises FrameError."""
        asked, now, ticket = frames.calls_of(frame), self._loop.time(), member.ticket
        assert ticket is not None  # noqa: S101 - it has a job
        if job.calls is None:
            caller = job.settings.caller
            job.calls = Calls(job.version.functions, caller, self._later, lambda: self._go_on(ticket))
        job.left = max(0.01, job.had - frame.seconds)
        job.waits_from = now
        if job.version.language in PLAIN_CALLS:
            member.view.until = decisions.NEVER
        else:
            member.view.held, member.view.until = now, None
        job.calls.make(asked, lambda: next(self._numbers))
        self._go_on(ticket)

    def _parked(self, member: Member, job: Job, frame: Frame) -> None:
        """A run that waits is with the pool; its child is free."""
        ticket = member.ticket
        assert ticket is not None  # noqa: S101 - it has a job
        self._free(member)
        if self._parked_bytes + len(frame.body) > MAX_PARKED_BYTES:
            self._reply(ticket, Answer(Reason.HOST_CALL_REFUSED.value, message="too many runs wait for host functions"))
            return
        job.parked = frame.body
        self._parked_bytes += len(frame.body)
        self._go_on(ticket)

    def _go_on(self, ticket: int) -> None:
        """A run goes on, where there are answers for it and it waits, here or in its child."""
        job = self._jobs.get(ticket)
        if job is None or job.calls is None or not job.calls.answers:
            return
        now = self._loop.time()
        if job.waits_from is not None:
            job.deadline += now - job.waits_from
            job.waits_from = None
        if job.parked is not None and ticket not in self._queue:
            others = dict(self._queue)
            self._queue.clear()
            self._queue[ticket] = Waiting(ticket, job.deadline)  # it has had its place before
            self._queue |= others
            self._turn()
            return
        for member in self._members.values():
            plain = job.version.language in PLAIN_CALLS
            if member.ticket == ticket and (
                member.view.held is not None or (plain and member.view.until == decisions.NEVER)
            ):
                member.process.send(Frame(Kind.ANSWER, ticket, job.calls.take().encode("ascii")))
                job.seconds = max(0.01, min(job.left, job.deadline - now))
                member.view.held, member.view.until = None, now + job.seconds
                if not decisions.may_wait(decisions.must_act_by(member.view), self._queue.values(), self._timer):
                    self._turn()
                return

    def _distrust(self, member: Member, why: str) -> None:
        member.why = member.why or f"{Reason.CRASHED.value}: {why}"
        member.view.phase, member.view.since, member.view.killed = Phase.ENDING, self._loop.time(), True
        member.process.kill()

    def broken(self, number: int, why: str) -> None:
        """A child that is killed for its socket."""
        member = self._members[number]
        if why:
            member.why = member.why or f"{Reason.CRASHED.value}: {why}"
        if member.view.phase is Phase.READY:
            member.view.phase, member.view.since, member.view.killed = Phase.ENDING, self._loop.time(), True

    def ended(self, number: int, how: str) -> None:
        """A child's process has ended: what it ran is answered now."""
        member, _ = self._members.pop(number), self._views.pop(number)
        if member.view.phase is Phase.STARTING:
            self._failures += 1
            pause = min(_MAX_BACKOFF_SECONDS, _BACKOFF_SECONDS * 2 ** min(self._failures, 10))
            self._spawn_from = self._loop.time() + pause
            self._unable = f"a child could not start: {member.why or how}"
            if not self._stopped:
                self._say(f"script-pool: {self._unable}")
        if member.ticket is not None and member.job is not None:
            self._reply(member.ticket, answer_of_killed(member, how, member.job))
        self._changed.set()
        self._turn()

    def template_ended(self) -> None:
        """Starts another; until then no child is started."""
        if self._stopped:
            return
        self._say("script-pool: the template process has ended, and every child with it; another is started")
        self._restart = self._loop.create_task(self._start_template())

    async def _start_template(self) -> None:
        pause = _BACKOFF_SECONDS
        while True:
            try:
                await self._processes.start()
            except (KeepfleetError, OSError) as error:
                self._say(f"script-pool: {error}")
                await asyncio.sleep(pause)
                pause = min(_MAX_BACKOFF_SECONDS, 2 * pause)
            else:
                break
        self._restart, self._spawn_from = None, 0.0
        self._turn()
