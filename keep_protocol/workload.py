"""What a workload is given beside its module: arguments, environment, and what its descriptors are for.

The manager opens what is granted and hands the descriptors to the loader with START; the loader passes them on; the
runner gives each to the guest under the name that stands here. Pure. Import rule: the light part of keep_protocol.
"""

from __future__ import annotations

import re
from enum import Enum

from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.record import Record

MAX_WORKLOAD_JSON = 4 * 1024 * 1024
"""Arguments and environment at the kernel's own limit (2 MiB, man 2 execve), each byte escaped once."""
MAX_STRINGS_BYTES = 2 * 1024 * 1024
MAX_STRINGS = 65536
MAX_DIRECTORIES = 16
MAX_SECRETS = 16
SECRETS_GUEST = "/run/secrets"
"""Where a guest finds its secrets, one file each."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
_EXPORT = re.compile(r"[^\x00-\x1f\x7f]{0,256}")


class RestartPolicy(Enum):
    """When the loader lets systemd start a workload again."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class Directory(Record):
    """One granted directory: the guest's absolute path for it, and whether it may write there."""

    __slots__ = ("guest", "writable")
    guest: str
    writable: bool

    def __init__(self, guest: str, writable: bool = False) -> None:
        self._freeze(guest=guest, writable=writable)


class Workload(Record):
    """What a guest gets. arguments: argv after the program's name; environment: (name, value) pairs; export: the
    function to call, "" for the module's own entry; export_arguments: its arguments as text, typed by its signature;
    stdin: whether a descriptor for standard input follows; directories and secrets: in the descriptors' order."""

    __slots__ = ("arguments", "directories", "environment", "export", "export_arguments", "restart", "secrets", "stdin")
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    export: str
    export_arguments: tuple[str, ...]
    stdin: bool
    directories: tuple[Directory, ...]
    secrets: tuple[str, ...]
    restart: RestartPolicy

    def __init__(
        self,
        arguments: tuple[str, ...] = (),
        environment: tuple[tuple[str, str], ...] = (),
        export: str = "",
        export_arguments: tuple[str, ...] = (),
        stdin: bool = False,
        directories: tuple[Directory, ...] = (),
        secrets: tuple[str, ...] = (),
        restart: RestartPolicy = RestartPolicy.NO,
    ) -> None:
        """Raises KeepfleetError(BAD_REQUEST) naming what cannot be given."""
        _check_strings("arguments", (*arguments, *export_arguments))
        _check_environment(environment)
        if not _EXPORT.fullmatch(export):
            raise _bad("an export's name has at most 256 characters, none of them a control character")
        _check_directories(directories)
        _check_secrets(secrets)
        self._freeze(
            arguments=arguments,
            environment=environment,
            export=export,
            export_arguments=export_arguments,
            stdin=stdin,
            directories=directories,
            secrets=secrets,
            restart=restart,
        )

    @property
    def grant_names(self) -> tuple[str, ...]:
        """What follows START_DESCRIPTORS and `workload` itself, in order, as names for systemd's store."""
        return (
            *(("stdin",) if self.stdin else ()),
            *(f"directory-{number}" for number in range(len(self.directories))),
            *(f"secret-{number}" for number in range(len(self.secrets))),
        )

    def to_json(self) -> bytes:
        """The workload as JSON, at most MAX_WORKLOAD_JSON bytes. Raises KeepfleetError(TOO_LARGE)."""
        data = strict_json.dumps(
            {
                "arguments": list(self.arguments),
                "environment": [list(pair) for pair in self.environment],
                "export": self.export,
                "export_arguments": list(self.export_arguments),
                "stdin": self.stdin,
                "directories": [directory.fields() for directory in self.directories],
                "secrets": list(self.secrets),
                "restart": self.restart.value,
            }
        )
        if len(data) > MAX_WORKLOAD_JSON:
            raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot give a workload over {MAX_WORKLOAD_JSON} bytes of words")
        return data


