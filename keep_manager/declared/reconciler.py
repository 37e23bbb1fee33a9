"""Makes the host's keeps those that are declared: decides whenever something changed, and does what was decided.

What it knows of keeps it reads from the view, which is rebuilt from units at each start of a manager; what is wanted is
in the catalogue, as it is on disk. In its own memory is only how often a keep could not be made.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from keep_manager.declared.catalogue import Catalogue
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
from keep_manager.declared.interfaces import JobsOf, Keeps, manager_as
from keep_manager.declared.probes import Probes
from keep_manager.declared.requests import caller_of, request_for
from keep_manager.declared.rounds import Rounds
from keep_manager.declared.seen import seen_of
from keep_manager.declared.specification import Specification
from keep_manager.declared.specifications import Unreadable
from keep_manager.declared.standings import Standings
from keep_manager.declared.volumes import Volumes
from keep_manager.failpoints import Failpoint, reach
from keep_manager.keeps.readers import Readers
from keep_manager.keeps.view import Entry
from keep_manager.model import exhaustion_explained
from keep_manager.tasks import Group
from keep_protocol.declared import DeclaredState
from keep_protocol.errors import ErrorKind, KeepfleetError
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


@dataclass
class _Trouble:
    """How often in a row a name's keep could not be made, and the latest time."""

    times: int
    failure: Failure


