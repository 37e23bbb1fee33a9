"""systemd's own programs, asked for what it offers by no call over the bus: `systemd-analyze calendar` what a schedule
means, which knows what systemd's timers know, and `systemd-creds` to encrypt a secret by the host's own key.

systemd decrypts such a secret when it starts the unit that is to have it, and nothing else of this manager's reads it
again. Its value goes over a pipe; no argument and no environment has it. Import rule: that of keep_manager.systemd.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise

from keep_protocol.errors import ErrorKind, KeepfleetError

SECONDS = 10.0
"""Each takes 5 to 10 ms; a busy host is slower."""
CONCURRENT = 2
"""As many as there are processors on a small host: a manager that starts asks for each of its jobs."""
SHORTEST_PERIOD = 1.0
"""Seconds between two moments: a keep takes a third of one to begin."""
LOOKED_AT = 5
"""Moments that are looked at for that."""
_MOMENT = r"\w{3} ([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}) UTC"
_NORMALIZED = re.compile(r"^\s*Normalized form: (.+)$", re.MULTILINE)
_ELAPSES = re.compile(rf"^\s*(?:Next elapse|Iter\. #[0-9]+|\(in UTC\)): {_MOMENT}$", re.MULTILINE)
CREDS = "systemd-creds"
HOST_KEY = "/var/lib/systemd/credential.secret"
"""Made once for a host, by `systemd-creds setup`, which the manager may not: it writes nothing there."""


async def ask(
    command: Sequence[str], seconds: float, cannot: str, missing: ErrorKind, given: bytes | None = None
) -> tuple[int, bytes, list[str]]:
    """How the program ended, what it printed, and the lines of what it complained of.

    given: its standard input; cannot: what fails with it, in errors. It has ended when this returns or raises.
    Raises KeepfleetError: `missing` where it cannot be started, UNAVAILABLE where it has not answered in time.
    """
    stdin = DEVNULL if given is None else PIPE
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=stdin, stdout=PIPE, stderr=PIPE)
    except OSError as error:
        raise KeepfleetError(missing, f"{cannot}: {command[0]}: {error.strerror}") from error
    try:
        async with asyncio.timeout(seconds):
            printed, complained = await process.communicate(given)
    except TimeoutError:
        why = f"{command[0]} has not answered in {seconds:g} s"
        raise KeepfleetError(ErrorKind.UNAVAILABLE, f"{cannot}: {why}") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()
    return process.returncode or 0, printed, complained.decode("utf-8", "replace").strip().splitlines()


class Calendar:
    """Asks `program`."""

    def __init__(self, program: str = "systemd-analyze") -> None:
        self._program, self._places = program, asyncio.Semaphore(CONCURRENT)

    def __repr__(self) -> str:
        return f"Calendar({self._program!r})"

    async def check(self, event: str) -> str:
        """The event in systemd's own form. Raises KeepfleetError: BAD_REQUEST for what is none, never comes, or comes
        more often than once a second; UNSUPPORTED where systemd-analyze is not there."""
        text = await self._ask(event, f"--iterations={LOOKED_AT}")
        moments, normalized = moments_in(text), _NORMALIZED.search(text)
        if normalized is None or not moments:
            raise _bad(event, "it never comes")
        if any(later - before < SHORTEST_PERIOD for before, later in pairwise(moments)):
            raise _bad(event, "it comes more often than once a second")
        return normalized[1].strip()

    async def after(self, event: str, moment: float) -> float | None:
        """When the event comes first after `moment`, in seconds of the epoch; None for never. Raises KeepfleetError."""
        moments = moments_in(await self._ask(event, f"--base-time=@{moment:.6f}"))
        return moments[0] if moments else None

    async def _ask(self, event: str, *options: str) -> str:
        command = (self._program, "calendar", *options, "--", event)
        async with self._places:
            cannot = "cannot understand a schedule"
            ended, said, lines = await ask(command, SECONDS, cannot, ErrorKind.UNSUPPORTED)
        if ended:
            raise _bad(event, lines[-1][:200] if lines else "systemd does not understand it")
        return said.decode("utf-8", "replace")


def moments_in(text: str) -> list[float]:
    """The moments in what systemd-analyze prints, in order; where the local time is another than UTC a line follows
    each with the same moment there. Pure."""
    return [datetime.fromisoformat(found).replace(tzinfo=UTC).timestamp() for found in _ELAPSES.findall(text)]


def _bad(event: str, why: str) -> KeepfleetError:
    return KeepfleetError(
        ErrorKind.BAD_REQUEST, f"cannot use the schedule OnCalendar={event[:100]}: {why} (man 7 systemd.time)"
    )


class Sealer:
    """Encrypts for the system's instance; a user's own has no key before systemd 256, and none that is tried here."""

    def __init__(self, *, system: bool, program: str = CREDS, host_key: str = HOST_KEY) -> None:
        self._program = shutil.which(program) if system else None
        self._host_key = host_key

    def __repr__(self) -> str:
        return f"Sealer({self._program or 'none'})"

    @property
    def available(self) -> bool:
        """Whether this host encrypts: systemd has had systemd-creds since version 250."""
        return self._program is not None

    async def seal(self, name: str, value: bytes) -> bytes:
        """The value encrypted for the credential `name`. Raises KeepfleetError(CONFIGURATION, UNAVAILABLE)."""
        if not await asyncio.to_thread(os.path.exists, self._host_key):
            why = f"this host has no key yet, {self._host_key}; run: systemd-creds setup"
            raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot encrypt the secret {name}: {why}")
        command = (self._program or CREDS, "encrypt", "--with-key=host", f"--name={name}", "-", "-")
        cannot = f"cannot encrypt the secret {name}"
        ended, sealed, lines = await ask(command, SECONDS, cannot, ErrorKind.UNAVAILABLE, value)
        if ended or not sealed:
            why = f"{lines[-1][:200] if lines else f'{CREDS} failed'}; run: systemd-creds setup"
            raise KeepfleetError(ErrorKind.CONFIGURATION, f"{cannot}: {why}")
        return sealed
