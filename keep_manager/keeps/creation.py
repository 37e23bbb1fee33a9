"""Makes keeps, each whole or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress

from keep_manager.failpoints import Failpoint, reach
from keep_manager.keeps import decide
from keep_manager.keeps.interfaces import Loaders, LoaderSession, Quotas, Units
from keep_manager.keeps.policy import Policy, check_uploaders, limits_for
from keep_manager.keeps.starts import START_REPLY_SECONDS, Starts
from keep_manager.keeps.upkeep import Spares
from keep_manager.keeps.view import View
from keep_manager.keeps.watch import Watch
from keep_manager.model import Answer, Caller, StoredModule, exhaustion_explained
from keep_manager.tasks import Group
from keep_protocol import strict_json
from keep_protocol.api import NewKeep, StartKeep
from keep_protocol.constants import KUUID_BITS, unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.spec import ANONYMOUS, Compiler, Declaration, KeepSpec, Kind, OutputPolicy, Profile, encode_spec
from keep_protocol.states import Phase, State

LOG = logging.getLogger("keepfleet.keeps")
MAX_WAITING_CREATIONS = 512
"""Requests that may queue for a creation; the queue drains at about 20 a second."""
DRAWS = 8
"""IDs drawn for one creation: of 2^53 a second draw is needed once in a lifetime."""
QUIET_SECONDS = 0.5
"""From a creation's end until spares are made again: its client uploads and its guest begins in a third of that, and a
spare takes as much of a processor as both."""
REPLACEMENTS = 8
"""Living keeps of one name that one creation ends before its own: each may have been made by another meanwhile."""
ROLL_BACK_SECONDS = 1.0
"""Between two tries to roll back while systemd cannot be reached, or cannot end the unit; a try itself waits for it."""


def key_digest(caller: Caller, key: str) -> str:
    """What a keep's unit has of the idempotency key it was asked for with, or "" for none."""
    if not key:
        return ""
    own = f"{caller.name}\0{caller.where if caller.name == ANONYMOUS else ''}\0{key}"
    return hashlib.sha256(own.encode()).hexdigest()


def request_digest(request: NewKeep, key: str) -> str:
    """What a keep's unit has of the request it was asked for with, by the idempotency key `key`.

    A start may give its guest secret words, and users of the host may read a unit: its digest is keyed with the
    idempotency key, which no unit has. What the version before knew, too, has the digest that it made of it.
    """
    wire = request.to_wire()
    later = (("profile", Profile.STANDARD), ("compiler", Compiler.OPTIMIZING), ("output", OutputPolicy.BLOCK))
    for name, default in later:
        if wire[name] == default.value:
            del wire[name]
    if not request.module:
        del wire["module"]
    if wire["start"] is not None:
        return hmac.digest(key.encode(), strict_json.dumps(wire), "sha256").hex()
    del wire["start"]
    return hashlib.sha256(strict_json.dumps(wire)).hexdigest()


def spec_for(
    request: NewKeep,
    caller: Caller,
    policy: Policy,
    key: str = "",
    module: StoredModule | None = None,
    declared: Declaration | None = None,
) -> KeepSpec:
    """What the keep that `caller` asks for will be; `module` is what the request's module means, `declared` for which
    of the caller's specifications it is made.

    Raises KeepfleetError: UNSUPPORTED for an architecture this host has no hardware for, FORBIDDEN above one of the
    caller's ceilings, TOO_LARGE for labels that no unit can hold.
    """
    if request.arch != "wasi":
        raise KeepfleetError(
            ErrorKind.UNSUPPORTED, f"cannot make a keep of {request.arch}: this host has no such hardware; use wasi"
        )
    check_uploaders(request.uploaders, caller)
    spec = KeepSpec(
        kind=request.kind,
        name=request.name,
        labels=request.labels,
        owner=caller.name,
        uploaders=request.uploaders,
        limits=limits_for(request.limits, policy.allowance(caller, lasts=declared is not None), caller),
        restart=request.restart,
        lease=request.lease or policy.lease,
        profile=request.profile,
        compiler=request.compiler,
        output=request.output,
        created_at=time.time(),
        key=key_digest(caller, key),
        request=request_digest(request, key) if key else "",
        declared=declared,
        credentials=_credentials(request),
    )
    if module is not None:
        spec = spec.replace(kind=Kind.STORED, module=module.name, digest=module.digest)
    encode_spec(spec)
    return spec


