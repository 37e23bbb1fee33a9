"""A unit's last journal lines, as evidence for an error; without them the error is still told."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress

LINES = 10
READ_SECONDS = 2.0
"""journalctl opens every journal file first: 30 ms here, more on a host with a long history."""
MAX_BYTES = 16 * 1024
"""What fits into one control message or error body beside everything else."""


async def last_lines(unit: str, instance: str) -> tuple[str, ...]:
    """The unit's last LINES lines, printable; empty when the journal cannot be read in READ_SECONDS."""
    own = ("--user", f"--user-unit={unit}") if instance == "user" else (f"--unit={unit}",)
    command = ("journalctl", *own, "--output=cat", "--quiet", "--no-pager", f"--lines={LINES}")
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    except OSError:
        return ()
    try:
        async with asyncio.timeout(READ_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        return ()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    text = output[-MAX_BYTES:].decode("utf-8", "replace")
    return tuple("".join(c for c in line if c.isprintable()) for line in text.splitlines() if line.strip())
