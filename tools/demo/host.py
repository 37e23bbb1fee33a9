"""The host as an operator sees it: systemctl, journalctl and keepctl, each call checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass

COMMAND_SECONDS = 60
"""The slowest command is the manager's start: systemd gives a unit 90 seconds, and it needs one."""
JOURNAL_SECONDS = 10
"""journald writes a line within milliseconds; this covers a host a thousand times busier."""


class StepFailed(Exception):
    """A step of the demo did not do what it should; the text says what was seen."""


@dataclass(frozen=True)
class Host:
    """One service manager, the system's or (`user`) this user's, and the programs installed next to `python`."""

    user: bool

    @property
    def programs(self) -> str:
        """The directory keepfleet's programs are in."""
        return os.path.dirname(sys.executable)

    def run(self, *argv: str) -> str:
        """The standard output of a command. Raises StepFailed with what it printed when it fails."""
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StepFailed(f"{' '.join(argv)}: {error}") from error
        if done.returncode:
            raise StepFailed(f"{' '.join(argv)} exited {done.returncode}: {done.stdout}{done.stderr}".strip())
        return done.stdout

    def systemctl(self, *arguments: str) -> str:
        """`systemctl`, of the right service manager."""
        return self.run("systemctl", *(["--user"] if self.user else []), "--no-pager", *arguments)

    def keepctl(self, *arguments: str) -> str:
        """`keepctl`, as installed."""
        return self.run(os.path.join(self.programs, "keepctl"), *arguments)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--value", "--property", name, unit).strip()

    def _field(self, unit: str) -> str:
        return f"{'_SYSTEMD_USER_UNIT' if self.user else '_SYSTEMD_UNIT'}={unit}"

    def journal(self, unit: str) -> list[str]:
        """The unit's lines, as journald returns them now."""
        output = self.run("journalctl", "--no-pager", "--output", "json", self._field(unit))
        return [message_of(json.loads(line)) for line in output.splitlines()]

    def journal_with(self, unit: str, text: str) -> list[str]:
        """The unit's lines up to the first that holds `text`; journald writes them a moment after they were printed.

        Raises StepFailed when it has not come by the deadline.
        """
        argv = ("journalctl", "--follow", "--lines=all", "--output", "json", self._field(unit))
        lines: list[str] = []
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as follower:
            alarm = threading.Timer(JOURNAL_SECONDS, follower.kill)
            alarm.start()
            try:
                for line in follower.stdout or ():
                    lines.append(message_of(json.loads(line)))
                    if text in lines[-1]:
                        return lines
            finally:
                alarm.cancel()
                follower.kill()
        raise StepFailed(f"the journal of {unit} never showed {text!r}; it holds: {lines}")


def message_of(entry: dict[str, object]) -> str:
    """The text of a journal entry; journald gives bytes that are not text as a list of numbers."""
    message = entry.get("MESSAGE", "")
    if isinstance(message, list):
        return bytes(int(byte) for byte in message).decode("utf-8", "backslashreplace")
    return str(message)
