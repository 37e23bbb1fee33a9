"""The kernel's calls by which a directory becomes a mount of its own (man 2 openat2, open_tree, mount_setattr).

Each raises OSError. Import rule: the standard library alone; the manager imports this file too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

SYS_OPEN_TREE, SYS_OPENAT2, SYS_MOUNT_SETATTR = 428, 437, 442
SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 430, 431, 432
"""The same numbers on every architecture."""
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x02, 0x04, 0x08
NO_LINKS = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
STRICTLY = RESOLVE_BENEATH | NO_LINKS
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE = 1
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
MOUNT_ATTR_IDMAP = 0x100000
MS_PRIVATE = 1 << 18
FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 1, 1, 1, 6
CLONE_VM, CLONE_NEWNS, CLONE_NEWUSER = 0x100, 0x20000, 0x10000000
STACK_BYTES = 64 * 1024
"""pause() needs some hundred."""
ATTEMPTS = 8
"""openat2 says EAGAIN when a rename or mount elsewhere could have hidden an escape; it passes."""
_libc = ctypes.CDLL(None, use_errno=True)
_PAUSE = ctypes.cast(_libc.pause, ctypes.c_void_p)


class _OpenHow(ctypes.Structure):
    """struct open_how (man 2 openat2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _MountAttributes(ctypes.Structure):
    """struct mount_attr (man 2 mount_setattr)."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def open_strictly(path: str, flags: int, directory: int, resolve: int = STRICTLY) -> int:
    """A descriptor of `path`, resolved from the descriptor `directory` by openat2."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    name, size = os.fsencode(path), ctypes.c_size_t(ctypes.sizeof(how))
    for _ in range(ATTEMPTS - 1):
        try:
            return _checked(_libc.syscall(SYS_OPENAT2, directory, name, ctypes.byref(how), size))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                raise
    return _checked(_libc.syscall(SYS_OPENAT2, directory, name, ctypes.byref(how), size))


def clone_tree(directory: int, *, recursive: bool = True) -> int:
    """A detached copy of the mount at `directory`, with the mounts below it where `recursive`."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    return _checked(_libc.syscall(SYS_OPEN_TREE, directory, b"", flags))


def set_attributes(tree: int, attributes: int, namespace: int | None) -> None:
    """Sets mount attributes on a whole detached tree, makes it private, and id-maps it by that user namespace."""
    mapped = MOUNT_ATTR_IDMAP if namespace is not None else 0
    values = _MountAttributes(attributes | mapped, 0, MS_PRIVATE, namespace or 0)
    size = ctypes.c_size_t(ctypes.sizeof(values))
    _checked(_libc.syscall(SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH | AT_RECURSIVE, ctypes.byref(values), size))


def mount_detached(kind: str, options: Mapping[str, str]) -> int:
    """A new detached mount of a file system of that kind, which lies nowhere (linux/mount.h)."""
    context = _checked(_libc.syscall(SYS_FSOPEN, kind.encode(), FSOPEN_CLOEXEC))
    try:
        for name, value in options.items():
            _checked(_libc.syscall(SYS_FSCONFIG, context, FSCONFIG_SET_STRING, name.encode(), value.encode(), 0))
        _checked(_libc.syscall(SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0))
        return _checked(_libc.syscall(SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, 0))
    finally:
        os.close(context)


def unshare(flags: int) -> None:
    """Gives this process namespaces of its own (os.unshare came with Python 3.12)."""
    _checked(_libc.unshare(flags))


@contextmanager
def user_namespace(uids: tuple[int, int], gids: tuple[int, int]) -> Iterator[int]:
    """A descriptor of a new user namespace for an id-mapped mount, with one user and one group in it.

    Each pair is (the number on disk, the number that the mount shows). A namespace is made with a process: one that
    shares this one's memory, only waits in libc's pause(), and has been killed when the block begins. Forking costs
    thirty times as much, for pages that are copied and never used (man 2 clone, CLONE_VM).
    """
    stack = ctypes.create_string_buffer(STACK_BYTES)
    top = ctypes.c_void_p((ctypes.addressof(stack) + STACK_BYTES) & -16)
    child = _checked(_libc.clone(_PAUSE, top, CLONE_NEWUSER | CLONE_VM | signal.SIGCHLD, None))
    try:
        for name, (disk, shown) in (("gid_map", gids), ("uid_map", uids)):
            with open(f"/proc/{child}/{name}", "wb", buffering=0) as file:
                file.write(f"{disk} {shown} 1".encode())
        namespace = os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        yield namespace
    finally:
        os.close(namespace)
