"""What passes between a command's caller and the sandbox's agent, on a connection to the agent's socket.

First the caller sends one packet: a file that holds the `Request`, after the command's three standard streams, as
descriptors. Then signal numbers go to the agent and wait statuses come from it, a packet each.

Import rule: os, fcntl, signal and socket alone, for `client`, which starts for each command of a script.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Sequence

STATE = "/run/keepfleet-sandbox"
PACKET = 16
"""A signal number or a wait status as text is shorter."""
STREAMS = 3
ENVIRONMENT = {
    "PATH": "/opt/keepfleet/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
"""What every command inside starts with."""


def state_directory(name: str) -> str:
    """Where the state of the sandbox `name` is: its units, layout, socket, console and the number of its PID 1."""
    return f"{STATE}/{name}"


def socket_in(state: str) -> str:
    """The agent's socket in a sandbox's state directory."""
    return f"{state}/agent"


class Request:
    """One command: as which user and where, with which environment.

    `terminal` says that its standard input becomes its controlling terminal.
    """

    def __init__(
        self, words: Sequence[str], user: str, directory: str, environment: dict[str, str], terminal: bool = False
    ) -> None:
        self.words, self.user, self.directory = list(words), user, directory
        self.environment, self.terminal = environment, terminal

    def __repr__(self) -> str:
        return f"Request({self.words}, {self.user}, {self.directory})"

    def to_file(self) -> int:
        """A descriptor to send to the agent; of any length, unlike a packet. No text of a request can hold a NUL."""
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        fields = [self.user, self.directory, str(int(self.terminal)), str(len(self.words)), *self.words, *settings]
        descriptor = os.memfd_create("request", os.MFD_CLOEXEC)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(os.fsencode("\0".join(fields)))
        return descriptor


def from_file(descriptor: int) -> Request:
    """The request that `Request.to_file` wrote; closes the descriptor."""
    with open(descriptor, "rb") as file:
        file.seek(0)
        user, directory, terminal, count, *rest = os.fsdecode(file.read()).split("\0")
    words, settings = rest[: int(count)], rest[int(count) :]
    environment = dict(setting.partition("=")[::2] for setting in settings)
    return Request(words, user, directory, environment, terminal == "1")


def asynchronous(channel: socket.socket) -> None:
    """Has the kernel send SIGIO when something, or the end, arrives on `channel`: sigwaitinfo then waits for both."""
    fcntl.fcntl(channel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(channel, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.kill(os.getpid(), signal.SIGIO)  # for what arrived before


def receive(channel: socket.socket) -> bytes | None:
    """The next packet; empty at the end, None where none is there."""
    try:
        return channel.recv(PACKET)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""


def send(channel: socket.socket, number: int) -> None:
    """Sends a number to the other side, if it is still there."""
    try:
        channel.send(str(int(number)).encode())
    except (BrokenPipeError, ConnectionResetError):
        return
