"""`--workers N`: one process imports and collects the tests; forks of it run them, a file at a time, and report to it.

A worker that is started afresh would import and collect 8,600 tests for itself. A file's tests stay in one worker, as
they share what they make; a worker that dies fails the test that it was running, and another goes on with the rest.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Any, NoReturn
from warnings import WarningMessage

import pytest
from _pytest.runner import runtestprotocol

from tools.sandbox import linux, state
from tools.sandbox.sandbox import Sandbox

Message = tuple[str, Any]
"""What a worker sends: `reports` with those of a test, `last` with that of the session's end, `warning`, `next` when it
has no more tests, and `broken` with the reason for which it ends early."""
CLEAN_UP_SECONDS = 60
"""From when a worker is to end until it is killed: what it waits for, a command in a sandbox, may have been cut off."""
STRAY_STATUS = 70
_OF_ALL = pytest.StashKey[Path]()


def directory_of_all(config: pytest.Config, factory: pytest.TempPathFactory) -> Path:
    """A temporary directory that all workers of a run share; without workers, that of its only process."""
    return config.stash.get(_OF_ALL, factory.getbasetemp())


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that `./run test` gives."""
    parser.addoption("--workers", type=int, default=0, help="run the tests' files in that many processes")


def pytest_configure(config: pytest.Config) -> None:
    """Workers where they were asked for, and tests are run."""
    if config.getoption("--workers") > 0 and not config.option.collectonly:
        config.pluginmanager.register(Workers(config), "workers")


@dataclass(eq=False)
class Worker:
    """A forked process, as the one that forked it knows it. items: the numbers of the tests that it has still to end,
    of which it runs the first."""

    process: int
    descriptor: int
    connection: Connection[Any, Any]
    items: deque[int] = field(default_factory=deque)

    def __repr__(self) -> str:
        return f"Worker({self.process})"