def _credentials(request: NewKeep) -> tuple[str, ...]:
    """The secrets of the manager's that its workload is to have."""
    start = request.start
    return () if start is None or start.workload is None else start.workload.workload.credentials


class Unbroken:
    """Work that is carried through even when the one who waits for it is cancelled."""

    def __init__(self, tasks: Group) -> None:
        self._tasks = tasks
        self._awaited: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Unbroken({len(self._awaited)})"

    async def finish(self, work: Coroutine[None, None, None]) -> None:
        """Carries `work` through even when this task is cancelled meanwhile. Raises the KeepfleetError it raises."""
        result: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        result.add_done_callback(lambda done: done.cancelled() or done.exception())  # no one may wait for it any more
        task = self._tasks.start(_carried_through(work, result))
        self._awaited.add(task)
        task.add_done_callback(self._awaited.discard)
        await asyncio.shield(result)

    def later(self, work: Coroutine[None, None, None]) -> None:
        """Carries `work` through with no one waiting for it, until the manager ends: systemd may never come back."""
        self._tasks.start(work)

    async def settle(self) -> None:
        """Waits for what is under way."""
        if self._awaited:
            await asyncio.wait(self._awaited)


async def _carried_through(work: Coroutine[None, None, None], result: asyncio.Future[None]) -> None:
    try:
        with exhaustion_explained("carry through what was asked"):
            await work
    except KeepfleetError as error:
        result.set_exception(error)
    except BaseException:
        result.cancel()
        raise
    else:
        result.set_result(None)


