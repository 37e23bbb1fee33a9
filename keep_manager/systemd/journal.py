"""Lines of keeps out of the journal, as they are and as they come, and a unit's last ones as evidence for an error.

What journalctl writes is read here.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, nullcontext, suppress

from keep_protocol.constants import unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.forking import RUNNER_NAME
from keep_protocol.sse import JOURNAL_SOURCE, KEEP_SOURCE, WORKLOAD_SOURCE, LogLine

MAX_FOLLOWED = 64
"""Clients that read concurrently. Each has a journalctl of its own, with about 10 MB; one that follows a keep has a
second one at the keep's end, for the rest."""
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
FIELDS = "MESSAGE,_CMDLINE,_COMM,N_DROPPED"
DROPPED = ("_TRANSPORT=driver", "MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e")
"""How journald itself says that a unit's limit made it drop lines (SD_MESSAGE_JOURNAL_DROPPED in sd-messages.h); the
transport cannot be forged. It says so with the next line of the unit that it takes."""
_CURSOR = re.compile(
    r"s=[0-9a-f]{32};i=[0-9a-f]{1,16};b=[0-9a-f]{32};m=[0-9a-f]{1,16};t=[0-9a-f]{1,16};x=[0-9a-f]{1,16}"
)
_LOADER = "keep_loader/__main__.py"
_APP_LOADER = "app-loader: "
_RUNNER = " run"


def check_cursor(text: str) -> str:
    """`text` when it is a journal's cursor. Raises KeepfleetError(BAD_REQUEST)."""
    if not _CURSOR.fullmatch(text):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot resume after {text[:60]!r}: it is no event's id")
    return text


def source(text: str, command: str, name: str) -> str:
    """Who wrote a line, by its process's command line and name: the workload where it is a runner; the keep where it is
    the loader, or another fork of it. A keep of the version before starts programs: its app-loader becomes the runner,
    which journald may not have noticed yet, and its lines have a prefix."""
    if name == RUNNER_NAME:
        return WORKLOAD_SOURCE
    if _LOADER in command or (text.startswith(_APP_LOADER) and not command.endswith(_RUNNER)):
        return KEEP_SOURCE
    return WORKLOAD_SOURCE


def read_record(record: bytes) -> LogLine | None:
    """The line in one record of journalctl's JSON; None for what is none. A message that is no text is a list there."""
    try:
        fields = json.loads(record)
        message, at = fields.get("MESSAGE"), int(fields["__REALTIME_TIMESTAMP"]) / 1e6
        text = bytes(message).decode("utf-8", "replace") if isinstance(message, list) else message
        cursor = check_cursor(str(fields["__CURSOR"]))
        command, name, dropped = (fields.get(field) for field in ("_CMDLINE", "_COMM", "N_DROPPED"))
    except (ValueError, TypeError, KeyError, AttributeError, KeepfleetError):
        return None
    if not isinstance(text, str):
        return None
    if dropped is not None:
        return LogLine(at, JOURNAL_SOURCE, f"{dropped} lines were dropped here", cursor)
    written_by = source(text, *(word if isinstance(word, str) else "" for word in (command, name)))
    return LogLine(at, written_by, text, cursor)


class Journal:
    """The journal of one service manager's host; `command` runs its journalctl."""

    def __init__(self, instance: str, command: Sequence[str] = ("journalctl",)) -> None:
        self._instance = instance
        self._command = tuple(command)
        self._followed: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Journal({self._instance}, {self._followed.total()} readers)"

    @asynccontextmanager
    async def lines(
        self,
        kuuid: int,
        *,
        last: int | None = None,
        after: str = "",
        follow: bool = False,
        second: bool = False,
        caller: str = "",
    ) -> AsyncIterator[AsyncIterator[LogLine]]:
        """The keep's lines, the `last` ones or those `after` a cursor; with `follow` also those to come, for ever.

        The reader ends with the block and takes one of the places of `caller`. second: the place that the caller has
        already is enough for this one too.
        Raises KeepfleetError: TOO_MANY, BAD_REQUEST for no cursor, UNAVAILABLE.
        """
        arguments = _arguments(self._instance, kuuid, last, after, follow)
        with nullcontext() if second else self.place_for_reader(caller):
            async with self.records(arguments) as records, aclosing(_lines(records)) as lines:
                yield lines

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

    async def sync(self) -> None:
        """Waits until journald has written what was sent to it. Only root may ask; for others there is no waiting."""
        process = await self._start(("--sync",))
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(SYNC_SECONDS):
                    await process.wait()
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


def _arguments(instance: str, kuuid: int, last: int | None, after: str, follow: bool) -> list[str]:
    """The unit is matched by fields journald itself fills in: others can be written by any process. Not `--user`: that
    looks into the user's own journal alone, and where the journal is kept in memory there is none (man journald.conf,
    SplitMode=).

    Of a process that has ended before journald looks, as a short workload's has, journald does not know the unit where
    that is a user's: its lines have the identifier that the unit gave its output, and are the same user's.
    """
    arguments = ["--output=json", f"--output-fields={FIELDS}", "--all", "--quiet", "--no-pager"]
    if follow:
        arguments.append("--follow")
    if after:
        arguments += [f"--after-cursor={check_cursor(after)}", "--no-tail"]
    elif last is not None:
        arguments.append(f"--lines={last}")
    else:
        arguments.append("--no-tail")
    unit = unit_name(kuuid)
    if instance == "user":
        user = f"_UID={os.geteuid()}"
        ended = ["+", f"SYSLOG_IDENTIFIER=keep-{kuuid}", "_TRANSPORT=stdout", user]
        own, about = [f"_SYSTEMD_USER_UNIT={unit}", user, *ended], f"OBJECT_SYSTEMD_USER_UNIT={unit}"
    else:
        own, about = [f"_SYSTEMD_UNIT={unit}"], f"OBJECT_SYSTEMD_UNIT={unit}"
    return [*arguments, *own, "+", *DROPPED, about]


async def _lines(records: AsyncGenerator[bytes, None]) -> AsyncGenerator[LogLine, None]:
    async for record in records:
        line = read_record(record)
        if line is not None:
            yield line


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
    """The unit's last EVIDENCE_LINES lines, printable; empty when the journal cannot be read in EVIDENCE_SECONDS."""
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
