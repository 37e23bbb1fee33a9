"""systemd's own programs, asked for what it offers by no call over the bus."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from contextlib import suppress

from keep_protocol.errors import ErrorKind, KeepfleetError


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
