"""What the pool has of a request and of a child, and what a child's last word of a run is as an answer. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from script_pool import frames
from script_pool.decisions import Child
from script_pool.engine.interface import Reason
from script_pool.frames import Frame, FrameError, Kind
from script_pool.hostcalls import Caller, Calls
from script_pool.processes import ChildProcess
from script_pool.protocol import Answer, check_output
from script_pool.sessions import Session
from script_pool.versions import Version

Reply = Callable[[Answer], None]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run is asked with besides its input. `caller`: who answers its host functions; `owner` and `session`:
    whose session it is, and which; `clock`: milliseconds since 1970; `zone`: its table (zones.table)."""

    caller: Caller | None = None
    owner: str = ""
    session: str | None = None
    clock: float | None = None
    zone: str = ""


PLAIN = RunSettings()


@dataclass(slots=True, eq=False)
class Job:
    """A request for a child: a run of `version`'s script with `body` as its input, or its preparation from `body`.
    `seconds`: what a child may take for it; `left`: what its limit leaves, of what it `had` when it
    began in this child. `waits_from`: since when it waits for host
    functions, which its deadline does not count."""

    version: Version
    body: bytes
    reply: Reply
    deadline: float
    prepares: bool = False
    seconds: float = 0.0
    left: float = 0.0
    had: float = 0.0
    began: float = 0.0
    modules: dict[str, Version] = field(default_factory=dict)
    settings: RunSettings = PLAIN
    session: Session | None = None
    calls: Calls | None = None
    waits_from: float | None = None
    parked: bytes | None = None


@dataclass(slots=True, eq=False)
class Member:
    """One child: as the decisions see it, its process, what it runs, and which scripts it holds."""

    view: Child
    process: ChildProcess
    ticket: int | None = None
    job: Job | None = None
    held: set[int] = field(default_factory=set)
    memory: bytes | None = None
    why: str = ""


def answer_of_run(frame: Frame, output_bytes: int) -> Answer:
    """What a child says that a run came to. Raises FrameError."""
    if frame.kind is Kind.FAULT:
        return Answer.of(frames.fault_of(frame))
    if frame.kind is not Kind.RAN or len(frame.body) > output_bytes or not check_output(frame.body):
        raise FrameError("it answered a run with no output that a script can have")
    return Answer(None, frame.body, frames.console_of(frame), frame.seconds)


def answer_of_killed(member: Member, how: str, job: Job) -> Answer:
    """What the request of a child that has ended is answered with."""
    if member.why == Reason.TIME_LIMIT.value:
        message = f"the script's process did not end its run within {job.seconds:g} s, and was killed"
        return Answer(Reason.TIME_LIMIT.value, message=message, seconds=job.seconds)
    why = member.why.partition(": ")[2]
    return Answer(Reason.CRASHED.value, message=f"the script's process has ended: {why or how}")
