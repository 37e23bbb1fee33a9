"""A child: locks itself, then prepares and runs scripts, one at a time, as its pool asks over the one socket it has.

It is forked from the template process, which has never seen a script. Its engine stops a run that is over its limits;
what the engine does not stop, the pool does, from outside. Import rule: nothing may be imported, or opened, behind the
locks.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import socket
from dataclasses import replace

from keep_isolation import locks
from keep_isolation.kernel import prctl
from keep_protocol.errors import KeepfleetError
from script_pool import frames
from script_pool.engine.interface import (
    Engine,
    Fault,
    HostCall,
    HostCallFailed,
    Limits,
    Reason,
    Result,
    Script,
    Suspended,
    World,
)
from script_pool.frames import Frame, Kind, Order

_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
_READ_AHEAD = 256 * 1024
OPEN_FILES = 64
"""It has four, and opens none."""
ROOM_BYTES = 512 * 1024 * 1024
"""What a child may map writable beyond what its template had and twice a guest's memory: prepared scripts, inputs and
outputs, and the engine's pool. It ends a child whose engine has failed to hold a limit, not one that works."""


def serve(engine: Engine, limits: Limits, descriptor: int, template: int) -> int:
    """Runs until the pool closes its end; the exit status. `template`: the process ID of this one's parent."""
    gc.enable()  # the template has switched it off; what was there at the fork is frozen
    with socket.socket(fileno=descriptor) as pool:
        try:
            lock(limits, template)
            engine.begin()
        except (KeepfleetError, OSError, ValueError) as error:
            pool.sendall(frames.encode(Frame(Kind.UNABLE, text=str(error).encode("utf-8", "replace")[:1000])))
            return 1
        pool.sendall(frames.encode(Frame(Kind.READY)))
        return _Scripts(engine, limits, pool).serve()


def lock(limits: Limits, template: int) -> None:
    """Gives up, permanently, what a runner of a keep does, as far as a process can by itself. Raises KeepfleetError and
    OSError."""
    prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != template:  # it has ended before that
        raise OSError(3, "cannot run scripts: the template process has ended")
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_DATA, _mapped_bytes() + 2 * limits.memory_bytes + ROOM_BYTES),
    ):
        _, hard = resource.getrlimit(limit)
        new = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (new, new))
    locks.lock_runner()


