"""Watches every keep, keeps the view of all of them true, and records what happens to each, once, in order, whatever
made it happen.

One task and one connection a keep, which waits for the loader's next report. What was recorded is in the journal: a new
manager reads it there, and records what happened while there was none. A manager that is killed between a change and
its record records it when it is back; one that is killed right after it may record it twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial

from keep_manager.keeps import decide
from keep_manager.keeps.decide import audit, events_of, is_upload, reached, sentence
from keep_manager.keeps.interfaces import EventLog, Folders, Loaders, Providers, Units
from keep_manager.keeps.readers import Readers
from keep_manager.keeps.streams import Inputs
from keep_manager.keeps.view import Rest, View, clear_away
from keep_manager.model import LastEvent, LoaderGone, UnitState
from keep_manager.tasks import Group, carried_on
from keep_protocol.constants import unit_name
from keep_protocol.control import UNSTORED, Command, CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo, KeepReport
from keep_protocol.sse import EventType, KeepEvent
from keep_protocol.states import State

LOG = logging.getLogger("keepfleet.watch")
SECURITY = logging.getLogger("keepfleet.security")
WAIT_SECONDS = 3600.0
"""A loader is asked again after this time; while it hangs, systemd's watchdog ends it long before."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 16.0
"""Between two looks at a keep whose loader is away, doubled each time where none is to come: systemd reports a unit's
end only to those who subscribe to all of its signals."""
LOOK_SECONDS, LOOK_SHARE = 1.0, 500
"""Between two looks at all keeps that have ended, and how many times longer than a look took the pause before the next
is, besides: a look of a few units takes 3 ms, and the manager a fifth of a percent of one processor."""
MANY, MANY_SECONDS = 16, 16.0
"""Changes that one keep may report in so many seconds; a life has six and a restart two. A keep that was taken over
could report thousands, and each would be looked at and written down."""
BEGUN_TOGETHER = 32
"""Keeps that a new manager begins to watch before the loop turns to its clients: 5 ms."""
RECORDED_SECONDS = 2.0
"""How long a client waits at most until a removal is recorded: milliseconds, unless the journal takes nothing."""
DISK_SECONDS = 1.0
"""After a keep's start or end until the disk is to hold what is known of it: one that is removed sooner costs no disk
anything, and many that start together cost one wait."""
ATTACH_SECONDS = 1.0
"""Until a loader is asked again to announce its output; a reader that hears nothing looks now and then."""
_ENDS = (EventType.ENDED, EventType.FAILED)


class _Watched:
    """One keep that is watched: its latest event, who removes it, in the order in which they asked, whether one has
    come to its end, whether its going is recorded, whether its loader is being given another way to journald, and
    whether its unit is as narrow as it is to be while its guest runs."""

    def __init__(self, latest: LastEvent | None) -> None:
        self.latest = latest
        self.removers: list[str] = []
        self.failure = ""
        self.nudged, self.gone = asyncio.Event(), asyncio.Event()
        self.given: asyncio.Task[None] | None = None
        self.narrowed = self.removed = False


class Pace:
    """Lets a burst of `many` things through, and after it as many in `seconds`, evenly: what comes last is late by one
    such step alone."""

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
        return min(max(self._lately[0] + self._seconds - now, 0.0), self._seconds / len(self._lately))


