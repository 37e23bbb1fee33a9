"""The process in a sandbox that starts every command there; PID 1's child, forked before systemd begins.

A connection to its socket is one command (see `channel`); when the caller's end closes first, the command is killed.

Import rule: the standard library's light part alone. All of it is imported before the first command, because the
interpreter's own files may be out of reach in the sandbox's root.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import sys
import termios

from tools.sandbox import cgroups, linux
from tools.sandbox.accounts import Account, find
from tools.sandbox.channel import PACKET, STREAMS, Request, asynchronous, from_file, receive, send
from tools.sandbox.client import CANNOT_ENTER

CANNOT_RUN, NOT_FOUND = 126, 127
_ALL = signal.valid_signals()
_CHANGED = [number for number in _ALL if signal.getsignal(number) not in (signal.SIG_DFL, None)]
"""What is not as a command should find it, of the interpreter's doing or our caller's.

Computed here, as is root's account below: in the two new processes of a command each page that is touched is copied,
and they are most of what a short command costs.
"""
_BACKLOG = 128
"""Callers that connect in the same moment; each is accepted within a millisecond."""


def start(path: str, directories: list[str]) -> None:
    """Forks the agent, in the cgroups `directories`, and returns once its socket at `path` accepts connections."""
    ready, listening = os.pipe()
    if os.fork() == 0:
        try:
            os.close(ready)
            _serve(path, directories, listening)
        finally:
            os._exit(1)
    os.close(listening)
    os.read(ready, 1)
    os.close(ready)


def _serve(path: str, directories: list[str], listening: int) -> None:
    """Never returns. One process a command keeps each command's faults and waits to itself."""
    for directory in directories:
        cgroups.make(directory)
    cgroups.enter(directories)
    os.setsid()
    os.umask(0o022)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that watch the commands are reaped by the kernel
    root = find("root")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(_BACKLOG)
        os.close(listening)
        while True:
            channel, _ = listener.accept()
            try:
                if os.fork() == 0:
                    listener.close()
                    os._exit(_handle(channel, root))
            except OSError as error:
                print(f"cannot start a command: {error}", file=sys.stderr, flush=True)
            channel.close()


def _handle(channel: socket.socket, root: Account) -> int:
    """In the process of one command: receives the request, starts the command and watches it to its end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    flags = socket.MSG_CMSG_CLOEXEC
    _, descriptors, _, _ = socket.recv_fds(channel, PACKET, STREAMS + 1, flags)
    if len(descriptors) <= STREAMS:
        return 1  # a caller that went away, or only asked who we are
    request = from_file(descriptors[STREAMS])
    for number in range(STREAMS):
        os.dup2(descriptors[number], number)
        os.close(descriptors[number])
    if request.terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    child = os.fork()
    if child == 0:
        os._exit(_run(request, root))
    with contextlib.suppress(OSError):  # both do it: whichever is first, the group is there before a signal is for it
        os.setpgid(child, child)
    for number in range(STREAMS):
        os.close(number)
    _watch(channel, child)
    return 0


def _watch(channel: socket.socket, child: int) -> None:
    """Reports on `channel` that the command stopped or how it ended; passes signals on; kills it at the channel's end.

    A signal number below zero is for the command's whole process group, as those of a terminal are.
    """
    asynchronous(channel)
    while True:
        if signal.sigwaitinfo({signal.SIGCHLD, signal.SIGIO}).si_signo == signal.SIGIO:
            while (packet := receive(channel)) is not None:
                number = int(packet or -signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child if number > 0 else -child, abs(number))
                if not packet:
                    fcntl.fcntl(channel, fcntl.F_SETFL, os.O_NONBLOCK)  # it would report its end again and again
                    break
            continue
        pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if pid:
            send(channel, status)
            if not os.WIFSTOPPED(status):
                return


def _run(request: Request, root: Account) -> int:
    """In the child: never returns when the command starts."""
    name = request.words[0]
    try:
        os.setpgid(0, 0)
        if request.terminal:
            os.tcsetpgrp(0, os.getpid())
        os.chdir(request.directory if os.path.isdir(request.directory) else "/")
        account = root if request.user == root.name else find(request.user)
        _become(account)
        linux.die_with_parent(signal.SIGKILL)
    except (OSError, LookupError) as error:
        print(f"cannot run {name} in the sandbox: {error}", file=sys.stderr, flush=True)
        return CANNOT_ENTER
    for number in _CHANGED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return _execute(request.words, {**account.environment(), **request.environment})


def _become(account: Account) -> None:
    os.setgroups(account.groups)
    os.setgid(account.gid)
    os.setuid(account.uid)


def _execute(command: list[str], environment: dict[str, str]) -> int:
    """Becomes the command, looked up along its PATH; returns an exit status where that fails.

    os.execvpe would import a module here, where our own interpreter's files may be out of reach.
    """
    name, reason = command[0], os.strerror(errno.ENOENT)
    for directory in [""] if "/" in name else environment.get("PATH", os.defpath).split(":"):
        try:
            os.execve(os.path.join(directory, name), command, environment)  # noqa: S606
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                reason = os.strerror(error.errno or 0)
    print(f"cannot run {name} in the sandbox: {reason}", file=sys.stderr, flush=True)
    return NOT_FOUND if reason == os.strerror(errno.ENOENT) else CANNOT_RUN
