"""A keep's two forks, by what they report and how they end: the upload endpoint, which talks to strangers and holds the
key, and the runner, which waits next to it, checks what it has received, and becomes the workload. A keep whose module
comes with its start has the runner alone, and runs from there on.

The runner is forked when the endpoint reports its first connection, and before it may read from it, or when it listens
where START says so. From ACCEPTED on it is a stranger's, as the endpoint is from its first byte on.
Imported with the first start. Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
import time

from keep_isolation import landlock
from keep_loader.loop import Loop, log, plain
from keep_loader.outcome import MAX_TEXT, plain_error
from keep_loader.process import Child, Exit, Prepared, Process, fork
from keep_loader.running import Running
from keep_loader.settings import Settings
from keep_loader.state import ENDPOINT_NAMES, MODULE_NAMES, DescriptorStore, Keep, close_all, is_regular_file
from keep_protocol import sockets as socket
from keep_protocol.constants import (
    APPLOADER_START_SECONDS,
    CHECKS,
    COMPILED,
    DIRECTORY,
    IDENTITY,
    MODULE,
    SECRETS_DIRECTORY,
    WORKLOAD_DESCRIPTOR,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.forking import RUNNER_NAME
from keep_protocol.patterns import matches
from keep_protocol.reports import READY_PACKET, Report, ReportType, encode_run
from keep_protocol.spec import RestartPolicy
from keep_protocol.states import Event, Phase

TYPE_CHECKING = False
if TYPE_CHECKING:  # as in loader
    from keep_loader.loader import LockFiles
    from keep_loader.supervisor import Ending

MAX_RESPAWNS = 5
RESPAWN_SECONDS = 60.0
"""A fork that dies more often than MAX_RESPAWNS in RESPAWN_SECONDS will go on dying; the unit's own limits agree."""
HANDOVER_SECONDS = 5.0
"""What an endpoint may take to end once it has accepted: it gives its last answers a second."""
MAX_CERTIFICATE = 8 * 1024
"""Bytes of the keep's certificate; a P-256 one with 16 names is 2 KiB."""
MAX_NAME = 255
"""Characters of a name that an upload came with."""
_WARM = "warm"
_ENDPOINT, _RUNNER = "upload endpoint", "runner"
_ENDPOINT_NAME = "keep-endpoint"
_FINGERPRINT = "sha256:[0-9a-f]{64}"


