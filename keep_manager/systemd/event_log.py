"""Events of keeps, written into the journal and read from it again, and sent to those who follow.

Followers cost no process: what this manager writes it sends them itself, and the journal is read once for each that
asks for what was before. An event is an entry of the manager's own unit, so that no keep's flood can displace it, and
is about the keep's unit: `journalctl -u keep@ID` and `systemctl status` show it, `journalctl -o json` the whole record.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import socket
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager

from keep_manager.model import LastEvent, Visible
from keep_manager.systemd.journal import Journal, check_cursor
from keep_protocol import strict_json
from keep_protocol.constants import unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.sse import EventType, KeepEvent, event_from_wire

LOG = logging.getLogger("keepfleet.journal")
SOCKET = "/run/systemd/journal/socket"
"""Where journald takes entries with fields of the sender's own (systemd's "Native Journal Protocol")."""
MANAGER_UNIT = "keep-manager.service"
MESSAGE_ID = "7a1f0c5e7d5b4f5e9a53e0d2c2a3b9d4"
"""What all our events have in common (man sd-id128)."""
KEEP = "KEEP_EVENT_KEEP"
"""The field of the keep's ID. Not KEEP_ID, by which people read the lines of the keep itself."""
OWNER = "KEEP_EVENT_OWNER"
ID = "KEEP_EVENT_ID"
"""The field of the event's ID, which a follower resumes after: this manager knows it before journald has the entry."""
WRITE_SECONDS = 5.0
"""journald takes an entry immediately unless its queue is full; one that is restarted is back in a fraction of this."""
MAX_READ = 20_000
"""Events looked through at a start, from the newest back: a second's work, and hours of a busy host."""
RECENT = 1024
"""Events kept in memory, some megabytes, for those who resume; who was away for longer is answered from the journal."""
MAX_FOLLOWERS = 512
MAX_BEHIND = 256
"""Events that wait for one follower: it has stopped to read and is cut off; when it is back it resumes."""
PRIORITIES = {EventType.FAILED: 4}
"""As syslog counts; everything else is 6, informational."""
_TYPES = {type_.value: type_ for type_ in EventType}
_ID = re.compile(r"m=[0-9a-f]{16};n=([0-9a-f]{1,16});t=([0-9a-f]{1,16})", re.ASCII)


def entry(fields: Mapping[str, str]) -> bytes:
    """One datagram of the native journal protocol; a value with a newline is preceded by its length."""
    parts: list[bytes] = []
    for name, text in fields.items():
        value = text.encode("utf-8", "replace")
        if b"\n" in value:
            parts.append(name.encode("ascii") + b"\n" + len(value).to_bytes(8, "little") + value + b"\n")
        else:
            parts.append(name.encode("ascii") + b"=" + value + b"\n")
    return b"".join(parts)


async def send(path: str, data: bytes) -> None:
    """Sends journald, whose socket is at `path`, one entry. Raises KeepfleetError(UNAVAILABLE) when it does not take
    it."""
    flags = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        with socket.socket(socket.AF_UNIX, flags) as sock:
            sock.connect(path)
            async with asyncio.timeout(WRITE_SECONDS):
                await asyncio.get_running_loop().sock_sendall(sock, data)
    except OSError as error:  # a timeout, too
        why = error.strerror or "it takes nothing"
        raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot write to the journal: {why}") from error


def check_id(text: str) -> str:
    """`text` when it is an event's ID: ours, or, of an event of the version before, its cursor. Raises BAD_REQUEST."""
    return text if _ID.fullmatch(text) else check_cursor(text)


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
        OWNER: event.keep.owner,
        ID: event.cursor,
        "KEEP_RECORD": strict_json.dumps(event.to_wire()).decode("ascii"),
    }


def read_event(record: bytes) -> KeepEvent | None:
    """The event in one record of journalctl's JSON; None for what is none."""
    try:
        fields = json.loads(record)
        event_id = check_id(str(fields.get(ID) or fields["__CURSOR"]))
        return event_from_wire(json.loads(fields["KEEP_RECORD"]), event_id)
    except (ValueError, TypeError, KeyError, AttributeError, KeepfleetError):
        return None


