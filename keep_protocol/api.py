"""What a client may ask of the manager: the original's commands and the bodies of /v1, checked field by field.

Pure: bytes in, frozen requests out. Answers are `keep.KeepInfo.to_wire` and `errors.KeepfleetError.to_wire`.
"""

from __future__ import annotations

import ipaddress
import re
from _collections_abc import Iterable

from keep_protocol import strict_json
from keep_protocol.api_workload import WorkloadMember, WorkloadRequest
from keep_protocol.constants import (
    LAST_KEEP_PORT,
    MAX_CERTIFICATE_NAMES,
    MAX_MANAGER_BODY,
    PROTOCOL_NAME,
    PROTOCOL_VERSION,
    parse_kuuid,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import (
    Flag,
    Items,
    Maybe,
    Nested,
    Record,
    Text,
    Type,
    Whole,
    Word,
    check,
    field,
    members,
    parse,
    table_of,
)
from keep_protocol.limits import Limits, check_limit
from keep_protocol.schema import record_schema
from keep_protocol.spec import (
    COMPILER_ABOUT,
    LABELS,
    MAX_UPLOADERS,
    NAME,
    OUTPUT_ABOUT,
    PROFILE_ABOUT,
    UPLOADER,
    Compiler,
    Kind,
    Labels,
    Lease,
    OutputPolicy,
    Profile,
    RestartPolicy,
    check_engine,
    check_label,
    check_labels,
)
from keep_protocol.workload import MAX_WORKLOAD_JSON

MAX_MODULE_WANTED = 300
"""Characters of NAME:TAG@sha256:…, which are 264 at most."""
MAX_PAGE = 1000
"""Keeps on one page of a list at most; a page of that many is 2 MB."""
MAX_START_BODY = MAX_MANAGER_BODY + MAX_WORKLOAD_JSON
"""A start request and its workload's arguments and environment, which may be as long as the kernel takes them."""
MAX_CREATE_BODY = MAX_MANAGER_BODY + MAX_START_BODY
"""A creation, and the start in it."""
MAX_TOKEN = 4096
"""An auth-token is accepted for the original's sake and not used; a certificate decides. It is bounded all the same."""
BANNER = f"Protocol_name = {PROTOCOL_NAME}\nProtocol_version = {PROTOCOL_VERSION}"
UNDEFINED_COMMAND = {"text": "undefined"}
ARCHITECTURES = ("wasi", "AMD-SEV", "Intel-SGX")
"""Backends by their wire names; only `wasi` runs here, the others need hardware that seals a keep's memory."""
_COUNT = re.compile(r"[0-9]{1,4}", re.ASCII)
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.IGNORECASE | re.ASCII
)


class _Architecture(Text):
    """One of ARCHITECTURES; the schema names those that run without such hardware."""

    words = ARCHITECTURES[:1]

    def __init__(self) -> None:
        super().__init__(40, must=f"one of {', '.join(ARCHITECTURES)}")

    def parse(self, value: object) -> str:
        if value not in ARCHITECTURES:
            raise ValueError
        return str(value)


class _Address(Text):
    """An IPv4 or IPv6 address of this host without a scope, in its canonical form."""

    def __init__(self) -> None:
        super().__init__(60, must="an IPv4 or IPv6 address of this host, without a scope")

    def parse(self, value: object) -> str:
        address = ipaddress.ip_address(super().parse(value))
        if getattr(address, "scope_id", None) is not None or address.is_multicast:
            raise ValueError
        return str(address)


class _CertifiedName(Text):
    """A DNS name, in lower case, or an address in its canonical form."""

    def __init__(self) -> None:
        super().__init__(253, must="a DNS name or an address")

    def parse(self, value: object) -> str:
        name = super().parse(value)
        try:
            return str(ipaddress.ip_address(name))
        except ValueError:
            if not _HOST_NAME.fullmatch(name):
                raise
            return name.lower()


class _CertifiedNames(Items):
    """Names for a certificate, in order, without repeats."""

    def __init__(self) -> None:
        super().__init__(_CertifiedName(), MAX_CERTIFICATE_NAMES)

    def parse(self, value: object) -> tuple[str, ...]:
        return tuple(dict.fromkeys(super().parse(value)))


class AskedLimits(Type):
    """Some of a keep's limits, as (name, value) pairs."""

    must = "an object"

    def parse(self, value: object) -> tuple[tuple[str, int], ...]:
        if not isinstance(value, dict):
            raise ValueError  # noqa: TRY004 - of every value alike
        return tuple((name, check_limit(name, number)) for name, number in value.items())

    def encode(self, value: tuple[tuple[str, int], ...]) -> object:
        return dict(value)

    def schema(self, _refer: object) -> dict[str, object]:
        """The limits, none of them required."""
        return record_schema(Limits)


