"""The runs of a declared job: what its manifest says of them, and how each one was.

Pure: JSON values in, frozen records out.
"""

from __future__ import annotations

from keep_protocol.constants import KUUID_BITS
from keep_protocol.enumeration import Enum
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Items, Maybe, Record, Seconds, Text, Whole, Word, field
from keep_protocol.patterns import matches

PREFIX = "OnCalendar="
"""What a schedule begins with: systemd's own word, of which there may be others one day."""
MAX_SCHEDULE = 200
SCHEDULE = rf"{PREFIX}(?!.*[0-9]\.[0-9])[A-Za-z0-9 *:,./~_+-]{{1,{MAX_SCHEDULE}}}"
"""Characters of a calendar event (man 7 systemd.time); systemd writes it into a unit file, so that there are no others.
Parts of a second it may not have."""
MAX_LINES, MAX_LINE = 10, 400
"""How much of a run's output its history has: enough to see what was wrong."""
_EPOCH = "seconds of the epoch, or null"


class Missed(Enum):
    """Whether a run is made up for when no manager was there to start it: several ones by one."""

    RUN = "run"
    SKIP = "skip"


class Overlap(Enum):
    """Whether a run may begin while another one of the job goes on."""

    FORBID = "forbid"
    ALLOW = "allow"


class RunWhy(Enum):
    """Why there is a run. MISSED: it is made up for; ASKED: a person wanted it now."""

    SCHEDULE = "schedule"
    MISSED = "missed"
    ASKED = "asked"


class RunState(Enum):
    """How a run is, or was. DONE: it exited 0; SKIPPED: it was not begun, and is not going to be; UNMET: no keep could
    be made for it; LOST: its keep went without saying how it ended."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"
    SKIPPED = "skipped"
    UNMET = "unmet"


class Run(Record):
    """One run of a job, or one that was skipped."""

    number: int = field(Whole(1, 1 << 53), about="counted up by each")
    state: RunState = field(Word(RunState), about="how it is, or was")
    why: RunWhy = field(Word(RunWhy), about="why there is a run")
    scheduled: float | None = field(Maybe(Seconds()), default=None, about="when it was due: seconds of the epoch")
    began: float | None = field(Maybe(Seconds()), default=None, about=_EPOCH)
    ended: float | None = field(Maybe(Seconds()), default=None, about=_EPOCH)
    exit_code: int | None = field(Maybe(Whole(0, (1 << 32) - 1)), default=None, about="of a guest that exited")
    output_bytes: int | None = field(Maybe(Whole(0, 1 << 63)), default=None, about="what it wrote, or null")
    kuuid: int | None = field(Maybe(Whole(1, (1 << KUUID_BITS) - 1)), default=None, about="the ID of its keep, or null")
    text: str = field(Text(4096), default="", about="how it ended, or why it was skipped")
    lines: tuple[str, ...] = field(Items(Text(MAX_LINE), MAX_LINES), default=(), about="the last lines of its output")

    @property
    def living(self) -> bool:
        """Whether it goes on, or is still to begin."""
        return self.state is RunState.RUNNING


def check_schedule(text: str) -> str:
    """The calendar event in a schedule. Raises KeepfleetError(BAD_REQUEST); what it means systemd alone knows."""
    if not matches(SCHEDULE, text):
        raise KeepfleetError(
            ErrorKind.BAD_REQUEST,
            f"cannot use the schedule {text[:60]!r}: write OnCalendar= and a calendar event, as in "
            f"{PREFIX}*-*-* 03:00 (man 7 systemd.time)",
        )
    return text.removeprefix(PREFIX).strip()
