"""One workload as a person types it, on the command line or in a manifest, and the requests made of it. Pure.

Sizes, durations, processors, NAME=VALUE, HOST:GUEST are read here.
"""

from __future__ import annotations

import os
from _collections_abc import Mapping

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.limits import BOUNDS, Limits, check_limit
from keep_protocol.patterns import matches
from keep_protocol.spec import Compiler, Profile, RestartPolicy, check_engine, check_labels, check_name

NO_RESTART = RestartPolicy.NO.value
SIZE = "([0-9]{1,12})(?:([KMG])(?:i?B)?|B)?"
DURATION = "(?=[0-9])(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9})s?)?"
CPUS = r"([0-9]{1,4})(?:\.([0-9]{1,2}))?"
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SECONDS = (86400, 3600, 60, 1)
FRIENDLY = {
    "memory": "memory_bytes",
    "time": "wall_seconds",
    "cpu_time": "cpu_seconds",
    "cpus": "cpu_percent",
    "compile_time": "compile_seconds",
    "compile_memory": "compile_memory_bytes",
}
"""What people call a limit, and its name everywhere else."""
SCRIPTS = (".js", ".mjs", ".cjs", ".ts", ".py")
"""How the names of scripts end; `keep_protocol.program` says which language each is."""
READY_SECONDS = 5
"""So long a declared keep has run when it counts as ready: what cannot find its data fails sooner."""
PROBE_SECONDS, MAX_PROBE_SECONDS = 30, 3600
"""So long a declared keep with a probe has to show that it is ready."""
MAX_PROBE = 256
NOTHING: Mapping[str, str] = {}
UNLIMITED: Mapping[str, int] = {}


def _bad(message: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, message)


def parse_size(text: str) -> int:
    """Bytes in `64M`, `1GiB`, `65536`; K, M and G count in 1024. Raises KeepfleetError(BAD_REQUEST)."""
    import re  # here, and below: 3 ms of every command, for what few say

    match = re.fullmatch(SIZE, text, re.ASCII | re.IGNORECASE)
    if match is None:
        raise _bad(f"cannot read {text[:40]!r} as a size: write bytes, or 64K, 64M, 1G")
    return int(match[1]) * _SIZES[(match[2] or "").upper()]


def parse_duration(text: str) -> int:
    """Whole seconds in `10`, `10s`, `5m`, `1h30m`, `2d`. Raises KeepfleetError(BAD_REQUEST)."""
    import re

    match = re.fullmatch(DURATION, text)
    if match is None:
        raise _bad(f"cannot read {text[:40]!r} as a time: write whole seconds, or 10s, 5m, 1h30m, 2d")
    return sum(int(number or 0) * seconds for number, seconds in zip(match.groups(), _SECONDS, strict=True))


def parse_moment(text: str, now: float) -> float:
    """Seconds of the epoch: `10m` or `2h30m` before `now`, `@1764293114`, or `2026-11-28 01:25`, `01:25:14` of today,
    with a zone (`+01:00`, `Z`) or in ours. Raises KeepfleetError(BAD_REQUEST)."""
    import datetime  # here: 2 ms, for those alone who name a time
    import re

    if re.fullmatch("@[0-9]{1,12}", text):
        return float(text[1:])
    if re.fullmatch(DURATION, text):
        return now - parse_duration(text)
    try:
        if re.fullmatch(r"[0-9]{2}:[0-9]{2}(:[0-9]{2})?", text):
            text = f"{datetime.datetime.fromtimestamp(now).astimezone():%Y-%m-%d} {text}"
        return datetime.datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        raise _bad(
            f"cannot read {text[:40]!r} as a moment: write 10m (ago), 2026-11-28 01:25, 01:25, or @1764293114"
        ) from None


def parse_cpus(text: str) -> int:
    """Percent of one processor in `0.5`, `2`. Raises KeepfleetError(BAD_REQUEST)."""
    import re

    match = re.fullmatch(CPUS, text)
    if match is None:
        raise _bad(f"cannot read {text[:40]!r} as processors: write 0.5, 1, 2")
    return int(match[1]) * 100 + int((match[2] or "").ljust(2, "0"))