class Workers:
    """Hands out the files in the order of their tests, and reports what arrives as if it had run here."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._items: list[pytest.Item] = []
        self._files: deque[deque[int]] = deque()
        self._workers: list[Worker] = []
        self._ready = DefaultSelector()
        self._started = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """In place of pytest's own loop, which a failed collection is left to."""
        if session.testsfailed:
            return None
        self._items = session.items
        files: dict[str, deque[int]] = {}
        for number, item in enumerate(session.items):
            files.setdefault(item.location[0], deque()).append(number)
        self._files = deque(files.values())
        self._prepare()
        terminal = self._terminal()
        if terminal and self._config.option.verbose >= 0:
            terminal.showfspath = False  # reports of several files arrive in turns
        try:
            for _ in range(min(self._config.getoption("--workers"), len(files))):
                self._start()
            while self._workers:
                self._look()
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
        finally:
            self._end()
        return True

    def _terminal(self) -> Any:
        """pytest's, which it has when all plugins are configured; None with `-p no:terminal`."""
        return self._config.pluginmanager.getplugin("terminalreporter")

    def _prepare(self) -> None:
        """Has nothing be shared that two processes would change."""
        self._config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined] # it is removed and made
        if (threads := len(os.listdir("/proc/self/task"))) > 1:
            raise RuntimeError(f"cannot fork workers: importing the tests started {threads - 1} threads")

    def _start(self) -> None:
        """Forks a worker, which asks for its first file itself."""
        ours, theirs = Pipe()
        self._started += 1
        parent = os.getpid()
        process = os.fork()
        if process == 0:
            for other in (ours, *(worker.connection for worker in self._workers)):
                other.close()
            for worker in self._workers:
                os.close(worker.descriptor)
            InWorker(self._config, self._items, theirs).run(parent, self._started)
        theirs.close()
        worker = Worker(process, os.pidfd_open(process), ours)
        self._workers.append(worker)
        for source in (worker.connection, worker.descriptor):
            self._ready.register(source, EVENT_READ, worker)

    def _look(self) -> None:
        """Waits for what workers send, or for the end of one."""
        for worker, message in self._arrived():
            if message is None:
                self._gone(worker)
            else:
                self._take(worker, *message)

    def _arrived(self, seconds: float | None = None) -> Iterator[tuple[Worker, Message | None]]:
        """What workers have sent since; nothing for one that has ended, when all that it had sent was read."""
        for key, _ in self._ready.select(seconds):
            worker: Worker = key.data
            connection = worker.connection
            try:
                if not connection.closed and (key.fileobj is connection or connection.poll()):
                    yield worker, connection.recv()
                elif key.fileobj is not connection:
                    yield worker, None
            except (EOFError, ConnectionResetError):
                self._ready.unregister(connection)  # that its process has ended is another event
                connection.close()

    def _take(self, worker: Worker, kind: str, value: Any) -> None:
        hook = self._config.hook
        if kind in ("reports", "last"):
            for data in value:
                if not isinstance(report := data, pytest.TestReport):
                    report = hook.pytest_report_from_serializable(config=self._config, data=data)
                hook.pytest_runtest_logreport(report=report)
            if kind == "reports":
                item = self._items[worker.items.popleft()]
                hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        elif kind == "warning":
            text, filename, line, when, nodeid, location = value
            message = WarningMessage(text, UserWarning, filename, line)
            arguments = {"warning_message": message, "when": when, "nodeid": nodeid, "location": location}
            hook.pytest_warning_recorded.call_historic(kwargs=arguments)
        elif kind == "next":
            worker.items = self._files.popleft() if self._files else deque()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its end is another event
                worker.connection.send(list(worker.items))
        else:
            name = self._items[worker.items[0]].nodeid if worker.items else "no test"
            if (terminal := self._terminal()) is not None:
                terminal.write_line(f"\na worker has ended as it ran {name}: {value}")
            raise KeyboardInterrupt(value)

    def _gone(self, worker: Worker) -> None:
        """A worker has ended: as it was asked to, or in a test, which has then failed."""
        status = self._reap(worker)
        if status == 0:
            return
        reason = f"it was ended by {signal.Signals(-status).name}" if status < 0 else f"it exited with {status}"
        busy = bool(worker.items)
        item = self._items[worker.items.popleft() if busy else -1]
        report = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=f"the process that ran this test is gone: {reason}",
            when="call" if busy else "teardown",
        )
        self._config.hook.pytest_runtest_logreport(report=report)
        if worker.items:
            self._files.appendleft(worker.items)
        if self._files:
            self._start()

    def _reap(self, worker: Worker) -> int:
        self._workers.remove(worker)
        self._ready.unregister(worker.descriptor)
        os.close(worker.descriptor)
        if not worker.connection.closed:
            self._ready.unregister(worker.connection)
            worker.connection.close()
        status = os.waitstatus_to_exitcode(os.waitpid(worker.process, 0)[1])
        if status < 0:  # it has not ended its sandboxes, which have its number at the end of their names
            for name in state.names():
                if name.endswith(f"-{worker.process}"):
                    Sandbox(name).off()
        return status

    def _end(self) -> None:
        """After a failure, or Ctrl-C: those that still work clean up, and what they say is not read."""
        for number, seconds in ((signal.SIGTERM, CLEAN_UP_SECONDS + 10), (signal.SIGKILL, None)):
            deadline = time.monotonic() + (seconds or 0)
            for worker in self._workers:
                signal.pidfd_send_signal(worker.descriptor, number)
            while self._workers and (seconds is None or time.monotonic() < deadline):
                for worker, message in self._arrived(seconds):
                    if message is None:
                        self._reap(worker)
        self._ready.close()


def _capture_apart(config: pytest.Config) -> None:
    """Gives this process files of its own for what it captures, under the descriptors of those that it shares: some
    imported module may hold what was `sys.stderr` when it was imported."""
    if config.option.capture == "fd":
        captured = config.pluginmanager.getplugin("capturemanager")._global_capturing
        for shared in (captured.out.tmpfile, captured.err.tmpfile):
            with tempfile.TemporaryFile() as own:
                os.dup2(own.fileno(), shared.fileno(), inheritable=False)


