"""What the pool does next, computed from what it has: which child runs which request, which is started, ended or
killed, and which request is refused or has waited too long. Pure: nothing here does any of it.

A child has one request at a time: one that was sent behind a loop would wait for it while another child is free. That
costs little, since a child closes one instance and opens the next while the answer is on its way.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

NEVER = float("inf")
START_SECONDS = 10.0
"""From a fork to a child that can run: 7 ms; this covers a host a hundred times busier and more."""
END_SECONDS = 1.0
"""From the end of a child's requests to its exit, which takes no millisecond; then it is killed."""
HOLD_SECONDS = 0.05
"""For which a child keeps a run that waits for a host function: most answer sooner, and going on costs a twentieth of
what parking it and laying it down again does."""
PARK_SECONDS = 1.0
"""From asking a child to park a run to having it: some milliseconds."""
GRACE_SECONDS = 0.25
"""From a run's time limit, which the engine holds to some 10 ms, to the SIGKILL behind it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How large the pool is, and how long it waits. `__post_init__` says what is possible."""

    minimum: int = 1
    maximum: int = 2
    recycle_after: int = 1000
    """Runs, after which a child gives way to a new one: what one left behind in its process ends there."""
    queue: int = 256
    """Requests that wait; one more is refused."""
    deadline_seconds: float = 10.0
    """From a request's last byte to its answer, its waiting included."""
    idle_seconds: float = 60.0
    """After which a child above the minimum is ended."""
    drain_seconds: float = 5.0
    """What requests that are there get at the end."""
    session_seconds: float = 3600.0
    """After which a session that was not used ends."""

    def __post_init__(self) -> None:
        bounds = {
            "minimum": (0, self.maximum),
            "maximum": (1, 256),  # each is a process of some 10 MB while it runs
            "recycle_after": (1, 1_000_000_000),
            "queue": (0, 100_000),
            "deadline_seconds": (0.01, 3600),
            "idle_seconds": (0.0, 1e9),
            "drain_seconds": (0.0, 3600),
            "session_seconds": (0.01, 1e9),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"cannot make a pool: {name} must lie in {low} … {high}")


class Phase(Enum):
    """STARTING until it says that it can run; ENDING once it was asked to end, or killed."""

    STARTING = "starting"
    READY = "ready"
    ENDING = "ending"


@dataclass(slots=True)
class Child:
    """A child as the decisions see it. `since`: when this phase, or its idleness, began; `until`: when what it runs
    must have ended, None where it is idle; `held`: since when it has kept a run that waits for host functions and could
    be parked."""

    number: int
    phase: Phase = Phase.STARTING
    since: float = 0.0
    until: float | None = None
    runs: int = 0
    killed: bool = False
    held: float | None = None


@dataclass(slots=True)
class Waiting:
    """A request in the queue; one is not `ready` while the code it runs is being prepared, and then keeps its place."""

    ticket: int
    deadline: float
    ready: bool = True


@dataclass(frozen=True, slots=True)
class Assign:
    ticket: int
    child: int


@dataclass(frozen=True, slots=True)
class Expire:
    """A request that has waited until its deadline."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """A request that the queue has no place for."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Spawn:
    """One more child."""


@dataclass(frozen=True, slots=True)
class Retire:
    """An idle child that is asked to end."""

    child: int


@dataclass(frozen=True, slots=True)
class Park:
    """A child that gives up the run that it keeps, and is free."""

    child: int


@dataclass(frozen=True, slots=True)
class Kill:
    """A child that did not start, run or end in its time."""

    child: int


Action = Assign | Expire | Refuse | Spawn | Retire | Park | Kill


def must_act_by(child: Child) -> float:
    """When a child that has not changed is killed; NEVER for an idle one, and one that was killed."""
    if child.killed:
        return NEVER
    if child.phase is Phase.STARTING:
        return child.since + START_SECONDS
    if child.phase is Phase.ENDING:
        return child.since + END_SECONDS
    return NEVER if child.until is None else child.until + GRACE_SECONDS


