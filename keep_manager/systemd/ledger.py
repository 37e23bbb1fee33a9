"""What happened to keeps, written into the journal and read from it again, and the lines the journal dropped.

An event is an entry of the manager's own unit, so that no keep's flood can displace it, and is about the keep's unit:
`journalctl -u keep@ID` and `systemctl status` show it, `journalctl -o json` the whole record.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager

from keep_manager.model import Told
from keep_manager.systemd.lines import DROPPED, Journal, check_cursor
from keep_protocol import strict_json
from keep_protocol.constants import unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.sse import EventType, KeepEvent, event_from_wire

SOCKET = "/run/systemd/journal/socket"
"""Where journald takes entries with fields of the sender's own (systemd's "Native Journal Protocol")."""
MANAGER_UNIT = "keep-manager.service"
MESSAGE_ID = "7a1f0c5e7d5b4f5e9a53e0d2c2a3b9d4"
"""What all our events have in common (man sd-id128)."""
KEEP = "KEEP_EVENT_KEEP"
"""The field of the keep's ID. Not KEEP_ID, by which people read the lines of the keep itself."""
WRITE_SECONDS = 5.0
"""journald takes an entry at once unless its queue is full; one that is restarted is back in a fraction of this."""
MAX_TOLD = 20_000
"""Events looked through at a start, from the newest back: a second's work, and hours of a busy host."""
PRIORITIES = {EventType.FAILED: 4}
"""As syslog counts; everything else is 6, informational."""
_HAPPENINGS = {type_.value: type_ for type_ in EventType}


def entry(fields: Mapping[str, str]) -> bytes:
    """One datagram of the native journal protocol; a value with a newline is told by its length."""
    parts: list[bytes] = []
    for name, text in fields.items():
        value = text.encode("utf-8", "replace")
        if b"\n" in value:
            parts.append(name.encode("ascii") + b"\n" + len(value).to_bytes(8, "little") + value + b"\n")
        else:
            parts.append(name.encode("ascii") + b"=" + value + b"\n")
    return b"".join(parts)


def fields_of(event: KeepEvent, text: str, instance: str) -> dict[str, str]:
    """The fields of an event's entry; `text` is its line."""
    about = "OBJECT_SYSTEMD_USER_UNIT" if instance == "user" else "OBJECT_SYSTEMD_UNIT"
    return {
        "MESSAGE": text,
        "MESSAGE_ID": MESSAGE_ID,
        "PRIORITY": str(PRIORITIES.get(event.type, 6)),
        "SYSLOG_IDENTIFIER": "keep-manager",
        about: unit_name(event.keep.kuuid),
        KEEP: str(event.keep.kuuid),
        "KEEP_EVENT": event.type.value,
        "KEEP_RESTARTS": str(event.keep.restarts),
        "KEEP_RECORD": strict_json.dumps(event.to_wire()).decode("ascii"),
    }


def read_event(record: bytes) -> KeepEvent | None:
    """The event in one record of journalctl's JSON; None for what is none."""
    try:
        fields = json.loads(record)
        return event_from_wire(json.loads(fields["KEEP_RECORD"]), check_cursor(str(fields["__CURSOR"])))
    except (ValueError, TypeError, KeyError, AttributeError, KeepfleetError):
        return None


def read_told(record: bytes) -> tuple[int, Told] | None:
    """The keep and what was told of it, in one record of journalctl's JSON; None for what is none."""
    try:
        fields = json.loads(record)
        return int(fields[KEEP]), Told(_HAPPENINGS[fields["KEEP_EVENT"]], int(fields["KEEP_RESTARTS"]))
    except (ValueError, TypeError, KeyError):
        return None