def _mapped_bytes() -> int:
    """What this process has mapped writable, and its stack (man 5 proc, statm)."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")


class _Scripts:
    """The scripts a child holds, by the pool's numbers for them, what is asked about them, and the one run that waits
    for host functions."""

    def __init__(self, engine: Engine, limits: Limits, pool: socket.socket) -> None:
        self._engine, self._limits, self._held = engine, limits, dict[int, Script]()
        self._run_limits, self._pool = limits, pool
        self._reader = pool.makefile("rb", _READ_AHEAD)
        self._suspended: Suspended | None = None
        self._memory: bytes | None = None
        self._plain_calls = 0

    def __repr__(self) -> str:
        return f"_Scripts({len(self._held)} held)"

    def serve(self) -> int:
        """Answers each frame in order, to the end of the stream."""
        while (frame := self._read()) is not None:
            answers = self._answer(frame)
            if answers:
                self._pool.sendall(b"".join(map(frames.encode, answers)))
                self._engine.settle()
        return 0

    def _read(self) -> Frame | None:
        head = self._reader.read(frames.HEAD.size)
        if len(head) < frames.HEAD.size:
            return None
        kind, text, body, number, seconds = frames.HEAD.unpack(head)
        return Frame(Kind(kind), number, self._reader.read(text), self._reader.read(body), seconds)

    def _answer(self, frame: Frame) -> list[Frame]:
        if frame.kind is Kind.SCRIPT:
            self._held[frame.number] = frames.script_of(frame)
        elif frame.kind is Kind.FORGET:
            self._held.pop(frame.number, None)
        elif frame.kind is Kind.MEMORY:
            self._memory = frame.body
        else:
            try:
                return self._do(frame)
            except Fault as fault:
                return [Frame(Kind.FAULT, frame.number, frames.fault_text(fault))]
            except MemoryError:
                full = Fault(Reason.MEMORY_LIMIT, message="the process that ran the script had no more memory")
                return [Frame(Kind.FAULT, frame.number, frames.fault_text(full))]
        return []

    def _do(self, frame: Frame) -> list[Frame]:
        if frame.kind is Kind.PREPARE:
            return [self._prepare(frame)]
        if frame.kind is Kind.RUN or frame.kind is Kind.RESUME:
            order = Order.decode(frame.text)
            script, world = self._held[order.script], self._world(order)
            limits = self._limits_for(frame.seconds)
            if frame.kind is Kind.RUN:
                host = self._host(frame.number) if script.functions else None
                outcome = self._engine.run(script, frame.body, limits, host, world)
            else:
                outcome = self._engine.resume(script, frame.body, order.answers.encode("ascii"), limits, world)
            return self._came_to(frame.number, outcome)
        suspended, self._suspended = self._suspended, None
        assert suspended is not None  # noqa: S101 - the pool answers and parks what waits alone
        if frame.kind is Kind.ANSWER:
            return self._came_to(frame.number, suspended.answer(frame.text))
        return [_bounded(Frame(Kind.PARKED, frame.number, body=suspended.park()), "as it waits, the run")]

    def _world(self, order: Order) -> World:
        memory, self._memory = self._memory, None
        modules = {name: self._held[number] for name, number in order.modules.items()}
        return World(modules, memory, order.keep, order.clock, order.zone.encode("ascii"))

    def _came_to(self, number: int, outcome: Result | Suspended) -> list[Frame]:
        if not isinstance(outcome, Result):
            self._suspended = outcome
            return [Frame(Kind.CALLS, number, body=outcome.calls, seconds=outcome.seconds)]
        ran = Frame(Kind.RAN, number, frames.console_text(outcome.console), outcome.output_text, outcome.seconds)
        if outcome.session is None:
            return [ran]
        return [_bounded(Frame(Kind.MEMORY, number, body=outcome.session), "the session"), ran]

    def _host(self, number: int) -> HostCall:
        """A host function as a plain call: it waits for the answer here."""

        def call(name: str, arguments: bytes) -> bytes:
            self._plain_calls += 1
            asked = b"[[%d,%b,%b]]" % (self._plain_calls, json.dumps(name).encode("ascii"), arguments)
            self._pool.sendall(frames.encode(Frame(Kind.CALLS, number, body=asked)))
            frame = self._read()
            if frame is None:  # the pool has gone: so does this process
                os._exit(0)
            ((_, done, value),) = json.loads(frame.text)
            if done:
                return json.dumps(value).encode("ascii")
            raise HostCallFailed(value["message"], value.get("refused", False))

        return call

    def _limits_for(self, seconds: float) -> Limits:
        if seconds != self._run_limits.wall_seconds:
            self._run_limits = replace(self._limits, wall_seconds=seconds)
        return self._run_limits

    def _prepare(self, frame: Frame) -> Frame:
        asked = frames.script_of(frame)
        source = asked.image.decode("utf-8", "surrogatepass")  # JSON can say half a surrogate pair
        limits = self._limits_for(frame.seconds)
        made = self._engine.prepare(asked.name, source, asked.language, limits, asked.functions)
        return _bounded(
            Frame(Kind.PREPARED, frame.number, frames.script_text(made), made.image), "compiled, the script"
        )


def _bounded(frame: Frame, what: str) -> Frame:
    if len(frame.body) > frames.MAX_IMAGE:
        raise Fault(Reason.MEMORY_LIMIT, message=f"{what} takes over {frames.MAX_IMAGE} bytes")
    return frame
