"""What a workload is given besides its module: arguments, environment, and what its descriptors are for.

The manager opens what is granted and passes the descriptors to the loader with START; the loader passes them on; the
runner gives each to the guest under the name that stands here. Pure. Import rule: the light part of keep_protocol.
"""

from __future__ import annotations

from keep_protocol import strict_json
from keep_protocol.constants import DIRECTORY, INPUT, SECRET, STDIN
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Flag, Items, Nested, Record, Text, Type, Word, field, parse
from keep_protocol.patterns import matches
from keep_protocol.spec import Compiler, Profile, RestartPolicy

MAX_WORKLOAD_JSON = 4 * 1024 * 1024
"""Arguments and environment at the kernel's own limit (2 MiB, man 2 execve), each byte escaped once."""
MAX_STRINGS_BYTES = 2 * 1024 * 1024
MAX_STRINGS = 65536
MAX_DIRECTORIES = 16
MAX_SECRETS = 16
MAX_SECRET_BYTES = 1024 * 1024
"""A key, a token or a certificate has some kilobytes, and each secret is copied into the keep's memory."""
MAX_EXPORT = 256
DATA, COMPLETE, NO_MORE = b"d", b"e", b"n"
"""On the socket INPUT: how a packet of the manager's begins that has data, and the one that ends them; and the
loader's, when the guest takes no more."""
MAX_DATA = 64 * 1024
"""Bytes of data in one packet: what a pipe holds."""
SECRETS_GUEST = "/run/secrets"
"""Where a guest finds its secrets, one file each."""
_NAME = "[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
EXPORT = Text(
    MAX_EXPORT,
    rf"[^\x00-\x1f\x7f]{{0,{MAX_EXPORT}}}",
    f"a name of at most {MAX_EXPORT} characters, none of them a control character",
)
STRINGS = Items(Text(MAX_STRINGS_BYTES), MAX_STRINGS)


_LATER: dict[str, object] = {
    "profile": Profile.STANDARD.value,
    "compiler": Compiler.OPTIMIZING.value,
    "streams_input": False,
    "credentials": [],
}
"""Members that a keep of an older version would refuse: written only where they say something, as of no such keep."""


class _PairList(Type):
    """A list of [name, value] pairs."""

    must = "a list of pairs of strings"

    def parse(self, value: object) -> tuple[tuple[str, str], ...]:
        if not isinstance(value, list) or len(value) > MAX_STRINGS:
            raise ValueError
        pairs = [item for item in value if isinstance(item, list) and [type(part) for part in item] == [str, str]]
        if len(pairs) != len(value):
            raise ValueError
        return tuple((name, text) for name, text in pairs)

    def encode(self, value: tuple[tuple[str, str], ...]) -> object:
        return [list(pair) for pair in value]


class Directory(Record):
    """One granted directory: the guest's absolute path for it, and whether it may write there."""

    guest: str = field(Text(255))
    writable: bool = field(Flag(), default=False)


