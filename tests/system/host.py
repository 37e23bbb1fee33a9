"""A host with a real systemd, as the system tests see it: run commands, ask systemd, read the journal."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from tools.sandbox.command import Command
from tools.sandbox.layout import Layout
from tools.sandbox.sandbox import Sandbox
from tools.sandbox.users import start_user_manager

LOOKS = 4
"""A follower of journalctl's was seen not to show an entry that was in the journal: so often it is started."""
JOURNAL_SECONDS = 60.0
"""journald shows a line within milliseconds; this covers a host a thousand times busier."""
Entry: TypeAlias = dict[str, Any]
"""One journal entry: field → text (or a list of numbers where it is not text, or of both where a field is repeated)."""


def layout(binds: tuple[tuple[str, str, bool], ...]) -> Layout:
    """What a host shows where, on the root directory in KEEPFLEET_TEST_ROOT or else on the machine's own files."""
    return Layout(binds, root=os.environ.get("KEEPFLEET_TEST_ROOT"))


class CommandFailed(AssertionError):
    """A command inside ended with another status than 0; the text holds what it printed."""


def message_of(entry: Entry) -> str:
    """The text of a journal entry, also where it is not text."""
    message = entry.get("MESSAGE", "")
    return bytes(message).decode("utf-8", "backslashreplace") if isinstance(message, list) else str(message)


def _from(cursor: str) -> str:
    """journalctl's option to begin with the entry at `cursor`.

    `--after-cursor=` beside a filter skips the first entry that matches, whether it is that one or not (systemd 252).
    """
    return f"--cursor={cursor}"


class Host:
    """A booted sandbox. `path` is one directory that is the same inside and outside; everybody inside may read it."""

    def __init__(self, sandbox: Sandbox, path: Path) -> None:
        self.sandbox = sandbox
        self.path = path
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

    def show(self, unit: str, *names: str, user: str | None = None) -> dict[str, str]:
        """Properties of a unit, all or those named."""
        wanted = [f"--property={','.join(names)}"] if names else []
        lines = self.systemctl("show", *wanted, unit, user=user).splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def wait_status(self, unit: str, begins: str, seconds: float = JOURNAL_SECONDS) -> str:
        """The unit's status line, once it begins with `begins`. Raises CommandFailed when it does not come in time."""
        deadline = time.monotonic() + seconds
        while not (text := self.show(unit, "StatusText")["StatusText"]).startswith(begins):
            if time.monotonic() > deadline:
                raise CommandFailed(f"the status of {unit} never began with {begins!r}; it is {text!r}")
        return text

    def units(self, *patterns: str, user: str | None = None) -> list[str]:
        """The loaded units whose names match, in any state."""
        listed = self.systemctl("list-units", "--all", "--plain", "--no-legend", "--full", *patterns, user=user)
        return [line.split()[0] for line in listed.splitlines() if line.strip()]

    def files_of(self, prefix: str) -> set[str]:
        """systemd's own files about loaded units that begin so, seen from outside; no command runs for it."""
        found: set[str] = set()
        for place in ("transient", "units"):
            with contextlib.suppress(FileNotFoundError):
                found.update(os.listdir(f"/proc/{self.sandbox.pid}/root/run/systemd/{place}"))
        return {name for name in found if name.removeprefix("invocation:").startswith(prefix)}

    def cursor(self) -> str:
        """The journal's end now, to read on from."""
        entries = self._entries("--lines=1")
        return str(entries[-1]["__CURSOR"]) if entries else ""

    def journal(self, unit: str | None = None, since_cursor: str | None = None, **fields: str) -> list[Entry]:
        """The journal's entries: everything that was written before this call, of `unit` and about it.

        `fields` are further journal fields that must be equal, such as KEEP_ID="1".
        """
        arguments = [f"{name}={value}" for name, value in fields.items()]
        if unit:
            arguments.append(f"--unit={unit}")
        if since_cursor:
            arguments.append(_from(since_cursor))
        return [entry for entry in self._entries(*arguments) if entry["__CURSOR"] != since_cursor]

    def latest(self, count: int) -> list[Entry]:
        """The journal's last entries, at most `count`."""
        return self._entries(f"--lines={count}")

    def _entries(self, *arguments: str) -> list[Entry]:
        self.run(["journalctl", "--sync"])
        output = self.run(["journalctl", "--no-pager", "--output=json", "--all", *arguments]).stdout
        return [json.loads(line) for line in output.splitlines()]

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
        arguments = ["journalctl", "--follow", "--lines=all", "--output=json", "--all"]
        arguments += [f"--unit={unit}"] if unit else []
        arguments += [_from(since_cursor)] if since_cursor else []
        seen: list[str] = []
        for _ in range(LOOKS):
            seen.clear()
            with self.popen(arguments) as follower:
                alarm = threading.Timer(seconds / LOOKS, follower.kill)
                alarm.start()
                try:
                    for line in follower.stdout or ():
                        if not line.startswith("{"):
                            raise CommandFailed(f"journalctl: {line}")
                        entry: Entry = json.loads(line)
                        if entry["__CURSOR"] != since_cursor and matches(entry):
                            return entry
                        seen.append(message_of(entry))
                finally:
                    alarm.cancel()
        raise CommandFailed(
            f"the journal never showed {wanted!r} within {seconds} s; its end:\n" + "\n".join(seen[-20:])
        )
