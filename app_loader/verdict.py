"""What the door and the checker agree upon: descriptors, the word to begin, and how a refusal for complexity reads.

Pure. Of its own so that the checker, whose imports a client waits for, does not bring in what the door receives with.
"""

from __future__ import annotations

import signal

from app_loader.budget import Budget
from app_loader.limits import MAX_EVIDENCE_LINE, MAX_EVIDENCE_LINES
from keep_protocol.errors import ErrorKind, KeepfleetError

VERDICT_FD, MODULE_FD, RESULT_FD, DESCRIPTION_FD = 3, 4, 5, 6
"""The checker's descriptors; the last only when a workload was described."""
GO = b"go"
_NO_VECTORS = "support for v128"
"""wasmtime's C interface aborts with these words when it is asked for a signature with a vector in it."""


def too_complex(how: str, evidence: tuple[str, ...] = ()) -> KeepfleetError:
    """The refusal of a module that cannot be checked within the limits."""
    return KeepfleetError(ErrorKind.TOO_COMPLEX, f"cannot take the module: compiling it {how}", evidence)


def verdict_of_end(code: int, allowed: Budget, said: str = "") -> KeepfleetError:
    """Why a checker that ended with `code` (negative: a signal), and `said` this, gave no verdict. Pure."""
    lines = tuple(line[:MAX_EVIDENCE_LINE] for line in said.splitlines() if line and not line.startswith("note: "))
    if code == -signal.SIGXCPU:
        return too_complex(allowed.over_cpu())
    if code == -signal.SIGABRT and _NO_VECTORS in said:
        return KeepfleetError(
            ErrorKind.INVALID_MODULE,
            "cannot call the export: it takes or returns a vector (v128), which cannot be given as text or shown",
        )
    if code in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGKILL, -signal.SIGILL):
        return too_complex(f"{allowed.over_data()} ({signal.Signals(-code).name})", lines[:MAX_EVIDENCE_LINES])
    return KeepfleetError(
        ErrorKind.INTERNAL, f"cannot check the module: the checker ended with {code}", lines[-MAX_EVIDENCE_LINES:]
    )