class Forks:
    """Owns the endpoint, the runner, and the workload that this becomes.

    endpoint: the process that it is, None where there is none; running: the workload, once there is one.
    """

    def __init__(
        self,
        keep: Keep,
        loop: Loop,
        store: DescriptorStore,
        settings: Settings,
        ending: Ending,
        lock_files: LockFiles,
        prepared: Prepared | None,
    ) -> None:
        self._keep, self._loop, self._store, self._settings = keep, loop, store, settings
        self._ending, self._streams = ending, ending.streams
        self._lock_files, self._prepared = lock_files, prepared
        self.endpoint: Process | None = None
        self.running: Running | None = None
        self._runner: Process | None = None
        self._checks: socket.socket | None = None  # the runner's end: one that has died is followed by another
        self._checked: list[int] = []  # the compiled module, and the module, that a check has found good
        self._connected = self._warm = False  # whether the endpoint has reported its first connection
        self._endpoints_lost: list[float] = []
        self._runners_lost: list[float] = []

    def __repr__(self) -> str:
        return f"Forks({self.endpoint or 'no endpoint'}, {self._runner or 'no runner'})"

    @property
    def any(self) -> bool:
        """Whether one of them is there."""
        return self.endpoint is not None or self._runner is not None

    def lock_files(self) -> None:
        """Gives up all files but what the workload is granted and the keep needs; permanently, so not before a start
        has come to its end: another one could bring other grants. Raises KeepfleetError(ISOLATION_FAILURE), OSError.
        """
        workload, secrets = self._keep.report.workload, f"{self._settings.directory}/{SECRETS_DIRECTORY}"
        writable: set[str] = set()
        if workload is not None:
            if workload.secrets and not os.path.isdir(secrets):
                os.mkdir(secrets, 0o700)
            writable = {f"{DIRECTORY}-{at}" for at, shown in enumerate(workload.directories) if shown.writable}
        # Those that systemd kept over a crash are of mounts that went with the loader before us: no path leads there.
        granted = [
            (descriptor, landlock.WRITE if name in writable else landlock.READ)
            for name, descriptor in self._store.held.items()
        ]
        self._lock_files(granted, (self._settings.directory,), (secrets,))

    def drop_prepared(self) -> None:
        """Does without what was forked before the start."""
        if self._prepared is not None:
            self._prepared.drop_all()

    def open_endpoint(self, *, warm: bool = False) -> None:
        """Forks the upload endpoint, and a pair of sockets by which it asks a runner. warm: that is forked as soon as
        the endpoint listens. Raises KeepfleetError."""
        self._warm = warm
        keep, settings = self._keep, self._settings
        theirs, self._checks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        passed = {**self._store.select(ENDPOINT_NAMES), CHECKS: theirs.fileno()}
        environment = settings.endpoint_environment(keep.report, keep.private.names)
        pipes: dict[str, int] = {}
        try:
            with theirs:
                if settings.entries.writes:
                    pipes = self._streams.open(self._input_cut)
                    passed |= pipes
                child = self._forked(settings.entries.endpoint, _ENDPOINT_NAME, environment, passed)
        except OSError as error:
            raise KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot start the app-loader: {error.strerror}") from error
        finally:
            close_all(list(pipes.values()))
        self._connected = False
        self.endpoint = Process(self._loop, child, _ENDPOINT, self._take_of_endpoint, self._endpoint_ended)
        self.endpoint.within(APPLOADER_START_SECONDS, self._too_slow)

    def open_endpoint_again(self) -> None:
        """The same; where it cannot, the keep fails."""
        try:
            self.open_endpoint()
        except KeepfleetError as error:
            self._ending.fail(error.message)

    def _too_slow(self) -> None:
        if self.endpoint is not None:
            why = f"the app-loader did not listen within {APPLOADER_START_SECONDS:g} s"
            self.endpoint.abandon(KeepfleetError(ErrorKind.TOO_SLOW, f"cannot open the keep's upload endpoint: {why}"))

    def fork_runner(self) -> Process:
        """The runner that waits: with the endpoint's requests, and the description of the workload that is to come, by
        which modules are checked."""
        settings = self._settings
        passed = {} if self._checks is None else {CHECKS: self._checks.fileno()}
        passed |= self._store.select((WORKLOAD_DESCRIPTOR,))
        try:
            child = self._forked(settings.entries.runner, RUNNER_NAME, settings.runner_environment(), passed)
        except OSError as error:
            raise KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot start the runner: {error.strerror}") from error
        self._runner = Process(self._loop, child, _RUNNER, self._take_of_runner, self._runner_ended)
        return self._runner

    def _forked(self, entry: str, name: str, environment: dict[str, str], passed: dict[str, int]) -> Child:
        """A process that calls `entry`: the one that was prepared for it, or a new one. Raises OSError."""
        if self._prepared is not None:
            known = self._prepared.begin(entry, name, environment, passed, self._streams.words)
            if known is not None:
                return known
        return fork(entry, name, environment, passed, self._streams.words)

    def _discard_runner(self) -> None:
        """Ends a runner that waits, and what it has of uploads."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.finish()
        if self._checks is not None:
            self._checks.close()
            self._checks = None
        close_all(self._checked)

    def run(self, passed: dict[str, int]) -> None:
        """The runner, a new one where none waits, becomes the workload with `passed`. Raises KeepfleetError."""
        waiting = self._runner
        runner = waiting or self.fork_runner()
        pipes: dict[str, int] = {}
        try:
            pipes = self._streams.open(self._input_cut)
            passed = {**passed, **pipes}
            runner.send(encode_run(tuple(passed)), list(passed.values()))
        except OSError as error:
            why = f"cannot make the workload's pipes: {error.strerror}"
            raise KeepfleetError(ErrorKind.KEEP_FAILED, why) from error
        finally:
            close_all(list(pipes.values()))
        self.running = Running(self._keep, self._loop, runner, fresh=waiting is None and COMPILED in passed)

    def _input_cut(self) -> None:
        if self.running is not None:
            self.running.lose("its input was cut")

    def stop(self, by: str) -> None:
        """Ends the endpoint and the workload, or what waits to be one; `by` says who asked."""
        if self.running is None:
            self._discard_runner()
        for process in (self.endpoint, self._runner):
            if process is not None:
                process.stop(by)

    def _take_of_endpoint(self, report: Report, descriptors: list[int]) -> None:
        """Obeys one report of the endpoint's where the phase knows it; any other is ignored."""
        endpoint, phase, kind = self.endpoint, self._keep.phase, report.type
        if endpoint is None or endpoint.ending:
            return
        if kind is ReportType.FAILED:
            unknown = KeepfleetError(ErrorKind.KEEP_FAILED, "cannot serve: the app-loader did not say why")
            endpoint.abandon(plain_error(report.error or unknown))
        elif phase in (Phase.OPENING, Phase.REOPENING) and kind is ReportType.LISTENING:
            self._listening(endpoint, report, descriptors)
        elif phase is Phase.AWAITING and kind is ReportType.CONNECTED and not self._connected:
            self._connect(endpoint)
        elif phase is Phase.AWAITING and kind is ReportType.ACCEPTED:
            self._accept(endpoint, report)
        elif phase is Phase.AWAITING and kind in (ReportType.RECEIVING, ReportType.AWAITING):
            self._keep.set_detail(report.text or ("receiving a workload" if kind is ReportType.RECEIVING else ""))

    def _connect(self, endpoint: Process) -> None:
        """The first client is there: the runner is forked before a byte of it is read."""
        try:
            if self._runner is None:
                self.fork_runner()
        except KeepfleetError as error:
            endpoint.abandon(error)
        else:
            self._connected = True
            endpoint.send(READY_PACKET, [])

    def _listening(self, endpoint: Process, report: Report, descriptors: list[int]) -> None:
        """The upload endpoint is open: takes its identity, or on a later opening makes sure that it is the same."""
        keep, first = self._keep, self._keep.phase is Phase.OPENING
        if not matches(_FINGERPRINT, report.fingerprint) or not 0 < len(report.certificate) <= MAX_CERTIFICATE:
            endpoint.abandon(cannot_open("the app-loader showed no certificate"))
            return
        if not first and report.fingerprint != keep.report.fingerprint:
            endpoint.abandon(cannot_open("it would show another certificate than the one clients know"), final=True)
            return
        if first and not _brings(report, descriptors, (IDENTITY,)):
            endpoint.abandon(cannot_open("the app-loader did not pass its identity on"))
            return
        if first:
            keep.change(fingerprint=report.fingerprint, certificate=report.certificate)
            try:
                self._store.park(IDENTITY, descriptors.pop())
            except KeepfleetError as error:
                endpoint.abandon(error)
                return
        if first:
            try:
                self.lock_files()
            except (KeepfleetError, OSError) as error:
                endpoint.abandon(cannot_open(str(error)))
                return
        endpoint.in_time()
        keep.move(Event.ENDPOINT_READY)
        if self._warm:
            self._loop.after(_WARM, 0, self._warm_up)  # behind the answer to the start

    def _warm_up(self) -> None:
        """Forks the runner before there is a client; where that cannot be, the first client's turn says why."""
        if self.endpoint is not None and self._runner is None and self.running is None:
            try:
                self.fork_runner()
            except KeepfleetError as error:
                log(error.message)

    def _accept(self, endpoint: Process, report: Report) -> None:
        """The workload is whole: keeps what running it again takes, lets go of the upload endpoint, and runs it.

        What runs is what the runner has found good, and never what the endpoint passes: that may be a stranger's by
        now, and compiled code is the processor's own.
        """
        keep = self._keep
        if self._runner is not None:
            self._runner.read_all()  # it says what it has checked before the endpoint can know
        if not self._checked:
            why = "the app-loader accepted a module that was not checked"
            endpoint.abandon(KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot run the workload: {why}"), final=True)
            return
        again = keep.report.restart is not RestartPolicy.NO
        passed = dict(zip(MODULE_NAMES, self._checked, strict=True))
        try:
            if again:
                self._checked = []
                for name in MODULE_NAMES:
                    self._store.park(name, passed[name])
            else:
                del passed[MODULE]
            self._note_upload(report)
            self.run({**passed, **self._store.select(keep.private.granted)})
        except KeepfleetError as error:
            endpoint.abandon(error, final=True)
            return
        endpoint.dismiss(HANDOVER_SECONDS, hang_up=False)
        keep.move(Event.ACCEPT)
        self._store.drop(ENDPOINT_NAMES if again else (*ENDPOINT_NAMES, *keep.private.granted))
        if self._checks is not None:
            self._checks.close()
            self._checks = None
        close_all(self._checked)

    def _note_upload(self, report: Report) -> None:
        """Who sent what, in the report and as one line of the log."""
        by, module = report.upload, report.module
        if by is not None:
            by = by.replace(name=plain(by.name, MAX_NAME), serial=plain(by.serial, MAX_NAME))
        if module is not None:
            module = module.replace(name=plain(module.name, MAX_NAME))
        self._keep.change(uploaded_by=by, module=module)
        sender = "a client that was not named" if by is None else f"{by.name or 'anonymous'}, certificate {by.serial}"
        what = "a module" if module is None else f"{module.digest}, {module.bytes} bytes"
        log(f"upload accepted of {sender}: {what}")

    def _take_of_runner(self, report: Report, descriptors: list[int]) -> None:
        """Obeys one report of the runner's; what it has no say in is ignored."""
        runner, kind = self._runner, report.type
        if runner is None or runner.ending:
            return
        if self.running is not None and kind is ReportType.CHECKED:
            if self.running.preparing and _brings(report, descriptors, MODULE_NAMES):
                self._keep_compiled(descriptors)
        elif self.running is not None:
            self.running.take(report, descriptors)
        elif kind is ReportType.CHECKED and _brings(report, descriptors, MODULE_NAMES):
            close_all(self._checked)
            self._checked = [*descriptors]
            descriptors.clear()
        elif kind is ReportType.FAILED:
            unknown = KeepfleetError(ErrorKind.KEEP_FAILED, "the runner did not say why it failed")
            runner.abandon(plain_error(report.error or unknown))

    def _keep_compiled(self, descriptors: list[int]) -> None:
        """What a stored module was compiled to, before it runs: the next run needs no check."""
        if self._keep.report.restart is RestartPolicy.NO:
            return
        try:
            self._store.park(COMPILED, descriptors.pop(0))
        except KeepfleetError as error:
            log(f"the module is compiled again for the next run: {error.message}")

    def _endpoint_ended(self, end: Exit) -> None:
        """The endpoint has ended, and its last reports have been read."""
        endpoint, self.endpoint = self.endpoint, None
        if endpoint is None:
            return
        if self._keep.phase not in (Phase.OPENING, Phase.AWAITING, Phase.REOPENING):
            self._keep.look_again()  # it had accepted, and the keep may wait for its end alone
            return
        if self._streams.recording is not None:
            self._streams.recording.words.read_all()
        self._discard_runner()  # the next endpoint gets one of its own, which has checked nothing for this one
        stopped_by = self._ending.asked_by(endpoint.stopped_by)
        died = f"the app-loader {end.words}"
        if self._keep.phase is Phase.OPENING:
            self._ending.start_failed(endpoint.failure or cannot_open(died))
        elif stopped_by is not None:
            self._ending.stopped(stopped_by)
        elif endpoint.final:
            self._ending.fail(died if endpoint.failure is None else endpoint.failure.message)
        else:
            self._endpoint_lost(died if endpoint.failure is None else endpoint.failure.message)

    def _endpoint_lost(self, why: str) -> None:
        if _once_too_often(self._endpoints_lost):
            self._ending.fail(f"gave the upload endpoint up after opening it again {MAX_RESPAWNS} times: {why}")
        else:
            self._keep.move(Event.ENDPOINT_LOST, f"opening the upload endpoint again: {why}")
            self.open_endpoint_again()

    def _runner_ended(self, end: Exit) -> None:
        """The runner has ended, and its last reports have been read."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        if self.running is not None:
            stopped_by = self._ending.asked_by(runner.stopped_by)
            outcome = self.running.ended(end, stopped_by)
            self.running = None
            self._streams.close_input()
            self._ending.of_workload(outcome, stopped_by)
        else:
            self._runner_lost(f"the runner {end.words}" if runner.failure is None else runner.failure.message)

    def _runner_lost(self, why: str) -> None:
        """A runner that waited has died: the client that uploads hears so, and the next upload finds another."""
        endpoint = self.endpoint
        if endpoint is None or endpoint.ending:
            return
        if _once_too_often(self._runners_lost):
            why = f"gave the runner up after starting it again {MAX_RESPAWNS} times: {why}"
            endpoint.abandon(KeepfleetError(ErrorKind.KEEP_FAILED, why), final=True)
            return
        log(plain(f"starting the runner again: {why}", MAX_TEXT))
        try:
            self.fork_runner()
        except KeepfleetError as error:
            endpoint.abandon(error, final=True)


def cannot_open(why: str) -> KeepfleetError:
    """The error of a start that could not be made."""
    return KeepfleetError(ErrorKind.KEEP_FAILED, f"cannot open the keep's upload endpoint: {why}")


def _brings(report: Report, descriptors: list[int], names: tuple[str, ...]) -> bool:
    """Whether the report brings exactly these descriptors, all of them regular files."""
    return report.descriptors == names and len(descriptors) == len(names) and all(map(is_regular_file, descriptors))


def _once_too_often(deaths: list[float]) -> bool:
    """Whether MAX_RESPAWNS have died in the last RESPAWN_SECONDS; else notes that one has now."""
    now = time.monotonic()
    deaths[:] = [moment for moment in deaths if now - moment < RESPAWN_SECONDS]
    if len(deaths) >= MAX_RESPAWNS:
        return True
    deaths.append(now)
    return False
