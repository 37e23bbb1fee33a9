"""The one root of keepfleet's errors, and the kinds that cross process boundaries.

Import rule: `enumeration` alone (the light part of keep_protocol).
"""

from __future__ import annotations

from keep_protocol.enumeration import Enum


class ErrorKind(Enum):
    """A stable word for what went wrong; it travels in JSON, and HTTP statuses are derived from it in one place."""

    BAD_REQUEST = "bad-request"
    UNKNOWN_COMMAND = "unknown-command"
    NOT_FOUND = "not-found"
    CONFLICT = "conflict"
    FORBIDDEN = "forbidden"
    TOO_LARGE = "too-large"
    TOO_SLOW = "too-slow"
    TOO_MANY = "too-many"
    UNSUPPORTED = "unsupported"
    UNSUPPORTED_MEDIA = "unsupported-media"
    INVALID_MODULE = "invalid-module"
    TOO_COMPLEX = "too-complex"
    COMPILING = "compiling"
    PORT_UNAVAILABLE = "port-unavailable"
    NO_SPACE = "no-space"
    ISOLATION_FAILURE = "isolation-failure"
    KEEP_FAILED = "keep-failed"
    SYSTEMD = "systemd"
    UNAVAILABLE = "unavailable"
    CONFIGURATION = "configuration"
    CERTIFICATE = "certificate"
    INTERNAL = "internal"


class KeepfleetError(Exception):
    """What failed, in words for a person: "cannot X: why", lower case, with the next step where there is one.

    `kind` decides the status a caller gets; `evidence` holds lines that show it (a unit's last journal
    lines, a trap's backtrace). Neither ever holds a secret.
    """

    def __init__(self, kind: ErrorKind, message: str, evidence: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.evidence = evidence

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind.value}: {self.message})"

    def to_wire(self) -> dict[str, object]:
        """The one error shape of every interface: `{"kind": …, "message": …, "evidence": […]}`."""
        return {"kind": self.kind.value, "message": self.message, "evidence": list(self.evidence)}


def error_from_wire(value: object) -> KeepfleetError:
    """The error another process reported. A shape or kind that is not ours becomes INTERNAL, never an exception."""
    if isinstance(value, dict):
        message, evidence = value.get("message"), value.get("evidence", [])
        if isinstance(message, str) and isinstance(evidence, list):
            kinds = {kind.value: kind for kind in ErrorKind}
            kind = kinds.get(str(value.get("kind")), ErrorKind.INTERNAL)
            return KeepfleetError(kind, message, tuple(str(line) for line in evidence))
    return KeepfleetError(ErrorKind.INTERNAL, "cannot read the error another process reported: it has another shape")
