"""What to do so that the keeps that are there become those that are declared. Pure: data in, actions out.

Of each name there is at most one living keep, but while a new one takes over from an old one: the new one is made, has
run for its `ready_seconds` or has exited 0, and then the old one is removed; where the new one ends before that, what
the old one runs is wanted again. One keep that has ended stays for people to look at, and to count failures by.

Where the keep has a volume, which one keep has at a time, the old one ends first: what is wanted again then is the
latest version that is known to have been ready.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from enum import Enum

from keep_protocol.declared import DeclaredState
from keep_protocol.fields import Record
from keep_protocol.spec import RestartPolicy

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 300.0
"""Before a workload that has ended is run again, doubled with each end that follows soon."""
JITTER = 0.1
"""What fails together with others, as when a data base goes away, does not come back in one moment with them."""
STEADY_SECONDS = 600.0
"""After so long a run, an end is the first one again."""


class Life(Enum):
    """What a keep does. UNKNOWN: its loader does not answer, or is between two runs; nothing is decided by that."""

    UNFINISHED = "made, and not started"
    RUNNING = "running"
    UNKNOWN = "unknown"
    DONE = "exited 0"
    FAILED = "failed"
    STOPPED = "stopped by a person"
    LOST = "lost with its host"


ENDED = (Life.DONE, Life.FAILED, Life.STOPPED, Life.LOST)
_RUNS_AGAIN = {
    RestartPolicy.NO: (Life.LOST,),
    RestartPolicy.ON_FAILURE: (Life.LOST, Life.FAILED),
    RestartPolicy.ALWAYS: (Life.LOST, Life.FAILED, Life.DONE),
}
"""What was stopped by a person stays so until it is restarted by one. A host's end is no end of a workload."""


class Wanted(Record):
    """One specification. digest: what its keep must have been made for; goes_back: whether what was wanted
    before is still known; pinned: whether it is known which module that is; went_back: whether the manager itself went
    back to it, which it does once: what it came from is no way back.

    alone: no other keep of it may live with a new one; probe_seconds: how long a keep has for the line by which it is
    ready, None where none is asked for; proven: whether a keep of it has been ready; back: the digest of the latest
    version before that has been, "" for none.
    """

    name: str
    owner: str
    version: int
    digest: str
    restart: RestartPolicy
    ready_seconds: float
    goes_back: bool = True
    pinned: bool = True
    alone: bool = False
    probe_seconds: float | None = None
    proven: bool = False
    back: str = ""
    went_back: bool = False

    @property
    def proves(self) -> bool:
        """Whether it is to be written down that a keep of it has been ready."""
        return (self.alone or self.probe_seconds is not None) and not self.proven


class Seen(Record):
    """One keep that was made for a specification. since: when it reached the phase it is in; ran: how long its workload
    did, or has; ended: when; all in seconds since boot; text: how it is, in words; probed: whether its output had the
    line that it is ready by."""

    kuuid: int
    name: str
    owner: str
    digest: str
    attempt: int
    life: Life
    since: float = 0.0
    ran: float = 0.0
    ended: float = 0.0
    text: str = ""
    probed: bool = False


class Failure(Record):
    """The latest failure to make a keep for a specification. until: when it is tried again; own: whether the
    specification or its module is to blame, and not the host."""

    digest: str
    why: str
    until: float
    own: bool = False


class Create(Record):
    """Make a keep. attempt: how many failed before it, one soon after the other."""

    name: str
    attempt: int = 0


class Remove(Record):
    """End a keep and forget it."""

    kuuid: int
    name: str
    why: str


class RollBack(Record):
    """Want again what is kept running; `to` is its digest."""

    name: str
    to: str
    why: str


class Prove(Record):
    """Remember that a keep of this digest has been ready."""

    name: str
    digest: str


class Wait(Record):
    """Nothing before `until`."""

    name: str
    until: float


Action = Create | Remove | RollBack | Prove | Wait


