"""The member `workload` of `POST /v1/keeps/ID/start`: what a guest is given, and what the manager has to open for it.

Pure: JSON values in, a frozen request out.
"""

from __future__ import annotations

from _collections_abc import Iterator

from keep_protocol.constants import INPUT
from keep_protocol.enumeration import Enum
from keep_protocol.fields import Flag, Items, Maybe, Nested, Pairs, Record, Text, Type, Word, field, invalid, parse
from keep_protocol.schema import record_schema
from keep_protocol.spec import RestartPolicy
from keep_protocol.workload import (
    EXPORT,
    MAX_DIRECTORIES,
    MAX_SECRETS,
    MAX_STRINGS,
    MAX_STRINGS_BYTES,
    STRINGS,
    Directory,
    Workload,
)

MAX_PATH = 4095
"""PATH_MAX of Linux, less its NUL (man 3 realpath)."""


class HostPath(Text):
    """An absolute, plain path of the manager's host: no `.`, no `..`, no NUL."""

    def __init__(self) -> None:
        super().__init__(MAX_PATH, must="an absolute, plain path of the manager's host")

    def parse(self, value: object) -> str:
        path = super().parse(value)
        plain = path.startswith("/") and all(part not in ("", ".", "..") for part in path[1:].split("/") if path != "/")
        if not plain or "\0" in path or len(path.encode()) > MAX_PATH:  # UnicodeEncodeError is a ValueError
            raise ValueError
        return path


class GrantKind(Enum):
    """What is to be opened."""

    STDIN = "standard input"
    DIRECTORY = "directory"
    VOLUME = "volume"
    SECRET = "secret"  # noqa: S105 - a word for people, and no secret


class Grant(Record):
    """One thing of the manager's host that a guest is to have: its absolute, plain path there, or a volume's name, and
    for what."""

    kind: GrantKind
    path: str
    writable: bool = False


class WorkloadRequest(Record):
    """What a guest is given. grants: what to open, in the order of `opened_names`; sets_restart: whether the
    workload's restart policy was asked for here; without that it is the keep's own."""

    workload: Workload
    grants: tuple[Grant, ...] = ()
    sets_restart: bool = False

    @property
    def opened_names(self) -> tuple[str, ...]:
        """The names of the descriptors that `grants` become, in order: all but that of an input that is streamed, and
        those of the unit's credentials."""
        others = {INPUT, *self.workload.credential_names}
        return tuple(name for name in self.workload.grant_names if name not in others)

    @property
    def gives(self) -> bool:
        """Whether the module gets something of the starter's: a grant, or an environment, which may be secret."""
        return bool(self.grants or self.workload.environment or self.workload.credentials)

    def asked(self) -> AskedWorkload:
        """As it was asked for."""
        workload, paths = self.workload, (grant.path for grant in self.grants)
        return AskedWorkload(
            arguments=workload.arguments,
            environment=workload.environment,
            export=workload.export,
            export_arguments=workload.export_arguments,
            stdin=_asked_input(workload, paths),
            directories=tuple(AskedDirectory(next(paths), item.guest, item.writable) for item in workload.directories),
            secrets=tuple(
                AskedSecret(name, next(paths))
                for name in workload.secrets[: len(workload.secrets) - len(workload.credentials)]
            ),
            restart=workload.restart if self.sets_restart else None,
        )


class AskedInput(Record):
    """A file of the manager's host, or what the client sends while the workload runs."""

    file: str | None = field(Maybe(HostPath()), default=None, about="its path on the manager's host; or null")
    stream: bool = field(
        Flag(), default=False, about="whether it is sent with `PUT /v1/keeps/ID/input` while the workload runs"
    )

    def _check(self) -> None:
        if self.stream is (self.file is not None):
            raise invalid("stdin", "it is either a file or a stream")


class AskedDirectory(Record):
    """A directory of the manager's host, for the guest."""

    host: str = field(HostPath(), about="its path on the manager's host")
    guest: str = field(Text(255), about="an absolute, plain path for the guest")
    writable: bool = field(Flag(), default=False, about="whether the guest may write there")


class AskedSecret(Record):
    """A file of the manager's host, for the guest alone."""

    name: str = field(Text(63), about="its file's name below /run/secrets")
    file: str = field(HostPath(), about="its path on the manager's host")


class AskedWorkload(Record):
    """What the guest is given; paths of the host lie below the caller's grant roots."""

    arguments: tuple[str, ...] = field(STRINGS, default=(), about="argv after the program's name")
    environment: tuple[tuple[str, str], ...] = field(
        Pairs(Text(MAX_STRINGS_BYTES, must="a string"), Text(MAX_STRINGS_BYTES), MAX_STRINGS),
        default=(),
        about="its variables, and no others",
    )
    export: str = field(EXPORT, default="", about="the function to call; empty for the module's own entry")
    export_arguments: tuple[str, ...] = field(STRINGS, default=(), about="its arguments, typed by its signature")
    stdin: AskedInput | None = field(
        Maybe(Nested(AskedInput, "stdin", strict=True)), default=None, about="its standard input; empty without one"
    )
    directories: tuple[AskedDirectory, ...] = field(
        Items(Nested(AskedDirectory, "directory", strict=True), MAX_DIRECTORIES),
        default=(),
        about="directories of the host",
    )
    secrets: tuple[AskedSecret, ...] = field(
        Items(Nested(AskedSecret, "secret", strict=True), MAX_SECRETS), default=(), about="files of the host"
    )
    restart: RestartPolicy | None = field(
        Maybe(Word(RestartPolicy)), default=None, about="when it is run again; null for what the keep was made with"
    )


class WorkloadMember(Type):
    """The member `workload` of a start request, as a WorkloadRequest."""

    must = "an object"

    def parse(self, value: object) -> WorkloadRequest:
        return parse_workload(value)

    def encode(self, value: WorkloadRequest) -> object:
        return value.asked().to_wire()

    def schema(self, _refer: object) -> dict[str, object]:
        """The whole of AskedWorkload."""
        return record_schema(AskedWorkload)


def _asked_input(workload: Workload, paths: Iterator[str]) -> AskedInput | None:
    if workload.streams_input:
        return AskedInput(stream=True)
    return AskedInput(next(paths)) if workload.stdin else None


def parse_workload(asked: object) -> WorkloadRequest:
    """What the member `workload` asks for. Raises KeepfleetError(BAD_REQUEST or TOO_LARGE) naming what is wrong."""
    if not isinstance(asked, dict):
        raise invalid("workload", "it must be an object")
    wanted = parse(AskedWorkload, asked, "workload", strict=True)
    workload = Workload(
        arguments=wanted.arguments,
        environment=wanted.environment,
        export=wanted.export,
        export_arguments=wanted.export_arguments,
        stdin=wanted.stdin is not None and not wanted.stdin.stream,
        streams_input=wanted.stdin is not None and wanted.stdin.stream,
        directories=tuple(Directory(directory.guest, directory.writable) for directory in wanted.directories),
        secrets=tuple(secret.name for secret in wanted.secrets),
        restart=wanted.restart or RestartPolicy.NO,
    )
    stdin_file = None if wanted.stdin is None else wanted.stdin.file
    stdin = () if stdin_file is None else (Grant(GrantKind.STDIN, stdin_file),)
    directories = tuple(Grant(GrantKind.DIRECTORY, item.host, item.writable) for item in wanted.directories)
    secrets = tuple(Grant(GrantKind.SECRET, secret.file) for secret in wanted.secrets)
    return WorkloadRequest(workload, (*stdin, *directories, *secrets), wanted.restart is not None)
