"""The member `workload` of `POST /v1/keeps/ID/start`: what a guest is given, and what the manager has to open for it.

Pure: JSON values in, a frozen request out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.workload import Directory, RestartPolicy, Workload

MAX_PATH = 4095
"""PATH_MAX of Linux, less its NUL (man 3 realpath)."""
_MEMBERS = (
    "arguments",
    "environment",
    "export",
    "export_arguments",
    "stdin",
    "directories",
    "secrets",
    "restart",
)


class GrantKind(Enum):
    """What is to be opened."""

    STDIN = "standard input"
    DIRECTORY = "directory"
    SECRET = "secret"  # noqa: S105 - a word for people, and no secret


@dataclass(frozen=True)
class Grant:
    """One thing of the manager's host that a guest is to have: its absolute, plain path there, and for what."""

    kind: GrantKind
    path: str
    writable: bool = False


@dataclass(frozen=True)
class WorkloadRequest:
    """What a guest is given. grants: what to open, in the order of `workload.grant_names`."""

    workload: Workload
    grants: tuple[Grant, ...] = ()


def _bad(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot give the workload what is asked for: {why}")


def check_host_path(path: object) -> str:
    """`path` when it is absolute and plain: no `.`, no `..`, no NUL. Raises KeepfleetError(BAD_REQUEST)."""
    if not isinstance(path, str):
        raise _bad("a path must be a string")
    plain = path.startswith("/") and all(part not in ("", ".", "..") for part in path[1:].split("/") if path != "/")
    try:
        long = len(path.encode()) > MAX_PATH
    except UnicodeEncodeError:
        plain, long = False, False
    if not plain or long or "\0" in path:
        raise _bad(f"{path[:60]!a} is no absolute, plain path of the manager's host")
    return path


def _object(value: object, what: str, names: tuple[str, ...]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _bad(f"{what} must be an object")
    for name in value:
        if name not in names:
            raise _bad(f"{str(name)[:40]!r} is no member of {what}; it takes {', '.join(names)}")
    return value


def _items(value: dict[str, object], name: str) -> list[object]:
    member = value.get(name, [])
    if not isinstance(member, list):
        raise _bad(f"{name!r} must be a list")
    return member


def _texts(value: dict[str, object], name: str) -> tuple[str, ...]:
    texts = [item for item in _items(value, name) if isinstance(item, str)]
    if len(texts) != len(_items(value, name)):
        raise _bad(f"{name!r} must be a list of strings")
    return tuple(texts)


def _text(value: dict[str, object], name: str, default: str, what: str) -> str:
    member = value.get(name, default)
    if not isinstance(member, str):
        raise _bad(f"{name!r} of {what} must be a string")
    return member


def _environment(value: dict[str, object]) -> tuple[tuple[str, str], ...]:
    member = value.get("environment", {})
    if not isinstance(member, dict) or not all(isinstance(text, str) for text in member.values()):
        raise _bad("'environment' must be an object of strings")
    return tuple((str(name), str(text)) for name, text in member.items())


def _directory(item: object) -> tuple[Directory, Grant]:
    value = _object(item, "a directory", ("host", "guest", "writable"))
    writable = value.get("writable", False)
    if not isinstance(writable, bool):
        raise _bad("'writable' of a directory must be true or false")
    path = check_host_path(value.get("host"))
    return Directory(_text(value, "guest", "", "a directory"), writable), Grant(GrantKind.DIRECTORY, path, writable)


def _secret(item: object) -> tuple[str, Grant]:
    value = _object(item, "a secret", ("name", "file"))
    return _text(value, "name", "", "a secret"), Grant(GrantKind.SECRET, check_host_path(value.get("file")))


def parse_workload(asked: object) -> WorkloadRequest:
    """What the member `workload` asks for. Raises KeepfleetError(BAD_REQUEST or TOO_LARGE) naming what is wrong."""
    value = _object(asked, "the workload", _MEMBERS)
    directories = [_directory(item) for item in _items(value, "directories")]
    secrets = [_secret(item) for item in _items(value, "secrets")]
    stdin: list[Grant] = []
    if value.get("stdin") is not None:
        file = check_host_path(_object(value["stdin"], "the standard input", ("file",)).get("file"))
        stdin.append(Grant(GrantKind.STDIN, file))
    policies = {policy.value: policy for policy in RestartPolicy}
    restart = _text(value, "restart", RestartPolicy.NO.value, "the workload")
    if restart not in policies:
        raise _bad(f"restart must be one of {', '.join(policies)}")
    workload = Workload(
        arguments=_texts(value, "arguments"),
        environment=_environment(value),
        export=_text(value, "export", "", "the workload"),
        export_arguments=_texts(value, "export_arguments"),
        stdin=bool(stdin),
        directories=tuple(directory for directory, _ in directories),
        secrets=tuple(name for name, _ in secrets),
        restart=policies[restart],
    )
    grants = (*stdin, *(grant for _, grant in directories), *(grant for _, grant in secrets))
    return WorkloadRequest(workload, grants)
