"""Watches every keep and tells what happens to it, once, in order, whoever made it happen.

One task and one connection a keep, which waits for the loader's word. What was told is in the journal: a manager that
starts anew reads it there, and tells what happened while there was none. A manager that is killed between a change and
its telling tells it when it is back; one that is killed right after it may tell it twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager, suppress

from keep_manager.keeps import decide
from keep_manager.keeps.dropped import Counter
from keep_manager.keeps.happenings import happenings, reached, sentence
from keep_manager.keeps.interfaces import Ledger, Loaders, Units
from keep_manager.model import LoaderGone, Told
from keep_protocol.constants import unit_name
from keep_protocol.control import Command, CommandType
from keep_protocol.errors import KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.sse import EventType, KeepEvent
from keep_protocol.states import State

LOG = logging.getLogger("keepfleet.watch")
WAIT_SECONDS = 3600.0
"""A loader is asked again after this time; while it hangs, systemd's watchdog ends it long before."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 16.0
"""Between two looks at a keep whose loader is away, doubled each time where none is to come: systemd tells of a unit's
end only to those who subscribe to all of its signals."""
MANY, MANY_SECONDS = 16, 16.0
"""Changes that one keep may tell in so many seconds; a life has six and a restart two. A keep that was taken over could
tell thousands, and each would be looked at and written down."""
SETTLED_SECONDS = 5.0
"""How long a client waits at most for the count of dropped lines."""
TOLD_SECONDS = 2.0
"""How long a client waits at most until a removal is told: milliseconds, unless the journal takes nothing."""
_ENDS = (EventType.ENDED, EventType.FAILED)


class _Watched:
    """One keep that is watched: what was told of it, who removed it, and whether its end, and its going, are told."""

    def __init__(self, told: Told | None) -> None:
        self.told = told
        self.remover: str | None = None
        self.nudged, self.settled, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()


class Pace:
    """Lets `many` things through in `seconds`, in a burst or not."""

    def __init__(self, many: int, seconds: float) -> None:
        self._seconds = seconds
        self._lately: deque[float] = deque(maxlen=many)

    def __repr__(self) -> str:
        return f"Pace({len(self._lately)} of {self._lately.maxlen} in {self._seconds:g} s)"

    def wait(self, now: float) -> float:
        """Seconds to wait after one more at `now`."""
        self._lately.append(now)
        if len(self._lately) < (self._lately.maxlen or 0):
            return 0.0
        return max(self._lately[0] + self._seconds - now, 0.0)


class Watch:
    """The watch over all keeps of one manager, from `open` to `close`."""

    def __init__(self, units: Units, loaders: Loaders, ledger: Ledger) -> None:
        self._units, self._loaders, self._ledger = units, loaders, ledger
        self._counter = Counter(loaders, ledger)
        self._watched: dict[int, _Watched] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Watch({len(self._watched)} keeps)"

    async def open(self, keeps: Iterable[KeepInfo]) -> None:
        """Watches `keeps`, which were there before; tells what has happened since what was told last."""
        found = {keep.kuuid: keep for keep in keeps}
        try:
            told = await self._ledger.told()
        except KeepfleetError as error:
            LOG.warning("cannot read what was told of the keeps, it may be told again: %s", error.message)
            told = {}
        for kuuid, keep in found.items():
            self._begin(keep, told.get(kuuid))
        for kuuid, last in told.items():
            if kuuid not in found and kuuid not in self._watched and last.type is not EventType.REMOVED:
                gone = KeepInfo(
                    kuuid, State.UNDEFINED, "it was removed while there was no manager", unit=unit_name(kuuid)
                )
                await self._tell(KeepEvent(time.time(), EventType.REMOVED, gone))

    async def close(self) -> None:
        """Ends the watch; what happens from now on is told by the next one."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def appeared(self, info: KeepInfo) -> None:
        """Watches a new keep."""
        self._begin(info, None)

    @asynccontextmanager
    async def removing(self, kuuid: int, by: str) -> AsyncIterator[None]:
        """A keep that goes while the block runs was removed by `by`; who waits for the block has it told before."""
        watched = self._watched.get(kuuid)
        if watched is not None:
            watched.remover = by
        yield
        if watched is not None:
            watched.nudged.set()
            await _happened(watched.gone, TOLD_SECONDS)

    async def counted(self, kuuid: int) -> None:
        """Waits until a keep's end is told, with the lines that were dropped; not for ever."""
        watched = self._watched.get(kuuid)
        if watched is not None:
            await _happened(watched.settled, SETTLED_SECONDS)

    def _begin(self, info: KeepInfo, told: Told | None) -> None:
        if info.kuuid in self._watched:
            return
        self._watched[info.kuuid] = watched = _Watched(told)
        task = asyncio.create_task(self._watch(info, watched), name=f"watch {info.kuuid}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, info: KeepInfo, watched: _Watched) -> None:
        try:
            await self._stand(info, watched)
            async with aclosing(self._stands(info, watched)) as stands:
                async for stand in stands:
                    info = stand
                    await self._stand(info, watched)
            await self._tell(KeepEvent(time.time(), EventType.REMOVED, info, watched.remover or ""))
        finally:
            watched.settled.set()
            watched.gone.set()
            del self._watched[info.kuuid]

    async def _stand(self, info: KeepInfo, watched: _Watched) -> None:
        """Tells what has happened to a keep that stands so."""
        ended = reached(info) in _ENDS
        if ended and not watched.settled.is_set():
            info = await self._counter.settled(info)
        for event in happenings(watched.told, info, time.time()):
            await self._tell(event)
            watched.told = Told(event.type, info.restarts)
        if ended:
            watched.settled.set()

    async def _stands(self, info: KeepInfo, watched: _Watched) -> AsyncGenerator[KeepInfo, None]:
        """The keep each time its phase has changed, until there is none any more."""
        pause = FIRST_PAUSE_SECONDS
        pace = Pace(MANY, MANY_SECONDS)
        while True:
            failure: KeepfleetError
            try:
                async with self._loaders.session(info.kuuid) as session:
                    while True:
                        command = Command(CommandType.WAIT, info.phase) if info.phase else Command(CommandType.INFO)
                        info = decide.shown(await session.ask(command, WAIT_SECONDS))
                        pause = FIRST_PAUSE_SECONDS
                        yield info
                        await asyncio.sleep(pace.wait(time.monotonic()))
            except KeepfleetError as error:
                failure = error
            try:
                unit = await self._units.look(info.kuuid)
                if unit is None or not decide.is_keep(unit):
                    return
                found = decide.silent(unit, await self._units.reason(info.kuuid), failure)
                if isinstance(failure, LoaderGone) and found.state is State.ERROR:
                    info = _known(info, found)
                    yield info
                elif found.state is State.UNDEFINED:
                    pause = FIRST_PAUSE_SECONDS  # another loader comes in a moment
            except KeepfleetError as error:
                LOG.debug("cannot look after %s: %s", unit_name(info.kuuid), error.message)
            await _happened(watched.nudged, pause)
            watched.nudged.clear()
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _tell(self, event: KeepEvent) -> None:
        try:
            await self._ledger.write(event, sentence(event))
        except KeepfleetError as error:
            LOG.warning("%s (told here alone: %s)", sentence(event), error.message)


async def _happened(event: asyncio.Event, seconds: float) -> None:
    """Waits for `event`, but no longer than that."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _known(before: KeepInfo, found: KeepInfo) -> KeepInfo:
    """The keep as systemd shows it now, with what its loader had said of it."""
    now = {"state": found.state, "detail": found.detail, "phase": found.phase}
    return KeepInfo(**{**before.fields(), **now})