class Creation:
    """Makes keeps: at most so many concurrently, at most so many in all, and of one owner's names each once."""

    def __init__(
        self,
        units: Units,
        loaders: Loaders,
        policy: Policy,
        unbroken: Unbroken,
        watch: Watch,
        view: View,
        quotas: Quotas,
        starts: Starts,
        spares: Spares,
        remove: Callable[[int, Caller], Awaitable[None]],
        forget: Callable[[int], Awaitable[None]],
    ) -> None:
        self._units, self._loaders, self._policy = units, loaders, policy
        self._unbroken, self._watch, self._view, self._quotas = unbroken, watch, view, quotas
        self._starts, self._spares, self._remove, self._forget = starts, spares, remove, forget
        self._creations = asyncio.Semaphore(policy.max_creations_at_once)
        self._creating: set[int] = set()
        self._names: dict[tuple[str, str], int] = {}
        self._waiting = self._under_way = 0
        self._disturbed_at = -math.inf
        self._quiet = asyncio.Event()
        self._quiet.set()

    def __repr__(self) -> str:
        return f"Creation({len(self._creating)} under way, {self._waiting} waiting)"

    def apply(self, policy: Policy) -> None:
        """Creates by this policy from now on; what is under way is not counted among what it lets run concurrently."""
        if policy.max_creations_at_once != self._policy.max_creations_at_once:
            self._creations = asyncio.Semaphore(policy.max_creations_at_once)
        self._policy = policy

    async def create(self, request: NewKeep, spec: KeepSpec, caller: Caller) -> KeepInfo:
        """A new keep, listening for start-keep, or where the request has its start, listening for its workload. When
        anything fails, or the caller is cancelled, nothing is left.

        Raises KeepfleetError: CONFLICT naming the living keep of the owner that has the name, TOO_MANY, KEEP_FAILED
        with the unit's last journal lines, CONFIGURATION when the units are not installed, and what Starts.start does.
        """
        if request.start is not None:
            await self._starts.check(request.start, spec, caller, opens=request.replace_living)
        if self._waiting >= MAX_WAITING_CREATIONS:
            raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot make a keep: {self._waiting} requests wait already")
        with self._disturbing():
            async with self._named(request, spec, caller), self._place():
                made = await self._from_spare(request, spec, caller)
                return made or await self._create(request, spec, caller)

    async def quiet(self) -> None:
        """Returns when no creation has been under way for QUIET_SECONDS."""
        while True:
            await self._quiet.wait()
            left = self._disturbed_at + QUIET_SECONDS - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(left)

    @contextmanager
    def _disturbing(self) -> Iterator[None]:
        self._under_way += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            self._disturbed_at = time.monotonic()
            if not self._under_way:
                self._quiet.set()

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """One of the places for creations, which is waited for."""
        self._waiting += 1
        creations = self._creations
        try:
            await creations.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            creations.release()

    @asynccontextmanager
    async def _named(self, request: NewKeep, spec: KeepSpec, caller: Caller) -> AsyncIterator[None]:
        """Holds the keep's name while the block runs, in which its owner has no other keep of that name."""
        place = (spec.owner, spec.name)
        if not spec.name:
            yield
            return
        for _ in range(REPLACEMENTS):
            holder = self._view.holder(*place)
            if holder is None or not request.replace_living:
                break
            self._quotas.admit_creation(caller, spec, holder)  # before the keep that is to be replaced has gone
            try:
                await self._remove(holder, caller)
            except KeepfleetError as error:
                if error.kind is not ErrorKind.NOT_FOUND:
                    raise
        holder = self._names.get(place) or self._view.holder(*place)
        if holder is not None and not self._takes_over(spec, holder):
            raise decide.name_taken(spec.name, holder)
        self._names[place] = self.draw()
        try:
            yield
        finally:
            del self._names[place]

    def _takes_over(self, spec: KeepSpec, holder: int) -> bool:
        """Whether a declared keep is to replace the one that has its name, which goes when the new one is ready."""
        if spec.declared is None or holder not in self._view:
            return False
        known = self._view.entry(holder).spec
        return known is not None and known.declared is not None

    async def _create(self, request: NewKeep, spec: KeepSpec, caller: Caller) -> KeepInfo:
        reserved = self._names.get((spec.owner, spec.name)) if spec.name else None
        for _ in range(DRAWS):
            kuuid, reserved = reserved or self.draw(), None
            self._creating.add(kuuid)
            try:
                return await self._bring_up(kuuid, request, spec, caller)
            except KeepfleetError as error:
                if error.kind is not ErrorKind.CONFLICT:
                    raise
            finally:
                self._creating.discard(kuuid)
        raise KeepfleetError(ErrorKind.INTERNAL, f"cannot make a keep: {DRAWS} IDs in a row were taken")

    def draw(self) -> int:
        """An ID that is free, in a slice that has room. Raises KeepfleetError(TOO_MANY) at max_keeps."""
        shown = {info.kuuid for info in self._view}  # also those that have ended, and have no runtime directory
        taken = self._units.kuuids() | shown | self._creating | set(self._names.values())
        count = len(taken) - len(self._spares)
        if count >= self._policy.max_keeps:
            raise KeepfleetError(
                ErrorKind.TOO_MANY, f"cannot make a keep: there are {count}, and max_keeps is {self._policy.max_keeps}"
            )
        groups = decide.groups_for(len(taken))
        while True:
            kuuid = decide.in_group(secrets.randbits(KUUID_BITS), secrets.randbelow(groups))
            if decide.check_kuuid_free(kuuid, taken) and kuuid not in self._view:
                return kuuid

    async def complete(self, kuuid: int, request: NewKeep, caller: Caller) -> KeepInfo:
        """The keep that a manager before this one has made for the same request, once it is there, and started where
        the request has that in it and it had not come to that.

        Raises KeepfleetError as `create` does; one whose start fails is removed, unless it is by another's start.
        """
        info = await self._view.changed(kuuid, State.UNDEFINED, self._policy.start_timeout_seconds)
        if request.start is None:
            return info
        opening = Phase.OPENING.value
        info = await self._view.until(kuuid, lambda keep: keep.phase != opening, START_REPLY_SECONDS)
        if info.state is not State.LISTENING:
            return info
        async with self._whole(kuuid):
            return await self._starts.start(request.start.replace(kuuid=kuuid), caller)

    async def _from_spare(self, request: NewKeep, spec: KeepSpec, caller: Caller) -> KeepInfo | None:
        """The keep, made of a spare; None where none fits, or where it was lost: a unit is made for it then."""
        self._quotas.admit_creation(caller, spec)
        spare = self._spares.take(spec)
        if spare is None:
            return None
        kuuid, spec, place = spare.kuuid, spec.replace(spare=True), (spec.owner, spec.name)
        reserved = self._names.get(place)
        if reserved is not None:
            self._names[place] = kuuid
        self._view.begin(kuuid, spec)
        async with self._whole(kuuid), AsyncExitStack() as held:
            try:
                await self._spares.claim(spare, spec)
                session = await held.enter_async_context(self._loaders.session(kuuid))
                await session.hello()
                answer = await session.claim(spec)
                made = self._view.answered(kuuid, answer)
            except KeepfleetError as error:
                LOG.info("%s: a spare that cannot be used: %s", unit_name(kuuid), error.message)
                await self._unbroken.finish(self._roll_back(kuuid))
                if reserved is not None:
                    self._names[place] = reserved
                return None
            if request.start is not None:
                made = await self._first_start(session, kuuid, request, caller, answer)
        reach(Failpoint.CREATE_BEFORE_REPLY)
        self._watch.appeared(kuuid)
        return made

    async def _bring_up(self, kuuid: int, request: NewKeep, spec: KeepSpec, caller: Caller) -> KeepInfo:
        self._quotas.admit_creation(caller, spec)  # counted from the next line on
        self._view.begin(kuuid, spec)
        reach(Failpoint.CREATE_BEFORE_UNIT)
        try:
            async with self._whole(kuuid):
                seconds, follows = self._policy.start_timeout_seconds, request.start is not None
                await self._units.start(kuuid, seconds, spec, start_follows=follows)
                reach(Failpoint.CREATE_AFTER_READY)
                async with self._loaders.session(kuuid) as session:
                    # It was ready a moment ago: one that a busy host does not let run now is no reason to end it.
                    answer = await session.hello(seconds)
                    if request.start is None:
                        made = self._view.answered(kuuid, answer)
                    else:
                        made = await self._first_start(session, kuuid, request, caller, answer)
        except KeepfleetError as error:
            if error.kind is ErrorKind.CONFLICT:
                self._view.drop(kuuid)
            raise
        reach(Failpoint.CREATE_BEFORE_REPLY)
        self._watch.appeared(kuuid)
        return made

    async def _first_start(
        self, session: LoaderSession, kuuid: int, request: NewKeep, caller: Caller, answer: Answer
    ) -> KeepInfo:
        start = (request.start or StartKeep()).replace(kuuid=kuuid)
        try:
            return await self._starts.first(session, start, caller, answer, warm=request.workload_follows)
        except KeepfleetError as error:  # another's start, too: this keep is not what was asked for
            kind = ErrorKind.KEEP_FAILED if error.kind is ErrorKind.CONFLICT else error.kind
            raise KeepfleetError(
                kind, f"cannot make a keep that is started: {error.message}", error.evidence
            ) from error

    @asynccontextmanager
    async def _whole(self, kuuid: int) -> AsyncIterator[None]:
        """Rolls the keep back when the block fails or is cancelled; not on a CONFLICT, which says that the unit, or its
        start, is another's."""
        try:
            with exhaustion_explained("make a keep"):
                yield
        except KeepfleetError as error:
            if error.kind is not ErrorKind.CONFLICT:
                await self._unbroken.finish(self._roll_back(kuuid))
                LOG.warning("%s: not created: %s", unit_name(kuuid), error.message)
            raise
        except asyncio.CancelledError:
            await self._unbroken.finish(self._roll_back(kuuid))
            LOG.info("%s: not created: the client went away", unit_name(kuuid))
            raise

    async def _roll_back(self, kuuid: int) -> None:
        if not await self._rolled_back(kuuid):
            self._unbroken.later(self._roll_back_later(kuuid))

    async def _roll_back_later(self, kuuid: int) -> None:
        while True:
            await asyncio.sleep(ROLL_BACK_SECONDS)
            if await self._rolled_back(kuuid):
                return

    async def _rolled_back(self, kuuid: int) -> bool:
        """Removes what there is of a keep that was not created; False while it is still there, and shown."""
        try:
            await self._units.stop(kuuid)
        except KeepfleetError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                LOG.warning("%s: cannot roll back yet: %s", unit_name(kuuid), error.message)
                return False
        await self._forget(kuuid)
        self._view.drop(kuuid)
        with suppress(KeepfleetError):  # a look that nothing depends on
            if kuuid in self._units.kuuids():
                LOG.error("%s: its runtime directory is still there after the rollback", unit_name(kuuid))
        return True
