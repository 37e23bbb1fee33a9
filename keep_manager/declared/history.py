"""The records of jobs on disk, below the manager's state directory: jobs/NAME, one small file each.

    # keepfleet job {"schema":1,"content":"…"}
    {"handled":…,"runs":[…]}

It is JSON behind a line with its digest: one that is damaged, or was changed, is set aside as NAME.damaged, and the job
goes on with a new one, from that moment on.
"""

from __future__ import annotations

import hashlib
import hmac
import logging

from keep_manager.declared.kept import Kept
from keep_manager.declared.runs import MOST_CONCURRENT, RUNS_KEPT, JobRecord
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Items, Nested, Record, Seconds, field, parse
from keep_protocol.runs import Run
from module_store.disk import Disk

LOG = logging.getLogger("keepfleet.declared")
SCHEMA = 1
"""The format of a file; one of another number is never guessed at."""
MAX_FILE = 1 << 20
"""RUNS_KEPT runs with ten lines each come to 250 KB."""
_BEGIN = b"# keepfleet job "
_DAMAGED = ".damaged"


class _Body(Record):
    handled: float = field(Seconds())
    runs: tuple[Run, ...] = field(Items(Nested(Run, "run"), RUNS_KEPT + MOST_CONCURRENT), default=())


def encode(record: JobRecord) -> bytes:
    """The file's bytes."""
    body = strict_json.dumps(_Body(record.handled, record.runs).to_wire())
    head = {"schema": SCHEMA, "content": hashlib.sha256(body).hexdigest()}
    return _BEGIN + strict_json.dumps(head) + b"\n" + body + b"\n"


def decode(name: str, data: bytes) -> JobRecord:
    """The record in a file's bytes. Raises KeepfleetError(BAD_REQUEST, UNSUPPORTED or TOO_LARGE)."""
    what = f"the history of {name}"
    if len(data) > MAX_FILE:
        raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot read {what}: it is over {MAX_FILE} bytes")
    line, _, rest = data.partition(b"\n")
    if not line.startswith(_BEGIN):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {what}: it does not begin with {_BEGIN.decode()!r}")
    head = strict_json.loads_object(line.removeprefix(_BEGIN), 1024, what)
    if head.get("schema") != SCHEMA:
        why = f"its schema is {str(head.get('schema'))[:20]}, and this version knows {SCHEMA}"
        raise KeepfleetError(ErrorKind.UNSUPPORTED, f"cannot read {what}: {why}")
    body = rest.removesuffix(b"\n")
    if not hmac.compare_digest(str(head.get("content")), hashlib.sha256(body).hexdigest()):
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot read {what}: it is damaged, or was changed by another")
    found = parse(_Body, strict_json.loads_object(body, MAX_FILE, what), what)
    return JobRecord(found.handled, found.runs)


class History:
    """The records of jobs in `directory`. Methods are for threads, and raise KeepfleetError alone."""

    def __init__(self, directory: str, disk: Disk | None = None) -> None:
        self._files = Kept(directory, "the history of", disk)

    def __repr__(self) -> str:
        return f"History({self._files.directory!r})"

    def open(self) -> None:
        """Makes the folder where it is not there."""
        self._files.open()

    def read(self, name: str, now: float) -> JobRecord | None:
        """A job's record; None where there is none. One that is damaged is set aside, and a new one begins at `now`:
        what went before is not made up for."""
        data = self._files.read(name, MAX_FILE)
        if data is None:
            return None
        try:
            return decode(name, data)
        except KeepfleetError as error:
            LOG.error("%s; it is set aside as %s%s, and a new one begins", error.message, name, _DAMAGED)
            self._files.set_aside(name, name + _DAMAGED)
            fresh = JobRecord(now)
            self.write(name, fresh)
            return fresh

    def write(self, name: str, record: JobRecord) -> None:
        """Has a job's record be that; on disk when this returns."""
        self._files.write(name, encode(record))

    def forget(self, name: str) -> None:
        """Removes a job's record."""
        self._files.remove(name, name + _DAMAGED)