class Reconciler:
    """Has the declared keeps of one manager be there. check_use: raises KeepfleetError where a secret that a
    specification names is not to be had."""

    def __init__(
        self,
        tasks: Group,
        keeps: Keeps,
        entries: Callable[[], Iterable[Entry]],
        declared: Catalogue,
        volumes: Volumes,
        output: Readers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keeps, self._entries, self._volumes, self._clock = keeps, entries, volumes, clock
        self.declared = declared
        self.jobs: JobsOf  # which are made with this, and say so themselves
        self.check_use: Callable[[Specification], None] = lambda _: None
        self.standings = Standings()
        self._troubles: dict[str, _Trouble] = {}
        self._asked: dict[str, list[tuple[Seen, str]]] = {}
        self._no_way_back: set[str] = set()
        self._went_back: set[str] = set()
        self._rounds = Rounds(tasks, self._round, "declared", clock)
        self._probes = Probes(tasks, keeps, output, self._rounds.wake)

    def __repr__(self) -> str:
        return f"Reconciler({self.declared!r}, {self._rounds!r})"

    async def open(self) -> None:
        """Reads what is declared. Raises KeepfleetError."""
        try:
            await asyncio.to_thread(self._volumes.open)
        except KeepfleetError as error:  # which each keep that has one will say, and no other
            LOG.error("no keep gets a volume: %s", error.message)
        await self.declared.open()

    def keep_changed(self, spec: KeepSpec | None) -> None:
        """A keep is another than before."""
        if spec is not None and spec.declared is not None:
            self._rounds.wake(spec.name)
            if is_job(self.declared.specifications.get(spec.name)):
                self.jobs.wake()

    def standing(self, name: str) -> Standing:
        """How a declared keep is."""
        found = self.declared.specifications.get(name)
        if isinstance(found, Unreadable):
            return Standing(DeclaredState.UNREADABLE, found.why.message)
        if found is not None and found.job.schedule:
            return self.jobs.standing(name)
        return self.standings.get(name)

    async def write(self, specification: Specification, before: Specification | None) -> None:
        """Has it be what is wanted; `declared.changing` is held. On disk when this returns. Raises KeepfleetError."""
        name = specification.name
        await self.declared.write(specification, before)
        self._no_way_back.discard(name)
        self._went_back.discard(name)
        self.standings.forget(name)  # it was that of what is wanted no more
        self.retry(name)
        self.jobs.changed(name)
        await self.declared.uses_changed(name)

    async def forget(self, name: str) -> None:
        """Has it be declared no more; `declared.changing` is held. On disk when this returns. Raises KeepfleetError."""
        await self.jobs.forget(name)
        await self.declared.remove(name)
        self.jobs.changed(name)
        self.standings.forget(name)
        self.retry(name)
        await self.declared.uses_changed(name)

    def retry(self, name: str) -> None:
        """Tries immediately again what could not be done for the name."""
        self._troubles.pop(name, None)
        if self.standing(name).state is DeclaredState.UNMET:
            self.standings.forget(name)
        self._rounds.wake(name)
        self.jobs.wake()
        self.standings.speak()

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        await self._rounds.run()

    async def close(self) -> None:
        """Begins nothing any more, and ends what is under way while its rollback still has a group to run in."""
        self._probes.close()
        await self._rounds.close()

    def _round(self, names: frozenset[str] | None) -> dict[str, float]:
        """Decides for these names, or all, and begins what follows; until when there is nothing else to do for each."""
        now = self._clock()
        held = {name for name, each in self._found(names) if isinstance(each, Unreadable) or is_job(each)}
        held |= self._rounds.busy
        seen = [keep for keep in self._listened(names, list(self._seen(names, now))) if keep.name not in held]
        wanted = [
            self._wanted(each)
            for name, each in self._found(names)
            if isinstance(each, Specification) and name not in held
        ]
        failures = {name: trouble.failure for name, trouble in self._troubles.items()}
        decision = decide(wanted, seen, now, failures, held)
        self.standings.put(decision.standings)
        work: dict[str, list[Action]] = {}
        waits: dict[str, float] = {}
        for action in decision.actions:
            if isinstance(action, Wait):
                waits[action.name] = min(action.until, waits.get(action.name, action.until))
                continue
            trouble = self._troubles.get(action.name)
            if trouble is not None and trouble.failure.digest == "" and trouble.failure.until > now:
                waits[action.name] = trouble.failure.until
                continue  # something else than making a keep failed: it has its pause, too
            work.setdefault(action.name, []).append(action)
        for name, actions in work.items():
            self._rounds.begin(name, self._work(name, actions))
        return waits

    def _found(self, names: frozenset[str] | None) -> list[tuple[str, Specification | Unreadable]]:
        """What is declared by these names."""
        found = self.declared.specifications
        return list(found.items()) if names is None else [(name, found[name]) for name in names if name in found]

    def _seen(self, names: frozenset[str] | None, now: float) -> Iterator[Seen]:
        """The keeps that were made for these names."""
        for entry in self._entries():
            if names is None or (entry.spec is not None and entry.spec.name in names):
                keep = seen_of(entry, now)
                if keep is not None:
                    yield keep

    def _listened(self, names: frozenset[str] | None, seen: Sequence[Seen]) -> list[Seen]:
        """Listens to those that are to show that they are ready; the same keeps, with what was heard."""
        for name in list(self._asked) if names is None else names:
            self._asked.pop(name, None)
        found: list[Seen] = []
        for keep in seen:
            wanted = self.declared.get(keep.name)
            probe = wanted.job.probe if wanted is not None and not wanted.header.proven else None
            if probe is None or keep.life not in (Life.RUNNING, Life.DONE, Life.FAILED):
                found.append(keep)
                continue
            self._asked.setdefault(keep.name, []).append((keep, probe.output))
            found.append(keep.replace(probed=self._probes.heard(keep.kuuid, probe.output)))
        self._probes.listen(chain.from_iterable(self._asked.values()))
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
            self.declared.proven_before(each),
            each.name in self._went_back,
        )

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
                        await self.declared.prove(action.name, action.digest)
                        reach(Failpoint.RECONCILE_AFTER_PROVE)
        except KeepfleetError as error:
            self._failed(name, "", error)

    async def _create(self, action: Create) -> None:
        wanted = self.declared.get(action.name)
        if wanted is None:
            return
        try:
            if not wanted.header.module:
                await self.pin(wanted)
                return
            digest = wanted.digest
            declared = Declaration(wanted.header.version, digest, action.attempt)
            try:
                if not await self.prepare(wanted):
                    return
            except KeepfleetError as error:
                self._failed(action.name, digest, error, own=error.kind in (ErrorKind.NO_SPACE, ErrorKind.TOO_MANY))
                return
            reach(Failpoint.RECONCILE_BEFORE_CREATE)
            made = await self._keeps.create(request_for(wanted), caller_of(wanted), declared=declared)
        except KeepfleetError as error:
            self._failed(action.name, wanted.digest, error)
            return
        reach(Failpoint.RECONCILE_AFTER_CREATE)
        self._troubles.pop(action.name, None)
        LOG.info("declared keep %s: made keep %d for version %d", action.name, made.kuuid, wanted.header.version)

    async def prepare(self, wanted: Specification) -> bool:
        """Has there be what its keep is given: its secrets, and its volume; whether that is wanted still: a volume that
        was removed once its keep was declared no more is not made again for it. Raises KeepfleetError."""
        self.check_use(wanted)
        volume = wanted.job.volume
        if volume is not None:
            async with self._volumes.lock:
                now = self.declared.get(wanted.name)
                if now is None or now.job.volume != volume:
                    return False
                owner = wanted.header.owner
                await asyncio.to_thread(self._volumes.ensure, volume.name, owner, volume.size, volume.inodes)
        return True

    async def pin(self, wanted: Specification) -> None:
        """Has the specification say what its module's reference means, where it does not yet: from then on it means
        that. Raises KeepfleetError."""
        if wanted.header.module:
            return
        digest = await self.declared.meaning(wanted.job.module)
        async with self.declared.changing:
            if self.declared.get(wanted.name) == wanted:
                await self.write(wanted.changed(module=digest), None)

    async def _remove(self, action: Remove) -> None:
        who = f"the manager: declared keep {action.name}: {action.why}"
        try:
            await self._keeps.remove(action.kuuid, manager_as(who))
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
        reach(Failpoint.RECONCILE_AFTER_REMOVE)

    async def _roll_back(self, action: RollBack) -> None:
        async with self.declared.changing:
            wanted = self.declared.get(action.name)
            if wanted is None:
                return
            history = await self.declared.history(action.name)
            before = next((each for each in history if each.digest == action.to), None)
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

    def _failed(self, name: str, digest: str, error: KeepfleetError, *, own: bool = False) -> None:
        """own: it is the specification's fault whatever the error's kind: the volume that it asks for is too large."""
        before = self._troubles.get(name)
        times = 1 + (before.times if before is not None and before.failure.digest == digest else 0)
        until = self._clock() + pause(times, hash(name))
        self._troubles[name] = _Trouble(times, Failure(digest, error.message, until, own or error.kind in _OWN_FAULTS))
        if not digest:
            LOG.warning("declared keep %s, trying again: %s", name, error.message)


def is_job(found: Specification | Unreadable | None) -> bool:
    """Whether it is run by a schedule, and not permanently."""
    return isinstance(found, Specification) and bool(found.job.schedule)
