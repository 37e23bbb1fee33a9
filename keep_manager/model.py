"""What the manager's parts say to each other: frozen values, no behaviour."""

from __future__ import annotations

import datetime
from dataclasses import dataclass


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
class ClientIdentity:
    """Who a client's certificate says it is, read once per connection.

    fault: why the certificate may not be used here whatever the time, or "".
    """

    subject: str
    serial: int
    not_before: datetime.datetime
    not_after: datetime.datetime
    fault: str = ""

    def __str__(self) -> str:
        return f"{self.subject} (serial {self.serial:x})"