def read_latest(record: bytes) -> tuple[int, LastEvent] | None:
    """The keep and its event in one record of journalctl's JSON; None for what is none."""
    try:
        fields = json.loads(record)
        since, at = (int(fields[f"__{clock}_TIMESTAMP"]) / 1e6 for clock in ("MONOTONIC", "REALTIME"))
        type_, owner = _TYPES[fields["KEEP_EVENT"]], str(fields.get(OWNER) or "")
        return int(fields[KEEP]), LastEvent(type_, int(fields["KEEP_RESTARTS"]), since, owner, at)
    except (ValueError, TypeError, KeyError):
        return None


class _Hub:
    """Those who follow, and the latest events in the order in which the journal has them."""

    def __init__(self) -> None:
        self.recent: deque[KeepEvent] = deque(maxlen=RECENT)
        self.followers: set[asyncio.Queue[KeepEvent | None]] = set()

    def publish(self, event: KeepEvent) -> None:
        self.recent.append(event)
        for queue in tuple(self.followers):
            if queue.full():
                self.followers.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)  # it ends there
            else:
                queue.put_nowait(event)

    def after(self, event_id: str) -> list[KeepEvent] | None:
        """The events after that one; None where it is not among the recent ones."""
        recent = list(self.recent)
        for number, event in enumerate(recent):
            if event.cursor == event_id:
                return recent[number + 1 :]
        return None


