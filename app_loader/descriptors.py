"""Passed descriptors: what a process of the app-loader is given open, by name, and nothing else.

KEEPFLEET_DESCRIPTORS holds their names, separated by commas; the i-th is at FIRST_DESCRIPTOR + i. A descriptor without
a name was not passed, whatever is open there: a library may keep a file of its own open (libffi does, on Python 3.14).
Import rule: `os` and the light part of keep_protocol.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from app_loader.limits import FIRST_DESCRIPTOR, REPORT_FD
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.workload import MAX_WORKLOAD_JSON, Workload, workload_from_json

VARIABLE = "KEEPFLEET_DESCRIPTORS"
_NAMES = ("listener", "client-ca", "revoked", "identity", "compiled", "module", "result", "workload", "stdin")
_NUMBERED = ("directory", "secret")
"""What a workload is granted several of, `-` and a number behind it."""


def _cannot(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot start the app-loader: {why}")


def _is_known(name: str) -> bool:
    kind, _, number = name.rpartition("-")
    return name in _NAMES or (kind in _NUMBERED and number.isascii() and number.isdecimal() and len(number) <= 2)


class Passed:
    """The passed descriptors: `name in passed`, and `number`, by name. names: in the order of their numbers."""

    def __init__(self, names: Sequence[str]) -> None:
        """Raises KeepfleetError(CONFIGURATION) for a name that is unknown, or given twice."""
        for name in names:
            if not _is_known(name):
                raise _cannot(f"{VARIABLE} has the unknown name {name[:40]!r}")
        if len(set(names)) != len(names):
            raise _cannot(f"{VARIABLE} has a name twice")
        self.names = tuple(names)
        self._numbers = {name: number for number, name in enumerate(names, FIRST_DESCRIPTOR)}

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
    passed = Passed(tuple(name for name in environment.get(VARIABLE, "").split(",") if name))
    os.closerange(FIRST_DESCRIPTOR + len(passed.names), os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(REPORT_FD, False)
    for name in passed.names:
        try:
            os.set_inheritable(passed.number(name), False)
        except OSError as error:
            raise _cannot(f"its descriptor {name!r} is not open: {error.strerror}") from error
    return passed


def place(sources: Sequence[tuple[str, int]]) -> str:
    """Puts (name, descriptor) pairs where the next program finds them, to be kept over exec with the report socket.

    Returns the value of VARIABLE for it. What was at their numbers is overwritten. Raises OSError.
    """
    import fcntl

    beyond = FIRST_DESCRIPTOR + len(sources)  # a target may be another's source: first all are copied out of the way
    copies = [fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, beyond) for _, source in sources]
    for target, copy in enumerate(copies, FIRST_DESCRIPTOR):
        os.dup2(copy, target)
    os.set_inheritable(REPORT_FD, True)
    return ",".join(name for name, _ in sources)


class Grants(Record):
    """What a guest is given besides its module. workload: what it gets; description: the descriptor of the file that
    says so; descriptors: those of `workload.grant_names`, in order."""

    workload: Workload
    description: int
    descriptors: tuple[int, ...]

    @property
    def named(self) -> list[tuple[str, int]]:
        """All of its descriptors, as `place` takes them."""
        names = ("workload", *self.workload.grant_names)
        return list(zip(names, (self.description, *self.descriptors), strict=True))


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
    if "workload" not in passed:
        return None
    description = passed.number("workload")
    workload = read_workload(description)
    return Grants(workload, description, tuple(passed.number(name) for name in workload.grant_names))
