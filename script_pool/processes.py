"""The pool's side of its processes: the template, which forks, and the children, each by a socket and a process
descriptor. What they say is passed on as calls; nothing is decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Protocol

from keep_protocol.errors import ErrorKind, KeepfleetError
from script_pool import frames
from script_pool.engine.interface import Limits
from script_pool.frames import Frame, FrameError
from script_pool.template import MAX_MESSAGE

_READ = 64 * 1024
"""Read in one call: for a larger buffer, the allocator would map memory and unmap it again each time."""
WARM_SECONDS = 120.0
"""From the template's start to its engine being loaded: 0.2 s where compiled code is there, some seconds where it has
to be compiled first, on a host twenty times busier."""
_START = "import json,sys;sys.path[:]=json.loads(sys.argv.pop());from script_pool.template import main;main()"
"""The template finds its modules where the pool has found them."""


class Events(Protocol):
    """What the processes report. A child is named by the number it was asked for with."""

    def said(self, number: int, frame: Frame) -> None:
        """A child has sent a frame."""

    def broken(self, number: int, why: str) -> None:
        """A child has sent what is no frame, which `why` says, or has closed its socket: it is killed, and `ended`
        follows."""

    def ended(self, number: int, how: str) -> None:
        """A child's process has ended, or could not be forked. Nothing of it follows."""

    def template_ended(self) -> None:
        """The template process has ended, and with it every child; `ended` has been called for each."""


