"""The pool: its scripts by name, its sessions, and what each request means for them.

A name is bound when a request arrives: one that comes after an AddCode runs that code, wherever it runs, and one that
came before it the code before. How a request comes to a child and back is in `dispatch`. One event loop; nothing here
blocks.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

from script_pool.console import Journal
from script_pool.decisions import Settings
from script_pool.dispatch import Dispatch
from script_pool.engine.interface import Limits, Reason
from script_pool.frames import Frame
from script_pool.hostcalls import Allowance
from script_pool.jobs import PLAIN, Job, Reply, RunSettings, answer_of_run
from script_pool.names import Names
from script_pool.processes import Events, Processes
from script_pool.protocol import (
    DONE,
    NO_SUCH_SCRIPT,
    SESSION_REFUSED,
    SHUTTING_DOWN,
    TOO_MANY_SCRIPTS,
    Answer,
)
from script_pool.sessions import MAX_BYTES, Sessions
from script_pool.versions import Version, bind

ENGINE = "script_pool.engine.languages:Languages"


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
        make = processes or (lambda events: Processes(engine, self.limits, events, cache))
        self._dispatch = Dispatch(self.settings, make, say, self._outcome, self._answered)
        self._names, self._console = Names(self._dispatch.children.forget), console
        self.sessions = Sessions(self._dispatch.later, session_key, self.settings.session_seconds)

    def __repr__(self) -> str:
        children, waiting = len(self._dispatch.children), self._dispatch.queued
        return f"ScriptPool({children} children, {len(self._names)} scripts, {waiting} waiting)"

    @property
    def children(self) -> dict[int, int]:
        """The children's process IDs by their numbers."""
        return self._dispatch.children.pids

    @property
    def scripts(self) -> tuple[tuple[str, str], ...]:
        """The name and the language of each script that is there by now, sorted."""
        found = ((name, version.script) for name, version in self._names.items())
        return tuple(sorted((name, script.language) for name, script in found if script is not None))

    async def start(self) -> None:
        """Returns when a child can run. Raises KeepfleetError where none can, and has stopped then."""
        try:
            await self._dispatch.start()
        except BaseException:
            await self.stop()
            raise

    def add(
        self, name: str, code: str, language: str, reply: Reply, functions: Mapping[str, Allowance] | None = None
    ) -> None:
        """Makes `name` stand for `code`, which may call these host functions, for every later request, or leaves it as
        it was and says why."""
        dispatch = self._dispatch
        if dispatch.draining:
            reply(Answer(SHUTTING_DOWN))
            return
        version = self._names.add(dispatch.number(), name, language, functions)
        if version is None:
            reply(Answer(TOO_MANY_SCRIPTS, message=f"there are {len(self._names)}; remove some"))
            return
        source = code.encode("utf-8", "surrogatepass")  # JSON can say half a surrogate pair
        left = self.limits.wall_seconds
        dispatch.add(Job(dispatch.number(), version, source, reply, dispatch.deadline(), prepares=True, left=left))
        dispatch.turn()

    def remove(self, name: str, reply: Reply) -> None:
        """Makes `name` stand for nothing for every later request."""
        before = self._names.get(name)
        if before is None:
            reply(Answer(NO_SUCH_SCRIPT))
            return
        number = self._dispatch.number()
        self._names.remove(number, before, lambda known: reply(DONE if known else Answer(NO_SUCH_SCRIPT)))

    def run(self, name: str, input_text: bytes, reply: Reply, settings: RunSettings = PLAIN) -> None:
        """Runs what `name` stands for by now with this input sandbox."""
        dispatch, version = self._dispatch, self._names.get(name)
        if dispatch.draining:
            reply(Answer(SHUTTING_DOWN))
            return
        if version is None:
            reply(Answer(NO_SUCH_SCRIPT))
            return
        left = self.limits.wall_seconds
        job = Job(dispatch.number(), version, input_text, reply, dispatch.deadline(), settings=settings, left=left)
        if settings.session is not None:
            job.session = self.sessions.open(settings.owner, settings.session)
            if job.session is None:
                reply(Answer(SESSION_REFUSED, message="there are too many sessions; end some"))
                return
            job.session.turns.append(job.ticket)
        dispatch.add(job)
        if not self._prepare_run(job.ticket):
            dispatch.turn()

    async def drain(self) -> None:
        """Takes no more requests, answers those that are there within the settings' time, and stops."""
        try:
            async with asyncio.timeout(self.settings.drain_seconds):
                await self._dispatch.drained()
        except TimeoutError:
            self._say(f"script-pool: {len(self._dispatch)} requests were not answered in time, and are refused")
        await self.stop()

    async def stop(self) -> None:
        """Refuses what is not answered, kills the children, and returns when they have ended."""
        await self._dispatch.stop()
        self.sessions.close()
        if self._console is not None:
            self._console.close()

    # --- what a request means ------------------------------------------------------------------------------------

    def _prepare_run(self, ticket: int) -> bool:
        """Makes a waiting run ready once it is certain what it runs, and its session's earlier ones have ended;
        whether it is, and what is to be done was done."""
        job = self._dispatch.waiting(ticket)
        if job is None:
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
            self._dispatch.reply(ticket, Answer(NO_SUCH_SCRIPT, message=missing))
        elif job.session is None or job.session.turns[0] == ticket:
            self._dispatch.make_ready(ticket)
            return True
        return False

    def _outcome(self, job: Job, frame: Frame, memory: bytes | None) -> Answer:
        """What a child's last frame of a request is as an answer: what it has prepared counts from now on, and what a
        run has left is its session's. Raises FrameError."""
        if job.prepares:
            return self._names.prepared(job.version, frame)
        answer = answer_of_run(frame, self.limits.output_bytes)
        if job.session is None or answer.reason is not None:
            return answer
        if memory is None or not self.sessions.keep(job.session, memory):
            too_much = f"the session would take over {MAX_BYTES} bytes, and stays as it was"
            return Answer(Reason.MEMORY_LIMIT.value, message=too_much)
        return answer

    def _answered(self, job: Job, answer: Answer) -> None:
        """A request is over: what it leaves, and its answer."""
        if job.prepares and not job.version.settled:
            job.version.fall_back()
            job.version.when_settled(lambda: self._names.forget(job.version))
        if job.session is not None:
            job.session.turns.remove(job.ticket)
            self.sessions.drop_empty(job.session)
            if job.session.turns:
                self._prepare_run(job.session.turns[0])
        if self._console is not None and answer.console:
            self._console.write(job.version.name, job.ticket, answer.console)
            answer = replace(answer, console=())
        job.reply(answer)