class StartKeep(Record):
    """Let the keep `kuuid` listen on `address` (IPv4 or IPv6) and `port`, None for the first of the manager's
    keep ports that is free; `names` go into its certificate too.

    uploaders: who may send its workload; empty for whom it was made for, or else the starter. workload: what its guest
    is given, None for nothing at all. kuuid: 0 while the keep is made by the same request.
    """

    kuuid: int = 0
    address: str = field(_Address(), default="127.0.0.1", about="an IPv4 or IPv6 address of the manager's host")
    port: int | None = field(
        Maybe(Whole(1, LAST_KEEP_PORT)),
        default=None,
        about="of its upload endpoint; null for the first free one of keep_ports; on 127.0.0.1 a taken one moves on",
    )
    names: tuple[str, ...] = field(_CertifiedNames(), default=(), about="for its certificate, besides the address")
    workload: WorkloadRequest | None = field(Maybe(WorkloadMember()), default=None, about="what its guest is given")
    uploaders: tuple[str, ...] = field(
        Items(UPLOADER, MAX_UPLOADERS), default=(), about="who may send its workload: names and fingerprints"
    )

    def check_unreached(self) -> None:
        """Raises KeepfleetError(BAD_REQUEST) where it says how a keep is reached that takes no upload."""
        default = StartKeep()
        for name in ("address", "port", "names", "uploaders"):
            if getattr(self, name) != getattr(default, name):
                raise _bad(
                    f"cannot start a keep that runs a module of the store with {name}: it has no upload endpoint"
                )


class NewKeep(Record):
    """Create a keep of the architecture `arch`.

    limits: those asked for, by name; what is not named has its default, or the caller's ceiling where that is lower.
    lease: None for the manager's own. replace: end the caller's living keep of that name first. start: how it is
    started by the same request, None for a keep that is started later. module: what it runs, of the manager's store, ""
    for what is uploaded. kind: what it is made for where nothing is stored; workload_follows: whether its workload is
    sent as soon as it listens; neither is a member of a request's body.
    """

    arch: str = field(_Architecture(), default="wasi", about="the architecture; only `wasi` runs without hardware")
    name: str = field(NAME, default="", about="1 to 63 of a-z, 0-9 and -, or empty; one living keep of an owner has it")
    labels: Labels = field(LABELS, default=(), about="what it can be found by")
    limits: tuple[tuple[str, int], ...] = field(AskedLimits(), default=(), about="what it may use")
    restart: RestartPolicy = field(Word(RestartPolicy), default=RestartPolicy.NO, about="when its workload runs again")
    lease: Lease | None = field(
        Maybe(Nested(Lease, "lease", strict=True)),
        default=None,
        about="how long it may stay unused; or null",
    )
    profile: Profile = field(Word(Profile), default=Profile.STANDARD, about=PROFILE_ABOUT)
    compiler: Compiler = field(Word(Compiler), default=Compiler.OPTIMIZING, about=COMPILER_ABOUT)
    output: OutputPolicy = field(Word(OutputPolicy), default=OutputPolicy.BLOCK, about=OUTPUT_ABOUT)
    uploaders: tuple[str, ...] = field(
        Items(UPLOADER, MAX_UPLOADERS), default=(), about="who may send its workload; empty: the caller who starts it"
    )
    replace_living: bool = field(
        Flag(), default=False, name="replace", about="end the caller's living keep of that name first"
    )
    start: StartKeep | None = field(
        Maybe(Nested(StartKeep, "start", strict=True)),
        default=None,
        about="how it is started by the same request, which is then answered when it listens, or leaves no keep; "
        "null for a keep that is started later",
    )
    module: str = field(
        Text(MAX_MODULE_WANTED),
        default="",
        about="what it runs, of the manager's store: NAME:TAG, NAME:TAG@sha256:… or sha256:…; empty for an upload",
    )
    kind: Kind = Kind.UPLOAD
    workload_follows: bool = False

    def _check(self) -> None:
        check_engine(self.profile, self.compiler)
        if self.module and self.uploaders:
            raise _bad(f"cannot make a keep for {self.module[:80]!r} and let others upload: leave uploaders out")
        if self.module and self.start is not None:
            self.start.check_unreached()


class ListKeeps(Record):
    """List the keeps that have all of `labels`, by ID: those after the ID `after`, at most `limit`
    of them (0: all)."""

    limit: int = 0
    after: int = 0
    labels: Labels = ()


class StopKeep(Record):
    """End the keep's upload endpoint or workload; its outcome stays."""

    kuuid: int


class RemoveKeep(Record):
    """Stop the keep's unit and forget the keep."""

    kuuid: int


Request = NewKeep | ListKeeps | StartKeep | StopKeep | RemoveKeep


def _bad(message: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, message)


def check_arch(text: str) -> str:
    """`text` when it names an architecture. Raises KeepfleetError(BAD_REQUEST) otherwise."""
    return str(check(table_of(NewKeep)["arch"], text, "request"))