def _bad(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot give the workload what is asked for: {why}")


def _check_strings(what: str, strings: tuple[str, ...]) -> None:
    if (
        len(strings) > MAX_STRINGS
        or sum(len(s.encode("utf-8", "surrogatepass")) + 1 for s in strings) > MAX_STRINGS_BYTES
    ):
        raise KeepfleetError(
            ErrorKind.TOO_LARGE, f"cannot give the workload its {what}: over {MAX_STRINGS_BYTES} bytes or {MAX_STRINGS}"
        )
    for string in strings:
        if "\0" in string or any("\ud800" <= c <= "\udfff" for c in string):
            raise _bad(f"its {what} hold a NUL or what is not Unicode")


def _check_environment(environment: tuple[tuple[str, str], ...]) -> None:
    _check_strings("environment", tuple(f"{name}={value}" for name, value in environment))
    names = [name for name, _ in environment]
    for name in names:
        if not name or "=" in name:
            raise _bad(f"{name[:40]!r} is no name of a variable")
    if len(set(names)) != len(names):
        raise _bad("a variable stands twice in its environment")


def _check_directories(directories: tuple[Directory, ...]) -> None:
    if len(directories) > MAX_DIRECTORIES:
        raise _bad(f"{len(directories)} directories, at most {MAX_DIRECTORIES} fit")
    guests = [check_guest_path(directory.guest) for directory in directories]
    if len(set(guests)) != len(guests):
        raise _bad("two directories have one name in the guest")


def check_guest_path(path: str) -> str:
    """`path` when it is absolute and plain, not below the secrets' place. Raises KeepfleetError(BAD_REQUEST)."""
    parts = path.split("/")
    plain = (
        path.startswith("/") and len(path) <= 255 and all(p not in ("", ".", "..") for p in parts[1:] if path != "/")
    )
    unreadable = any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in path)
    if not plain or unreadable or path == SECRETS_GUEST or path.startswith(SECRETS_GUEST + "/"):
        raise _bad(f"{path[:60]!r} cannot be a directory's name in the guest: it must be an absolute, plain path")
    return path


def _check_secrets(secrets: tuple[str, ...]) -> None:
    if len(secrets) > MAX_SECRETS:
        raise _bad(f"{len(secrets)} secrets, at most {MAX_SECRETS} fit")
    for name in secrets:
        if not _NAME.fullmatch(name):
            raise _bad(f"{name[:40]!r} cannot be a secret's name: letters, digits, `_`, `.` and `-`")
    if len(set(secrets)) != len(secrets):
        raise _bad("two secrets have one name")


def _texts(value: object, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _bad(f"{what} must be a list of strings")
    return tuple(value)


def _pairs(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list):
        raise _bad("environment must be a list of pairs")
    pairs: list[tuple[str, str]] = []
    for item in value:
        name, text = (
            _texts(item, "a pair of the environment") if isinstance(item, list) and len(item) == 2 else ("", "")
        )
        pairs.append((name, text))
    return tuple(pairs)


def _directories(value: object) -> tuple[Directory, ...]:
    if not isinstance(value, list):
        raise _bad("directories must be a list")
    found: list[Directory] = []
    for item in value:
        guest, writable = (item.get("guest"), item.get("writable")) if isinstance(item, dict) else (None, None)
        if not isinstance(guest, str) or not isinstance(writable, bool):
            raise _bad("a directory has a guest path and says whether it is writable")
        found.append(Directory(guest, writable))
    return tuple(found)


def workload_from_json(data: bytes) -> Workload:
    """The workload `to_json` wrote. Raises KeepfleetError(BAD_REQUEST or TOO_LARGE) for anything else."""
    value = strict_json.loads_object(data, MAX_WORKLOAD_JSON, "the workload's description")
    unknown = sorted(set(value) - set(Workload.__slots__))
    if unknown:
        raise _bad(f"{unknown[0][:40]!r} is nothing a workload has")
    export, stdin, restart = value.get("export"), value.get("stdin"), value.get("restart")
    policies = {policy.value: policy for policy in RestartPolicy}
    if not isinstance(export, str) or not isinstance(stdin, bool):
        raise _bad("export or stdin is missing or of another type")
    if not isinstance(restart, str) or restart not in policies:
        raise _bad(f"restart must be one of {', '.join(policies)}")
    return Workload(
        arguments=_texts(value.get("arguments"), "arguments"),
        environment=_pairs(value.get("environment")),
        export=export,
        export_arguments=_texts(value.get("export_arguments"), "export_arguments"),
        stdin=stdin,
        directories=_directories(value.get("directories")),
        secrets=_texts(value.get("secrets"), "secrets"),
        restart=policies[restart],
    )
