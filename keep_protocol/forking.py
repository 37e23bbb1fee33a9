"""A process of a keep is a fork of another: what it finds at which descriptor, and that it has nothing else.

The keep-loader forks the upload endpoint and the runner, the runner forks the checker of each upload; once the loader
runs, no process of a keep starts a program. A fork has all of its parent's memory, so who forks whom is a matter of
what the parent has seen: the loader and the runner that waits have never held a key or read a stranger's byte.
Import rule: light modules of the standard library alone.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # `signal` only makes its numbers enumerations: 47 KB and 2 ms
import fcntl
import gc
import os
import select
import sys
from _collections_abc import Callable, Mapping, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

REPORT_DESCRIPTOR = 3
"""Where a fork finds its report socket; what is passed to it follows from FIRST_DESCRIPTOR on."""
FIRST_DESCRIPTOR = 4
DESCRIPTORS_VARIABLE = "KEEPFLEET_DESCRIPTORS"
"""The names of what is passed, separated by commas: the i-th is at FIRST_DESCRIPTOR + i."""
RUNNER_NAME = "keep-runner"
"""The runner's name as the kernel has it, by which the journal distinguishes the workload's lines from the keep's: a
fork carries its parent's command line."""
PREPARED_NAME = "keep-prepared"
"""The kernel's name of a fork that waits to hear what it is to be."""
FAULT = 1
"""The exit status of a fork that failed."""
_ENDING_SIGNALS = (_signal.SIGTERM, _signal.SIGINT)
_PR_SET_NAME = 15
RESERVED = 8
"""Descriptors that a prepared fork is passed at most: the endpoint gets four."""
PREPARED_SECONDS = 5.0
"""From a fork to the moment it has let go of all that was its parent's: it takes under a millisecond."""


def fork(
    begin: Callable[[], int],
    name: str,
    passed: Mapping[str, int],
    environment: Mapping[str, str],
    *,
    reports: int,
    output: tuple[int, int] = (1, 2),
    kept: frozenset[int] = frozenset(),
    own_group: bool = True,
) -> int:
    """Forks a process that calls `begin` and ends with what that returns; its process ID, once it has let go of all
    that was ours. Raises OSError.

    It has `environment`, /dev/null as standard input, `output` as standard output and error, `reports`, `passed`, the
    descriptors `kept` at their own numbers, and no other; `name` is the kernel's for it, of at most 15 characters. A
    process group of its own, unless it is to be ended with its parent's. The caller keeps its own copies.
    """
    gc.freeze()  # a collection in the fork would copy every page that it looks at, and close what was never its own
    # A signal that comes before the fork has its own handlers waits for them, and ends it then.
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _ENDING_SIGNALS)
    prepared, preparing = os.pipe2(os.O_CLOEXEC)  # the fork closes its end with all else, which shows here
    pid = -1
    try:
        pid = os.fork()
        if pid == 0:
            _become(lambda: _prepare(name, passed, environment, reports, output, kept, own_group), begin)
        os.close(preparing)
        preparing = -1
        poll = select.poll()
        poll.register(prepared, 0)
        poll.poll(PREPARED_SECONDS * 1000)
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
        os.close(prepared)
        if preparing >= 0:
            os.close(preparing)
    return pid


def _become(prepare: Callable[[], None], begin: Callable[[], int]) -> NoReturn:
    """Never returns, and never finalises: the parent's objects still own numbers that are closed here, or another's."""
    status = FAULT
    try:
        prepare()
        status = begin()
    except BaseException:  # noqa: BLE001 - there is no caller to raise it to
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _prepare(
    name: str,
    passed: Mapping[str, int],
    environment: Mapping[str, str],
    reports: int,
    output: tuple[int, int],
    kept: frozenset[int],
    own_group: bool,
) -> None:
    _signal.set_wakeup_fd(-1)  # before its pipe is closed
    for number in _ENDING_SIGNALS:
        _signal.signal(number, _signal.SIG_DFL)
    if own_group:
        os.setpgid(0, 0)
    _place([*output, reports, *passed.values()], kept)
    os.environ.clear()
    os.environ.update(environment)
    os.environ[DESCRIPTORS_VARIABLE] = ",".join(passed)
    set_process_name(name)  # now it is what it says: it has its own descriptors, and no other
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def _place(sources: list[int], kept: frozenset[int]) -> None:
    """Puts /dev/null at 0 and `sources` from 1 on, and closes all else but `kept`."""
    beyond = 1 + len(sources)  # a target may be another's source: first all are copied out of the way
    copies = [fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, beyond) for source in sources]
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    for target, copy in enumerate(copies, 1):
        os.dup2(copy, target, inheritable=target <= 2)
    for number in sorted(number for number in kept if number >= beyond):
        os.closerange(beyond, number)
        beyond = number + 1
    os.closerange(beyond, os.sysconf("SC_OPEN_MAX"))


def reserved_numbers() -> list[int]:
    """Holds the numbers at which a prepared fork will find what it is passed, until they are closed: what a library
    keeps open gets others."""
    held = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)]
    while held[-1] < FIRST_DESCRIPTOR + RESERVED:
        held.append(os.dup(held[0]))
    return held


def begin(
    name: str, output: int, descriptors: Sequence[int], names: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Makes a prepared fork what it would be had it been forked with all of this; it closes `output` and `descriptors`
    where they are."""
    beyond = FIRST_DESCRIPTOR + RESERVED
    copies = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, beyond) for number in (output, *descriptors)]
    for number in (output, *descriptors):
        os.close(number)
    for target in (1, 2):
        os.dup2(copies[0], target)
    for target, copy in enumerate(copies[1:], FIRST_DESCRIPTOR):
        os.dup2(copy, target, inheritable=False)
    for copy in copies:
        os.close(copy)
    os.environ.update(environment)
    os.environ[DESCRIPTORS_VARIABLE] = ",".join(names)
    set_process_name(name)


def set_process_name(name: str) -> None:
    """What the kernel, and with it `ps` and the journal, call this process."""
    import _ctypes  # a tenth of what `ctypes` takes

    here: Any = None  # this process itself, which the stub of dlopen does not know
    prctl = _ctypes.dlsym(_ctypes.dlopen(here, os.RTLD_NOW), "prctl")
    _ctypes.call_function(prctl, (_PR_SET_NAME, name.encode("ascii"), 0, 0, 0))
