"""What the pool has of a request and of a child: what each step changes in them, the frames that begin a run, and what
a child's last word of one is as an answer. No I/O, but for what is sent to a child.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from script_pool import frames
from script_pool.decisions import NEVER, PARK_SECONDS, Child, Phase
from script_pool.engine.interface import Reason, Script
from script_pool.frames import Frame, FrameError, Kind, Order
from script_pool.hostcalls import PLAIN_CALLS, Caller, Calls
from script_pool.processes import ChildProcess
from script_pool.protocol import Answer, check_output
from script_pool.sessions import Session
from script_pool.versions import Version

Reply = Callable[[Answer], None]
LEAST_SECONDS = 0.01
"""What a run gets, however little its limit or its deadline leaves: less is none to the engine's clock."""


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
    began in this child. `waits_from`: since when it waits for host functions, which its deadline does not count;
    `member`: the child that has it; `parked`: what it is while it waits and no child has it."""

    ticket: int
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
    member: Member | None = None
    parked: bytes | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it stays in its child while it waits for host functions."""
        return self.version.language in PLAIN_CALLS

    def allow(self, now: float) -> float:
        """Gives it what its limit and its deadline leave; until when that is."""
        self.seconds = max(LEAST_SECONDS, min(self.left, self.deadline - now))
        return now + self.seconds

    def end_wait(self, now: float) -> None:
        """What it has waited for host functions is put off its deadline."""
        if self.waits_from is not None:
            self.deadline += now - self.waits_from
            self.waits_from = None


@dataclass(slots=True, eq=False)
class Member:
    """One child: as the decisions see it, its process, what it runs, and which scripts it holds."""

    view: Child
    process: ChildProcess
    job: Job | None = None
    held: set[int] = field(default_factory=set)
    memory: bytes | None = None
    why: str = ""

    def begin(self, job: Job, until: float) -> None:
        """It has this request, until then."""
        self.job, job.member = job, self
        self.view.until = until
        self.view.runs += 1

    def free(self, now: float) -> None:
        """It has none any more."""
        if self.job is not None:
            self.job.member = None
        self.job = self.memory = None
        self.view.until, self.view.held, self.view.since = None, None, now

    def wait(self, job: Job, ran_seconds: float, now: float) -> None:
        """Its run waits for host functions, and the run's clock stands still."""
        job.left = max(LEAST_SECONDS, job.had - ran_seconds)
        job.waits_from = now
        if job.is_plain:
            self.view.until = NEVER
        else:
            self.view.held, self.view.until = now, None

    def waits(self, job: Job) -> bool:
        """Whether its run waits here, and it was not asked to park it."""
        return self.view.held is not None or (job.is_plain and self.view.until == NEVER)

    def go_on(self, job: Job, now: float) -> None:
        """Its run goes on with the answers that are there."""
        answers = "[]" if job.calls is None else job.calls.take()
        self.process.send(Frame(Kind.ANSWER, job.ticket, answers.encode("ascii")))
        self.view.held, self.view.until = None, job.allow(now)

    def park(self, now: float) -> None:
        """It is asked for its run, which waits."""
        if self.job is not None:
            self.process.send(Frame(Kind.PARK, self.job.ticket))
            self.view.held, self.view.until = None, now + PARK_SECONDS

    def end(self, why: str, now: float) -> None:
        """It is killed; its request is answered when it has ended."""
        self.why = self.why or why
        self.view.phase, self.view.since, self.view.killed = Phase.ENDING, now, True
        self.process.kill()


def frame_of_preparation(job: Job) -> Frame:
    """What has a child prepare a script."""
    version = job.version
    asked = Script(version.name, version.language, b"", "", (), tuple(version.functions))
    return Frame(Kind.PREPARE, job.ticket, frames.script_text(asked), job.body, job.seconds)


def frames_of_run(job: Job, parked: bytes | None, held: set[int], now: float) -> list[Frame]:
    """What begins a run, or has what it was parked as go on, in a child that holds these scripts; before it those that
    it does not hold."""
    scripts, after = _scripts(job, held)
    job.began, job.had = job.began or now, job.left
    settings, session = job.settings, job.session
    clock = None if settings.clock is None else settings.clock + 1000 * (now - job.began)
    answers = job.calls.take() if parked is not None and job.calls is not None else ""
    modules = {name: version.number for name, version in job.modules.items()}
    order = Order(job.version.number, modules, session is not None, clock, settings.zone, answers).encode()
    if parked is not None:
        return [*scripts, Frame(Kind.RESUME, job.ticket, order, parked, job.seconds), *after]
    if session is not None and session.memory is not None:
        scripts.append(Frame(Kind.MEMORY, job.ticket, body=session.memory))
    return [*scripts, Frame(Kind.RUN, job.ticket, order, job.body, job.seconds), *after]


def _scripts(job: Job, held: set[int]) -> tuple[list[Frame], list[Frame]]:
    """What is to be sent before a run, and what behind it: a script that no later request runs is held for this one
    alone."""
    before, after = list[Frame](), list[Frame]()
    for version in (job.version, *job.modules.values()):
        script = version.script
        if script is None or version.number in held:
            continue
        before.append(Frame(Kind.SCRIPT, version.number, frames.script_text(script), script.image))
        if version.dropped:
            after.append(Frame(Kind.FORGET, version.number))
        else:
            held.add(version.number)
    return before, after


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
