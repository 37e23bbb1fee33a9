"""What the manager's parts say to each other: frozen values and errors, no behaviour."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from keep_manager.callers import GrantRoot
from keep_protocol.api_workload import WorkloadRequest
from keep_protocol.certificate import CertificateFields
from keep_protocol.constants import START_DESCRIPTORS, unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.identity import Identity, Role
from keep_protocol.keep import KeepInfo, KeepReport
from keep_protocol.limits import DEFAULTS
from keep_protocol.record import KeepRecord
from keep_protocol.spec import ANONYMOUS, KeepSpec
from keep_protocol.sse import EventType

NAMED_STARTS, KEEPS_OUTPUT = 2, 3
"""The first versions of the control protocol whose loaders take a start by its names, and keep their workload's
output."""
EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS))
"""What the kernel says where this process, or the host, has as many descriptors as it may, or no room for another; the
last one where as many were sent to processes that have not received them."""
Visible = Callable[[KeepInfo], bool]
"""Whether a caller may see a keep; what it may not see is as if it were not there."""


class LoaderGone(KeepfleetError):
    """No process is behind a loader's socket, or it has just ended; one that hangs is a plain KeepfleetError."""


def is_exhausted(error: BaseException | None) -> bool:
    """Whether the error says that there are no more descriptors now, or no room for another."""
    return isinstance(error, OSError) and error.errno in EXHAUSTED


@contextmanager
def exhaustion_explained(what: str) -> Iterator[None]:
    """Raises KeepfleetError(UNAVAILABLE) where the block cannot do `what` for want of descriptors."""
    try:
        yield
    except OSError as error:
        if not is_exhausted(error):
            raise
        raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot {what}: {error.strerror}") from error


def missing(kuuid: int) -> KeepfleetError:
    """The error for a keep that does not exist, or not for the caller, who must not find out which."""
    return KeepfleetError(ErrorKind.NOT_FOUND, f"cannot find keep {kuuid}: there is no unit {unit_name(kuuid)}")


class UnitState(Record):
    """One keep's unit as systemd lists it (man systemctl, "list-units").

    load: "loaded", "not-found", "masked", …; active: "active", "activating", "failed", …; sub: the service's own state;
    job: the type of the job that is queued for it, or "".
    """

    kuuid: int
    load: str
    active: str
    sub: str
    job: str = ""


class UnitEnd(Record):
    """How a unit's main process ended last (man org.freedesktop.systemd1).

    result: systemd's word ("exit-code", "signal", …), or "" where it is not known; status: the exit status or signal;
    restarts: how often systemd has started it again; inactive_since: when the unit, or where that stays its process,
    ended, in seconds since boot.
    """

    result: str = ""
    status: int = 0
    restarts: int = 0
    inactive_since: float | None = None


class Remains(Record):
    """What is left of a keep that was started in an earlier boot of the host. record: None where its loader wrote none
    that can be read; found_at: when in this boot a manager found it first, in seconds since boot."""

    spec: KeepSpec
    record: KeepRecord | None
    found_at: float


class Answer(Record):
    """What a loader answered. report: about its process; claims: name, labels and limits as a loader of the version
    before says them, which hold for a unit that has no spec."""

    report: KeepReport
    claims: KeepSpec


class LastEvent(Record):
    """The latest event of a keep, how often its workload had been started again by then, when that was, in seconds
    since boot, whose the keep is, as far as the event says it, and the event's time, or when it was recorded."""

    type: EventType
    restarts: int = 0
    since: float = 0.0
    owner: str = ""
    at: float = 0.0


class ClientIdentity(Record):
    """Who a client's certificate says it is, read once per connection.

    certificate: its fields, None where they cannot be read; identity: the role, name and keep that its URI names, None
    where it has no such URI; fault: why it may not be used here whatever the time, or "".
    """

    certificate: CertificateFields | None
    identity: Identity | None = None
    fault: str = ""

    @property
    def subject(self) -> str:
        """The certificate's common name, or its whole subject."""
        return "" if self.certificate is None else self.certificate.subject

    @property
    def serial(self) -> int:
        """The certificate's serial number."""
        return 0 if self.certificate is None else self.certificate.serial

    @property
    def fingerprint(self) -> str:
        """`sha256:` and 64 hexadecimal digits of the certificate."""
        return "" if self.certificate is None else self.certificate.fingerprint

    def __str__(self) -> str:
        return "an unreadable certificate" if self.certificate is None else str(self.certificate)


class Caller(Record):
    """Who asks. name: the owner word, "anonymous" without a certificate; where: the address; text: name, serial number
    and address, for the log; fingerprint: of the certificate; keep: the one keep an uploader may send to."""

    name: str
    role: Role
    where: str
    text: str
    fingerprint: str = ""
    keep: int | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def who(self) -> str:
        """Who it was, as a keep's outcome says it: the name, or for a client without one its address."""
        return f"a client at {self.where}" if self.name == ANONYMOUS else self.name


class Allowance(Record):
    """What one caller may ask for. grant_roots: none, and nothing can be granted; ceilings: the most each limit may
    be, by its name, for every limit there is; defaults: what it is where nothing is asked for."""

    grant_roots: tuple[GrantRoot, ...]
    ceilings: Mapping[str, int]
    defaults: Mapping[str, int] = DEFAULTS


class UnixUser(Record):
    """Who a process is, by number."""

    uid: int
    gid: int


class StoredModule(Record):
    """A module of the store. name: the reference it was asked for by, "" where its digest alone was."""

    digest: str
    name: str
    size: int


class Provision(Record):
    """What is asked for in a keep's start: for which keep, by whom, which user the keep is, None while it is still to
    be made, and what its workload is to have, if anything. keeps_output: whether its loader keeps its output, and is to
    get what that takes; brings: what its kind must have; opens: whether what is granted is opened, and not only looked
    for among what its caller may grant."""

    kuuid: int
    spec: KeepSpec
    caller: Caller
    allowed: Allowance
    user: UnixUser | None
    workload: WorkloadRequest | None
    keeps_output: bool = False
    brings: tuple[str, ...] = START_DESCRIPTORS
    opens: bool = True