def parse_limit(name: str, text: str) -> tuple[str, int]:
    """The limit's own name and its number, from either name and any way of writing. Raises KeepfleetError."""
    limit = FRIENDLY.get(name, name)
    if limit not in BOUNDS:
        raise _bad(f"cannot limit {name[:40]!r}: the limits are {', '.join((*FRIENDLY, *BOUNDS))}")
    if name == "cpus":
        number = parse_cpus(text)
    elif limit.endswith("_bytes"):
        number = parse_size(text)
    elif limit.endswith("_seconds"):
        number = parse_duration(text)
    elif matches("[0-9]{1,12}", text):
        number = int(text)
    else:
        raise _bad(f"cannot limit {name} to {text[:40]!r}: it must be a whole number")
    return limit, check_limit(limit, number)


def parse_pair(text: str) -> tuple[str, str]:
    """`NAME=VALUE`, the value perhaps empty. Raises KeepfleetError(BAD_REQUEST)."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise _bad(f"cannot read {text[:40]!r}: it must be NAME=VALUE")
    return name, value


def parse_directory(text: str) -> tuple[str, str, bool]:
    """Host path, guest path and whether it is writable, of `HOST:GUEST`, `HOST:GUEST:rw`. Raises KeepfleetError."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not all(parts) or parts[2:] not in ([], ["ro"], ["rw"]):
        raise _bad(f"cannot read {text[:80]!r} as a directory: it must be HOST:GUEST, or HOST:GUEST:rw to write there")
    return os.path.abspath(parts[0]), parts[1], parts[2:] == ["rw"]


def is_stored(module: str) -> bool:
    """Whether `module` is one of the manager's store and no file: NAME:TAG, NAME:TAG@sha256:… or sha256:…. A path with
    a colon has a `/` in it, or the ending of a module."""
    return ":" in module and "/" not in module and not module.endswith((".wasm", ".wat", *SCRIPTS))


class Grant(Record):
    """A directory of the manager's host, its path in the guest, and whether the guest may write there."""

    host: str
    guest: str
    writable: bool = False


class Volume(Record):
    """The directory of a declared keep that lasts: its name, its path in the guest, bytes, and inodes."""

    name: str
    guest: str
    size: int
    inodes: int


class Probe(Record):
    """How a declared keep shows that it is ready: by a line of its output with this text in it, within so many
    seconds."""

    output: str
    seconds: int


