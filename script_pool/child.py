"""A child: locks itself, then prepares and runs scripts, one at a time, as its pool asks over the one socket it has.

It is forked from the template process, which has never seen a script. Its engine stops a run that is over its limits;
what the engine does not stop, the pool does, from outside. Import rule: nothing may be imported, or opened, behind the
locks.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
from dataclasses import replace

from keep_isolation import locks
from keep_isolation.kernel import prctl
from keep_protocol.errors import KeepfleetError
from script_pool import frames
from script_pool.engine.interface import Engine, Fault, Limits, Reason, Script
from script_pool.frames import Frame, Kind

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
        return _Scripts(engine, limits).serve(pool)


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
    """The scripts a child holds, by the pool's numbers for them, and what is asked about them."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._engine, self._limits, self._held = engine, limits, dict[int, Script]()
        self._run_limits = limits

    def __repr__(self) -> str:
        return f"_Scripts({len(self._held)} held)"

    def serve(self, pool: socket.socket) -> int:
        """Answers each frame in order, to the end of the stream."""
        reader = pool.makefile("rb", _READ_AHEAD)
        while len(head := reader.read(frames.HEAD.size)) == frames.HEAD.size:
            kind, text, body, number, seconds = frames.HEAD.unpack(head)
            frame = Frame(Kind(kind), number, reader.read(text), reader.read(body), seconds)
            answer = self._answer(frame)
            if answer is not None:
                pool.sendall(frames.encode(answer))
        return 0

    def _answer(self, frame: Frame) -> Frame | None:
        if frame.kind is Kind.SCRIPT:
            self._held[frame.number] = frames.script_of(frame)
            return None
        if frame.kind is Kind.FORGET:
            self._held.pop(frame.number, None)
            return None
        try:
            if frame.kind is Kind.RUN:
                return self._run(frame)
            return self._prepare(frame)
        except Fault as fault:
            return Frame(Kind.FAULT, frame.number, frames.fault_text(fault))
        except MemoryError:
            full = Fault(Reason.MEMORY_LIMIT, message="the process that ran the script had no more memory")
            return Frame(Kind.FAULT, frame.number, frames.fault_text(full))

    def _limits_for(self, seconds: float) -> Limits:
        if seconds != self._run_limits.wall_seconds:
            self._run_limits = replace(self._limits, wall_seconds=seconds)
        return self._run_limits

    def _run(self, frame: Frame) -> Frame:
        """`text` is the script's number, which the pool has sent before."""
        script = self._held[int.from_bytes(frame.text, "little")]
        result = self._engine.run(script, frame.body, self._limits_for(frame.seconds), None)
        console = frames.console_text(result.console)
        return Frame(Kind.RAN, frame.number, console, result.output_text, result.seconds)

    def _prepare(self, frame: Frame) -> Frame:
        asked = frames.script_of(frame)
        source = asked.image.decode("utf-8", "surrogatepass")  # JSON can say half a surrogate pair
        made = self._engine.prepare(asked.name, source, asked.language, self._limits_for(frame.seconds))
        if len(made.image) > frames.MAX_IMAGE:
            raise Fault(Reason.MEMORY_LIMIT, message=f"compiled, the script takes over {frames.MAX_IMAGE} bytes")
        return Frame(Kind.PREPARED, frame.number, frames.script_text(made.name, made.language, made.digest), made.image)
