"""Runs one command in a sandbox, in a cgroup of its own, and ends exactly as the command did.

Run as a bare file: `enter.py NAME PID USER DIRECTORY COMMAND…`; the environment is passed on as it is. The process
that stays outside forwards signals sent to it (not those of the terminal, which the command gets itself), stops
when the command stops, returns its exit status or dies of its signal; if it is killed, the command is killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import resource
import signal
import socket
import sys
from collections.abc import Callable

if not __package__:
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tools.sandbox import cgroups, linux

CANNOT_ENTER = 125
"""Exit status where the sandbox, not the command, is the reason (as in env, nohup and docker run)."""
CANNOT_RUN, NOT_FOUND = 126, 127
_SENT_BY_THE_KERNEL = 0x80
"""si_code of a signal from the terminal: it went to the whole foreground group, so the command has it already."""


def _become_user(user: str) -> None:
    """Takes on the ids and groups that `user`, a name or a number, has in the sandbox's own user data base."""
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        if not user.isdecimal():
            raise
        os.setgroups([])
        os.setgid(int(user))
        os.setuid(int(user))
        return
    os.initgroups(entry.pw_name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    for variable, value in (("HOME", entry.pw_dir), ("USER", entry.pw_name), ("LOGNAME", entry.pw_name)):
        os.environ.setdefault(variable, value)


def _execute(command: list[str]) -> int:
    """Becomes the command, looked up along PATH; returns an exit status where that fails.

    os.execvp would import a module here, where our own interpreter's files may be out of reach.
    """
    name, reason = command[0], os.strerror(errno.ENOENT)
    for directory in [""] if "/" in name else os.environ.get("PATH", os.defpath).split(":"):
        try:
            os.execv(os.path.join(directory, name), command)  # noqa: S606
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                reason = os.strerror(error.errno or 0)
    print(f"cannot run {name} in the sandbox: {reason}", file=sys.stderr, flush=True)
    return NOT_FOUND if reason == os.strerror(errno.ENOENT) else CANNOT_RUN


def _run(target: int, directories: list[str], user: str, directory: str, command: list[str]) -> int:
    """In the child: never returns when the command starts."""
    try:
        cgroups.enter(directories)
        linux.setns(target, linux.CLONE_NEWNS | linux.CLONE_NEWCGROUP | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC)
        os.chdir(directory if os.path.isdir(directory) else "/")
        _become_user(user)
        linux.die_with_parent(signal.SIGKILL)
    except (OSError, KeyError) as error:
        print(f"cannot run {command[0]} in the sandbox: {error}", file=sys.stderr, flush=True)
        return CANNOT_ENTER
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return _execute(command)


def _async(channel: socket.socket) -> None:
    """Has the kernel send SIGIO when something, or the end, arrives on `channel`: one wait then covers both worlds."""
    fcntl.fcntl(channel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(channel, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.kill(os.getpid(), signal.SIGIO)  # for what arrived before


def _receive(channel: socket.socket) -> bytes | None:
    """The next message; empty at the end, None where none is there."""
    try:
        return channel.recv(16)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""


def _watch(channel: socket.socket, child: int) -> None:
    """Inside: reports on `channel` that the command stopped or how it ended, and kills it when the other end goes."""
    _async(channel)
    while True:
        if signal.sigwaitinfo({signal.SIGCHLD, signal.SIGIO}).si_signo == signal.SIGIO:
            if _receive(channel) == b"":
                os.kill(child, signal.SIGKILL)
            continue
        pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if pid:
            with contextlib.suppress(BrokenPipeError):
                channel.send(str(status).encode())
            if not os.WIFSTOPPED(status):
                return


def _wait(channel: socket.socket, command: int) -> int:
    """Outside: forwards signals to the command (a pidfd) until it ends; returns its wait status.

    Stops when the terminal stopped the command (Ctrl-Z), so that the shell notices; not on SIGSTOP, which power-off
    sends to everybody.
    """
    _async(channel)
    while True:
        received = signal.sigwaitinfo(signal.valid_signals())
        if received.si_signo not in (signal.SIGIO, signal.SIGCHLD) and received.si_code != _SENT_BY_THE_KERNEL:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(command, received.si_signo)
        while (message := _receive(channel)) is not None:
            status = int(message or signal.SIGKILL)  # no message at the end: whoever watched it was killed with it
            if not os.WIFSTOPPED(status):
                return status
            if os.WSTOPSIG(status) != signal.SIGSTOP:
                os.kill(os.getpid(), signal.SIGSTOP)
                signal.pidfd_send_signal(command, signal.SIGCONT)


def _end_as(status: int) -> int:
    """The command's exit status; where a signal ended it, this process ends by the same one."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
    os.kill(os.getpid(), -code)
    return 128 - code


def _prepare(name: str, pid: int) -> tuple[int, list[str]]:
    """The pidfd of PID 1, and the cgroups made for the command. This process itself enters a cgroup of the sandbox.

    So `off` finds and ends it even where it is stopped. Raises OSError where the sandbox is not running.
    """
    target = os.pidfd_open(pid)
    if not cgroups.belongs(pid, name):
        raise ProcessLookupError(errno.ESRCH, "it is not running")
    roots = [hierarchy.of(name) for hierarchy in cgroups.hierarchies()]
    scopes = [f"{root}/exec-{os.getpid()}.scope" for root in roots]
    for directory in [f"{root}/{cgroups.OUTSIDE}" for root in roots] + scopes:
        cgroups.make(directory)
    cgroups.enter([f"{root}/{cgroups.OUTSIDE}" for root in roots])
    return target, scopes


def _start(inner: socket.socket, outer: socket.socket, run: Callable[[], int]) -> None:
    """In the first process of ours in the sandbox's PID namespace: starts the watcher and ends.

    So everything that stays is the sandbox's own PID 1's to reap. A process whose parent is outside would become a
    zombie there that systemd-shutdown waits for, where nobody outside reaps (some containers' PID 1).
    """
    outer.close()
    if os.fork():
        return
    child = os.fork()
    if child == 0:
        inner.close()
        os._exit(run())
    socket.send_fds(inner, [b"0"], [os.pidfd_open(child)])
    _watch(inner, child)


def main(arguments: list[str]) -> int:
    """The exit status for the process; 125 where the sandbox is not there or cannot be entered."""
    name, pid, user, directory, *command = arguments
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        target, scopes = _prepare(name, int(pid))
        linux.setns(target, linux.CLONE_NEWPID)
        outer, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
        if child == 0:
            _start(inner, outer, lambda: _run(target, scopes, user, directory, command))
            os._exit(0)
        inner.close()
        os.waitpid(child, 0)
        _, descriptors, _, _ = socket.recv_fds(outer, 1, 1)
    except OSError as error:
        print(f"cannot enter the sandbox {name}: {error.strerror}", file=sys.stderr)
        return CANNOT_ENTER
    status = _wait(outer, descriptors[0]) if descriptors else int(signal.SIGKILL)
    for scope in scopes:
        try:
            os.rmdir(scope)
        except OSError:  # the command left processes in it; power-off ends them
            continue
    return _end_as(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
