"""What a client may ask of the manager: the original's commands and the bodies of /v1, checked field by field.

Pure: bytes in, frozen requests out. Answers are `keep.KeepInfo.to_wire` and `errors.KeepfleetError.to_wire`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from keep_protocol import strict_json
from keep_protocol.api_workload import WorkloadRequest, parse_workload
from keep_protocol.constants import (
    LAST_KEEP_PORT,
    MAX_CERTIFICATE_NAMES,
    MAX_MANAGER_BODY,
    PROTOCOL_NAME,
    PROTOCOL_VERSION,
    parse_kuuid,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.labels import Labels, check_label, check_labels, check_name
from keep_protocol.limits import check_limit
from keep_protocol.workload import MAX_WORKLOAD_JSON

MAX_PAGE = 1000
"""Keeps on one page of a list at most; a page of that many is 2 MB."""
MAX_START_BODY = MAX_MANAGER_BODY + MAX_WORKLOAD_JSON
"""A start request beside its workload's arguments and environment, which may be as long as the kernel takes them."""
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


@dataclass(frozen=True)
class NewKeep:
    """Create a keep of the architecture `arch`, one of ARCHITECTURES.

    limits: those asked for, by name; what is not named has its default, or the caller's ceiling where that is lower.
    """

    arch: str = "wasi"
    name: str = ""
    labels: Labels = ()
    limits: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class ListKeeps:
    """List the keeps that have all of `labels`, by ID: those after the ID `after`, at most `limit` of them (0: all)."""

    limit: int = 0
    after: int = 0
    labels: Labels = ()


@dataclass(frozen=True)
class StartKeep:
    """Let the keep `kuuid` listen on `address` (IPv4 or IPv6) and `port`, 0 for the first of the manager's keep ports
    that is free; `names` go into its certificate too.

    workload: what its guest is given, None for nothing at all.
    """

    kuuid: int
    address: str = "127.0.0.1"
    port: int = 0
    names: tuple[str, ...] = ()
    workload: WorkloadRequest | None = None


@dataclass(frozen=True)
class StopKeep:
    """End the keep's app-loader or workload; its outcome stays."""

    kuuid: int


@dataclass(frozen=True)
class RemoveKeep:
    """Stop the keep's unit and forget the keep."""

    kuuid: int


Request = NewKeep | ListKeeps | StartKeep | StopKeep | RemoveKeep


def _bad(message: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, message)


def check_arch(text: str) -> str:
    """`text` when it names an architecture. Raises KeepfleetError(BAD_REQUEST) otherwise."""
    if text not in ARCHITECTURES:
        raise _bad(f"cannot make a keep of {text[:40]!r}: keep-arch must be one of {', '.join(ARCHITECTURES)}")
    return text


def check_address(text: str) -> str:
    """An IPv4 or IPv6 address without a scope, in its canonical form. Raises KeepfleetError(BAD_REQUEST)."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise _bad(f"cannot listen on {text[:60]!r}: it must be an IPv4 or IPv6 address") from None
    if getattr(address, "scope_id", None) is not None or address.is_multicast:
        raise _bad(f"cannot listen on {text[:60]!r}: it must be an address of this host, without a scope")
    return str(address)


def check_port(number: int) -> int:
    """`number` when it is a port a keep may have. Raises KeepfleetError(BAD_REQUEST) otherwise."""
    if not 1 <= number <= LAST_KEEP_PORT:
        raise _bad(f"cannot listen on port {number}: it must lie in 1 … {LAST_KEEP_PORT}")
    return number


def check_names(names: list[object]) -> tuple[str, ...]:
    """DNS names and addresses for a certificate, in order, without repeats. Raises KeepfleetError(BAD_REQUEST)."""
    if len(names) > MAX_CERTIFICATE_NAMES:
        raise _bad(f"cannot certify {len(names)} names: at most {MAX_CERTIFICATE_NAMES} fit")
    checked: dict[str, None] = {}
    for name in names:
        if not isinstance(name, str):
            raise _bad("cannot certify a name that is not a string")
        try:
            checked[str(ipaddress.ip_address(name))] = None
        except ValueError:
            if not _HOST_NAME.fullmatch(name):
                raise _bad(f"cannot certify {name[:60]!r}: it is neither a DNS name nor an address") from None
            checked[name.lower()] = None
    return tuple(checked)


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


def _known(value: dict[str, object], names: tuple[str, ...]) -> None:
    for name in value:
        if name not in names:
            raise _bad(
                f"cannot obey the request: {name[:40]!r} is no member of it; it takes {', '.join(names) or 'none'}"
            )


def _text(value: dict[str, object], name: str, default: str) -> str:
    member = value.get(name, default)
    if not isinstance(member, str):
        raise _bad(f"cannot obey the request: {name!r} must be a string")
    return member


def _object(value: dict[str, object], name: str) -> dict[str, object]:
    member = value.get(name, {})
    if not isinstance(member, dict):
        raise _bad(f"cannot obey the request: {name!r} must be an object")
    return member


def parse_v1_create(body: bytes) -> NewKeep:
    """The body of `POST /v1/keeps`: `arch`, `name`, `labels` and `limits`, each optional; or empty.

    Raises KeepfleetError(BAD_REQUEST or TOO_LARGE).
    """
    value = strict_json.loads_object(body or b"{}", MAX_MANAGER_BODY, "the request")
    _known(value, ("arch", "name", "labels", "limits"))
    return NewKeep(
        check_arch(_text(value, "arch", "wasi")),
        check_name(_text(value, "name", "")),
        check_labels(_object(value, "labels").items()),
        tuple((name, check_limit(name, number)) for name, number in _object(value, "limits").items()),
    )


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
            raise _bad(f"cannot list keeps: {name[:40]!r} is no parameter of it, or stands twice")
        elif name == "after":
            single[name] = parse_kuuid(text)
        elif not _COUNT.fullmatch(text) or not 1 <= int(text) <= MAX_PAGE:
            raise _bad(f"cannot list keeps: limit must be a whole number in 1 … {MAX_PAGE}")
        else:
            single[name] = int(text)
    return ListKeeps(single.get("limit", 0), single.get("after", 0), check_labels(labels))


def parse_v1_start(kuuid: int, body: bytes) -> StartKeep:
    """The body of `POST /v1/keeps/ID/start`: `address`, `port`, `names` and `workload`, each optional.

    Raises KeepfleetError(BAD_REQUEST or TOO_LARGE).
    """
    value = strict_json.loads_object(body or b"{}", MAX_START_BODY, "the request")
    _known(value, ("address", "port", "names", "workload"))
    port, names = value.get("port", 0), value.get("names", [])
    if not isinstance(port, int) or isinstance(port, bool):
        raise _bad("cannot obey the request: 'port' must be a whole number")
    if not isinstance(names, list):
        raise _bad("cannot obey the request: 'names' must be a list of strings")
    asked = value.get("workload")
    return StartKeep(
        kuuid,
        check_address(_text(value, "address", "127.0.0.1")),
        check_port(port) if "port" in value else 0,
        check_names(names),
        None if asked is None else parse_workload(asked),
    )
