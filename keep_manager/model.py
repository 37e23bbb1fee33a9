"""What the manager's parts say to each other: frozen values, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from keep_manager.callers import GrantRoot
from keep_protocol.certificate import CertificateFields
from keep_protocol.errors import KeepfleetError
from keep_protocol.identity import Identity, Role
from keep_protocol.spec import ANONYMOUS
from keep_protocol.sse import EventType


class LoaderGone(KeepfleetError):
    """Nobody is behind a loader's socket, or it has just ended; one that hangs is a plain KeepfleetError."""


@dataclass(frozen=True)
class UnitState:
    """One keep's unit as systemd lists it (man systemctl, "list-units").

    load: "loaded", "not-found", …; active: "active", "activating", "failed", …; sub: the service's own state;
    job: the type of the job that is queued for it, or "".
    """

    kuuid: int
    load: str
    active: str
    sub: str
    job: str = ""


@dataclass(frozen=True)
class Told:
    """What was told of a keep last, and how often its workload had been started again by then."""

    type: EventType
    restarts: int = 0


@dataclass(frozen=True)
class ClientIdentity:
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


@dataclass(frozen=True)
class Caller:
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


@dataclass(frozen=True)
class Allowance:
    """What one caller may ask for. grant_roots: none, and nothing can be granted; ceilings: the most each limit may
    be, by its name, for every limit there is."""

    grant_roots: tuple[GrantRoot, ...]
    ceilings: Mapping[str, int]