class Standing(Record):
    """How a declared keep is, in a word and a sentence, and the keep that counts."""

    state: DeclaredState
    text: str = ""
    kuuid: int | None = None


class Decision(Record):
    """What to do, in this order, and how each declared keep is."""

    actions: tuple[Action, ...]
    standings: Mapping[str, Standing]


def decide(
    wanted: Iterable[Wanted],
    seen: Iterable[Seen],
    now: float,
    failures: Mapping[str, Failure],
    unreadable: Collection[str] = (),
) -> Decision:
    """What follows. unreadable: names whose specification cannot be read; their keeps stay as they are."""
    keeps: dict[tuple[str, str], list[Seen]] = {}
    for keep in sorted(seen, key=lambda each: each.kuuid):
        keeps.setdefault((keep.owner, keep.name), []).append(keep)
    actions: list[Action] = []
    standings: dict[str, Standing] = {}
    for one in wanted:
        mine = keeps.pop((one.owner, one.name), [])
        found, standing = _for_one(one, mine, now, failures.get(one.name))
        actions += found
        standings[one.name] = standing
    for (_, name), left in keeps.items():
        if name not in unreadable:
            actions += _removed(left, "it is declared no more")
    return Decision(tuple(actions), standings)


def pause(attempt: int, kuuid: int) -> float:
    """Seconds from the end of the keep `kuuid` to the next one, which is the attempt of that number, from 1.

    Its jitter is drawn from the ID: who decides again decides the same.
    """
    seconds = min(FIRST_PAUSE_SECONDS * 2 ** min(attempt - 1, 30), LONGEST_PAUSE_SECONDS)
    return float(seconds * (1 + JITTER * random.Random(kuuid).random()))  # noqa: S311 - it is no secret


def _removed(keeps: Iterable[Seen], why: str) -> Iterator[Action]:
    return (Remove(keep.kuuid, keep.name, why) for keep in keeps)


def _for_one(one: Wanted, mine: Sequence[Seen], now: float, failure: Failure | None) -> tuple[list[Action], Standing]:
    current = [keep for keep in mine if keep.digest == one.digest]
    old = [keep for keep in mine if keep.digest != one.digest]
    running = [keep for keep in old if keep.life in (Life.RUNNING, Life.UNKNOWN)]
    failure = failure if failure is not None and failure.digest == one.digest else None
    unfinished = [keep for keep in mine if keep.life is Life.UNFINISHED]
    if unfinished:  # of a manager that was ended: who makes one for a name decides nothing for it meanwhile
        return [*_removed(unfinished, "it was not started")], Standing(DeclaredState.STARTING)
    living = [keep for keep in current if keep.life in (Life.RUNNING, Life.UNKNOWN)]
    if living:
        ended = sorted((keep for keep in current if keep.life in ENDED), key=_when)
        return _with_living(one, living, ended, old, now)
    if not current:
        return _first(one, running, now, failure)
    last = max(current, key=_when)
    before = [*_removed((keep for keep in current if keep is not last), "a later one has ended")]
    heard = one.probe_seconds is None or one.proven or last.probed
    ready = last.life is Life.DONE or (heard and last.ran >= one.ready_seconds)
    back = _way_back(one, running)
    if back and not ready and (running or last.life is Life.FAILED):
        why = f"it was not ready: {last.text}"
        return [*before, RollBack(one.name, back, why)], _replacing(why, [*running[-1:], last])
    waits = running and not ready and not (one.alone or one.went_back)
    gone = [] if waits else [*_removed(old, "it was replaced")]
    proof = [Prove(one.name, one.digest)] if ready and one.proves else []
    then, standing = _after(one, last, now, failure)
    return [*before, *gone, *proof, *then], standing


def _way_back(one: Wanted, running: Sequence[Seen]) -> str:
    """What is wanted again where no keep of the specification becomes ready: what runs still, or for one that is alone
    what was ready before; "" where there is nothing, or where it was ready and is alone."""
    if not one.goes_back or one.went_back or (one.alone and one.proven):
        return ""
    return running[-1].digest if running else one.back if one.alone else ""


