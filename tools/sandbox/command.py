"""A command in a sandbox, seen from outside: asked of the sandbox's agent by this process itself.

Import rule: the standard library's light part alone, for `client`; what only tests use is imported where it is used.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Sequence
from io import TextIOWrapper
from types import TracebackType

from tools.sandbox.channel import PACKET, Request, send, socket_in, state_directory
from tools.sandbox.errors import SandboxError

_PIPE, _STDOUT, _DEVNULL = -1, -2, -3
"""The constants of subprocess, which takes long to import."""
_PIPE_BYTES = 65536
"""What a pipe holds."""


def connect(name: str) -> socket.socket:
    """A connection to the agent of the sandbox `name`. Raises SandboxError where it is not running."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        channel.connect(socket_in(state_directory(name)))
    except OSError as error:
        channel.close()
        raise SandboxError(f"cannot run anything in the sandbox {name}: it is not running; boot it first") from error
    return channel


def agent_pid(name: str) -> int | None:
    """The agent's number as this process sees it; None where it is not running."""
    try:
        with connect(name) as channel:
            import struct

            size = struct.calcsize("3i")
            pid: int = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
            return pid
    except SandboxError:
        return None


def ask(name: str, request: Request, streams: Sequence[int]) -> socket.socket:
    """Has the agent start the command with those three standard streams; the channel that it reports on."""
    channel, file = connect(name), request.to_file()
    try:
        socket.send_fds(channel, [b"run"], [*streams, file])
    except OSError:
        channel.close()
        raise
    finally:
        os.close(file)
    return channel


class Streams:
    """A command's three standard streams, each a descriptor of ours, or what subprocess.PIPE, STDOUT or DEVNULL mean.

    `theirs` are to be sent; those made for it are closed at the end of the context, and after an error `ours`, our
    ends of the pipes, too.
    """

    def __init__(self, stdin: int, stdout: int, stderr: int) -> None:
        self.theirs: list[int] = []
        self.ours: list[TextIOWrapper | None] = []
        self._made: list[int] = []
        for number, wanted in enumerate((stdin, stdout, stderr)):
            self._add(number, wanted)

    def _add(self, number: int, wanted: int) -> None:
        pipe: TextIOWrapper | None = None
        if wanted == _PIPE:
            ends = os.pipe()
            pipe = os.fdopen(ends[0] if number else ends[1], "r" if number else "w", encoding="utf-8")
            wanted = ends[1] if number else ends[0]
            self._made.append(wanted)
        elif wanted == _DEVNULL:
            wanted = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            self._made.append(wanted)
        elif wanted == _STDOUT:
            wanted = self.theirs[1]
        self.theirs.append(wanted)
        self.ours.append(pipe)

    def __repr__(self) -> str:
        return f"Streams({self.theirs})"

    def __enter__(self) -> Streams:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._made:
            os.close(descriptor)
        for pipe in filter(None, self.ours if kind else []):
            pipe.close()


class Command:
    """A command that was started: like a subprocess.Popen, but no process of ours stands for it.

    It is killed when this object is closed, or the process that holds it ends. `stdin`, `stdout` and `stderr` are our
    ends of the pipes that were asked for.
    """

    def __init__(self, channel: socket.socket, words: Sequence[str], pipes: Sequence[TextIOWrapper | None]) -> None:
        self._channel, self.args = channel, list(words)
        self.stdin, self.stdout, self.stderr = pipes
        self.returncode: int | None = None
        """The exit status, or the number of the signal that ended it, below zero; None before its end was seen."""

    def __repr__(self) -> str:
        return f"Command({self.args}, {'running' if self.returncode is None else self.returncode})"

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        for pipe in filter(None, (self.stdin, self.stdout, self.stderr)):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            self.wait()
        finally:
            self._channel.close()

    def send_signal(self, number: int) -> None:
        """To the command alone, not to what it started."""
        send(self._channel, number)

    def kill(self) -> None:
        """SIGKILL to the command and to what is left of its process group."""
        self.send_signal(-signal.SIGKILL)

    def poll(self) -> int | None:
        """`returncode`, without waiting."""
        with contextlib.suppress(TimeoutError):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the command's end and returns `returncode`. Raises TimeoutError after `timeout` seconds."""
        while self.returncode is None:
            if not select.select([self._channel], [], [], timeout)[0]:
                raise TimeoutError(f"{self.args[0]} runs on after {timeout} s")
            try:
                packet = self._channel.recv(PACKET)
            except ConnectionResetError:
                packet = b""
            status = int(packet or signal.SIGKILL)  # at the end without a word: killed with the sandbox
            if not os.WIFSTOPPED(status):
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        """Sends `input`, reads both outputs to their ends and waits; as subprocess.Popen's. Raises TimeoutError."""
        import selectors
        import time

        deadline = None if timeout is None else time.monotonic() + timeout
        left = memoryview((input or "").encode())
        read: dict[int, list[bytes]] = {}
        with selectors.DefaultSelector() as selector:
            if self.stdin is not None:
                os.set_blocking(self.stdin.fileno(), False)
                selector.register(self.stdin, selectors.EVENT_WRITE)
            for pipe in filter(None, (self.stdout, self.stderr)):
                read[pipe.fileno()] = []
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                seconds = None if deadline is None else deadline - time.monotonic()
                if seconds is not None and seconds <= 0:
                    raise TimeoutError(f"{self.args[0]} runs on after {timeout} s")
                for key, _ in selector.select(seconds):
                    if key.fileobj is self.stdin:
                        left = self._feed(key.fd, left)
                        if not left:
                            selector.unregister(self.stdin)
                            self.stdin.close()
                    elif data := os.read(key.fd, _PIPE_BYTES):
                        read[key.fd].append(data)
                    else:
                        selector.unregister(key.fileobj)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        out, err = (_text(read[pipe.fileno()]) if pipe is not None else "" for pipe in (self.stdout, self.stderr))
        return out, err

    @staticmethod
    def _feed(descriptor: int, left: memoryview) -> memoryview:
        try:
            return left[os.write(descriptor, left[:_PIPE_BYTES]) :] if left else left
        except BrokenPipeError:
            return left[len(left) :]


def _text(parts: list[bytes]) -> str:
    """As a file opened for text reads it."""
    return b"".join(parts).decode().replace("\r\n", "\n").replace("\r", "\n")
