"""The pool's side of a template process that it has not started: the keep's runner, over the socket between them.

What may send no signal asks the template to: a process that is locked as an endpoint is can end nothing itself.
"""

from __future__ import annotations

import asyncio
import json
import socket

from script_pool.engine.interface import Limits
from script_pool.processes import ChildProcess, Events, Processes
from script_pool.template import MAX_MESSAGE


class PassedProcesses(Processes):
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

    def _template_ended(self) -> None:
        self._close_control()  # the keep ends

    def _is_warm(self) -> None:
        self._numbers.clear()
        for number in list(self._children):
            self._ended(number, "it was killed with the template process")
        self._events.template_ended()


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