def _when(keep: Seen) -> tuple[float, int]:
    return keep.ended, keep.kuuid


def _with_living(
    one: Wanted, living: Sequence[Seen], ended: Sequence[Seen], old: Sequence[Seen], now: float
) -> tuple[list[Action], Standing]:
    """One of the specification's keeps lives: the one of them that does so for the longest counts."""
    first = min(living, key=lambda keep: (keep.life is Life.UNKNOWN, keep.since, keep.kuuid))
    actions = [*_removed((keep for keep in living if keep is not first), "there is another one")]
    if first.life is Life.UNKNOWN:
        return actions, Standing(DeclaredState.UNKNOWN, first.text, first.kuuid)
    heard = one.probe_seconds is None or one.proven or first.probed
    ready_at = first.since + (one.ready_seconds if heard else max(one.probe_seconds or 0.0, one.ready_seconds))
    if now < ready_at:
        state = DeclaredState.REPLACING if any(keep.life not in ENDED for keep in old) else DeclaredState.STARTING
        return [*actions, Wait(one.name, ready_at)], Standing(state, "", first.kuuid)
    if not heard:
        why = f"its output had no line that says it is ready within {one.probe_seconds:g} s"
        back = _way_back(one, [keep for keep in old if keep.life in (Life.RUNNING, Life.UNKNOWN)])
        if back:
            return [*actions, RollBack(one.name, back, f"it was not ready: {why}")], _replacing(why, [first])
        gone = _removed(old, "it was not ready") if one.went_back else ()
        return [*actions, *gone], Standing(DeclaredState.UNREADY, why, first.kuuid)
    actions += [*_removed(old, "it was replaced"), *_removed(ended[:-1], "a later one has ended")]
    actions += [Prove(one.name, one.digest)] if one.proves else []
    return actions, Standing(DeclaredState.RUNNING, first.text, first.kuuid)


def _first(one: Wanted, running: Sequence[Seen], now: float, failure: Failure | None) -> tuple[list[Action], Standing]:
    """No keep was made for the specification as it is."""
    back = _way_back(one, running)
    if failure is not None and failure.own and back:
        return [RollBack(one.name, back, failure.why)], _replacing(failure.why, running[-1:])
    if failure is not None and failure.until > now:
        kuuid = running[-1].kuuid if running else None
        return [Wait(one.name, failure.until)], Standing(DeclaredState.UNMET, failure.why, kuuid)
    first = [*_removed(running, "the volume is one keep's at a time")] if one.alone and one.pinned else []
    return [*first, Create(one.name)], Standing(DeclaredState.REPLACING if running else DeclaredState.STARTING)


def _after(one: Wanted, last: Seen, now: float, failure: Failure | None) -> tuple[list[Action], Standing]:
    """All keeps of the specification have ended, `last` as the last one."""
    if last.life not in _RUNS_AGAIN[one.restart]:
        word = {Life.DONE: DeclaredState.DONE, Life.STOPPED: DeclaredState.STOPPED}
        return [], Standing(word.get(last.life, DeclaredState.FAILED), last.text, last.kuuid)
    if failure is not None and failure.until > now:
        return [Wait(one.name, failure.until)], Standing(DeclaredState.UNMET, failure.why, last.kuuid)
    if last.life is Life.LOST:
        return [Create(one.name)], Standing(DeclaredState.STARTING, last.text, last.kuuid)
    attempt = 1 if last.ran >= STEADY_SECONDS else last.attempt + 1
    at = last.ended + pause(attempt, last.kuuid)
    if at > now:
        return [Wait(one.name, at)], Standing(DeclaredState.WAITING, last.text, last.kuuid)
    return [Create(one.name, attempt)], Standing(DeclaredState.STARTING, last.text, last.kuuid)


def _replacing(why: str, keeps: Sequence[Seen]) -> Standing:
    return Standing(DeclaredState.REPLACING, why, keeps[0].kuuid if keeps else None)