class Watch:
    """The watch over all keeps of one manager; its tasks are `tasks`'."""

    def __init__(
        self,
        tasks: Group,
        units: Units,
        loaders: Loaders,
        providers: Providers,
        folders: Folders,
        log: EventLog,
        view: View,
        readers: Readers,
        inputs: Inputs,
    ) -> None:
        self._tasks, self._units, self._loaders, self._log, self._view = tasks, units, loaders, log, view
        self._providers, self._folders, self._readers, self._inputs = providers, folders, readers, inputs
        self._rest = Rest(units, folders, view)
        self._watched: dict[int, _Watched] = {}
        self._unsettled: set[int] = set()
        self._settling: asyncio.Task[None] | None = None
        readers.on_unattached = self._attach_later

    def __repr__(self) -> str:
        return f"Watch({len(self._watched)} keeps)"

    async def open(self) -> None:
        """Watches the keeps of the view; records what has happened since the latest events."""
        found = [info.kuuid for info in self._view]
        latest: Mapping[int, LastEvent] = {}
        try:
            latest = await self._log.latest()
        except KeepfleetError as error:
            LOG.warning("cannot read the events so far, some may be recorded twice: %s", error.message)
        for number, kuuid in enumerate(found, 1):
            self._begin(kuuid, latest.get(kuuid))
            if number % BEGUN_TOGETHER == 0:
                await asyncio.sleep(0)
        for kuuid, last in latest.items():
            if kuuid not in self._view and kuuid not in self._watched and last.type is not EventType.REMOVED:
                why = "it was removed while there was no manager"
                gone = KeepInfo(kuuid, State.UNDEFINED, why, unit=unit_name(kuuid), owner=last.owner)
                await self._record(KeepEvent(time.time(), EventType.REMOVED, gone))

    def appeared(self, kuuid: int) -> None:
        """Watches a new keep of the view."""
        self._begin(kuuid, None)

    @asynccontextmanager
    async def removing(self, kuuid: int, by: str) -> AsyncIterator[None]:
        """A keep that goes while the block runs was removed by `by`; who waits for the block finds that recorded.

        A removal that fails was none: what ends the keep later has its own reason.
        """
        watched = self._watched.get(kuuid)
        if watched is None:
            yield
            return
        watched.removers.append(by)
        try:
            yield
        except BaseException:
            watched.removers.remove(by)
            raise
        watched.removed = True
        watched.nudged.set()
        await _within(watched.gone, RECORDED_SECONDS)

    async def tend_resting(self) -> None:
        """Looks now and then at the units of all keeps that have ended, which no connection reports: at one whose unit
        was stopped, or started again, by hand. For ever.

        systemd would send signals of it, but of every unit of the host and of each of its changes, to all who listen:
        that makes each start of a keep a tenth dearer. One call that lists a few units costs it a fraction of a
        millisecond; where there are so many that it costs more, they are looked at less often."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            began = time.monotonic()
            await self.look_at_resting()
            await asyncio.sleep(min(LOOK_SHARE * (time.monotonic() - began), LONGEST_PAUSE_SECONDS))

    async def look_at_resting(self) -> None:
        """Has the watch over each of these look at it whose unit is not as it was."""
        resting = {entry.info.kuuid for entry in self._view.entries() if entry.resting and entry.has_unit}
        if not resting:
            return
        try:
            still = {unit.kuuid for unit in await self._units.listed() if decide.at_rest(unit)}
        except KeepfleetError as error:
            LOG.debug("cannot look at %d keeps that have ended: %s", len(resting), error.message)
            return
        for kuuid in resting - still:
            if kuuid in self._watched:
                self._watched[kuuid].nudged.set()

    async def journal_stores_nothing(self) -> None:
        """Has every loader know that journald stores nothing from now on: what it was given is not in the journal."""
        living = [entry.info.kuuid for entry in self._view.entries() if not entry.resting]
        for kuuid, answer in (await self._loaders.ask_all(living, Command(CommandType.JOURNAL, UNSTORED))).items():
            if isinstance(answer, KeepfleetError):  # of a version before, or away: the next one hears it first
                LOG.debug("%s: %s", unit_name(kuuid), answer.message)

    def _begin(self, kuuid: int, latest: LastEvent | None) -> None:
        if kuuid in self._watched or kuuid not in self._view:
            return
        entry = self._view.entry(kuuid)
        if latest is not None and latest.type is reached(entry.info):  # else it has moved on since
            entry.since = latest.since
        self._watched[kuuid] = watched = _Watched(latest)
        self._tasks.start(self._watch(entry.info, watched), name=f"watch {kuuid}")

    async def _watch(self, info: KeepInfo, watched: _Watched) -> None:
        kuuid = info.kuuid
        try:
            await carried_on(lambda: self._look_after(info, watched), f"watching {unit_name(kuuid)}")
            with suppress(KeepfleetError):
                info = self._view.find(kuuid)
            self._inputs.close(kuuid)
            await clear_away(self._folders, kuuid)
            self._view.drop(kuuid)
            await self._record(KeepEvent(time.time(), EventType.REMOVED, info, next(iter(watched.removers), "")))
        finally:
            watched.gone.set()
            del self._watched[kuuid]

    async def _look_after(self, info: KeepInfo, watched: _Watched) -> None:
        await self._look_into(info, watched)
        await self._follow(info.kuuid, watched)

    async def _look_into(self, info: KeepInfo, watched: _Watched) -> None:
        """Records what has happened to a keep that is now so."""
        if reached(info) in _ENDS:
            self._inputs.close(info.kuuid)
        for event in events_of(watched.latest, info, time.time()):
            if is_upload(watched.latest, event):
                SECURITY.info("%s", audit(event.keep))
            await self._record(event)
            if event.type in (EventType.STARTED, EventType.RUNNING, *_ENDS):
                self._settle_later(info.kuuid)
            watched.latest = LastEvent(event.type, info.restarts, time.monotonic(), at=event.at)

    def _settle_later(self, kuuid: int) -> None:
        self._unsettled.add(kuuid)
        if self._settling is None or self._settling.done():
            self._settling = self._tasks.start(self._settle(), name="disk")

    def _attach_later(self, kuuid: int) -> None:
        self._tasks.start(carried_on(partial(self._attach, kuuid), f"following {unit_name(kuuid)}"))

    async def _attach(self, kuuid: int) -> None:
        """Has the loader of a keep announce its output, which could not be asked to for want of descriptors."""
        await asyncio.sleep(ATTACH_SECONDS)
        await self._readers.tend(kuuid)

    async def _settle(self) -> None:
        """Has the disk hold what is known of keeps that have started or ended."""
        while self._unsettled:
            await asyncio.sleep(DISK_SECONDS)
            kuuids, self._unsettled = self._unsettled, set()
            await carried_on(partial(asyncio.to_thread, self._folders.settle, kuuids), "writing to the disk")

    async def _follow(self, kuuid: int, watched: _Watched) -> None:
        """Looks into the keep each time its phase has changed, until it has gone."""
        pause = FIRST_PAUSE_SECONDS
        pace = Pace(MANY, MANY_SECONDS)
        while True:
            failure: KeepfleetError | None = None
            try:
                if self._view.entry(kuuid).resting:
                    await watched.nudged.wait()
                    watched.nudged.clear()
                else:
                    seen: KeepReport | None = None
                    async with self._loaders.session(kuuid) as session:
                        if not self._providers.journal_stores:
                            await session.unstored()
                        while True:
                            # Not from what the view has: who asked the loader meanwhile has not looked into that here.
                            answer = await session.ask(_next_report(seen), WAIT_SECONDS)
                            seen, info = answer.report, self._view.answered(kuuid, answer)
                            pause, watched.failure = FIRST_PAUSE_SECONDS, ""
                            await self._look_into(info, watched)
                            await self._readers.tend(kuuid)
                            if answer.report.journal_gone and (watched.given is None or watched.given.done()):
                                name = f"journal of {kuuid}"
                                give = carried_on(partial(self._give_journal, kuuid), name)
                                watched.given = self._tasks.start(give, name=name)
                            if answer.report.begun and not watched.narrowed and reached(info) not in _ENDS:
                                watched.narrowed = True
                                self._tasks.start(self._narrow(kuuid), name=f"memory of {kuuid}")
                            await asyncio.sleep(pace.wait(time.monotonic()))
            except KeepfleetError as error:
                failure = error
            if kuuid not in self._view or watched.removed:
                return
            if self._view.entry(kuuid).removing:  # who removes it hears of systemd when it has gone, and nudges
                await _within(watched.nudged, pause)
                watched.nudged.clear()
                continue
            try:
                unit = await self._units.look(kuuid)
                if unit is None or not decide.is_keep(unit):
                    return
                if failure is None:
                    self._view.entry(kuuid).resting = decide.at_rest(unit)
                    continue
                if await self._silent(unit, failure, watched):
                    pause = FIRST_PAUSE_SECONDS  # another loader comes in a moment
                if self._view.entry(kuuid).resting:
                    continue
            except KeepfleetError as error:
                LOG.debug("cannot look after %s: %s", unit_name(kuuid), error.message)
                if failure is None:
                    watched.nudged.set()  # it looks again after the pause
                    await asyncio.sleep(pause)
            await _within(watched.nudged, pause)
            if failure is not None:
                watched.nudged.clear()
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _narrow(self, kuuid: int) -> None:
        """Has the keep's unit hold no more memory than its guest may have: a guest that breaks out has no use of what
        the compiler needed. Tries until systemd does it, or the keep has no unit that runs."""
        pause = FIRST_PAUSE_SECONDS
        with suppress(KeepfleetError):  # it has gone
            while not (entry := self._view.entry(kuuid)).resting and entry.spec is not None:
                limits = entry.spec.limits
                if limits.running_memory_bytes >= limits.unit_memory_bytes:
                    return
                try:
                    await self._units.narrow(kuuid, entry.spec)
                    return
                except KeepfleetError as error:
                    if error.kind is ErrorKind.NOT_FOUND:
                        return
                    LOG.warning("%s has the memory still that compiling needed: %s", unit_name(kuuid), error.message)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _give_journal(self, kuuid: int) -> None:
        """Gives the keep's loader other ways to journald until one works, or the keep has no loader."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            try:
                with self._providers.journal() as descriptor:
                    async with self._loaders.session(kuuid) as session:
                        answer = await session.ask(Command(CommandType.JOURNAL), descriptors=(descriptor,))
            except KeepfleetError as error:
                LOG.debug("%s: %s", unit_name(kuuid), error.message)
                return  # another loader reports it again
            if not answer.report.journal_gone:
                return

    async def _silent(self, unit: UnitState, failure: KeepfleetError, watched: _Watched) -> bool:
        """What a loader that does not answer means for its keep; whether another one is about to come."""
        if isinstance(failure, LoaderGone):
            await self._look_into(await self._rest.look(unit, failure), watched)
            return decide.between_loaders(unit, failure) or unit.active == "activating"
        if failure.message != watched.failure:
            watched.failure = failure.message
            LOG.warning("cannot watch %s, trying again: %s", unit_name(unit.kuuid), failure.message)
        if failure.kind is not ErrorKind.UNAVAILABLE:  # not the manager's own trouble, nor a loader that is slow
            self._view.silent(unit, await self._units.end(unit.kuuid), failure)
        return False

    async def _record(self, event: KeepEvent) -> None:
        try:
            await self._log.write(event, sentence(event))
        except KeepfleetError as error:
            LOG.warning("%s (recorded here alone: %s)", sentence(event), error.message)


def _next_report(seen: KeepReport | None) -> Command:
    """What to ask a keep's loader: for what comes after the report `seen`, or where there is none, for the keep.

    A loader of version 1 is not asked for a change of the sentence alone.
    """
    if seen is None or not seen.phase:
        return Command(CommandType.INFO)
    return Command(CommandType.WAIT, f"{seen.phase} {seen.detail}" if seen.control_version > 1 else seen.phase)


async def _within(event: asyncio.Event, seconds: float) -> None:
    """Waits for `event`, but no longer than that."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
