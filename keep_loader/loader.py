"""Wires one keep together: the control socket's commands, its forks' life, systemd's messages, one poll loop.

Import rule: that of keep_loader.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # as in __main__
import os
import time
from _collections_abc import Callable, Sequence

from keep_isolation.locks import what_the_kernel_lacks
from keep_loader.control import Connection, ControlServer, Waiters
from keep_loader.loop import READABLE, Loop, Systemd, plain
from keep_loader.settings import Settings
from keep_loader.state import DescriptorStore, Keep, RecordFile, status_text
from keep_protocol.constants import RECORD
from keep_protocol.control import (
    UNSTORED,
    Command,
    CommandType,
    StartMessage,
    decode_description,
    decode_hello,
    decode_start,
    encode_reply,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.outcome import RUN_AGAIN, Outcome, OutcomeKind, unit_status_of
from keep_protocol.record import KeepRecord
from keep_protocol.sdnotify import Notifier, take_stored
from keep_protocol.spec import decode_spec
from keep_protocol.states import Event, Phase, advance

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy's name for itself; the module `typing` would be 3.5 ms of every keep's start
    from keep_loader.process import Prepared
    from keep_loader.start import Version1Start
    from keep_loader.supervisor import Supervisor

LockFiles = Callable[[Sequence[tuple[int, int]], Sequence[str], Sequence[str]], None]
MAX_BY = 80
"""Characters of who asked for a stop."""
_CHANGED, _PREPARE, _IMPORT = "changed", "prepare", "import"
_ENDED = (Phase.ENDED, Phase.FAILED)


class Loader:
    """One keep's loader, from its boot to SIGTERM; a context manager that owns everything it opens.

    `probe` is the isolation check; while it reports a failure, a start is refused. `lock` is called once everything is
    open that has to be, `lock_files` once it is certain what the workload is granted (see keep_isolation.locks).
    """

    def __init__(
        self,
        settings: Settings,
        probe: Callable[[str], tuple[str, ...]],
        lock: Callable[[], None],
        lock_files: LockFiles,
    ) -> None:
        self._settings = settings
        self._loop = Loop()
        self._lock, self._lock_files, self._notifier = lock, lock_files, Notifier()
        self._systemd = Systemd(self._loop, self._notifier)
        stored = take_stored()
        self._record = RecordFile(settings.directory, self._notifier, stored.pop(RECORD, None))
        self._store = DescriptorStore(self._notifier, stored)
        self._keep = Keep(
            settings.kuuid,
            settings.spec,
            probe(settings.directory),
            self._record,
            self._changed,
            what_the_kernel_lacks(),
        )
        self._supervisor: Supervisor | None = None
        self._prepared: Prepared | None = None
        self._leaving = self._ending = False  # a signal has come; and was seen to
        self._version_1: Version1Start | None = None
        self._starting: Connection | None = None
        self._stopping: list[Connection] = []
        self._waiters = Waiters(self._loop)
        self._commands: dict[CommandType, Callable[[str, list[int], Connection], None]] = {
            CommandType.HELLO: self._hello,
            CommandType.CLAIM: self._claim,
            CommandType.KEEP_START: self._start,
            CommandType.DESCRIBE: self._describe,
            CommandType.START: self._start_of_version_1,
            CommandType.INFO: self._info,
            CommandType.STOP: self._stop,
            CommandType.WAIT: self._wait,
            CommandType.FOLLOW: self._follow,
            CommandType.JOURNAL: self._journal,
        }

    def __repr__(self) -> str:
        return f"Loader({self._keep!r})"

    def __enter__(self) -> Loader:
        """Opens the control socket, locks this process, goes on where a loader before us was killed, and says READY to
        systemd. Raises KeepfleetError(ISOLATION_FAILURE) where it cannot be locked, OSError."""
        self._wake, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._loop.watch(self._wake, READABLE, self._woken)
        _signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        self._control = ControlServer(self._loop, self._settings.socket_path, self._obey)
        self._notifier.connect()
        self._lock()
        self._boot()
        spare, entries = self._keep.spec.spare and not self._keep.spec.owner, self._settings.entries
        if self._settings.start_follows and not spare:
            self._prepare((entries.endpoint,))  # it gets ready while systemd and the manager hear that we are
        self._systemd.ready(status_text(self._keep.report))
        if self._settings.watchdog_seconds:
            self._systemd.feed_watchdog(self._settings.watchdog_seconds)
        if spare:  # behind READY: it counts as a spare from then on
            self._loop.after(_PREPARE, 0, lambda: self._prepare((entries.endpoint, entries.runner)))
        if spare or self._settings.start_follows:
            self._loop.after(_IMPORT, 0, _import_what_a_start_takes)
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        _signal.set_wakeup_fd(-1)
        os.close(self._wake)
        os.close(self._wake_writer)
        self._notifier.close()

    def run(self) -> None:
        """Serves until `leave` was called and no process of ours is left, or until the keep has ended or systemd is to
        start us again."""
        self._loop.run()

    @property
    def exit_status(self) -> int:
        """What to exit with: 0, or as the keep's workload ended, or RUN_AGAIN where that is to be run again."""
        if self._leaving:
            return 0
        if self._keep.phase is Phase.RESTARTING:
            return RUN_AGAIN
        return unit_status_of(self._keep.report.outcome) if self._over else 0

    @property
    def _over(self) -> bool:
        """Whether the keep was started, and has ended."""
        return self._keep.phase in _ENDED and self._keep.private.user is not None

    def leave(self) -> None:
        """Ends the loader; safe to be called by a signal's handler."""
        self._leaving = True
        if self._supervisor is not None:
            self._supervisor.ending.leaving = True

    def _prepare(self, entries: Sequence[str]) -> None:
        """Forks what the start will need, where there was none yet. Whose keep it will be need not be known."""
        from keep_loader.process import Prepared

        if self._keep.phase is Phase.IDLE and self._supervisor is None and not self._keep.report.isolation_failures:
            self._prepared = Prepared(self._loop)
            self._prepared.fork(entries)

    def _supervise(self) -> Supervisor:
        """The supervisor, made with the first start: an idle keep does without what watches processes, 0.4 MB."""
        if self._supervisor is None:
            from keep_loader.supervisor import Supervisor

            settings = self._settings.of(self._keep.spec)  # a spare's is not its unit's
            self._supervisor = Supervisor(
                self._keep, self._loop, self._store, settings, self._lock_files, self._prepared
            )
        return self._supervisor

    def _woken(self, _events: int) -> None:
        """A signal has come, and its handler has run."""
        os.read(self._wake, 512)
        if self._leaving:
            self._ending = True
            self._systemd.notify(STOPPING="1")
            if self._supervisor is not None:
                self._supervisor.leave()
            self._changed()

    def _boot(self) -> None:
        try:
            saved = self._record.read()
        except KeepfleetError as error:
            self._store.drop_all()
            lost = Outcome(OutcomeKind.LOST, plain(error.message, 400), ended_at=round(time.time(), 3))
            self._keep.move(Event.FAIL, outcome=lost)
            return
        if saved is None:
            self._store.drop_all()
            self._keep.move(Event.READY)
        else:
            self._go_on(saved)

    def _go_on(self, saved: KeepRecord) -> None:
        """Goes on where the loader before us was."""
        from keep_loader.outcome import resume_from

        failures = self._keep.report.isolation_failures
        self._keep.restore(saved)
        needs = self._settings.of(self._keep.spec).entries.needs
        resumption = resume_from(saved, self._store.names, round(time.time(), 3), failures, os.getuid(), needs)
        if resumption.event is Event.RESUME:
            self._supervise().resume()
        elif resumption.event is Event.RERUN and resumption.outcome is not None:
            self._supervise().run_again(resumption.outcome)
        elif self._keep.private.user is not None:
            self._supervise().ending.again(resumption.event, resumption.why, resumption.outcome)
        else:
            self._store.drop_all()
            self._keep.move(resumption.event, resumption.why, resumption.outcome)

    def _obey(self, command: Command, descriptors: list[int], connection: Connection) -> None:
        handler = self._commands.get(command.type)
        if handler is None:
            self._set_up(command.type, command.contents, connection)
        else:
            handler(command.contents, descriptors, connection)

    def _reply(self, connection: Connection) -> None:
        connection.begun = self._keep.report.begun
        connection.reply(encode_reply(self._keep.report, self._keep.spec))

    def _hello(self, contents: str, _descriptors: list[int], connection: Connection) -> None:
        decode_hello(contents)
        self._reply(connection)

    def _must_be_idle(self) -> None:
        if self._keep.phase is not Phase.IDLE:
            raise KeepfleetError(
                ErrorKind.CONFLICT,
                f"cannot set up the upload endpoint of a keep that is {self._keep.report.phase}: it has been started",
            )

    def _set_up(self, kind: CommandType, contents: str, connection: Connection) -> None:
        """One of the commands of version 1 that say before START what the message of a start says at one time."""
        from keep_loader.start import Version1Start

        self._must_be_idle()
        self._version_1 = (self._version_1 or Version1Start()).set(kind, contents)
        self._reply(connection)

    def _describe(self, contents: str, _descriptors: list[int], connection: Connection) -> None:
        """What the unit's spec says counts; only where there is none, a manager of version 1 says it."""
        self._must_be_idle()
        description = decode_description(contents)
        if not self._settings.has_spec:
            self._keep.describe(description)
        self._reply(connection)

    def _claim(self, contents: str, _descriptors: list[int], connection: Connection) -> None:
        self._must_be_idle()
        self._keep.claim(decode_spec(contents))
        self._reply(connection)

    def _check_startable(self) -> None:
        advance(self._keep.phase, Event.START)
        if self._starting is not None:
            raise KeepfleetError(ErrorKind.CONFLICT, "cannot start a keep while another start is being answered")
        if self._keep.report.isolation_failures:
            raise KeepfleetError(
                ErrorKind.ISOLATION_FAILURE,
                "cannot take a workload: the isolation check failed; compare its unit with the one installed",
                self._keep.report.isolation_failures,
            )

    def _start(self, contents: str, descriptors: list[int], connection: Connection) -> None:
        self._check_startable()
        self._begin(decode_start(contents), descriptors, connection)

    def _start_of_version_1(self, _contents: str, descriptors: list[int], connection: Connection) -> None:
        from keep_loader.start import Version1Start

        self._check_startable()
        message = (self._version_1 or Version1Start()).message(descriptors)
        self._begin(message, descriptors, connection)

    def _begin(self, message: StartMessage, descriptors: list[int], connection: Connection) -> None:
        from keep_loader.start import check_start  # with the first start: an idle keep does without it

        spec = self._keep.spec
        start = check_start(message, descriptors, spec, self._settings.of(spec).entries)
        self._version_1, self._starting = None, connection
        self._supervise().open(start, descriptors)

    def _info(self, _contents: str, _descriptors: list[int], connection: Connection) -> None:
        self._reply(connection)

    def _stop(self, contents: str, _descriptors: list[int], connection: Connection) -> None:
        if self._keep.phase in _ENDED:
            self._reply(connection)  # what was asked for is so
            return
        advance(self._keep.phase, Event.STOP)
        self._supervise().stop(plain(contents, MAX_BY) or "the manager")
        self._stopping.append(connection)

    def _wait(self, contents: str, _descriptors: list[int], connection: Connection) -> None:
        if self._waiters.add(contents, self._keep.report, connection):
            self._changed()  # which answers it where there is something new already
        else:
            self._reply(connection)

    def _follow(self, _contents: str, descriptors: list[int], connection: Connection) -> None:
        self._supervise().streams.follow(descriptors)
        self._reply(connection)

    def _journal(self, contents: str, descriptors: list[int], connection: Connection) -> None:
        if contents == UNSTORED:
            self._keep.change_private(unstored=True)
        else:
            self._supervise().streams.take_journal(descriptors)
        self._reply(connection)

    def _changed(self) -> None:
        """Answers and shows a change when whatever made it has come to its end: an answer may bring a new command."""
        self._loop.after(_CHANGED, 0, self._show)

    def _show(self) -> None:
        keep, supervisor = self._keep, self._supervisor
        self._systemd.show(status_text(keep.report))
        if self._starting is not None and supervisor is not None and keep.phase is not Phase.OPENING:
            connection, self._starting = self._starting, None
            error = supervisor.ending.start_error
            connection.reply(encode_reply(error or keep.report, keep.spec))
        if keep.phase in _ENDED:
            stopping, self._stopping = self._stopping, []
            for connection in stopping:
                self._reply(connection)
        for connection in self._waiters.changed(keep.report, self._show):
            self._reply(connection)
        busy = supervisor is not None and supervisor.busy
        # An endpoint that has accepted may still be answering when its workload is to run again already.
        if (keep.phase is Phase.RESTARTING or self._ending or self._over) and not busy:
            self._systemd.notify(STATUS=status_text(keep.report))
            self._loop.stop()


def _import_what_a_start_takes() -> None:
    """Behind READY, and behind the forks that do without: it is done while others work."""
    import keep_loader.start
    import keep_loader.supervisor  # noqa: F401