class Job(Record):
    """A workload: what the keep is called and may use, and what its guest is given.

    module: the file to send, or what `is_stored`, "" where it comes by another way;
    environment, labels, limits, lease and secrets: by name;
    stdin and the secrets' values: files of the manager's host; streams: its standard input is what we send meanwhile;
    profile, compiler and output: "" for the usual ones; ready_seconds, probe and volume: of a declared keep; schedule,
    missed and overlap: of a declared job; stored_secrets: by name in the guest, what the manager has, of what is
    declared.
    """

    module: str = ""
    name: str = ""
    labels: Mapping[str, str] = NOTHING
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = NOTHING
    directories: tuple[Grant, ...] = ()
    secrets: Mapping[str, str] = NOTHING
    stdin: str = ""
    streams: bool = False
    limits: Mapping[str, int] = UNLIMITED
    lease: Mapping[str, int] = UNLIMITED
    restart: str = NO_RESTART
    profile: str = ""
    compiler: str = ""
    output: str = ""
    ready_seconds: int = READY_SECONDS
    schedule: str = ""
    missed: str = "run"
    overlap: str = "forbid"
    stored_secrets: Mapping[str, str] = NOTHING
    probe: Probe | None = None
    volume: Volume | None = None
    export: str = ""
    export_arguments: tuple[str, ...] = ()

    def check(self) -> Job:
        """The job itself. Raises KeepfleetError(BAD_REQUEST or TOO_LARGE) for what the manager would refuse by its
        contract."""
        check_name(self.name)
        check_labels(self.labels.items())
        Limits(**self.limits)
        check_engine(Profile(self.profile or Profile.STANDARD), Compiler(self.compiler or Compiler.OPTIMIZING))
        if self.workload() is not None or self.volume is not None:
            self._check_workload()
        return self

    def _check_workload(self) -> None:
        from keep_protocol.workload import Directory, Workload  # here: 1 ms, and a plain program is given nothing

        Workload(
            arguments=self.arguments,
            environment=tuple(self.environment.items()),
            export=self.export,
            export_arguments=self.export_arguments,
            stdin=bool(self.stdin),
            streams_input=self.streams,
            directories=(
                *(Directory(grant.guest, grant.writable) for grant in self.directories),
                *((Directory(self.volume.guest, True),) if self.volume else ()),
            ),
            secrets=(*self.secrets, *self.stored_secrets),
            credentials=tuple(self.stored_secrets.values()),
            restart=RestartPolicy(self.restart),
        )

    def _check_undeclared(self) -> None:
        """Raises KeepfleetError(BAD_REQUEST) for what only a declared keep can have."""
        for what, said in (("a schedule", self.schedule), ("secrets that the manager keeps", self.stored_secrets)):
            if said:
                raise _bad(f"cannot run it: only what is declared has {what}; run: keepctl apply -f FILE")

    def on_top(
        self,
        *,
        name: str = "",
        labels: tuple[tuple[str, str], ...] = (),
        limits: tuple[tuple[str, int], ...] = (),
        idle: int | None = None,
        waits: int | None = None,
        profile: str | None = None,
        compiler: str | None = None,
        output_policy: str | None = None,
        env: tuple[tuple[str, str], ...] = (),
        directories: tuple[tuple[str, str, bool], ...] = (),
        stdin: str | None = None,
        interactive: bool = False,
        secrets: tuple[tuple[str, str], ...] = (),
        restart: str | None = None,
        export: str | None = None,
        arguments: tuple[str, ...] = (),
        **friendly: tuple[str, int] | None,
    ) -> Job:
        """This job with a command's options on top: what is named replaces, what is listed is added. friendly: limits
        by an option of their own. Raises as `check`."""
        self._check_undeclared()
        if self.volume is not None:
            raise _bad("cannot give it a volume: only a declared keep has one; run: keepctl apply -f FILE")
        own_limits = [limit for limit in friendly.values() if limit is not None]
        lease = {"idle_seconds": idle, "await_seconds": waits}
        export = self.export if export is None else export
        arguments = arguments or (self.export_arguments if export else self.arguments)
        return self.replace(
            name=name or self.name,
            labels={**self.labels, **dict(labels)},
            limits={**self.limits, **dict(limits), **dict(own_limits)},
            lease={**self.lease, **{name: seconds for name, seconds in lease.items() if seconds is not None}},
            profile=profile or self.profile,
            compiler=compiler or self.compiler,
            output=output_policy or self.output,
            environment={**self.environment, **dict(env)},
            directories=self.directories + tuple(Grant(*directory) for directory in directories),
            stdin=os.path.abspath(stdin) if stdin else self.stdin,
            streams=interactive or self.streams,
            secrets={**self.secrets, **{name: os.path.abspath(file) for name, file in secrets}},
            restart=restart or self.restart,
            export=export,
            arguments=() if export else arguments,
            export_arguments=arguments if export else (),
        ).check()

    @property
    def takes_stream(self) -> bool:
        """Whether its standard input can be what we send: there is no file for it, and it runs once."""
        return not self.streams and not self.stdin and self.restart in ("", NO_RESTART)

    def workload(self) -> dict[str, object] | None:
        """The `workload` of a start request, with only what differs from nothing; None where all is nothing."""
        wanted: dict[str, object] = {
            "arguments": list(self.arguments),
            "environment": dict(self.environment),
            "export": self.export,
            "export_arguments": list(self.export_arguments),
            "stdin": {"stream": True} if self.streams else {"file": self.stdin} if self.stdin else None,
            "directories": [
                {"host": grant.host, "guest": grant.guest, "writable": grant.writable} for grant in self.directories
            ],
            "secrets": [{"name": name, "file": file} for name, file in self.secrets.items()],
            "restart": "" if self.restart == NO_RESTART else self.restart,
        }
        return {name: value for name, value in wanted.items() if value} or None