class Workload(Record):
    """What a guest gets. arguments: argv after the program's name; environment: (name, value) pairs; export: the
    function to call, "" for the module's own entry; export_arguments: its arguments as text, typed by its signature;
    stdin: whether a descriptor for standard input follows; directories and secrets: in the descriptors' order.

    streams_input: its standard input comes over a socket, see `input`; it is not run again then. credentials: of the
    last of its secrets, the credentials of the keep's unit that they are: no descriptor comes for these.
    profile and compiler: the keep's own. Raises KeepfleetError(BAD_REQUEST or TOO_LARGE) naming what cannot be given.
    """

    arguments: tuple[str, ...] = field(STRINGS, default=())
    environment: tuple[tuple[str, str], ...] = field(_PairList(), default=())
    export: str = field(EXPORT, default="")
    export_arguments: tuple[str, ...] = field(STRINGS, default=())
    stdin: bool = field(Flag(), default=False)
    directories: tuple[Directory, ...] = field(Items(Nested(Directory, "directory"), MAX_DIRECTORIES), default=())
    secrets: tuple[str, ...] = field(Items(Text(63), MAX_SECRETS), default=())
    restart: RestartPolicy = field(Word(RestartPolicy), default=RestartPolicy.NO)
    profile: Profile = field(Word(Profile), default=Profile.STANDARD)
    compiler: Compiler = field(Word(Compiler), default=Compiler.OPTIMIZING)
    streams_input: bool = field(Flag(), default=False)
    credentials: tuple[str, ...] = field(Items(Text(63), MAX_SECRETS), default=())

    def _check(self) -> None:
        _check_strings("arguments", (*self.arguments, *self.export_arguments))
        _check_environment(self.environment)
        if len(self.export) > MAX_EXPORT or any(c < " " or c == "\x7f" for c in self.export):
            raise _bad(f"an export's name has at most {MAX_EXPORT} characters, none of them a control character")
        if self.streams_input and (self.stdin or self.restart is not RestartPolicy.NO):
            raise _bad("a standard input that is streamed is no file as well, and cannot be read by a second run")
        _check_directories(self.directories)
        _check_secrets(self.secrets)
        for name in self.credentials:
            if not matches(_NAME, name):
                raise _bad(f"{name[:40]!r} cannot be a secret's name: letters, digits, `_`, `.` and `-`")
        if len(self.credentials) > len(self.secrets):
            raise _bad("it names more credentials than secrets")

    @property
    def credential_names(self) -> dict[str, str]:
        """The credentials that are secrets, each by the name that its descriptor has in the keep."""
        first = len(self.secrets) - len(self.credentials)
        return {f"secret-{first + at}": name for at, name in enumerate(self.credentials)}

    @property
    def grant_names(self) -> tuple[str, ...]:
        """The names of the descriptors that follow `workload` itself, in order."""
        return (
            *((STDIN,) if self.stdin else ()),
            *((INPUT,) if self.streams_input else ()),
            *(f"{DIRECTORY}-{number}" for number in range(len(self.directories))),
            *(f"{SECRET}-{number}" for number in range(len(self.secrets))),
        )

    def to_json(self) -> bytes:
        """The workload as JSON, at most MAX_WORKLOAD_JSON bytes. Raises KeepfleetError(TOO_LARGE)."""
        wire = self.to_wire()
        for name, default in _LATER.items():
            if wire[name] == default:
                del wire[name]
        data = strict_json.dumps(wire)
        if len(data) > MAX_WORKLOAD_JSON:
            raise KeepfleetError(ErrorKind.TOO_LARGE, f"cannot give a workload over {MAX_WORKLOAD_JSON} bytes of words")
        return data


def _bad(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot give the workload what is asked for: {why}")


def _check_strings(what: str, strings: tuple[str, ...]) -> None:
    whole = "\n".join(strings)  # one pass of C code over megabytes, and not one of Python over each character
    try:
        size = len(whole.encode()) + 1
    except UnicodeEncodeError:
        raise _bad(f"its {what} contain what is not Unicode") from None
    if len(strings) > MAX_STRINGS or size > MAX_STRINGS_BYTES:
        raise KeepfleetError(
            ErrorKind.TOO_LARGE, f"cannot give the workload its {what}: over {MAX_STRINGS_BYTES} bytes or {MAX_STRINGS}"
        )
    if "\0" in whole:
        raise _bad(f"its {what} contain a NUL")


def _check_environment(environment: tuple[tuple[str, str], ...]) -> None:
    _check_strings("environment", tuple(f"{name}={value}" for name, value in environment))
    names = [name for name, _ in environment]
    for name in names:
        if not name or "=" in name:
            raise _bad(f"{name[:40]!r} is no name of a variable")
    if len(set(names)) != len(names):
        raise _bad("duplicate variable in its environment")


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
    unreadable = any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in path[:256])
    if not plain or unreadable or path == SECRETS_GUEST or path.startswith(SECRETS_GUEST + "/"):
        raise _bad(f"{path[:60]!r} cannot be a directory's name in the guest: it must be an absolute, plain path")
    return path


def _check_secrets(secrets: tuple[str, ...]) -> None:
    if len(secrets) > MAX_SECRETS:
        raise _bad(f"{len(secrets)} secrets, at most {MAX_SECRETS} fit")
    for name in secrets:
        if not matches(_NAME, name):
            raise _bad(f"{name[:40]!r} cannot be a secret's name: letters, digits, `_`, `.` and `-`")
    if len(set(secrets)) != len(secrets):
        raise _bad("two secrets have one name")


def workload_from_json(data: bytes) -> Workload:
    """The workload `to_json` wrote. Raises KeepfleetError(BAD_REQUEST or TOO_LARGE) for anything else."""
    value = strict_json.loads_object(data, MAX_WORKLOAD_JSON, "the workload's description")
    return parse(Workload, value, "workload description", strict=True)