class Ledger:
    """The events of one manager, in the journal of its host."""

    def __init__(self, journal: Journal, instance: str, path: str = SOCKET) -> None:
        self._journal, self._instance, self._path = journal, instance, path
        unit = (
            (f"_SYSTEMD_USER_UNIT={MANAGER_UNIT}", f"_UID={os.geteuid()}")
            if instance == "user"
            else (f"_SYSTEMD_UNIT={MANAGER_UNIT}",)
        )
        self._matches = (*unit, f"MESSAGE_ID={MESSAGE_ID}")

    def __repr__(self) -> str:
        return f"Ledger({self._instance}, {self._path})"

    @property
    def counts(self) -> bool:
        """Whether it can be known what journald dropped: journald tells it to the host's administrators alone."""
        return self._instance != "user"

    async def write(self, event: KeepEvent, text: str) -> None:
        """Writes the event down. Raises KeepfleetError(UNAVAILABLE) when journald does not take it."""
        data = entry(fields_of(event, text, self._instance))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
            try:
                sock.connect(self._path)
                async with asyncio.timeout(WRITE_SECONDS):
                    await asyncio.get_running_loop().sock_sendall(sock, data)
            except (OSError, TimeoutError) as error:
                why = "it takes nothing" if isinstance(error, TimeoutError) else error.strerror
                raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot write to the journal: {why}") from error

    @asynccontextmanager
    async def events(
        self, kuuid: int | None = None, *, last: int | None = None, after: str = "", follow: bool = False
    ) -> AsyncIterator[AsyncGenerator[KeepEvent, None]]:
        """The events there are, the `last` ones or those `after` a cursor, of all keeps or of one; with `follow` those
        to come, for ever, and before them only what `last` or `after` asks for.

        What happens after the block has begun is told. Raises KeepfleetError: TOO_MANY, BAD_REQUEST, UNAVAILABLE.
        """
        matches = self._matches if kuuid is None else (*self._matches, f"{KEEP}={kuuid}")
        arguments = ["--output=json", "--output-fields=KEEP_RECORD", "--all", "--quiet", "--no-pager"]
        place = check_cursor(after) if after else await self._end() if follow and last is None else ""
        if follow:
            arguments.append("--follow")
        if place:
            # Not --after-cursor=, which skips the first entry that matches, whether it is that one or not (252).
            arguments += [f"--cursor={place}", "--no-tail"]
        else:
            arguments.append("--no-tail" if last is None else f"--lines={last}")
        with self._journal.place_for_reader():
            async with (
                self._journal.records([*arguments, *matches]) as records,
                aclosing(_events(records, place)) as events,
            ):
                yield events

    async def told(self) -> dict[int, Told]:
        """What was told last of each keep among the MAX_TOLD latest events. Raises KeepfleetError."""
        fields = f"--output-fields={KEEP},KEEP_EVENT,KEEP_RESTARTS"
        arguments = ["--output=json", fields, "--quiet", "--no-pager", "--reverse", f"--lines={MAX_TOLD}"]
        found: dict[int, Told] = {}
        async with self._journal.records([*arguments, *self._matches]) as records:
            async for record in records:
                told = read_told(record)
                if told is not None:
                    found.setdefault(*told)
        return found

    async def taken(self, kuuid: int, since: float, at_most: int) -> int:
        """How many lines of a keep journald has taken since that second of the host's uptime, counted up to `at_most`.

        Raises KeepfleetError.
        """
        await self._journal.sync()
        arguments = ["--output=json", "--output-fields=_PID", "--quiet", "--no-pager", f"--lines={at_most}"]
        async with self._journal.records([*arguments, f"_SYSTEMD_UNIT={unit_name(kuuid)}"]) as records:
            return len([None async for record in records if _uptime(record) >= since])

    async def dropped(self, kuuid: int) -> int:
        """How many lines of a keep journald says it has dropped so far. Raises KeepfleetError."""
        await self._journal.sync()
        arguments = ["--output=json", "--output-fields=N_DROPPED", "--quiet", "--no-pager", *DROPPED]
        total = 0
        async with self._journal.records([*arguments, f"OBJECT_SYSTEMD_UNIT={unit_name(kuuid)}"]) as records:
            async for record in records:
                total += _number_dropped(record)
        return total

    async def _end(self) -> str:
        """The cursor of the latest entry, whoever's it is; "" where there is none."""
        arguments = ["--output=json", "--output-fields=_PID", "--quiet", "--no-pager", "--lines=1"]
        async with self._journal.records(arguments) as records:
            record = await anext(records, b"{}")
        try:
            return check_cursor(str(json.loads(record).get("__CURSOR", "")))
        except (ValueError, KeepfleetError):
            return ""


def _uptime(record: bytes) -> float:
    try:
        return int(json.loads(record)["__MONOTONIC_TIMESTAMP"]) / 1e6
    except (ValueError, TypeError, KeyError):
        return 0.0


def _number_dropped(record: bytes) -> int:
    try:
        return int(json.loads(record)["N_DROPPED"])
    except (ValueError, TypeError, KeyError):
        return 0


async def _events(records: AsyncGenerator[bytes, None], after: str) -> AsyncGenerator[KeepEvent, None]:
    async for record in records:
        event = read_event(record)
        if event is not None and event.cursor != after:
            yield event
