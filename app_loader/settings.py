"""What a process of the app-loader shares with its loader: what it is given, the KEEPFLEET_* environment, read and
checked once, and open descriptors by name, see `keep_protocol.forking`; and the reports that it sends.

A descriptor without a name was not passed, whatever is open there: a library may keep a file of its own open (libffi
does, on Python 3.14).
Import rule: `os` and the light part of keep_protocol: the runner must start fast, and can import nothing once it is
locked.
"""

from __future__ import annotations

import os
from _collections_abc import Mapping, Sequence

from keep_protocol import sockets as socket
from keep_protocol.constants import (
    CHECKS,
    COMPILED,
    DIRECTORY,
    IDENTITY,
    INPUT,
    LAST_KEEP_PORT,
    MAX_CERTIFICATE_NAMES,
    MAX_WORKLOAD_BYTES,
    MODULE,
    RESULT,
    SECRET,
    START_DESCRIPTORS,
    STDERR,
    STDIN,
    STDOUT,
    WORKLOAD_DESCRIPTOR,
    parse_kuuid,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.forking import DESCRIPTORS_VARIABLE, FIRST_DESCRIPTOR, REPORT_DESCRIPTOR
from keep_protocol.limits import Limits, limits_from_text
from keep_protocol.patterns import matches
from keep_protocol.reports import Report, ReportType, encode_report
from keep_protocol.spec import MAX_UPLOADERS, UPLOADER
from keep_protocol.workload import MAX_WORKLOAD_JSON, Workload, workload_from_json

_NAMES = (
    *(*START_DESCRIPTORS, IDENTITY, CHECKS, COMPILED, MODULE, RESULT),
    *(WORKLOAD_DESCRIPTOR, STDIN, INPUT, STDOUT, STDERR),
)
_NUMBERED = (DIRECTORY, SECRET)
"""What a workload is granted several of, `-` and a number behind it."""
_DNS_NAME = "[A-Za-z0-9.-]{1,253}"


class Settings(Record):
    """kuuid: the keep; address and port: where it listens; names: further names for its certificate; uploaders:
    who may upload, see `receive.access`; runtime_directory: the keep's own tmpfs directory; max_workload: bytes
    a module may have; limits: the keep's."""

    kuuid: int
    address: str
    port: int
    names: tuple[str, ...]
    uploaders: tuple[str, ...]
    runtime_directory: str
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


def _cannot(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot start the app-loader: {why}")


def _wrong(name: str, must: str) -> KeepfleetError:
    return _cannot(f"{name} must be {must}")


def _number(environment: Mapping[str, str], name: str, default: str, first: int, last: int) -> int:
    text = environment.get(name, default)
    if not matches("[0-9]{1,15}", text) or not first <= int(text) <= last:
        raise _wrong(name, f"a decimal number in {first} … {last}")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if len(names) > MAX_CERTIFICATE_NAMES:
        raise _wrong("KEEPFLEET_NAMES", f"at most {MAX_CERTIFICATE_NAMES} names")
    for name in names:
        named = matches(_DNS_NAME, name) and name[0] not in ".-" and name[-1] not in ".-"
        if not named and canonical_address(name) is None:
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


def _absolute(environment: Mapping[str, str], name: str) -> str:
    path = environment.get(name, "")
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
        runtime_directory=_absolute(environment, "KEEPFLEET_RUNTIME_DIRECTORY"),
        max_workload=_number(environment, "KEEPFLEET_MAX_WORKLOAD", str(MAX_WORKLOAD_BYTES), 1, 1 << 40),
        limits=read_limits(environment),
    )


def _is_known(name: str) -> bool:
    kind, _, number = name.rpartition("-")
    return name in _NAMES or (kind in _NUMBERED and number.isascii() and number.isdecimal() and len(number) <= 2)


class Passed:
    """The passed descriptors: `name in passed`, and `number`, by name. names: in the order of their numbers."""

    def __init__(self, names: Sequence[str], numbers: Sequence[int] | None = None) -> None:
        """Those of `names`, at `numbers` or where a fork finds them.

        Raises KeepfleetError(CONFIGURATION) for a name that is unknown, or given twice.
        """
        for name in names:
            if not _is_known(name):
                raise _cannot(f"{DESCRIPTORS_VARIABLE} has the unknown name {name[:40]!r}")
        if len(set(names)) != len(names):
            raise _cannot(f"{DESCRIPTORS_VARIABLE} has a name twice")
        self.names = tuple(names)
        found = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + len(names)) if numbers is None else numbers
        self._numbers = dict(zip(names, found, strict=True))

    def __repr__(self) -> str:
        return f"Passed({', '.join(self.names)})"

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def number(self, name: str) -> int:
        """The descriptor of this name. Raises KeepfleetError(CONFIGURATION) when it was not passed."""
        if name not in self._numbers:
            raise _cannot(f"its descriptor {name!r} was not passed")
        return self._numbers[name]