def decide(
    children: Collection[Child],
    queue: Collection[Waiting],
    settings: Settings,
    now: float,
    *,
    spawn_from: float = 0.0,
    draining: bool = False,
) -> list[Action]:
    """What is to be done now, in this order. `queue`: in the order of arrival; `spawn_from`: no child before this.

    Applied, it leaves nothing to do until a child or a client does something, or `wake` comes.
    """
    actions: list[Action] = [Kill(child.number) for child in children if must_act_by(child) <= now]
    idle, alive, starting = [], 0, 0
    for child in children:
        if _is_idle(child):
            if child.runs >= settings.recycle_after:
                actions.append(Retire(child.number))
                continue
            idle.append(child)
        if child.phase is not Phase.ENDING and must_act_by(child) > now:
            alive += 1
            starting += child.phase is Phase.STARTING
    idle.sort(key=_warmest)
    left, runnable = [], 0
    for waiting in queue:
        if waiting.deadline <= now:
            actions.append(Expire(waiting.ticket))
        elif waiting.ready and idle:
            actions.append(Assign(waiting.ticket, idle.pop().number))
        else:
            left.append(waiting.ticket)
            runnable += waiting.ready
    actions += [Refuse(ticket) for ticket in left[settings.queue :]]
    if now >= spawn_from:
        least = 0 if draining else settings.minimum
        wanted = max(least - alive, min(runnable, settings.queue) - starting)
        actions += [Spawn()] * max(0, min(settings.maximum - alive, wanted))
    holding = sorted(
        (child.held, child.number) for child in children if child.held is not None and child.phase is Phase.READY
    )
    needed = sum(held + HOLD_SECONDS <= now for held, _ in holding)
    actions += [Park(number) for _, number in holding[: max(runnable, needed)]]
    spare = alive - settings.minimum
    if spare > 0 and not runnable:
        unused = [child for child in idle if child.since + settings.idle_seconds <= now]
        actions += [Retire(child.number) for child in unused[:spare]]
    return actions


def _warmest(child: Child) -> tuple[float, int]:
    """The one that ran last comes last: its memory is in the caches, and the others grow idle enough to be ended."""
    return child.since, child.number


def wake(
    children: Collection[Child], queue: Collection[Waiting], settings: Settings, now: float, spawn_from: float = 0.0
) -> float:
    """When there is something to decide though nothing happened; NEVER where there is no such time. For what `decide`
    has left at `now`."""
    times = [must_act_by(child) for child in children]
    times += [waiting.deadline for waiting in queue]
    times += [child.held + HOLD_SECONDS for child in children if child.held is not None and child.phase is Phase.READY]
    alive = [child for child in children if child.phase is not Phase.ENDING]
    if len(alive) > settings.minimum:
        times += [child.since + settings.idle_seconds for child in alive if _is_idle(child)]
    if spawn_from > now and (len(alive) < settings.minimum or queue):
        times.append(spawn_from)
    return min(times, default=NEVER)


class Timer(Protocol):
    """The one that is set for the next decision: asyncio.TimerHandle."""

    def when(self) -> float: ...

    def cancelled(self) -> bool: ...


def may_rest(child: Child, queue: Collection[Waiting], settings: Settings, timer: Timer | None) -> bool:
    """Whether `decide` would do nothing now that this child has become idle, and `wake` say no time before the timer's:
    where nothing waits, a child that need not end changes nothing until the time when it has been idle for too long."""
    return (
        _is_idle(child)
        and child.runs < settings.recycle_after
        and may_wait(child.since + settings.idle_seconds, queue, timer)
    )


def may_wait(until: float, queue: Collection[Waiting], timer: Timer | None) -> bool:
    """Whether `decide` would do nothing, and `wake` say no time before the timer's, now that a child has begun what
    nothing is to be done about before `until`: a run that has gone on, or waits for host functions."""
    return not queue and timer is not None and not timer.cancelled() and timer.when() <= until


def _is_idle(child: Child) -> bool:
    return child.phase is Phase.READY and child.until is None and child.held is None
