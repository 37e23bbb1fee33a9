"""Runs one command in a sandbox, and ends exactly as the command did.

Run as a bare file: `client.py NAME USER DIRECTORY COMMAND…`. The command's environment is the sandbox's own and what
describes our terminal. Signals sent to this process are forwarded; it stops when the command stops, returns its exit
status or dies of its signal; if it is killed, the command is killed. In the foreground of a terminal the command gets
a terminal of its own (see `terminal`), elsewhere our streams themselves.

Import rule: the standard library's light part alone, because each command of a script waits for this file's start.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

if not __package__:
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tools.sandbox.channel import ENVIRONMENT, Request, asynchronous, receive, send
from tools.sandbox.command import ask
from tools.sandbox.errors import SandboxError

TYPE_CHECKING = False  # that of `typing`, whose import takes long
if TYPE_CHECKING:
    from tools.sandbox.terminal import Terminal

CANNOT_ENTER = 125
"""Exit status where the sandbox, not the command, is the reason (as in env, nohup and docker run)."""
_OURS = ("TERM", "COLORTERM", "NO_COLOR")
_SENT_BY_THE_KERNEL = 0x80
"""si_code of a signal from the terminal: it went to our whole foreground group, so the command's group gets it."""


def in_the_foreground() -> bool:
    """Whether we read from and write to a terminal, and it is ours to use."""
    try:
        return os.isatty(0) and os.isatty(1) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # a terminal, but that of another session
        return False


def _wait(channel: socket.socket, terminal: Terminal | None) -> int:
    """Forwards signals to the command until it ends; returns its wait status.

    Stops when the terminal stopped the command (Ctrl-Z), so that the shell notices; not on SIGSTOP, which power-off
    sends to everybody.
    """
    asynchronous(channel)
    while True:
        received = signal.sigwaitinfo(signal.valid_signals())
        number = received.si_signo
        if number == signal.SIGWINCH and terminal:
            terminal.resize()
        elif number not in (signal.SIGIO, signal.SIGCHLD):
            send(channel, -number if received.si_code == _SENT_BY_THE_KERNEL else number)
        while (packet := receive(channel)) is not None:
            status = int(packet or signal.SIGKILL)  # at the end without a word: killed with the sandbox
            if not os.WIFSTOPPED(status):
                return status
            if os.WSTOPSIG(status) != signal.SIGSTOP:
                _stop(terminal)
                send(channel, -signal.SIGCONT)


def _stop(terminal: Terminal | None) -> None:
    """Returns when this process is continued."""
    if terminal:
        terminal.give_back()
    os.kill(os.getpid(), signal.SIGSTOP)
    if terminal:
        terminal.take()


def _end_as(status: int) -> int:
    """The command's exit status; where a signal ended it, this process ends by the same one."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    import resource  # rarely needed

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
    os.kill(os.getpid(), -code)
    return 128 - code


def run(name: str, request: Request) -> int:
    """The exit status for this process, which must have one thread; 125 where the sandbox is not there."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        if not in_the_foreground():
            status = _wait(ask(name, request, (0, 1, 2)), None)
        else:
            from tools.sandbox.terminal import Terminal  # what only people need

            with Terminal() as terminal:
                request.terminal = True
                channel = ask(name, request, terminal.streams())
                terminal.take()
                status = _wait(channel, terminal)
    except (SandboxError, OSError) as error:
        print(error, file=sys.stderr)
        return CANNOT_ENTER
    return _end_as(status)


def environment() -> dict[str, str]:
    """What a command asked for on the command line starts with."""
    return {**ENVIRONMENT, **{name: os.environ[name] for name in _OURS if name in os.environ}}


def main(arguments: list[str]) -> int:
    """The exit status; see `run`."""
    name, user, directory, *words = arguments
    return run(name, Request(words, user, directory, environment()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
