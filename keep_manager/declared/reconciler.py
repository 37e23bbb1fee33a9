"""Makes the host's keeps those that are declared: decides whenever something changed, and does what was decided.

What it knows of keeps it reads from the view, which is rebuilt from units at each start of a manager. In its own memory
are the specifications, as they are on disk, and how often a keep could not be made. One task at a time works for a
name; it is woken by changes of the view and of specifications, and by the moment a pause is over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from keep_manager.declared.decision import (
    Action,
    Create,
    Failure,
    Life,
    Prove,
    Remove,
    RollBack,
    Seen,
    Standing,
    Wait,
    Wanted,
    decide,
    pause,
)
from keep_manager.declared.probes import Probes
from keep_manager.declared.requests import caller_of, request_for
from keep_manager.declared.seen import seen_of
from keep_manager.declared.specification import Specification
from keep_manager.declared.specifications import Specifications, Unreadable
from keep_manager.declared.volumes import Volumes
from keep_manager.failpoints import Failpoint, reach
from keep_manager.keeps import logs
from keep_manager.keeps.logs import Output
from keep_manager.keeps.view import Entry
from keep_manager.model import Caller, StoredModule, exhaustion_explained
from keep_manager.tasks import Group
from keep_protocol.api import NewKeep
from keep_protocol.declared import DeclaredState
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Role
from keep_protocol.keep import KeepInfo
from keep_protocol.spec import Declaration, KeepSpec, RestartPolicy

LOG = logging.getLogger("keepfleet.declared")
_OWN_FAULTS = (
    ErrorKind.BAD_REQUEST,
    ErrorKind.FORBIDDEN,
    ErrorKind.INVALID_MODULE,
    ErrorKind.TOO_COMPLEX,
    ErrorKind.UNSUPPORTED,
    ErrorKind.KEEP_FAILED,
)
"""What a specification or its module is to blame for: it is rolled back where another version runs."""
_NOTE = 900
"""Characters of a reason in a specification's note."""


class Keeps(logs.Keeps, Protocol):
    """What the reconciler needs of the keeps. Every method raises KeepfleetError alone."""

    async def create(
        self, request: NewKeep, caller: Caller, key: str = "", declared: Declaration | None = None
    ) -> KeepInfo:
        """A new keep, started."""

    async def remove(self, kuuid: int, caller: Caller) -> None:
        """Ends a keep."""


class Modules(Protocol):
    """What it needs of the module store; the methods block. Both raise KeepfleetError alone."""

    def take(self, wanted: str) -> StoredModule:
        """What a reference means now."""

    def declared(self, digests: Iterable[str]) -> None:
        """Specifications name these modules and no others."""


@dataclass
class _Trouble:
    """How often in a row a name's keep could not be made, and the latest time."""

    times: int
    failure: Failure