class EventLog:
    """The events of one manager, in the journal of its host."""

    def __init__(self, journal: Journal, instance: str, path: str = SOCKET) -> None:
        self._journal, self._instance, self._path = journal, instance, path
        self._hub, self._writing = _Hub(), asyncio.Lock()
        self._mine, self._number = secrets.token_hex(8), 0
        unit = (
            (f"_SYSTEMD_USER_UNIT={MANAGER_UNIT}", f"_UID={os.geteuid()}")
            if instance == "user"
            else (f"_SYSTEMD_UNIT={MANAGER_UNIT}",)
        )
        self._matches = (*unit, f"MESSAGE_ID={MESSAGE_ID}")

    def __repr__(self) -> str:
        return f"EventLog({self._instance}, {len(self._hub.followers)} followers)"

    async def write(self, event: KeepEvent, text: str) -> None:
        """Writes the event down, one after another, and then sends it to those who follow, also where the journal does
        not take it.

        Raises KeepfleetError(UNAVAILABLE) when journald does not take it.
        """
        async with self._writing:
            self._number += 1
            event = event.replace(cursor=f"m={self._mine};n={self._number:x};t={int(time.time() * 1e6):x}")
            try:
                await send(self._path, entry(fields_of(event, text, self._instance)))
            finally:
                self._hub.publish(event)

    @asynccontextmanager
    async def events(
        self,
        kuuid: int | None = None,
        *,
        last: int | None = None,
        after: str = "",
        follow: bool = False,
        visible: Visible | None = None,
        caller: str = "",
    ) -> AsyncIterator[AsyncGenerator[KeepEvent, None]]:
        """The events there are, the `last` ones or those `after` one, of all keeps or of one; with `follow` those to
        come, for ever, and before them only what `last` or `after` asks for. Only of keeps that are `visible`.

        What happens after the block has begun is sent. Raises KeepfleetError: TOO_MANY, BAD_REQUEST, UNAVAILABLE.
        """
        if after:
            check_id(after)
        if not follow:
            async with aclosing(self._known(kuuid, last, after, visible, caller)) as events:
                yield events
            return
        if len(self._hub.followers) >= MAX_FOLLOWERS:
            raise KeepfleetError(ErrorKind.TOO_MANY, f"cannot follow the events: {MAX_FOLLOWERS} clients do already")
        queue: asyncio.Queue[KeepEvent | None] = asyncio.Queue(MAX_BEHIND)
        self._hub.followers.add(queue)
        try:
            async with aclosing(self._followed(queue, kuuid, last, after, visible, caller)) as events:
                yield events
        finally:
            self._hub.followers.discard(queue)

    async def _followed(
        self,
        queue: asyncio.Queue[KeepEvent | None],
        kuuid: int | None,
        last: int | None,
        after: str,
        visible: Visible | None,
        caller: str,
    ) -> AsyncGenerator[KeepEvent, None]:
        newest = self._number_of(after)
        recent = self._hub.after(after) if after else None
        if recent is None and (after or last is not None):
            async for event in self._known(kuuid, last, after, visible, caller):
                newest = max(newest, self._number_of(event.cursor))
                yield event
        for event in recent or ():
            if self._number_of(event.cursor) > newest and _matches(event, kuuid, visible):
                newest = self._number_of(event.cursor)
                yield event
        while True:
            event_or_end = await queue.get()
            if event_or_end is None:
                raise KeepfleetError(ErrorKind.UNAVAILABLE, "cannot send further events: the client does not read them")
            if self._number_of(event_or_end.cursor) > newest and _matches(event_or_end, kuuid, visible):
                yield event_or_end

    async def _known(
        self, kuuid: int | None, last: int | None, after: str, visible: Visible | None, caller: str
    ) -> AsyncGenerator[KeepEvent, None]:
        """What is stored, and behind it what journald has taken and not written yet."""
        newest, recent = self._number_of(after), list(self._hub.recent)
        chosen: deque[KeepEvent] | None = None if last is None else deque(maxlen=last)
        async for event in self._stored(kuuid, last, after, visible, caller):
            newest = max(newest, self._number_of(event.cursor))
            if chosen is None:
                yield event
            else:
                chosen.append(event)
        rest = [e for e in recent if self._number_of(e.cursor) > newest and _matches(e, kuuid, visible)]
        for event in rest if chosen is None else (*chosen, *rest)[-last:] if last else ():
            yield event

    def _number_of(self, event_id: str) -> int:
        """Which of the events of this manager that is, in the order of the journal and of the hub; 0 for none."""
        mine, _, rest = event_id.removeprefix("m=").partition(";n=")
        return int(rest.partition(";")[0], 16) if mine == self._mine else 0

    async def _stored(
        self, kuuid: int | None, last: int | None, after: str, visible: Visible | None, caller: str
    ) -> AsyncGenerator[KeepEvent, None]:
        matches = self._matches if kuuid is None else (*self._matches, f"{KEEP}={kuuid}")
        arguments = ["--output=json", f"--output-fields=KEEP_RECORD,{ID}", "--all", "--quiet", "--no-pager"]
        with self._journal.place_for_reader(caller):
            began = 0
            if after:
                place, began = await self._place(after)
                arguments += place
            else:
                lines = last if visible is None or last is None else MAX_READ
                arguments.append("--no-tail" if lines is None else f"--lines={lines}")
            async with self._journal.records([*arguments, *matches]) as records:
                chosen = _events(records, after, began, kuuid, visible)
                if last is None or after or visible is None:
                    async for event in chosen:
                        yield event
                    return
                newest: deque[KeepEvent] = deque(maxlen=last)
                async for event in chosen:
                    newest.append(event)
        for event in newest:
            yield event

    async def _place(self, after: str) -> tuple[list[str], int]:
        """Where journalctl begins, for those who resume after that event: at it, or where that has gone at its time,
        which is given in microseconds of the epoch then."""
        match, cursor = _ID.fullmatch(after), after
        if match is not None:
            cursor = await self._journal.cursor((*self._matches, f"{ID}={after}"))
            if not cursor:
                began = int(match[2], 16)
                return [f"--since=@{began // 1_000_000}", "--no-tail"], began
        # Not --after-cursor=, which skips the first entry that matches, whether it is that one or not (252).
        return [f"--cursor={cursor}", "--no-tail"], 0

    async def latest(self) -> dict[int, LastEvent]:
        """The latest event of each keep among the MAX_READ latest of all. Raises KeepfleetError."""
        fields = f"--output-fields={KEEP},KEEP_EVENT,KEEP_RESTARTS,{OWNER}"
        arguments = ["--output=json", fields, "--quiet", "--no-pager", "--reverse", f"--lines={MAX_READ}"]
        found: dict[int, LastEvent] = {}
        async with self._journal.records([*arguments, *self._matches]) as records:
            async for record in records:
                latest = read_latest(record)
                if latest is not None:
                    found.setdefault(*latest)
        return found


def _matches(event: KeepEvent, kuuid: int | None, visible: Visible | None) -> bool:
    return kuuid in (None, event.keep.kuuid) and (visible is None or visible(event.keep))


async def _events(
    records: AsyncGenerator[bytes, None], after: str, began: int, kuuid: int | None, visible: Visible | None
) -> AsyncGenerator[KeepEvent, None]:
    """The events in `records` but `after` itself, and but those known to be written before `began`."""
    async for record in records:
        event = read_event(record)
        if event is None or event.cursor == after or not _matches(event, kuuid, visible):
            continue
        own = _ID.fullmatch(event.cursor)
        if own is None or int(own[2], 16) >= began:
            yield event
