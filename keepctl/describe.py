"""Keeps and their ends in words, sizes and times for people, and in exit codes. Pure.

Exit codes have the habits of a shell, timeout(1) and podman.
"""

from __future__ import annotations

from _collections_abc import Iterable

from keep_client.peer import authority, one_line
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo, Outcome, OutcomeKind
from keep_protocol.limits import Limits
from keep_protocol.outcome import LIMIT, NOT_RUN, REFUSED, STOPPED, TRAP
from keep_protocol.sse import EventType, KeepEvent
from keep_protocol.states import State

FAILED = 1
NO_ANSWER = 3
INTERRUPTED = 130
"""128 + SIGINT, as a shell says it; no message, since the person knows."""
UNREAD = 141
"""128 + SIGPIPE: the reader of the output has gone."""
_DIGEST_SHOWN = 12
"""Hexadecimal digits of a digest that distinguish modules in a table; as git and podman show."""
_REFUSALS = frozenset({ErrorKind.INVALID_MODULE, ErrorKind.TOO_COMPLEX})

EXIT_CODES = f"""\b
Exit codes: the guest's own, 0 to 255, when it exited; otherwise
{LIMIT}  it went over one of its limits
{NOT_RUN}  it could not be run or watched: keepctl, the manager or the keep failed
{REFUSED}  the module was refused
{INTERRUPTED}  Ctrl-C
{TRAP}  it trapped
{UNREAD}  its output has no reader any more
{STOPPED}  it was stopped
128+N  it was killed by signal N (137: SIGKILL)
2    wrong usage"""


def exit_code_of_error(error: KeepfleetError) -> int:
    """The exit code for a workload that did not get to run, or could not be watched."""
    return REFUSED if error.kind in _REFUSALS else NOT_RUN


def succeeded(keep: KeepInfo) -> bool:
    """Whether the workload exited with 0."""
    return keep.outcome is not None and keep.outcome.kind is OutcomeKind.EXITED and keep.outcome.exit_code == 0


def state_text(keep: KeepInfo) -> str:
    """The state's number and word; of a keep whose loader is not there, whether it is being started or restarted."""
    word = keep.state.name.lower()
    if keep.state is State.UNDEFINED:
        said = keep.detail.partition(":")[0]
        word = said if said in ("starting", "restarting") else word
    return f"{int(keep.state)} {word}"


def ending(keep: KeepInfo) -> str:
    """Why the workload ended, or in which state the keep is."""
    return keep.outcome.text if keep.outcome is not None else keep.detail


def named_ending(keep: KeepInfo, several: bool) -> str:
    """`ending`, and before it which keep's, where several are reported."""
    return f"{keep.kuuid}{f' {keep.name}' if keep.name else ''}: {ending(keep)}" if several else ending(keep)


def size_text(number: int | None) -> str:
    """Bytes for people: `64 MiB`, `1.5 GiB`; "" for None."""
    if number is None:
        return ""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= size:
            return f"{number / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{number} B"


def seconds_text(seconds: float | None) -> str:
    """A time for people: `0.25 s`, `90 s`, `1 h`, `2 h 5 min`; "" for None."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.2f} s".replace(".00 s", " s")
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    larger, smaller = ((60, "min"), (1, "s")) if whole < 3600 else ((3600, "h"), (60, "min"))
    if whole >= 172_800:
        larger, smaller = (86400, "d"), (3600, "h")
    rest = whole % larger[0] // smaller[0]
    return f"{whole // larger[0]} {larger[1]}" + (f" {rest} {smaller[1]}" if rest else "")


def moment_text(at: float | None) -> str:
    """A time of day with its date, in the reader's zone; "" for None, and seconds where no calendar has it."""
    if at is None:
        return ""
    import datetime  # here: 2 ms, and a run shows no time

    try:
        return f"{datetime.datetime.fromtimestamp(at, datetime.UTC).astimezone():%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError):
        return f"@{at:.0f}"


def stamp_text(at: float) -> str:
    """A moment as ISO 8601 has it, to the millisecond, in the reader's zone: `2026-11-28T02:25:14.123+01:00`."""
    import datetime  # here: as above

    try:
        return datetime.datetime.fromtimestamp(at, datetime.UTC).astimezone().isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        return f"@{at:.3f}"


def event_text(event: KeepEvent) -> str:
    """One line: when, what, to which keep, and how it is now or who asked for it."""
    keep = event.keep
    named = f" {keep.name}" if keep.name else ""
    by = f" (by {event.by})" if event.by and event.type is not EventType.ENDED else ""
    now = "" if event.type is EventType.REMOVED else f" {ending(keep)}"
    return one_line(f"{moment_text(event.at)} {event.type.value} {keep.kuuid}{named}{now}{by}")