def claim(environment: Mapping[str, str]) -> Passed:
    """The descriptors passed to this process, kept from every program it starts; all others but 0 to 3 are closed.

    Call it before anything of the process's own is open, and before a library is that keeps files open.
    Raises KeepfleetError(CONFIGURATION) when a name is wrong, or nothing is open at its number.
    """
    passed = Passed(tuple(name for name in environment.get(DESCRIPTORS_VARIABLE, "").split(",") if name))
    os.closerange(FIRST_DESCRIPTOR + len(passed.names), os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(REPORT_DESCRIPTOR, False)
    for name in passed.names:
        try:
            os.set_inheritable(passed.number(name), False)
        except OSError as error:
            raise _cannot(f"its descriptor {name!r} is not open: {error.strerror}") from error
    return passed


class Grants(Record):
    """What a guest is given besides its module. workload: what it gets; description: the descriptor of the file that
    says so; descriptors: those of `workload.grant_names`, in order."""

    workload: Workload
    description: int
    descriptors: tuple[int, ...]


def read_workload(descriptor: int) -> Workload:
    """The description in the file `descriptor`; its offset stays. Raises KeepfleetError when it is none."""
    data = b""
    try:
        while len(data) <= MAX_WORKLOAD_JSON and (piece := os.pread(descriptor, MAX_WORKLOAD_JSON + 1, len(data))):
            data += piece
    except OSError as error:
        raise KeepfleetError(
            ErrorKind.CONFIGURATION, f"cannot read the workload's description: {error.strerror}"
        ) from error
    return workload_from_json(data)


def read_grants(passed: Passed) -> Grants | None:
    """What was passed for the workload; None when no workload was described, and the guest gets nothing.

    Raises KeepfleetError when the description is none, or a descriptor it names was not passed.
    """
    if WORKLOAD_DESCRIPTOR not in passed:
        return None
    description = passed.number(WORKLOAD_DESCRIPTOR)
    workload = read_workload(description)
    return Grants(workload, description, tuple(passed.number(name) for name in workload.grant_names))


class Reporter:
    """Sends reports over one descriptor. A loader that is gone is not an error: systemd ends this process with it."""

    def __init__(self, descriptor: int = REPORT_DESCRIPTOR) -> None:
        self.descriptor = descriptor

    def __repr__(self) -> str:
        return f"Reporter({self.descriptor})"

    def send(self, report: Report, descriptors: Sequence[int] = ()) -> bool:
        """Sends `report`, and with it the descriptors that `report.descriptors` names; False without a loader."""
        packet = encode_report(report)
        try:
            if not descriptors:
                os.write(self.descriptor, packet)
                return True
            with socket.socket(fileno=os.dup(self.descriptor)) as reports:
                socket.send_fds(reports, [packet], list(descriptors))
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def fail(self, error: BaseException, what: str) -> None:
        """Reports why the process ends: a KeepfleetError as it is, any other, which is a fault of ours or of the
        installation, as "WHAT: its kind: its text"."""
        if not isinstance(error, KeepfleetError):
            error = KeepfleetError(ErrorKind.INTERNAL, f"{what}: {type(error).__name__}: {error}")
        self.send(Report(ReportType.FAILED, error.message, error=error))
