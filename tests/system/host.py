"""A host with a real systemd, as the system tests see it: run commands, ask systemd, read the journal."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.system.asked import Assistant, Systemd
from tests.system.journal import Entry, Journal
from tools.sandbox.command import Command
from tools.sandbox.layout import Layout
from tools.sandbox.sandbox import Sandbox
from tools.sandbox.users import start_user_manager

JOURNAL_SECONDS = 60.0
"""journald shows a line within milliseconds; this covers a host a thousand times busier."""


PAUSE_SECONDS = 0.02
"""Between two looks: each is up to a millisecond of processor time here and there, and a change takes some of these."""
PAUSE_SHARE = 0.05
"""Of the time that it takes already: what comes after half a minute is not looked for fifty times a second."""


def layout(binds: tuple[tuple[str, str, bool], ...]) -> Layout:
    """What a host shows where, on the root directory in KEEPFLEET_TEST_ROOT or else on the machine's own files."""
    return Layout(binds, root=os.environ.get("KEEPFLEET_TEST_ROOT"))


def until(there: Callable[[], object], what: Callable[[], object], seconds: float = JOURNAL_SECONDS) -> None:
    """Returns once `there` is true, where nothing notifies of the change; fails with `what` if that takes too long."""
    began, pause = time.monotonic(), threading.Event()
    while not there():
        taken = time.monotonic() - began
        assert taken < seconds, what()
        pause.wait(max(PAUSE_SECONDS, PAUSE_SHARE * taken))


class CommandFailed(AssertionError):
    """A command inside ended with another status than 0; the text holds what it printed."""


def message_of(entry: Entry) -> str:
    """The text of a journal entry, also where it is not text."""
    message = entry.get("MESSAGE", "")
    return bytes(message).decode("utf-8", "backslashreplace") if isinstance(message, list) else str(message)


