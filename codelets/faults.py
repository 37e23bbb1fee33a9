"""What cannot be loaded or unloaded, with jbpf's numbers next to the words.

Import rule: keep_protocol.
"""

from __future__ import annotations

from enum import Enum

from keep_protocol.errors import ErrorKind, KeepfleetError


class Failure(Enum):
    """What failed, as jbpf_lcm numbers it."""

    HOOK_MISSING = "hook-missing"
    CREATION_FAILED = "creation-failed"
    LOAD_FAILED = "load-failed"
    INVALID_PARAMETER = "invalid-parameter"
    UNLOAD_FAILED = "unload-failed"

    @property
    def number(self) -> int:
        """jbpf's; of unloading there is one alone."""
        return _NUMBERS[self]


_NUMBERS = {
    Failure.HOOK_MISSING: -1,
    Failure.CREATION_FAILED: -2,
    Failure.LOAD_FAILED: -3,
    Failure.INVALID_PARAMETER: -4,
    Failure.UNLOAD_FAILED: -1,
}


MAX_MESSAGE = 1024
"""jbpf's: characters of an error's text. Where it would list every hook of an application it is cut."""


class CodeletError(KeepfleetError):
    """A set cannot be loaded or unloaded; nothing of it was."""

    def __init__(self, failure: Failure, kind: ErrorKind, message: str, evidence: tuple[str, ...] = ()) -> None:
        super().__init__(kind, message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 1]}…", evidence)
        self.failure = failure

    def to_wire(self) -> dict[str, object]:
        """The project's error shape, with jbpf's number and its name."""
        return {**super().to_wire(), "failure": self.failure.value, "number": self.failure.number}


def loading(failure: Failure, codelet_set: str, why: str, kind: ErrorKind = ErrorKind.BAD_REQUEST) -> CodeletError:
    """The error of a set that cannot be loaded."""
    return CodeletError(failure, kind, f"cannot load the codelet set {codelet_set}: {why}")
