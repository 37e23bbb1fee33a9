"""What the door and the checker agree upon: descriptors, the word to begin, and how a refusal for complexity reads.

Pure. Of its own so that the checker, whose imports a client waits for, does not bring in what the door receives with.
"""

from __future__ import annotations

import signal

from app_loader.limits import CHECKER_CPU_SECONDS, CHECKER_DATA_BYTES, MAX_EVIDENCE_LINE, MAX_EVIDENCE_LINES
from keep_protocol.errors import ErrorKind, KeepfleetError

VERDICT_FD, MODULE_FD, RESULT_FD = 3, 4, 5
"""The checker's descriptors."""
GO = b"go"


def too_complex(how: str, evidence: tuple[str, ...] = ()) -> KeepfleetError:
    """The refusal of a module that cannot be checked within the limits."""
    return KeepfleetError(ErrorKind.TOO_COMPLEX, f"cannot take the module: compiling it {how}", evidence)


def verdict_of_end(code: int, said: str = "") -> KeepfleetError:
    """Why a checker that ended with `code` (negative: a signal), and `said` this, gave no verdict. Pure."""
    lines = tuple(line[:MAX_EVIDENCE_LINE] for line in said.splitlines() if line and not line.startswith("note: "))
    if code == -signal.SIGXCPU:
        return too_complex(f"takes over {CHECKER_CPU_SECONDS} s of processor time")
    if code in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGKILL, -signal.SIGILL):
        how = f"takes over {CHECKER_DATA_BYTES >> 20} MiB of memory ({signal.Signals(-code).name})"
        return too_complex(how, lines[:MAX_EVIDENCE_LINES])
    return KeepfleetError(
        ErrorKind.INTERNAL, f"cannot check the module: the checker ended with {code}", lines[-MAX_EVIDENCE_LINES:]
    )