def check_address(text: str) -> str:
    """An IPv4 or IPv6 address without a scope, in its canonical form. Raises KeepfleetError(BAD_REQUEST)."""
    return str(check(table_of(StartKeep)["address"], text, "request"))


def check_port(number: int) -> int:
    """`number` when it is a port a keep may have. Raises KeepfleetError(BAD_REQUEST) otherwise."""
    return int(check(table_of(StartKeep)["port"], number, "request"))


def check_names(names: list[object]) -> tuple[str, ...]:
    """DNS names and addresses for a certificate, in order, without repeats. Raises KeepfleetError(BAD_REQUEST)."""
    return tuple(check(table_of(StartKeep)["names"], names, "request"))


def _strings(value: dict[str, object], names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, str]:
    """The members of an original request: exactly `names`, perhaps `optional`, every one a string."""
    found: dict[str, str] = {}
    for name in names + optional:
        member = value.get(name)
        if member is None and name in optional:
            continue
        if name not in value:
            raise _bad(f"cannot obey the command: {name!r} is missing")
        if not isinstance(member, str):
            raise _bad(f"cannot obey the command: {name!r} must be a string")
        found[name] = member
    unknown = sorted(set(value) - set(names) - set(optional) - {"command"})
    if unknown:
        raise _bad(f"cannot obey the command: {unknown[0][:40]!r} is no member of it")
    return found


def _port_of(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII):
        raise _bad(f"cannot listen on port {text[:20]!r}: it must be a decimal number")
    return check_port(int(text))


def parse_legacy(body: bytes) -> Request:
    """The command in a body of `POST /keeps_post`.

    Raises KeepfleetError: UNKNOWN_COMMAND for a command that is not known, TOO_LARGE or BAD_REQUEST for anything else.
    """
    value = strict_json.loads_object(body, MAX_MANAGER_BODY, "the request")
    command = value.get("command")
    if not isinstance(command, str):
        raise _bad("cannot obey the request: 'command' must be a string")
    if command == "new-keep":
        members = _strings(value, ("keep-arch",), ("auth-token",))
        if len(members.get("auth-token", "")) > MAX_TOKEN:
            raise _bad(f"cannot obey the command: 'auth-token' is over {MAX_TOKEN} characters")
        return NewKeep(check_arch(members["keep-arch"]))
    if command == "list-keeps":
        _strings(value, (), ("auth-token",))
        return ListKeeps()
    if command == "start-keep":
        members = _strings(value, ("kuuid", "keep-addr", "keep-port"), ("auth-token",))
        return StartKeep(
            parse_kuuid(members["kuuid"]), check_address(members["keep-addr"]), _port_of(members["keep-port"])
        )
    if command in ("stop-keep", "remove-keep"):
        kuuid = parse_kuuid(_strings(value, ("kuuid",), ("auth-token",))["kuuid"])
        return StopKeep(kuuid) if command == "stop-keep" else RemoveKeep(kuuid)
    raise KeepfleetError(ErrorKind.UNKNOWN_COMMAND, f"cannot obey {command[:40]!r}: it is no command of the manager's")


def parse_v1_create(body: bytes) -> NewKeep:
    """The body of `POST /v1/keeps`, every member optional; or empty.

    Raises KeepfleetError(BAD_REQUEST or TOO_LARGE).
    """
    value = strict_json.loads_object(body or b"{}", MAX_CREATE_BODY, "the request")
    return parse(NewKeep, value, "request", strict=True)


def parse_v1_list(query: Iterable[tuple[str, str]]) -> ListKeeps:
    """The query of `GET /v1/keeps`: `limit`, `after`, and any number of `label=KEY=VALUE`.

    Raises KeepfleetError(BAD_REQUEST).
    """
    single: dict[str, int] = {}
    labels: list[tuple[str, object]] = []
    for name, text in query:
        if name == "label":
            key, equals, value = text.partition("=")
            if not equals:
                raise _bad(f"cannot list keeps: label must be KEY=VALUE, not {text[:40]!r}")
            labels.append(check_label(key, value))
        elif name not in ("limit", "after") or name in single:
            raise _bad(f"cannot list keeps: {name[:40]!r} is no parameter of it, or is given twice")
        elif name == "after":
            single[name] = parse_kuuid(text)
        elif not _COUNT.fullmatch(text) or not 1 <= int(text) <= MAX_PAGE:
            raise _bad(f"cannot list keeps: limit must be a whole number in 1 … {MAX_PAGE}")
        else:
            single[name] = int(text)
    return ListKeeps(single.get("limit", 0), single.get("after", 0), check_labels(labels))


def parse_v1_start(kuuid: int, body: bytes) -> StartKeep:
    """The body of `POST /v1/keeps/ID/start`, every member optional; or empty.

    Raises KeepfleetError(BAD_REQUEST or TOO_LARGE).
    """
    value = strict_json.loads_object(body or b"{}", MAX_START_BODY, "the request")
    return StartKeep(kuuid, **members(StartKeep, value, "request", strict=True))
