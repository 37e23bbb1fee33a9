"""How a command ends: its errors as sentences, its exit code, and output that cannot be written."""

from __future__ import annotations

import errno
from _collections_abc import Callable

from keep_client.peer import CertificateRefused, ConnectionFailed
from keep_client.text import one_line, printable
from keep_protocol.errors import KeepfleetError
from keepctl.display import discard_output, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from keep_client.credentials import Credentials

FAILED = 1
NO_ANSWER = 3
INTERRUPTED = 130
"""128 + SIGINT, as a shell says it; no message, since the person knows."""
_shown: list[Credentials] = []
"""The credentials this command shows, once it knows them."""


def remember(credentials: Credentials) -> None:
    """This command shows these: `show_error` looks at them where they were refused."""
    _shown[:] = [credentials]


def _words(error: KeepfleetError) -> str:
    """The error's message; of a refused certificate, better than a guess, what is wrong with our file."""
    if not isinstance(error, CertificateRefused) or not _shown:
        return error.message
    import datetime

    from keepctl.inspection import fault_of_ours  # here: its library costs 45 ms, and only a refusal needs it

    fault = fault_of_ours(_shown[0].certificate, _shown[0].ca, datetime.datetime.now(datetime.UTC))
    return f"cannot use {error.peer}: {fault}" if fault else error.message


def show_error(error: KeepfleetError) -> None:
    """One line, and the evidence it does not hold already indented below it, on standard error."""
    say(f"keepctl: {one_line(_words(error))}")
    for line in error.evidence:
        if line not in error.message:
            say(f"    {printable(line)}")


def show_failure(error: KeepfleetError) -> int:
    """The same, and the exit code for it."""
    show_error(error)
    return NO_ANSWER if isinstance(error, ConnectionFailed) else FAILED


def unwritten(error: OSError) -> int:
    """Output that cannot be written, or a file that cannot be used, in one line; quietly where its reader has gone. The
    exit code."""
    if error.errno != errno.EPIPE:
        say(one_line(f"keepctl: cannot go on: {error.filename or ''} {error.strerror or error}"))
    discard_output()
    return FAILED


def guarded(work: Callable[[], int]) -> int:
    """The exit code of `work`, or of what it raises, which is shown."""
    try:
        return work()
    except KeepfleetError as error:
        return show_failure(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return unwritten(error)
