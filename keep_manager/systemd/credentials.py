"""Encrypts secrets with systemd-creds(1), by the host's own key: systemd decrypts them when it starts the unit that is
to have them, and nothing else of this manager's reads them again.

The value goes over a pipe; no argument and no environment has it. Import rule: that of keep_manager.systemd.
"""

from __future__ import annotations

import asyncio
import os
import shutil

from keep_manager.systemd.programs import ask
from keep_protocol.errors import ErrorKind, KeepfleetError

PROGRAM = "systemd-creds"
HOST_KEY = "/var/lib/systemd/credential.secret"
"""Made once for a host, by `systemd-creds setup`, which the manager may not: it writes nothing there."""
SECONDS = 10.0
"""It takes 10 ms; a busy host is slower."""


class Sealer:
    """Encrypts for the system's instance; a user's own has no key before systemd 256, and none that is tried here."""

    def __init__(self, *, system: bool, program: str = PROGRAM, host_key: str = HOST_KEY) -> None:
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
        command = (self._program or PROGRAM, "encrypt", "--with-key=host", f"--name={name}", "-", "-")
        cannot = f"cannot encrypt the secret {name}"
        ended, sealed, lines = await ask(command, SECONDS, cannot, ErrorKind.UNAVAILABLE, value)
        if ended or not sealed:
            why = f"{lines[-1][:200] if lines else f'{PROGRAM} failed'}; run: systemd-creds setup"
            raise KeepfleetError(ErrorKind.CONFIGURATION, f"{cannot}: {why}")
        return sealed
