"""The journal, read by journalctl: events of keeps, and a unit's last lines as evidence for an error."""

from __future__ import annotations

import asyncio
import json
import re
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress

from keep_protocol.errors import ErrorKind, KeepfleetError

MAX_FOLLOWED = 64
"""Clients that read concurrently. Each has a journalctl of its own, with about 10 MB."""
MAX_FOLLOWED_PER_CALLER = 16
"""A quarter of them, so that no caller takes all."""
MAX_RECORD = 1024 * 1024
"""journald cuts a line at 48 KiB; one that is no text is written as numbers, five characters a byte."""
RECORDS_AT_ONCE = 32
"""Records read before the loop turns to others again: an event takes half a millisecond to read."""
SYNC_SECONDS = 2.0
"""What journald gets to write down what was sent to it before a keep's end is sent; a busy one needs 100 ms."""
EVIDENCE_LINES = 10
EVIDENCE_SECONDS = 2.0
"""journalctl opens every journal file first: 30 ms here, more on a host with a long history."""
MAX_EVIDENCE_BYTES = 16 * 1024
"""What fits into one control message or error body with everything else."""
_CURSOR = re.compile(
    r"s=[0-9a-f]{32};i=[0-9a-f]{1,16};b=[0-9a-f]{32};m=[0-9a-f]{1,16};t=[0-9a-f]{1,16};x=[0-9a-f]{1,16}"
)


def check_cursor(text: str) -> str:
    """`text` when it is a journal's cursor. Raises KeepfleetError(BAD_REQUEST)."""
    if not _CURSOR.fullmatch(text):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot resume after {text[:60]!r}: it is no event's id")
    return text


class Journal:
    """The journal of one service manager's host; `command` runs its journalctl."""

    def __init__(self, instance: str, command: Sequence[str] = ("journalctl",)) -> None:
        self._instance = instance
        self._command = tuple(command)
        self._followed: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Journal({self._instance}, {self._followed.total()} readers)"

    @contextmanager
    def place_for_reader(self, caller: str = "") -> Iterator[None]:
        """One of the places for those who read for a client, of which each caller has a share.

        Raises KeepfleetError(TOO_MANY).
        """
        all_of_them, own = self._followed.total(), self._followed[caller]
        if all_of_them >= MAX_FOLLOWED or own >= MAX_FOLLOWED_PER_CALLER:
            most, whose = (
                (MAX_FOLLOWED_PER_CALLER, " of yours") if own >= MAX_FOLLOWED_PER_CALLER else (MAX_FOLLOWED, "")
            )
            raise KeepfleetError(
                ErrorKind.TOO_MANY, f"cannot read the journal: {most} readers{whose} do already, which is the limit"
            )
        self._followed[caller] += 1
        try:
            yield
        finally:
            self._followed[caller] -= 1
            if not self._followed[caller]:
                del self._followed[caller]

    @asynccontextmanager
    async def records(self, arguments: Sequence[str]) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        """What journalctl writes with these arguments, line by line. The reader ends with the block.

        Raises KeepfleetError(UNAVAILABLE).
        """
        process = await self._start(arguments)
        try:
            async with aclosing(_records(process)) as records:
                yield records
        finally:
            await _ended(process)

    async def cursor(self, matches: Iterable[str]) -> str:
        """The cursor of the latest entry that matches; "" where there is none. Raises KeepfleetError(UNAVAILABLE)."""
        arguments = ["--output=json", "--output-fields=_PID", "--quiet", "--no-pager", "--lines=1"]
        async with self.records([*arguments, *matches]) as records:
            record = await anext(records, b"{}")
        try:
            return check_cursor(str(json.loads(record).get("__CURSOR", "")))
        except (ValueError, KeepfleetError):
            return ""

    async def sync(self) -> bool:
        """Waits until journald has written what was sent to it; whether it has said so. Only root may ask; for others
        there is no waiting."""
        process = await self._start(("--sync",))
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(SYNC_SECONDS):
                    return await process.wait() == 0
            return False
        finally:
            await _ended(process)

    async def _start(self, arguments: Sequence[str]) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self._command, *arguments, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, limit=MAX_RECORD
            )
        except OSError as error:
            raise KeepfleetError(
                ErrorKind.UNAVAILABLE, f"cannot read the journal: journalctl: {error.strerror}"
            ) from error


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Kills a journalctl that has not ended by itself, and reads what it left in the pipe, which closes that."""
    # At the end of its output it ends by itself; a kill then could take its status from under asyncio's waiter.
    if process.returncode is None and not (process.stdout and process.stdout.at_eof()):
        with suppress(ProcessLookupError):
            process.kill()
    await process.communicate()


async def _records(process: asyncio.subprocess.Process) -> AsyncGenerator[bytes, None]:
    output, taken = process.stdout, 0
    while output is not None:
        taken += 1
        if taken % RECORDS_AT_ONCE == 0:
            await asyncio.sleep(0)  # readline itself does not wait where a record is there
        try:
            record = await output.readline()
        except ValueError:
            continue  # a record over MAX_RECORD; it was dropped
        if not record:
            return
        yield record


async def last_lines(unit: str, instance: str) -> tuple[str, ...]:
    """The unit's last EVIDENCE_LINES lines, printable; empty when the journal cannot be read in EVIDENCE_SECONDS. What
    the unit said as it failed is waited for, as Journal.sync does: journald may not have come to it."""
    if instance == "system":
        with suppress(KeepfleetError):  # it cannot be read either then
            await Journal(instance).sync()
    own = ("--user", f"--user-unit={unit}") if instance == "user" else (f"--unit={unit}",)
    command = ("journalctl", *own, "--output=cat", "--quiet", "--no-pager", f"--lines={EVIDENCE_LINES}")
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    except OSError:
        return ()
    try:
        async with asyncio.timeout(EVIDENCE_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        return ()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    text = output[-MAX_EVIDENCE_BYTES:].decode("utf-8", "replace")
    return tuple("".join(c for c in line if c.isprintable()) for line in text.splitlines() if line.strip())
