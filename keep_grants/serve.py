"""Answers requests: each in a process of its own, so that a file system that hangs holds up that request alone.

Import rule: that of keep_grants.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import ExitStack

from keep_grants.mounts import Maker, own_namespaces
from keep_grants.protocol import MAX_REQUEST, decode_request, encode_answer, encode_error
from keep_protocol.errors import ErrorKind, KeepfleetError

IDLE_SECONDS = 30.0
"""Starts come in bursts, and a start of the helper costs 80 ms; it has 5 MB meanwhile."""
WORK_SECONDS = 12.0
"""A request takes 2 ms; the manager gives up after 15 s, and nothing may go on behind its back."""
MAX_WORKERS = 3
"""The unit's TasksMax=8: this process, and for each request one that works and one that makes a namespace."""
MANAGER_UNIT, HELPER_UNIT = "keep-manager.service", "keepfleet-grants.service"

Check = Callable[[socket.socket], None]
Prepare = Callable[[], str]
"""Makes ready for mounts, in the process of one request: "", or why all is opened as it is."""


def say(text: str) -> None:
    """A line for the journal."""
    print(text, file=sys.stderr, flush=True)


def check_manager(connection: socket.socket) -> None:
    """Raises KeepfleetError(FORBIDDEN) unless root's manager is at the other end, as systemd runs it.

    The socket is root's alone; of other services that run as root, and are confined, none must have mounts made here.
    """
    pid, uid = _peer(connection)
    if uid != 0:
        raise _stranger(f"user {uid}")
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            unit = unit_of(file.read())
    except OSError:
        unit = ""
    if unit != MANAGER_UNIT:
        raise _stranger(f"process {pid} of {unit or 'no unit'}")


def check_same_user(connection: socket.socket) -> None:
    """Raises KeepfleetError(FORBIDDEN) unless the same user is at the other end."""
    _, uid = _peer(connection)
    if uid != os.getuid():
        raise _stranger(f"user {uid}")


def unit_of(text: str) -> str:
    """The system unit that a process with this /proc/PID/cgroup is in, "" for none and for a user's own unit. Pure."""
    for line in text.splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "name=systemd" or (number == "0" and not controllers and path != "/"):
            *above, last = path.split("/")
            return last if not any(part.endswith(".service") for part in above) else ""
    return ""


def _peer(connection: socket.socket) -> tuple[int, int]:
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid


def _stranger(who: str) -> KeepfleetError:
    return KeepfleetError(
        ErrorKind.FORBIDDEN,
        f"cannot grant directories or files: only {MANAGER_UNIT} may ask for them, and this is {who}",
    )


def prepared(blind: str, *, mapped: bool) -> str:
    """Raises KeepfleetError(CONFIGURATION) where this helper does not see the host's mounts, for the reason `blind`.

    In a user's own instance, where keeps are not mapped, the request's process gets namespaces of its own: made for
    each, since one made earlier need not show what was mounted meanwhile.
    """
    if blind:
        look = f"look for what gives {HELPER_UNIT} one, as PrivateMounts= or ProtectHome= in a drop-in: systemctl cat"
        raise KeepfleetError(
            ErrorKind.CONFIGURATION,
            f"cannot grant directories or files: cannot trust the grants helper: {blind}; {look}",
        )
    return "" if mapped else own_namespaces()


def answer(connection: socket.socket, check: Check, prepare: Prepare, *, mapped: bool) -> None:
    """Reads one request, makes what it asks for, whole or not at all, and answers.

    mapped: for keeps that are users of their own.
    """
    with ExitStack() as held:
        try:
            packet = connection.recv(MAX_REQUEST + 1)  # also a stranger's: what is unread at the end resets its answer
            check(connection)
            request = decode_request(packet)
            if mapped and request.keep is None:
                raise KeepfleetError(
                    ErrorKind.BAD_REQUEST, "cannot grant directories or files: the request names no keep's user"
                )
            with Maker(request.keep if mapped else None, prepare()) as maker:
                made = [maker.make(held, wanted) for wanted in request.directories]
                made += [maker.open(held, wanted) for wanted in request.files]
                made += [maker.volume(held, wanted) for wanted in request.volumes]
        except KeepfleetError as error:
            say(f"refused: {error.message}")
            connection.send(encode_error(error))
        else:
            packet = encode_answer(tuple(granted for _, granted in made))
            socket.send_fds(connection, [packet], [descriptor for descriptor, _ in made])


class Server:
    """Has `work` answer each connection in a forked process, until none has come for `idle_seconds`."""

    def __init__(
        self, listener: socket.socket, work: Callable[[socket.socket], None], idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._listener, self._work, self._idle_seconds = listener, work, idle_seconds
        self._workers: dict[int, int] = {}
        listener.setblocking(False)

    def __repr__(self) -> str:
        return f"Server({len(self._workers)} at work)"

    def run(self) -> None:
        """Serves until it was idle for long enough; what comes then starts the helper again."""
        while ready := self._ready():
            for descriptor in ready:
                if descriptor in self._workers:
                    self._collect(descriptor)
                else:
                    self._accept()

    def _ready(self) -> list[int]:
        """The listener while there is a free place, and the ended workers; empty after an idle time."""
        poll = select.poll()
        if len(self._workers) < MAX_WORKERS:
            poll.register(self._listener, select.POLLIN)
        for descriptor in self._workers:
            poll.register(descriptor, select.POLLIN)
        return [descriptor for descriptor, _ in poll.poll(None if self._workers else self._idle_seconds * 1000)]

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it has gone again
        with connection:
            try:
                worker = os.fork()
            except OSError as error:
                say(f"cannot serve a request: {error.strerror}")
                return
            if worker == 0:
                self._be_worker(connection)
            self._workers[os.pidfd_open(worker)] = worker

    def _be_worker(self, connection: socket.socket) -> None:
        """The forked process: it never returns, and has WORK_SECONDS before SIGALRM ends it."""
        status = 1
        try:
            signal.setitimer(signal.ITIMER_REAL, WORK_SECONDS)
            self._listener.close()
            connection.setblocking(True)
            self._work(connection)
            status = 0
        except OSError as error:
            say(f"cannot answer: {error}")  # the manager has given it up
        finally:
            os._exit(status)

    def _collect(self, descriptor: int) -> None:
        _, status = os.waitpid(self._workers.pop(descriptor), 0)
        os.close(descriptor)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            say(f"a request was ended by {name}: after {WORK_SECONDS:g} s it is SIGALRM, when a file system hangs")
