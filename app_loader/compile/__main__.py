"""Compiles standard input to standard output: `python -I -S …/app_loader/compile/__main__.py`, as keep-compile@.service
does.

Ends with 0 where it has, 1 where the module is refused, 2 where it was started wrongly; its report is the last line on
standard error. It starts no process and opens no file once it has read the first bytes of the module.
"""

import fcntl
import os
import sys
from contextlib import suppress

if not __package__:  # run by path under -I -S: our packages lie together, and the standard library must win
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from app_loader.compile.compiling import compile_module
from keep_protocol.compiling import encode_report, read_job
from keep_protocol.errors import KeepfleetError

MODULE, RESULT, REPORT = 0, 1, 2
COMPILED, REFUSED, BAD_START = 0, 1, 2


def main() -> int:
    """Does the job in the environment; returns the exit status."""
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with suppress(OSError):  # what removes unused roots respects the lock; the unit names its root, too
        fcntl.flock(root, fcntl.LOCK_SH | fcntl.LOCK_NB)
    try:
        job = read_job(os.environ)
    except KeepfleetError as error:
        os.write(REPORT, encode_report(error))
        return BAD_START
    found = compile_module(MODULE, RESULT, job)
    os.write(REPORT, encode_report(found))
    return REFUSED if isinstance(found, KeepfleetError) else COMPILED


if __name__ == "__main__":
    os._exit(main())  # what finalising would do takes 17 ms, and changes nothing