class Reconciler:
    """The declared keeps of one manager."""

    def __init__(
        self,
        tasks: Group,
        keeps: Keeps,
        entries: Callable[[], Iterable[Entry]],
        files: Specifications,
        modules: Modules,
        volumes: Volumes,
        output: Output,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks, self._keeps, self._entries, self._files = tasks, keeps, entries, files
        self._modules, self._volumes, self._clock = modules, volumes, clock
        self.specifications: dict[str, Specification | Unreadable] = {}
        self.changing = asyncio.Lock()
        """Held by who writes specifications: reading, deciding and writing are one step."""
        self._used: dict[str, set[str]] = {}
        self._proven: dict[str, list[str]] = {}
        """Of each name the digests of versions that have been ready, the latest first, as the history has them."""
        self._standings: dict[str, Standing] = {}
        self._troubles: dict[str, _Trouble] = {}
        self._busy: set[str] = set()
        self._no_way_back: set[str] = set()
        self._went_back: set[str] = set()
        self._woken = asyncio.Event()
        self._probes = Probes(tasks, keeps, output, self._woken.set)
        self._said: asyncio.Future[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Reconciler({len(self.specifications)} declared, {len(self._busy)} under way)"

    async def open(self) -> None:
        """Reads what is declared. Raises KeepfleetError."""
        await asyncio.to_thread(self._files.open)
        try:
            await asyncio.to_thread(self._volumes.open)
        except KeepfleetError as error:  # which each keep that has one will say, and no other
            LOG.error("no keep gets a volume: %s", error.message)
        self.specifications = await asyncio.to_thread(self._files.load)
        for name, found in self.specifications.items():
            if isinstance(found, Unreadable):
                LOG.error("declared keep %s is left as it is: %s", name, found.why.message)
            await self._count_use(name)
        await self._declare_uses()
        if self.specifications:
            LOG.info("%d keeps are declared", len(self.specifications))

    def keep_changed(self, spec: KeepSpec | None) -> None:
        """A keep is another than before."""
        if spec is not None and spec.declared is not None:
            self._woken.set()

    def standing(self, name: str) -> Standing:
        """How a declared keep is."""
        found = self.specifications.get(name)
        if isinstance(found, Unreadable):
            return Standing(DeclaredState.UNREADABLE, found.why.message)
        return self._standings.get(name, Standing(DeclaredState.STARTING))

    async def write(self, specification: Specification, before: Specification | None) -> None:
        """Has it be what is wanted; `changing` is held. On disk when this returns. Raises KeepfleetError."""
        await asyncio.to_thread(self._files.write, specification, before)
        self.specifications[specification.name] = specification
        self._no_way_back.discard(specification.name)
        self._went_back.discard(specification.name)
        self._standings.pop(specification.name, None)  # it was that of what is wanted no more
        self.retry(specification.name)
        await self._count_use(specification.name)
        await self._declare_uses()

    async def forget(self, name: str) -> None:
        """Has it be declared no more; `changing` is held. On disk when this returns. Raises KeepfleetError."""
        await asyncio.to_thread(self._files.remove, name)
        self.specifications.pop(name, None)
        self._standings.pop(name, None)
        self._used.pop(name, None)
        self._proven.pop(name, None)
        self.retry(name)
        await self._declare_uses()

    def retry(self, name: str) -> None:
        """Tries immediately again what could not be done for the name."""
        self._troubles.pop(name, None)
        if self.standing(name).state is DeclaredState.UNMET:
            self._standings.pop(name, None)
        self._woken.set()
        self._speak()

    async def said(self) -> None:
        """Returns when it was next said how a declared keep is."""
        if self._said is None:
            self._said = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._said)

    def _speak(self) -> None:
        if self._said is not None:
            self._said.set_result(None)
            self._said = None

    async def history(self, name: str) -> list[Specification]:
        """What was wanted before, the latest first. Raises KeepfleetError."""
        return await asyncio.to_thread(self._files.history, name)

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        if (running := asyncio.current_task()) is not None:
            self._under_way.add(running)
        while True:
            self._woken.clear()
            until = self._round()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if until is None else max(until - self._clock(), 0.0)):
                    await self._woken.wait()

    async def close(self) -> None:
        """Begins nothing any more, and ends what is under way while its rollback still has a group to run in."""
        self._probes.close()
        under_way = set(self._under_way)
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way)

    def _round(self) -> float | None:
        """Decides, and begins what follows; until when there is nothing else to do, None for ever."""
        now = self._clock()
        seen = self._listened([keep for keep in (seen_of(entry, now) for entry in self._entries()) if keep is not None])
        held = {name for name, each in self.specifications.items() if isinstance(each, Unreadable)} | self._busy
        wanted = [
            self._wanted(each)
            for name, each in self.specifications.items()
            if isinstance(each, Specification) and name not in self._busy
        ]
        failures = {name: trouble.failure for name, trouble in self._troubles.items()}
        decision = decide(wanted, (keep for keep in seen if keep.name not in self._busy), now, failures, held)
        self._say(decision.standings)
        work: dict[str, list[Action]] = {}
        until: float | None = None
        for action in decision.actions:
            if isinstance(action, Wait):
                until = action.until if until is None else min(until, action.until)
                continue
            trouble = self._troubles.get(action.name)
            if trouble is not None and trouble.failure.digest == "" and trouble.failure.until > now:
                until = trouble.failure.until if until is None else min(until, trouble.failure.until)
                continue  # something else than making a keep failed: it has its pause, too
            work.setdefault(action.name, []).append(action)
        for name, actions in work.items():
            self._busy.add(name)
            task = self._tasks.start(self._work(name, actions), name=f"declared {name}")
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        return until

    def _listened(self, seen: Sequence[Seen]) -> list[Seen]:
        """Listens to those that are to show that they are ready; the same keeps, with what was heard."""
        found: list[Seen] = []
        asked: list[tuple[Seen, str]] = []
        for keep in seen:
            wanted = self.specifications.get(keep.name)
            probe = wanted.job.probe if isinstance(wanted, Specification) and not wanted.header.proven else None
            if probe is None or keep.life not in (Life.RUNNING, Life.DONE, Life.FAILED):
                found.append(keep)
                continue
            asked.append((keep, probe.output))
            found.append(replace(keep, probed=self._probes.heard(keep.kuuid, probe.output)))
        self._probes.listen(asked)
        return found

    def _wanted(self, each: Specification) -> Wanted:
        job, header = each.job, each.header
        return Wanted(
            each.name,
            header.owner,
            header.version,
            each.digest,
            RestartPolicy(job.restart),
            job.ready_seconds,
            each.name not in self._no_way_back,
            bool(header.module),
            job.volume is not None,
            None if job.probe is None else job.probe.seconds,
            header.proven,
            next((digest for digest in self._proven.get(each.name, ()) if digest != each.digest), ""),
            each.name in self._went_back,
        )

    def _say(self, standings: Mapping[str, Standing]) -> None:
        for name, standing in standings.items():
            before = self._standings.get(name)
            self._standings[name] = standing
            if before is None or (before.state, before.text) != (standing.state, standing.text):
                why = f": {standing.text}" if standing.text else ""
                level = logging.WARNING if standing.state is DeclaredState.UNMET else logging.INFO
                LOG.log(level, "declared keep %s is %s%s", name, standing.state.value, why)
        self._speak()

    async def _work(self, name: str, actions: Sequence[Action]) -> None:
        """Does what was decided for one name. What fails has a pause, and is decided again then."""
        try:
            with exhaustion_explained("do what is declared"):
                for action in actions:
                    if isinstance(action, Create):
                        await self._create(action)
                    elif isinstance(action, Remove):
                        await self._remove(action)
                    elif isinstance(action, RollBack):
                        await self._roll_back(action)
                    elif isinstance(action, Prove):
                        await self._prove(action)
        except KeepfleetError as error:
            self._failed(name, "", error)
        finally:
            self._busy.discard(name)
            self._woken.set()

    async def _create(self, action: Create) -> None:
        wanted = self.specifications.get(action.name)
        if not isinstance(wanted, Specification):
            return
        try:
            if not wanted.header.module:
                await self._pin(wanted)
                return
            digest = wanted.digest
            declared = Declaration(wanted.header.version, digest, action.attempt)
            volume = wanted.job.volume
            if volume is not None:
                async with self._volumes.lock:
                    owner = wanted.header.owner
                    await asyncio.to_thread(self._volumes.ensure, volume.name, owner, volume.size, volume.inodes)
            reach(Failpoint.RECONCILE_BEFORE_CREATE)
            made = await self._keeps.create(request_for(wanted), caller_of(wanted), declared=declared)
        except KeepfleetError as error:
            self._failed(action.name, wanted.digest, error)
            return
        reach(Failpoint.RECONCILE_AFTER_CREATE)
        self._troubles.pop(action.name, None)
        LOG.info("declared keep %s: made keep %d for version %d", action.name, made.kuuid, wanted.header.version)

    async def _pin(self, wanted: Specification) -> None:
        """Finds out what the reference means, which from then on is what the specification means."""
        found = await asyncio.to_thread(self._modules.take, wanted.job.module)
        async with self.changing:
            if self.specifications.get(wanted.name) == wanted:
                await self.write(wanted.changed(module=found.digest), None)

    async def _remove(self, action: Remove) -> None:
        who = f"the manager: declared keep {action.name}: {action.why}"
        try:
            await self._keeps.remove(action.kuuid, _manager(who))
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
        reach(Failpoint.RECONCILE_AFTER_REMOVE)

    async def _roll_back(self, action: RollBack) -> None:
        async with self.changing:
            wanted = self.specifications.get(action.name)
            if not isinstance(wanted, Specification):
                return
            before = next((each for each in await self.history(action.name) if each.digest == action.to), None)
            if before is None:
                self._no_way_back.add(action.name)
                LOG.warning("declared keep %s: cannot go back: its history has gone", action.name)
                return
            version, back = wanted.header.version, before.header.version
            note = f"version {version} was rolled back to version {back}: {action.why[:_NOTE]}"
            changed = before.changed(version=version + 1, applied_at=time.time(), note=note)
            await self.write(changed, wanted)
            self._went_back.add(action.name)
        reach(Failpoint.RECONCILE_AFTER_ROLL_BACK)
        LOG.warning("declared keep %s: %s", action.name, note)

    async def _prove(self, action: Prove) -> None:
        """Writes down that what is wanted has been ready: a replacement that is not goes back to it."""
        async with self.changing:
            wanted = self.specifications.get(action.name)
            if isinstance(wanted, Specification) and wanted.digest == action.digest:
                proven = wanted.changed(proven=True)
                await asyncio.to_thread(self._files.write, proven)
                self.specifications[action.name] = proven
        reach(Failpoint.RECONCILE_AFTER_PROVE)

    def _failed(self, name: str, digest: str, error: KeepfleetError) -> None:
        before = self._troubles.get(name)
        times = 1 + (before.times if before is not None and before.failure.digest == digest else 0)
        until = self._clock() + pause(times, hash(name))
        self._troubles[name] = _Trouble(times, Failure(digest, error.message, until, error.kind in _OWN_FAULTS))
        if not digest:
            LOG.warning("declared keep %s, trying again: %s", name, error.message)

    async def _count_use(self, name: str) -> None:
        """Notes what the name's specification and those before it need of the store."""
        found = self.specifications.get(name)
        each = [found] if isinstance(found, Specification) else []
        with suppress(KeepfleetError):  # what cannot be read cannot be gone back to
            each += await self.history(name)
        self._used[name] = {one.header.module for one in each if one.header.module}
        self._proven[name] = [one.digest for one in each if one.header.proven]

    async def _declare_uses(self) -> None:
        try:
            await asyncio.to_thread(self._modules.declared, set().union(*self._used.values()))
        except KeepfleetError as error:
            LOG.warning("what is declared can be collected in the store: %s", error.message)


def _manager(who: str) -> Caller:
    return Caller(who, Role.OPERATOR, "", who)