def _limits(limits: Limits) -> str:
    return (
        f"memory {size_text(limits.memory_bytes)}, time {seconds_text(limits.wall_seconds)}, "
        f"processor time {seconds_text(limits.cpu_seconds)}, processors {limits.cpu_percent / 100:g}, "
        f"stack {size_text(limits.stack_bytes)}, tables {limits.table_elements}, tasks {limits.tasks}, "
        f"io weight {limits.io_weight}, compiling {seconds_text(limits.compile_seconds)} and "
        f"{size_text(limits.compile_memory_bytes)}, output {size_text(limits.output_buffer_bytes)}, "
        f"{limits.log_lines_per_second} lines a second in the journal"
    )


def _outcome(outcome: Outcome) -> list[tuple[str, str]]:
    usage = (
        ("ran", seconds_text(outcome.wall_seconds)),
        ("processor", seconds_text(outcome.cpu_seconds)),
        ("peak", size_text(outcome.peak_bytes)),
        ("output", size_text(outcome.output_bytes)),
        ("lost", size_text(outcome.lost_bytes or None)),
        ("not in the journal", size_text(outcome.journal_skipped_bytes or None)),
    )
    return [
        ("outcome", outcome.text),
        *(("", f"  {frame}") for frame in outcome.backtrace),
        ("usage", ", ".join(f"{name} {value}" for name, value in usage if value)),
        ("from", moment_text(outcome.started_at)),
        ("to", moment_text(outcome.ended_at)),
        ("by", outcome.by),
    ]


def newest_first(keeps: Iterable[KeepInfo]) -> list[KeepInfo]:
    """By age; those whose age is not known, by ID, at the end."""
    return sorted(keeps, key=lambda keep: (-(keep.created_at or 0.0), keep.kuuid))


def age_text(keep: KeepInfo, now: float) -> str:
    """How long ago a keep was made: `5 min`, `3 h`, `2 d`; "" where that is not known."""
    if keep.created_at is None:
        return ""
    seconds = max(0, int(now - keep.created_at))
    units = ((172_800, 86400, "d"), (7200, 3600, "h"), (120, 60, "min"))
    return next((f"{seconds // size} {unit}" for least, size, unit in units if seconds >= least), f"{seconds} s")


def module_text(keep: KeepInfo) -> str:
    """What a keep runs, briefly: its module's name, or the beginning of its digest; "" before it has one."""
    if keep.module is None:
        return ""
    return keep.module.name or keep.module.digest[: len("sha256:") + _DIGEST_SHOWN]


def _workload(keep: KeepInfo) -> list[tuple[str, str]]:
    import shlex

    module, given, uploader = keep.module, keep.workload, keep.uploaded_by
    directories = given.directories if given is not None else ()
    return [
        ("module", f"{module.name} {module.digest}, {size_text(module.bytes)}".strip() if module is not None else ""),
        ("uploaded by", f"{uploader.name} (serial {uploader.serial}) {uploader.fingerprint}" if uploader else ""),
        ("may upload", ", ".join(keep.uploaders) if uploader is None else ""),
        ("export", given.export if given else ""),
        ("arguments", shlex.join(given.arguments) if given else ""),
        (
            "directories",
            ", ".join(f"{one.guest} ({'read-write' if one.writable else 'read-only'})" for one in directories),
        ),
        ("secrets", ", ".join(given.secrets) if given else ""),
        ("stdin", "yes" if given and given.stdin else ""),
        ("restart", keep.restart.value),
        ("profile", keep.profile.value),
        ("compiler", keep.compiler.value),
        ("output", keep.output.value),
    ]


def _lease(keep: KeepInfo) -> str:
    parts = (("unstarted", keep.lease.idle_seconds), ("without a workload", keep.lease.await_seconds))
    return ", ".join(f"{seconds_text(seconds)} {what}" for what, seconds in parts if seconds)


def summary(keep: KeepInfo) -> list[str]:
    """Everything a person wants to know, one fact a line; what is empty is left out."""
    facts = [
        ("keep", f"{keep.kuuid} {keep.name}".strip()),
        ("state", f"{state_text(keep)}: {keep.detail}"),
        *(_outcome(keep.outcome) if keep.outcome is not None else ()),
        ("created", moment_text(keep.created_at)),
        *_workload(keep),
        ("address", authority(keep.address, keep.port) if keep.port else ""),
        ("fingerprint", keep.fingerprint),
        ("unit", keep.unit),
        ("owner", keep.owner),
        ("labels", ", ".join(f"{name}={value}" for name, value in keep.labels)),
        ("limits", _limits(keep.limits)),
        ("lease", _lease(keep)),
        ("restarts", str(keep.restarts) if keep.restarts else ""),
        ("isolation", f"fails: {', '.join(keep.isolation_failures)}" if keep.isolation_failures else ""),
        ("kernel", ", ".join(keep.isolation_notes)),
    ]
    return [f"{name:<12} {value}" for name, value in facts if value]
