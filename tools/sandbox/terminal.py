"""A terminal for a command in a sandbox: a pseudo terminal of its own, whose other end is joined to ours.

The command is in a session of its own, and a terminal belongs to one session; so ours is put into raw mode and both
ways are copied, as ssh does. What the command's terminal means by Ctrl-C and Ctrl-Z happens in the sandbox.
"""

from __future__ import annotations

import fcntl
import os
import termios
import threading
import tty
from types import TracebackType

from tools.sandbox.client import in_the_foreground

_BYTES = 65536
_REST_SECONDS = 0.5
"""What the command wrote last is there in a millisecond; only a process that it left holding the terminal takes all."""


class Terminal:
    """A new terminal like ours. As a context manager it gives ours back at the end, as it was."""

    def __init__(self) -> None:
        self._ours = termios.tcgetattr(0)
        self._near, self._far = os.openpty()
        termios.tcsetattr(self._far, termios.TCSANOW, self._ours)
        self.resize()

    def __repr__(self) -> str:
        return f"Terminal({self._near})"

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._far < 0:
            self._output.join(_REST_SECONDS)
        self.give_back()

    def streams(self) -> list[int]:
        """The command's three streams: the new terminal in the place of ours, the others themselves."""
        return [self._far if os.isatty(number) else number for number in range(3)]

    def take(self) -> None:
        """Ours is the command's from now on, unless we are in the background; at first, copying begins."""
        if in_the_foreground():
            tty.setraw(0, termios.TCSADRAIN)  # what was typed already is for the command
        if self._far < 0:
            return
        os.close(self._far)
        self._far = -1
        self._output = threading.Thread(target=_copy, args=(self._near, 1), daemon=True)
        self._output.start()
        threading.Thread(target=_copy, args=(0, self._near), daemon=True).start()

    def give_back(self) -> None:
        """Ours is as it was."""
        if in_the_foreground():
            termios.tcsetattr(0, termios.TCSADRAIN, self._ours)

    def resize(self) -> None:
        """The new terminal is as large as ours."""
        fcntl.ioctl(self._near, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))


def _copy(source: int, target: int) -> None:
    """Until one of them ends: a pseudo terminal says EIO then."""
    try:
        while data := os.read(source, _BYTES):
            while data:
                data = data[os.write(target, data) :]
    except OSError:
        return
