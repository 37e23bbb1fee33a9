"""The system calls Python 3.11 has no function for: mount, umount2, unshare, setns, prctl.

Import rule: `ctypes` and `os` alone, so that a command in a sandbox starts quickly.
Each function raises OSError with the call's errno and the path it was about.
"""

from __future__ import annotations

import ctypes
import os

CLONE_FILES = 0x00000400
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def mount(source: str, target: str, kind: str | None, flags: int = 0, options: str | None = None) -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            None if kind is None else kind.encode(),
            flags,
            None if options is None else options.encode(),
        ),
        target,
    )


def tmpfs(target: str, mode: str, flags: int = MS_NOSUID | MS_NODEV) -> None:
    """An empty file system in memory, mounted over `target`; `mode` in octal digits."""
    mount("tmpfs", target, "tmpfs", flags, f"mode={mode}")


def bind(descriptor: int, target: str, *, read_only: bool = False) -> None:
    """Shows what `descriptor` (opened with O_PATH in this mount namespace) names at `target`, with its submounts."""
    mount(f"/proc/self/fd/{descriptor}", target, None, MS_BIND | MS_REC)
    if read_only:
        mount("none", target, None, MS_BIND | MS_REMOUNT | MS_RDONLY)


def detach(target: str) -> None:
    """umount2(2) of `target` and everything mounted below it, immediately, even where it is in use."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), target)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2): `new`, a mount, is the root of this mount namespace, and the root until now is seen at `old`."""
    _check(_libc.pivot_root(os.fsencode(new), os.fsencode(old)), new)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, flags: int) -> None:
    """setns(2) with a pidfd (Linux 5.8): joins those namespaces of that process."""
    _check(_libc.setns(descriptor, flags), "setns")


def die_with_parent(signal_number: int) -> None:
    """PR_SET_PDEATHSIG: the kernel sends this process `signal_number` when its parent ends."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal_number), 0, 0, 0), "prctl")