class InWorker:
    """In the forked process: runs what it is sent the numbers of."""

    def __init__(self, config: pytest.Config, items: list[pytest.Item], connection: Connection[Any, Any]) -> None:
        self._config = config
        self._items = items
        self._connection = connection
        self._process = os.getpid()
        self._last: pytest.Item | None = None
        self._registered = False
        self._ending = False

    def run(self, parent: int, number: int) -> NoReturn:
        """Does all of a worker's work and ends the process, whose exit handlers are the parent's."""
        status = 1
        try:
            os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which ends each worker once
            signal.signal(signal.SIGTERM, self._interrupt)
            linux.die_with_parent(signal.SIGTERM)
            if os.getppid() == parent:
                self._become(number)
                self._work()
            status = 0
        except KeyboardInterrupt:
            self._broken("a test was interrupted")
        except BaseException:  # noqa: BLE001 # nothing may go on as if this were the parent
            self._broken(traceback.format_exc())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _interrupt(self, *_: object) -> None:
        """A worker is to end: once, as a second signal would cut off its cleaning up, and within a time."""
        if os.getpid() != self._process:  # a test has forked it off, and it has our handler until it executes another
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        if not self._ending:
            self._ending = True
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(CLEAN_UP_SECONDS)
            raise KeyboardInterrupt

    def _leave_strays(self) -> None:
        """Ends a process that a test has forked off and that came back from the test, to go on as if it were us."""
        if os.getpid() != self._process:
            print("a process that a test had forked off came back from it", file=sys.stderr, flush=True)
            os._exit(STRAY_STATUS)

    def _broken(self, why: str) -> None:
        self._leave_strays()
        try:
            self._tear_down()
            self._connection.send(("broken", why))
        except OSError:
            print(why, file=sys.stderr)  # the parent is gone

    def _become(self, number: int) -> None:
        """What is each process's own: its directories, what it captures, chance, and who gets the tests' reports."""
        factory = self._config._tmp_path_factory  # type: ignore[attr-defined] # pytest's fixture returns this one
        self._config.stash[_OF_ALL] = factory.getbasetemp()
        factory._basetemp = self._config.stash[_OF_ALL] / f"w{number}"
        factory._basetemp.mkdir(mode=0o700)
        _capture_apart(self._config)
        random.seed()
        self._config.pluginmanager.unregister(name="workers")
        self._config.pluginmanager.register(self, "in-worker")
        self._registered = True

    def _work(self) -> None:
        session = self._items[0].session
        while True:
            self._connection.send(("next", None))
            numbers = self._connection.recv()
            if not numbers:
                break
            for number, after in zip(numbers, [*numbers[1:], None], strict=True):
                if self._ending:  # something has swallowed the interruption
                    raise KeyboardInterrupt
                self._last = self._items[number]
                # After a file's last test all but the session's fixtures end, whatever file comes next.
                following = session if after is None else self._items[after]
                self._config.hook.pytest_runtest_protocol(item=self._last, nextitem=following)
        self._tear_down()
        if (coverage := getattr(self._config.pluginmanager.getplugin("_cov"), "cov_controller", None)) is not None:
            coverage.cov.stop()
            coverage.cov.save()  # into a file of this process's, which the parent combines

    def _tear_down(self) -> None:
        """Ends the session's fixtures; what fails in that is an error of the last test."""
        if (item := self._last) is None:
            return
        call = pytest.CallInfo.from_call(lambda: item.session._setupstate.teardown_exact(None), "teardown")
        report = self._config.hook.pytest_runtest_makereport(item=item, call=call)
        self._send("last", [report])

    def _send(self, kind: str, reports: list[pytest.TestReport]) -> None:
        """Sends them as they are, or in pytest's own form where they have an exception to show."""
        self._leave_strays()
        to_wire = self._config.hook.pytest_report_to_serializable
        shown = [each.longrepr is not None and not isinstance(each.longrepr, tuple) for each in reports]
        self._connection.send(
            (kind, [to_wire(config=self._config, report=r) if e else r for r, e in zip(reports, shown, strict=True)])
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """In place of pytest's own, which reports to the terminal."""
        self._send("reports", runtestprotocol(item, log=False, nextitem=nextitem))
        return True

    def pytest_warning_recorded(
        self, warning_message: WarningMessage, when: str, nodeid: str, location: tuple[str, int, str] | None
    ) -> None:
        """Sends it as text: what it holds need not exist in the parent."""
        if not self._registered:
            return  # it was recorded before the fork, and is repeated to each new plugin
        text = f"{warning_message.category.__name__}: {warning_message.message}"
        where = (warning_message.filename, warning_message.lineno)
        self._connection.send(("warning", (text, *where, when, nodeid, location)))
