"""A pull in a process of its own, for `keepctl store pull` in place: where there need be no systemd and no manager.

What a unit does over a manager's API (keep-pull@.service), a fork does here as far as a process can by itself: root's
becomes `nobody`, gains no rights, starts nothing, writes no file and has limits. It has the network, a connection's
secrets, a pipe for the module and one for the report; the store, and what is believed of it, stay with its parent.
Import rule: that of module_pull.
"""

from __future__ import annotations

import ctypes
import encodings.idna  # noqa: F401 - what a name of a host is looked up with: nobody may not be able to read it later
import os
import resource
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from signal import SIGKILL

from keep_protocol import forking
from keep_protocol.errors import ErrorKind, KeepfleetError
from module_pull.artifact import Address
from module_pull.exchange import MAX_REPORT_BYTES, Incoming, encode_error, hand_over, read_error
from module_pull.registry import Credentials, Registry

NAME = "keep-pull"
NOBODY = 65534
"""Whom no file belongs to, on every Linux (user `nobody`, group `nogroup`)."""
MEMORY_BYTES, FILES = 192 << 20, 64
"""As the unit has them (MemoryMax=, LimitNOFILE=); the memory is on top of what the forking process has already."""
_MODULE = 1
_PR_SET_NO_NEW_PRIVS = 38


@contextmanager
def pulled(address: Address, credentials: Credentials, context: ssl.SSLContext) -> Iterator[Incoming]:
    """What a fork passes on of the module at `address`; the fork has ended after the block. Where the block raises
    KeepfleetError and the fork knows more, its error is raised instead."""
    module, module_end = os.pipe2(os.O_CLOEXEC)
    report, report_end = os.pipe2(os.O_CLOEXEC)
    pid = -1
    try:
        try:
            pid = forking.fork(
                lambda: _pull(address, credentials, context),
                NAME,
                {},
                {},
                reports=report_end,
                output=(module_end, 2),
            )
        except OSError as error:
            why = f"cannot pull {address}: {error.strerror}"
            raise KeepfleetError(ErrorKind.UNAVAILABLE, why) from error
        finally:
            os.close(module_end)
            os.close(report_end)
        with FileIO(module, closefd=False) as source:
            yield Incoming(address, source)
    except KeepfleetError as error:
        os.set_blocking(report, False)
        with suppress(BlockingIOError):  # it goes on, and we do not
            if (known := read_error(os.read(report, MAX_REPORT_BYTES))) is not None:
                raise known from error
        raise
    finally:
        os.close(module)
        os.close(report)
        if pid > 0:
            os.kill(pid, SIGKILL)  # not reaped yet: it is still that process
            os.waitpid(pid, 0)


def _pull(address: Address, credentials: Credentials, context: ssl.SSLContext) -> int:
    """The fork's work; its exit status."""
    _confine()
    try:
        with Registry(address.site, credentials, context).fetch(address) as found:
            hand_over(found, _MODULE)
    except KeepfleetError as error:
        os.write(forking.REPORT_DESCRIPTOR, encode_error(error))
    except BrokenPipeError:
        return 1  # its parent wants no more, and knows why
    else:
        return 0
    return 1


def _confine() -> None:
    """Gives up what a pull needs none of. Raises OSError."""
    memory = _data_bytes() + MEMORY_BYTES
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot give up gaining rights")
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_DATA: memory,
    }
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process now (proc(5), statm)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[5]) * resource.getpagesize()
