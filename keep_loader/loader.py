"""Wires one keep together: the control socket's commands, the app-loader's life, systemd's messages, one poll loop.

Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable

from keep_loader.control import Connection, ControlServer
from keep_loader.fdstore import DescriptorStore
from keep_loader.keep import Keep
from keep_loader.log import log, plain
from keep_loader.loop import READABLE, Loop
from keep_loader.record import RECORD, RecordFile, Resumption, resume_from
from keep_loader.restart import RESTART_STATUS
from keep_loader.settings import Settings
from keep_protocol.constants import MAX_CERTIFICATE_NAMES, MAX_CONTROL_CONNECTIONS
from keep_protocol.control import Command, CommandType
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Outcome, OutcomeKind
from keep_protocol.sdnotify import Notifier, take_stored
from keep_protocol.states import Event, Phase, State, advance

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy's name for itself; the module `typing` would be 3.5 ms of every keep's start
    from keep_loader.supervisor import Supervisor

MAX_WAITERS = MAX_CONTROL_CONNECTIONS - 2
"""Peers waiting for a change; two connections always stay for commands."""
MAX_BY = 80
"""Characters of who asked for a stop."""
STATUS_SECONDS = 0.2
"""At most five status lines a second: a hostile app-loader must not keep systemd busy."""
_STATUS, _CHANGED, _WATCHDOG = "status", "changed", "watchdog"
_NAMES = re.compile(r"[A-Za-z0-9.:-]{1,253}(,[A-Za-z0-9.:-]{1,253})*")


class Loader:
    """One keep's loader, from its boot to SIGTERM; a context manager that owns everything it opens.

    `probe` is the isolation check; while it reports a failure, START is refused.
    """

    def __init__(self, settings: Settings, probe: Callable[[str], tuple[str, ...]]) -> None:
        self._settings = settings
        self._loop = Loop()
        self._notifier = Notifier()
        stored = take_stored()
        self._record = RecordFile(settings.directory, self._notifier, stored.pop(RECORD, None))
        self._store = DescriptorStore(self._notifier, stored)
        self._keep = Keep(settings.kuuid, settings.limits, probe(settings.directory), self._record, self._changed)
        self._supervisor: Supervisor | None = None
        self._leaving = False
        self._address, self._port, self._names = "", 0, ""
        self._status = ""
        self._starting: Connection | None = None
        self._stopping: list[Connection] = []
        self._waiting: list[tuple[State | Phase, Connection]] = []
        self._commands: dict[CommandType, Callable[[str, list[int], Connection], None]] = {
            CommandType.ADDR: self._set_address,
            CommandType.PORT: self._set_port,
            CommandType.NAMES: self._set_names,
            CommandType.DESCRIBE: self._describe,
            CommandType.START: self._start,
            CommandType.INFO: self._info,
            CommandType.STOP: self._stop,
            CommandType.WAIT: self._wait,
            CommandType.DROPPED: self._dropped,
        }

    def __repr__(self) -> str:
        return f"Loader({self._keep!r})"

    def __enter__(self) -> Loader:
        """Opens the control socket, goes on where a loader before us was killed, and tells systemd READY."""
        self._wake, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._loop.watch(self._wake, READABLE, self._woken)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        self._control = ControlServer(self._loop, self._settings.socket_path, self._obey)
        self._boot()
        self._status = self._keep.status
        self._notify("READY=1", f"STATUS={self._status}")
        if self._settings.watchdog_seconds:
            self._alive()
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        signal.set_wakeup_fd(-1)
        os.close(self._wake)
        os.close(self._wake_writer)

    def run(self) -> None:
        """Serves until `leave` was called and no process of ours is left, or until systemd is to start us again."""
        self._loop.run()

    @property
    def exit_status(self) -> int:
        """What to exit with: 0, or RESTART_STATUS where the workload is to be run again."""
        again = self._keep.phase is Phase.RESTARTING and not self._leaving
        return RESTART_STATUS if again else 0

    def leave(self) -> None:
        """Ends the loader; safe to be called by a signal's handler."""
        self._leaving = True
        if self._supervisor is not None:
            self._supervisor.leaving = True

    def _supervise(self) -> Supervisor:
        """The supervisor, made with the first start: an idle keep does without what watches processes, 0.2 MB."""
        if self._supervisor is None:
            from keep_loader.supervisor import Supervisor

            self._supervisor = Supervisor(self._keep, self._loop, self._store, self._settings)
        return self._supervisor

    def _woken(self, _events: int) -> None:
        """A signal has come, and its handler has run."""
        os.read(self._wake, 512)
        if self._leaving:
            self._notify("STOPPING=1")
            if self._supervisor is not None:
                self._supervisor.leave()
            self._changed()

    def _boot(self) -> None:
        keep, now = self._keep, round(time.time(), 3)
        try:
            saved = self._record.read()
            resumption = resume_from(saved, self._store.names, now)
        except KeepfleetError as error:
            saved = None
            lost = Outcome(OutcomeKind.LOST, plain(error.message, 400), ended_at=now)
            resumption = Resumption(Event.FAIL, outcome=lost)
        if saved is not None:
            keep.restore(saved)
        if resumption.event is Event.RESUME:
            self._supervise().resume()
            return
        if resumption.event is Event.RERUN and resumption.outcome is not None:
            self._supervise().run_again(resumption.outcome)
            return
        self._store.drop_all()
        keep.move(resumption.event, resumption.why, resumption.outcome)

    def _obey(self, command: Command, descriptors: list[int], connection: Connection) -> None:
        self._commands[command.type](command.contents, descriptors, connection)

    def _must_be_idle(self) -> None:
        if self._keep.phase is not Phase.IDLE:
            raise KeepfleetError(
                ErrorKind.CONFLICT,
                f"cannot set the door of a keep that is {self._keep.phase.value}: it has been started",
            )

    def _set_address(self, contents: str, _descriptors: list[int], connection: Connection) -> None:
        self._must_be_idle()
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                self._address = socket.inet_ntop(family, socket.inet_pton(family, contents))
            except (OSError, ValueError):
                continue
            connection.reply(self._keep.info)
            return
        raise _bad(f"cannot listen on {plain(contents, 60)!r}: it must be an IPv4 or IPv6 address")

    def _set_port(self, contents: str, _descriptors: list[int], connection: Connection) -> None:
        self._must_be_idle()
        if not re.fullmatch(r"[1-9][0-9]{0,4}", contents, re.ASCII) or int(contents) > 65535:
            raise _bad(f"cannot listen on port {plain(contents, 20)!r}: it must lie in 1 … 65535")
        self._port = int(contents)
        connection.reply(self._keep.info)

    def _set_names(self, contents: str, _descriptors: list[int], connection: Connection) -> None:
        self._must_be_idle()
        if contents and (not _NAMES.fullmatch(contents) or contents.count(",") >= MAX_CERTIFICATE_NAMES):
            raise _bad(f"cannot certify these names: at most {MAX_CERTIFICATE_NAMES}, comma-separated, may be given")
        self._names = contents
        connection.reply(self._keep.info)

    def _describe(self, contents: str, _descriptors: list[int], connection: Connection) -> None:
        from keep_loader.description import read_description  # 60 KB that a keep without a name never needs

        self._must_be_idle()
        described = read_description(contents)
        self._keep.describe(described.name, described.labels, described.owner)
        connection.reply(self._keep.info)

    def _start(self, _contents: str, descriptors: list[int], connection: Connection) -> None:
        from keep_loader.start import check_start  # with the first start: an idle keep does not pay for it

        advance(self._keep.phase, Event.START)
        if self._starting is not None:
            raise KeepfleetError(ErrorKind.CONFLICT, "cannot start a keep while another start is being answered")
        if self._keep.isolation_failures:
            raise KeepfleetError(
                ErrorKind.ISOLATION_FAILURE,
                "cannot take a workload: the isolation check failed; compare its unit with the one installed",
                self._keep.isolation_failures,
            )
        start = check_start(descriptors)
        if self._port not in (0, start.port):
            raise _bad(f"cannot listen on port {self._port}: the socket that was handed over is bound to {start.port}")
        self._keep.set_door(self._address or start.address, start.port, self._names)
        self._keep.set_workload(start.granted, start.policy)
        self._address, self._port, self._names = "", 0, ""
        self._starting = connection
        self._supervise().open(descriptors)

    def _info(self, _contents: str, _descriptors: list[int], connection: Connection) -> None:
        connection.reply(self._keep.info)

    def _stop(self, contents: str, _descriptors: list[int], connection: Connection) -> None:
        advance(self._keep.phase, Event.STOP)
        self._supervise().stop(plain(contents, MAX_BY) or "the manager")
        self._stopping.append(connection)

    def _wait(self, contents: str, _descriptors: list[int], connection: Connection) -> None:
        stands = {str(int(state)): state for state in State} | {phase.value: phase for phase in Phase}
        if contents not in stands:
            raise _bad(f"cannot wait for a change from {plain(contents, 20)!r}: it is no state's number and no phase")
        self._waiting = [(stand, peer) for stand, peer in self._waiting if not peer.closed]
        if not self._is(stands[contents]):
            connection.reply(self._keep.info)
        elif len(self._waiting) >= MAX_WAITERS:
            raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot wait: {MAX_WAITERS} peers wait for this keep already")
        else:
            self._waiting.append((stands[contents], connection))

    def _is(self, stand: State | Phase) -> bool:
        return stand is (self._keep.state if isinstance(stand, State) else self._keep.phase)

    def _dropped(self, contents: str, _descriptors: list[int], connection: Connection) -> None:
        if not contents:
            self._keep.say_again()
        elif re.fullmatch(r"[0-9]{1,18}", contents, re.ASCII):
            self._keep.set_dropped(int(contents))
        else:
            raise _bad(f"cannot keep {plain(contents, 20)!r} as a count of lines: it is no whole number")
        connection.reply(self._keep.info)

    def _changed(self) -> None:
        """Answers and shows a change when whatever made it has come to its end: an answer may bring a new command."""
        self._loop.after(_CHANGED, 0, self._show)

    def _show(self) -> None:
        keep, info, supervisor = self._keep, self._keep.info, self._supervisor
        self._show_status()
        if self._starting is not None and supervisor is not None and keep.phase is not Phase.OPENING:
            connection, self._starting = self._starting, None
            connection.reply(supervisor.start_error or info)
        if keep.phase in (Phase.ENDED, Phase.FAILED):
            stopping, self._stopping = self._stopping, []
            for connection in stopping:
                connection.reply(info)
        changed = [peer for stand, peer in self._waiting if not self._is(stand)]
        self._waiting = [(stand, peer) for stand, peer in self._waiting if self._is(stand)]
        for connection in changed:
            connection.reply(info)
        busy = supervisor is not None and supervisor.busy
        if keep.phase is Phase.RESTARTING or (self._leaving and not busy):
            self._loop.stop()

    def _show_status(self) -> None:
        if self._keep.status != self._status and not self._loop.stands(_STATUS):
            self._status = self._keep.status
            self._notify(f"STATUS={self._status}")
            self._loop.after(_STATUS, STATUS_SECONDS, self._show_status)

    def _alive(self) -> None:
        self._notify("WATCHDOG=1")
        self._loop.after(_WATCHDOG, self._settings.watchdog_seconds / 2, self._alive)

    def _notify(self, *assignments: str) -> None:
        try:
            self._notifier.send(*assignments)
        except OSError as error:
            log(f"cannot tell systemd {assignments[0].partition('=')[0]}: {error.strerror}")


def _bad(message: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, message)
