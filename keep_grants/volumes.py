"""Mounts volumes: each is an ext4 file system in a file of its own, of a fixed size, behind a loop device.

So the kernel itself keeps its bytes and inodes within their limits, whatever runs in the keep, on any host file system;
its blocks are reserved, so that a full host is no fault in it. One keep has it at a time: the image is locked by the
description that the loop device keeps open, which the kernel closes when the last descriptor of the mount is closed,
wherever that is. No process has to be alive for the lock to hold, nor for it to end. Import rule: that of keep_grants.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import struct
from contextlib import ExitStack

from keep_grants import kernel
from keep_grants.protocol import DiskIds, WantedVolume
from keep_grants.resolve import keep, open_below, open_root
from keep_protocol.errors import ErrorKind, KeepfleetError

IMAGE = "image"
"""The file in a volume's folder."""
OWNER = DiskIds(65534, 65534)
"""Whose the files in a volume are on disk: `nobody`. Nothing in an image that an operator mounts is a user's."""
LOCK_SECONDS = 5.0
"""How long a keep that has just ended may still have it: its descriptors are closed within milliseconds, on a host that
is not busy."""
ATTEMPTS = 8
"""Another process may take the loop device that was free a moment ago."""
CONTROL = "/dev/loop-control"
LOOP_CTL_GET_FREE, LOOP_CONFIGURE, LO_FLAGS_AUTOCLEAR = 0x4C82, 0x4C0A, 4
"""linux/loop.h; a device with that flag gives its file up with the last who has it open."""
LOOP_CONFIG = struct.Struct("=II QQQQQIIII64s64s32s2Q 64x")
"""struct loop_config: the file, the block size, a struct loop_info64, and what is reserved."""
KIND = "ext4"
OPTIONS = {"errors": "remount-ro"}
"""A fault in it is an error of who uses it; the image must not say that it is one of the host (errors=panic)."""
PRIVATE = 0o077


def mounted(own: ExitStack, wanted: WantedVolume) -> int:
    """The volume's file system as a detached mount, which `own` closes. Raises KeepfleetError: NOT_FOUND, FORBIDDEN for
    what is not root's alone, CONFLICT while another has it, UNSUPPORTED where the host cannot."""
    try:
        image = _image(own, wanted)
        _lock(image, wanted)
        if not os.fstat(image).st_nlink:
            raise _refusal(wanted, ErrorKind.NOT_FOUND, "it has been removed")
    except OSError as error:
        raise _unusable(wanted, error) from error
    device, path = _device(own, image, wanted)
    try:
        return keep(own, kernel.mount_detached(KIND, {"source": path, **OPTIONS}))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENODEV, errno.ENOSYS):
            raise _refusal(wanted, ErrorKind.UNSUPPORTED, f"this host mounts no {KIND}: {error.strerror}") from error
        where = os.path.join(wanted.directory, wanted.name, IMAGE)
        why = f"its file system cannot be mounted: {error.strerror}; run: e2fsck -f {where}"
        raise _refusal(wanted, ErrorKind.UNAVAILABLE, why) from error
    finally:
        os.close(device)  # the mount has it open


def _image(own: ExitStack, wanted: WantedVolume) -> int:
    """The image, open. Raises OSError, KeepfleetError."""
    root = open_root(own, wanted.directory)
    folder = open_below(own, root, wanted.name)
    place = open_below(own, folder, IMAGE)
    for found, kind in ((root, stat.S_IFDIR), (folder, stat.S_IFDIR), (place, stat.S_IFREG)):
        status = os.fstat(found)
        if stat.S_IFMT(status.st_mode) != kind or status.st_uid != os.geteuid() or status.st_mode & PRIVATE:
            why = f"something of it is not root's alone; look at {os.path.join(wanted.directory, wanted.name)}"
            raise _refusal(wanted, ErrorKind.FORBIDDEN, why)
    if os.fstat(place).st_nlink != 1:
        raise _refusal(wanted, ErrorKind.FORBIDDEN, "its image has a second name (a hard link)")
    return keep(own, os.open(f"/proc/self/fd/{place}", os.O_RDWR | os.O_CLOEXEC))


class _TooLongError(Exception):
    """The signal that ends a wait."""


def _lock(image: int, wanted: WantedVolume) -> None:
    """Locks the image for as long as its description is open. Raises KeepfleetError(CONFLICT), OSError."""

    def too_long(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, too_long)
    left, _ = signal.setitimer(signal.ITIMER_REAL, LOCK_SECONDS)
    try:
        fcntl.flock(image, fcntl.LOCK_EX)
    except _TooLongError:
        raise _refusal(wanted, ErrorKind.CONFLICT, "another keep has it; one has it at a time") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)


def _device(own: ExitStack, image: int, wanted: WantedVolume) -> tuple[int, str]:
    """A loop device with the image in it, open, and its path. Raises KeepfleetError."""
    try:
        control = keep(own, os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC))
        for _ in range(ATTEMPTS):
            path = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                zeros = (0,) * 8
                name, none = wanted.name.encode(), b""
                values = LOOP_CONFIG.pack(image, 0, *zeros, LO_FLAGS_AUTOCLEAR, name, none, none, 0, 0)
                fcntl.ioctl(device, LOOP_CONFIGURE, values)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device, path
    except OSError as error:
        why = f"this host gives it no loop device: {error.strerror}; a container may hide them, or: modprobe loop"
        raise _refusal(wanted, ErrorKind.UNSUPPORTED, why) from error
    raise _refusal(wanted, ErrorKind.UNAVAILABLE, "others took every loop device that was free")


def _refusal(wanted: WantedVolume, kind: ErrorKind, why: str) -> KeepfleetError:
    return KeepfleetError(kind, f"cannot have volume {wanted.name}: {why}")


def _unusable(wanted: WantedVolume, error: OSError) -> KeepfleetError:
    known = {
        errno.ENOENT: (ErrorKind.NOT_FOUND, "there is none of this name"),
        errno.ELOOP: (ErrorKind.FORBIDDEN, "a symbolic link stands in its place, and none is followed"),
        errno.ENOTDIR: (ErrorKind.FORBIDDEN, "what stands in its place is no directory"),
    }
    kind, why = known.get(error.errno or 0, (ErrorKind.UNAVAILABLE, str(error.strerror)))
    return _refusal(wanted, kind, why)