class Host:
    """A booted sandbox. `path` is one directory that is the same inside and outside; everybody inside may read it."""

    def __init__(self, sandbox: Sandbox, path: Path) -> None:
        self.sandbox = sandbox
        self.path = path
        self.root = f"/proc/{sandbox.pid}/root"
        self._systemd, self.assistant = Systemd(self.root), Assistant(sandbox)
        for resource in (self._systemd, self.assistant):
            weakref.finalize(self, resource.close)
        self._users: dict[str, dict[str, str]] = {}

    def __repr__(self) -> str:
        return f"Host({self.sandbox})"

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside. Raises CommandFailed for a status other than 0, unless `check` is false."""
        merged = {**self._users.get(user or "", {}), **(env or {})}
        done = self.sandbox.exec(argv, user=user or "root", env=merged, input=input, timeout=timeout)
        if check and done.returncode != 0:
            raise CommandFailed(f"{' '.join(argv)} exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    @contextmanager
    def popen(
        self, argv: Sequence[str], *, user: str | None = None, env: Mapping[str, str] | None = None
    ) -> Iterator[Command]:
        """A command running inside, its output and errors to be read from `stdout`; it is killed at the end."""
        merged = {**self._users.get(user or "", {}), **(env or {})}
        with self.sandbox.popen(
            argv,
            user=user or "root",
            env=merged,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def with_user_manager(self, user: str) -> str:
        """Gives `user` a user manager, once; `run(…, user=user)` then reaches it. Returns `user`."""
        if user not in self._users:
            self._users[user] = start_user_manager(self.sandbox, user)
        return user

    def systemctl(self, *arguments: str, check: bool = True, user: str | None = None) -> str:
        """`systemctl` (with `user`: that user's), and what it printed."""
        command = ["systemctl", *(["--user"] if user else []), "--no-pager", *arguments]
        return self.run(command, check=check, user=user).stdout.strip()

    def daemon_reload(self) -> None:
        """systemd reads all units again."""
        self._systemd.reload()

    def write(self, path: str, text: str) -> None:
        """A file inside, with its directories, which anybody may read; no part of the path is a link."""
        place = Path(f"{self.root}{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def remove(self, path: str) -> None:
        """Removes a file inside."""
        os.unlink(f"{self.root}{path}")

    def show(self, unit: str, *names: str, user: str | None = None) -> dict[str, str]:
        """Properties of a unit, all or those named."""
        if user is None and (shown := self._systemd.show(unit, names)) is not None:
            return shown
        wanted = [f"--property={','.join(names)}"] if names else []
        lines = self.systemctl("show", *wanted, unit, user=user).splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def wait_status(self, unit: str, begins: str, seconds: float = JOURNAL_SECONDS) -> str:
        """The unit's status line, once it begins with `begins`."""

        def text() -> str:
            return self.show(unit, "StatusText")["StatusText"]

        until(lambda: text().startswith(begins), lambda: f"the status of {unit} is not {begins!r}: {text()!r}", seconds)
        return text()

    def units(self, *patterns: str, user: str | None = None) -> list[str]:
        """The loaded units whose names match, in any state."""
        if user is None:
            return [name for name, _ in self._systemd.units(patterns)]
        listed = self.systemctl("list-units", "--all", "--plain", "--no-legend", "--full", *patterns, user=user)
        return [line.split()[0] for line in listed.splitlines() if line.strip()]

    def active_units(self, *patterns: str) -> list[tuple[str, str]]:
        """Name and description of the active units whose names match."""
        return self._systemd.units(patterns, ("active",))

    def files_of(self, prefix: str) -> set[str]:
        """systemd's own files about loaded units that begin so, seen from outside; no command runs for it."""
        found: set[str] = set()
        for place in ("transient", "units"):
            with contextlib.suppress(FileNotFoundError):
                found.update(os.listdir(f"{self.root}/run/systemd/{place}"))
        return {name for name in found if name.removeprefix("invocation:").startswith(prefix)}

    def cursor(self) -> str:
        """The journal's end now, to read on from."""
        entries = self.latest(1)
        return str(entries[-1]["__CURSOR"]) if entries else ""

    def journal(self, unit: str | None = None, since_cursor: str | None = None, **fields: str) -> list[Entry]:
        """The journal's entries: everything that was written before this call, of `unit` and about it.

        `fields` are further journal fields that must be equal, such as KEEP_ID="1".
        """
        self.assistant.synchronize()
        with Journal(self.root, _matches(unit, fields)) as journal:
            return journal.after(since_cursor)

    def latest(self, count: int) -> list[Entry]:
        """The journal's last entries, at most `count`."""
        self.assistant.synchronize()
        with Journal(self.root) as journal:
            return journal.last(count)

    def wait_journal(
        self,
        wanted: str | Callable[[Entry], bool],
        unit: str | None = None,
        since_cursor: str | None = None,
        seconds: float = JOURNAL_SECONDS,
    ) -> Entry:
        """The first entry whose message holds `wanted` (or for which it is true), waited for without polling.

        Raises CommandFailed, with the last lines seen, when it has not come in time.
        """
        matches = wanted if callable(wanted) else lambda entry: wanted in message_of(entry)
        with Journal(self.root, _matches(unit, {})) as journal:
            came, entries = journal.wait(matches, since_cursor, time.monotonic() + seconds)
        if came:
            return entries[-1]
        end = "\n".join(map(message_of, entries[-20:]))
        raise CommandFailed(f"the journal never showed {wanted!r} within {seconds} s; its end:\n{end}")


def _matches(unit: str | None, fields: Mapping[str, str]) -> list[list[str]]:
    """What entries must have: of a unit those that it wrote and those that systemd and others wrote about it."""
    further = [f"{name}={value}" for name, value in fields.items()]
    if unit is None:
        return [further] if further else []
    about = ([f"_SYSTEMD_UNIT={unit}"], [f"UNIT={unit}", "_PID=1"], [f"OBJECT_SYSTEMD_UNIT={unit}", "_UID=0"])
    return [[*each, *further] for each in about]
