"""The children of a pool: started, ended and killed as the pool decides, and what their processes report of themselves.

Where the template process ends, another is started; where children cannot start, the next one has to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Protocol

from keep_protocol.errors import ErrorKind, KeepfleetError
from script_pool.decisions import NEVER, Child, Phase
from script_pool.engine.interface import Reason
from script_pool.frames import Frame, Kind
from script_pool.jobs import Job, Member
from script_pool.processes import Events, Processes

_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.1, 5.0
"""Between children that could not start, doubled each time: what ails them seldom ends within milliseconds."""


class Owner(Protocol):
    """The pool, as its children see it."""

    def came(self, member: Member, job: Job, frame: Frame) -> None:
        """A child has sent this about the request that it has."""

    def lost(self, member: Member, job: Job, how: str) -> None:
        """A child has ended with the request that it had."""

    def turn(self) -> None:
        """There may be something to do, now that a child is ready or has ended."""


class Children:
    """`processes`: makes the pool's side of a template process; `say`: where a line for the operator goes.
    `views`: each child as the decisions see it, by its number."""

    def __init__(self, processes: Callable[[Events], Processes], owner: Owner, say: Callable[[str], None]) -> None:
        self._processes, self._owner, self._say = processes(self), owner, say
        self._members: dict[int, Member] = {}
        self.views: dict[int, Child] = {}
        self._numbers = count(1)
        self._failures, self._spawn_from = 0, 0.0
        self._unable = ""
        self._restart: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._stopped = False

    def __repr__(self) -> str:
        return f"Children({len(self)})"

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, number: int) -> Member:
        return self._members[number]

    @property
    def pids(self) -> dict[int, int]:
        """The process IDs by the children's numbers."""
        return {number: member.process.pid for number, member in self._members.items()}

    @property
    def spawn_from(self) -> float:
        """From when on one more can be started."""
        return self._spawn_from if self._restart is None else NEVER

    async def start(self) -> None:
        """Returns when one is ready. Raises KeepfleetError where none can start."""
        self._loop = asyncio.get_running_loop()
        await self._processes.start()
        self.add()
        while not any(view.phase is Phase.READY for view in self.views.values()):
            if self._failures:
                raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot start the script pool: {self._unable}")
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        """Kills all of them, and returns when they have ended."""
        self._stopped = True
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.gather(self._restart, return_exceptions=True)
        await self._processes.stop()

    def add(self) -> None:
        """Starts one."""
        number = next(self._numbers)
        view = self.views[number] = Child(number, since=self._loop.time())
        self._members[number] = Member(view, self._processes.fork(number))

    def retire(self, number: int) -> None:
        """Has an idle one end."""
        member = self._members[number]
        member.view.phase, member.view.since = Phase.ENDING, self._loop.time()
        member.process.close()

    def kill(self, number: int) -> None:
        """Ends one that did not do something in its time."""
        self._members[number].end(Reason.TIME_LIMIT.value, self._loop.time())

    def distrust(self, member: Member, why: str) -> None:
        """Ends one for what it has sent."""
        member.end(f"{Reason.CRASHED.value}: {why}", self._loop.time())

    def forget(self, version: int) -> None:
        """A script that they need not hold any more."""
        for member in self._members.values():
            if version in member.held:
                member.held.discard(version)
                member.process.send(Frame(Kind.FORGET, version))

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
        elif member.job is None or frame.number != member.job.ticket:
            self.distrust(member, "it answered what it was not asked")
        else:
            self._owner.came(member, member.job, frame)
            return
        self._owner.turn()

    def broken(self, number: int, why: str) -> None:
        """A child that is killed for its socket."""
        member = self._members[number]
        if why:
            member.why = member.why or f"{Reason.CRASHED.value}: {why}"
        if member.view.phase is Phase.READY:
            member.view.phase, member.view.since, member.view.killed = Phase.ENDING, self._loop.time(), True

    def ended(self, number: int, how: str) -> None:
        """A child's process has ended: what it ran is answered now."""
        member, _ = self._members.pop(number), self.views.pop(number)
        if member.view.phase is Phase.STARTING:
            self._failures += 1
            pause = min(_MAX_BACKOFF_SECONDS, _BACKOFF_SECONDS * 2 ** min(self._failures, 10))
            self._spawn_from = self._loop.time() + pause
            self._unable = f"a child could not start: {member.why or how}"
            if not self._stopped:
                self._say(f"script-pool: {self._unable}")
        if member.job is not None:
            self._owner.lost(member, member.job, how)
        self._changed.set()
        self._owner.turn()

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
            except Exception as error:  # noqa: BLE001 - whatever it is: without a template nothing runs
                self._say(f"script-pool: {str(error) or type(error).__name__}; it is tried again")
                await asyncio.sleep(pause)
                pause = min(_MAX_BACKOFF_SECONDS, 2 * pause)
            else:
                break
        self._restart, self._spawn_from = None, 0.0
        self._owner.turn()
