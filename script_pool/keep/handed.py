"""The pool's side of a template process that it has not started: the keep's runner, over the socket between them.

What may send no signal asks the template to: a process that is locked as an endpoint is can end nothing itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket

from script_pool.engine.interface import Limits
from script_pool.processes import ChildProcess, Events, Processes, how
from script_pool.template import MAX_MESSAGE


class HandedProcesses(Processes):
    """The children of a template that has said it is warm. Where the loader has had to fork another one, that says so
    on the same socket, and every child before it has ended."""

    def __init__(self, control: socket.socket, limits: Limits, events: Events) -> None:
        super().__init__("", limits, events)
        self._given = control

    async def start(self) -> None:
        """Returns immediately: what is asked of a template that has ended is read by the next."""
        if self._control is None:
            self._given.setblocking(False)
            self._control = self._given
            asyncio.get_running_loop().add_reader(self._control, self._reported)

    def _made(self, number: int, channel: socket.socket) -> ChildProcess:
        return _Child(number, channel, self._events, self._limits.output_bytes, self._given)

    def _reported(self) -> None:
        assert self._control is not None  # noqa: S101 - its reader is removed before
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            self._close_control()
            return  # the keep ends
        message = json.loads(data)  # the template is ours, and no script has ever been in it
        if "warm" in message:
            self._numbers.clear()
            for number in list(self._children):
                self._ended(number, "it was killed with the template process")
            self._events.template_ended()
        elif "forked" in message:
            self._forked(message["forked"], message["pid"], descriptors)
        elif "exited" in message:
            self._exited(message["exited"], message["status"])
        else:
            self._ended(message["unable"], f"it cannot be forked: {message['why']}")

    def _forked(self, number: int, pid: int, descriptors: list[int]) -> None:
        self._numbers[pid] = number
        if number in self._children:
            self._children[number].forked(pid, descriptors.pop())
        for descriptor in descriptors:  # asked for of a template before this one: it reads its end, and ends
            os.close(descriptor)

    def _exited(self, pid: int, status: int) -> None:
        number = self._numbers.pop(pid, None)
        if number is not None:
            self._ended(number, how(status))


class _Child(ChildProcess):
    """A child that the template ends when it is asked to."""

    def __init__(
        self, number: int, channel: socket.socket, events: Events, output_bytes: int, control: socket.socket
    ) -> None:
        super().__init__(number, channel, events, output_bytes)
        self._control = control

    def kill(self) -> None:
        """As every child's; the message is a few bytes, and the template does nothing but read them."""
        self._killed = True
        if self.process >= 0:
            try:
                self._control.send(json.dumps({"kill": self.pid}).encode("ascii"))
            except OSError:
                return  # the template has gone, and its children with it


def first_words(control: socket.socket, seconds: float) -> dict[str, object]:
    """The pool's options, which the template says when it is warm. Raises OSError, TimeoutError."""
    control.settimeout(seconds)
    message = json.loads(control.recv(MAX_MESSAGE) or b"{}")
    control.settimeout(None)
    if "warm" not in message:
        raise ConnectionResetError("the template process has ended")
    options: dict[str, object] = message["options"]
    return options