class ChildProcess:
    """One child: what waits to be sent to it, and its process."""

    def __init__(self, number: int, channel: socket.socket, events: Events, output_bytes: int) -> None:
        self.number, self.process, self.pid = number, -1, -1
        self._channel, self._events = channel, events
        self._frames = frames.Frames(max(output_bytes, frames.MAX_IMAGE))
        self._unsent = bytearray()
        self._killed = False
        self._loop = asyncio.get_running_loop()
        channel.setblocking(False)

    def __repr__(self) -> str:
        return f"ChildProcess({self.number}, process {self.pid})"

    def send(self, *sent: Frame) -> None:
        """Sends the frames, now or as the child reads them."""
        data: bytes | memoryview = b"".join([frames.encode(frame) for frame in sent])
        if self._channel.fileno() < 0:
            return
        if not self._unsent:
            try:
                data = memoryview(data)[self._channel.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # it has ended, which its reader finds
        if data:
            self._unsent += data
            self._loop.add_writer(self._channel, self._writable)

    def close(self) -> None:
        """No more requests: a child that runs nothing ends."""
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel)
            self._loop.remove_writer(self._channel)
            self._channel.close()

    def kill(self) -> None:
        """SIGKILL, also where the process is not known yet."""
        self._killed = True
        if self.process >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.process, signal.SIGKILL)

    def forked(self, pid: int, process: int) -> None:
        """Its process is known by now, and what it says is read from here on: a child that could run before it could
        be killed would be one too many."""
        self.pid, self.process = pid, process
        if self._killed:
            self.kill()
        if self._channel.fileno() >= 0:
            self._loop.add_reader(self._channel, self._readable)

    def dispose(self) -> None:
        """Lets go of everything; its process has ended."""
        self.close()
        if self.process >= 0:
            os.close(self.process)
            self.process = -1

    def _readable(self) -> None:
        try:
            try:
                data = self._channel.recv(_READ)
            except ConnectionResetError:  # it has ended with something unread; what it has sent comes behind that
                data = self._channel.recv(_READ)
            found = self._frames.feed(data)
        except BlockingIOError:
            return
        except FrameError as error:
            self._break(str(error))
            return
        for frame in found:
            self._events.said(self.number, frame)
        if not data:
            self._break("")

    def _break(self, why: str) -> None:
        self.close()
        self.kill()
        self._events.broken(self.number, why)

    def _writable(self) -> None:
        try:
            del self._unsent[: self._channel.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()
        if not self._unsent:
            self._loop.remove_writer(self._channel)


class Processes:
    """The template process and its children."""

    def __init__(self, engine: str, limits: Limits, events: Events, cache: str | None = None) -> None:
        self._engine, self._limits, self._events, self._cache = engine, limits, events, cache
        self._children: dict[int, ChildProcess] = {}
        self._numbers: dict[int, int] = {}
        self._control: socket.socket | None = None
        self._program: subprocess.Popen[bytes] | None = None
        self._warm: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"Processes({len(self._children)} children)"

    async def start(self) -> None:
        """Starts the template process, and returns when its engine is loaded. Raises KeepfleetError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control, self._warm = ours, asyncio.get_running_loop().create_future()
        with theirs:
            limits, here = frames.limits_text(self._limits), str(os.getpid())
            arguments = [str(theirs.fileno()), self._engine, limits, here, self._cache or "", json.dumps(sys.path)]
            self._program = subprocess.Popen(  # noqa: ASYNC220 - a fork and an exec; what takes long is awaited below
                [sys.executable, "-c", _START, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # ours may be the protocol's
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # the terminal's Ctrl-C is for us
            )
        ours.setblocking(False)
        asyncio.get_running_loop().add_reader(ours, self._reported)
        try:
            async with asyncio.timeout(WARM_SECONDS):
                await self._warm
        except TimeoutError:
            self._program.kill()
            raise _cannot_start(f"its engine was not loaded within {WARM_SECONDS:.0f} s") from None

    def fork(self, number: int) -> ChildProcess:
        """One more child; it says READY, or `ended` is called."""
        ours, theirs = socket.socketpair()
        with theirs:
            made = self._children[number] = self._made(number, ours)
            message = json.dumps({"fork": number}).encode("ascii")
            try:
                if self._control is None:
                    raise BrokenPipeError
                socket.send_fds(self._control, [message], [theirs.fileno()])
            except OSError:
                asyncio.get_running_loop().call_soon(self._ended, number, "there is no template process to fork it")
        return made

    def _made(self, number: int, channel: socket.socket) -> ChildProcess:
        return ChildProcess(number, channel, self._events, self._limits.output_bytes)

    async def stop(self) -> None:
        """Kills what is left, and returns when nothing is."""
        for child in self._children.values():
            child.kill()
        self._close_control()
        program = self._program
        if program is not None:  # it reads the end of its control socket, kills its children, and ends
            await asyncio.get_running_loop().run_in_executor(None, program.wait)
        for number in list(self._children):
            self._ended(number, "the pool has ended")

    def _close_control(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None

    def _reported(self) -> None:
        assert self._control is not None  # noqa: S101 - its reader is removed before
        received = receive(self._control)
        if received is None:
            return
        data, descriptors = received
        if not data:
            self._template_ended()
            return
        message = json.loads(data)  # the template is ours, and no script has ever been in it
        if "warm" in message:
            self._is_warm()
        elif "forked" in message:
            self._forked(message["forked"], message["pid"], descriptors)
        elif "exited" in message:
            number = self._numbers.pop(message["exited"], None)
            if number is not None:
                self._ended(number, how(message["status"]))
        else:
            self._ended(message["unable"], f"it cannot be forked: {message['why']}")

    def _is_warm(self) -> None:
        if self._warm is not None and not self._warm.done():
            self._warm.set_result(None)

    def _forked(self, number: int, pid: int, descriptors: list[int]) -> None:
        self._numbers[pid] = number
        if number in self._children:
            self._children[number].forked(pid, descriptors.pop())
        for descriptor in descriptors:  # asked for of a template before this one: it reads its end, and ends
            os.close(descriptor)

    def _template_ended(self) -> None:
        self._close_control()
        status = self._program.wait() if self._program is not None else 0  # it closes its end as it ends
        if self._warm is not None and not self._warm.done():
            self._warm.set_exception(_cannot_start(f"the template process has ended: {how(status)}"))
            return
        self._numbers.clear()
        for number, child in list(self._children.items()):
            child.kill()
            self._ended(number, "it was killed with the template process")
        self._events.template_ended()

    def _ended(self, number: int, how: str) -> None:
        child = self._children.pop(number, None)
        if child is not None:
            child.dispose()
            self._events.ended(number, how)


def receive(control: socket.socket) -> tuple[bytes, list[int]] | None:
    """The next message and its descriptors, nothing at the end, None where there is none yet.

    What a peer that has ended left unread is said first, once, and what it has sent comes behind that.
    """
    for _ in range(2):
        try:
            data, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, 1)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            continue
        return data, descriptors
    return b"", []


def _cannot_start(why: str) -> KeepfleetError:
    return KeepfleetError(
        ErrorKind.UNAVAILABLE, f"cannot start the script pool: {why}; standard error says more of the engine"
    )


def how(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
