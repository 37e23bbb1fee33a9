"""What the keep-loader sets for this process: the KEEPFLEET_* environment, read and checked once.

Import rule: `re`, `socket` and the light part of keep_protocol.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from keep_protocol.constants import LAST_KEEP_PORT, MAX_CERTIFICATE_NAMES, MAX_WORKLOAD_BYTES, parse_kuuid
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.limits import Limits, limits_from_text
from keep_protocol.spec import MAX_UPLOADERS, UPLOADER

_DNS_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII)


class Settings(Record):
    """kuuid: the keep; address and port: where it listens; names: further names for its certificate; uploaders:
    who may upload, see `receive.access`; runtime_directory: the keep's own tmpfs directory; openssl: the program's
    path; max_workload: bytes a module may have; limits: the keep's."""

    kuuid: int
    address: str
    port: int
    names: tuple[str, ...]
    uploaders: tuple[str, ...]
    runtime_directory: str
    openssl: str
    max_workload: int
    limits: Limits


def canonical_address(text: str) -> str | None:
    """`text` in its canonical form when it is an IPv4 or IPv6 address, else None."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, text))
        except (OSError, ValueError):
            continue
    return None


def _wrong(name: str, must: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot start the app-loader: {name} must be {must}")


def _number(environment: Mapping[str, str], name: str, default: str, first: int, last: int) -> int:
    text = environment.get(name, default)
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) or not first <= int(text) <= last:
        raise _wrong(name, f"a decimal number in {first} … {last}")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if len(names) > MAX_CERTIFICATE_NAMES:
        raise _wrong("KEEPFLEET_NAMES", f"at most {MAX_CERTIFICATE_NAMES} names")
    for name in names:
        if canonical_address(name) is None and not _DNS_NAME.fullmatch(name):
            raise _wrong("KEEPFLEET_NAMES", "DNS names and addresses, separated by commas")
    return names


def _uploaders(text: str) -> tuple[str, ...]:
    entries = tuple(entry for entry in text.split(",") if entry)
    try:
        found = tuple(UPLOADER.parse(entry) for entry in entries)
    except ValueError:
        raise _wrong("KEEPFLEET_UPLOADERS", f"entries separated by commas, each {UPLOADER.must}") from None
    if len(found) > MAX_UPLOADERS:
        raise _wrong("KEEPFLEET_UPLOADERS", f"at most {MAX_UPLOADERS} entries")
    return found


def _absolute(environment: Mapping[str, str], name: str, default: str) -> str:
    path = environment.get(name, default)
    if not path.startswith("/") or "\0" in path:
        raise _wrong(name, "an absolute path")
    return path


def read_limits(environment: Mapping[str, str]) -> Limits:
    """The keep's limits in `environment`; the defaults where it names none. Raises KeepfleetError(BAD_REQUEST)."""
    return limits_from_text(environment.get("KEEPFLEET_LIMITS", ""))


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings in `environment`. Raises KeepfleetError(CONFIGURATION, or BAD_REQUEST for the ID)."""
    address = canonical_address(environment.get("KEEPFLEET_ADDRESS", ""))
    if address is None:
        raise _wrong("KEEPFLEET_ADDRESS", "an IPv4 or IPv6 address")
    return Settings(
        kuuid=parse_kuuid(environment.get("KEEPFLEET_KUUID", "")),
        address=address,
        port=_number(environment, "KEEPFLEET_PORT", "", 1, LAST_KEEP_PORT),
        names=_names(environment.get("KEEPFLEET_NAMES", "")),
        uploaders=_uploaders(environment.get("KEEPFLEET_UPLOADERS", "")),
        runtime_directory=_absolute(environment, "KEEPFLEET_RUNTIME_DIRECTORY", ""),
        openssl=_absolute(environment, "KEEPFLEET_OPENSSL", "/usr/bin/openssl"),
        max_workload=_number(environment, "KEEPFLEET_MAX_WORKLOAD", str(MAX_WORKLOAD_BYTES), 1, 1 << 40),
        limits=read_limits(environment),
    )
