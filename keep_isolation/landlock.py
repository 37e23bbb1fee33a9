"""Landlock: which files this process, and what it starts, may open by whatever path; no TCP, and no signal out of it.

A domain also ends ptrace, /proc/PID/mem and pidfd_getfd on every process outside it, by itself. Kernels from 5.13 on
have it; each later interface ("ABI") can say more, and nothing is asked of a kernel that it does not know. It does not
know Unix sockets' connect(2), and by its inodes a file is allowed through every mount it is seen by: the filters and
the mounts see to that. Import rule: that of keep_isolation.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from _collections_abc import Sequence

from keep_isolation.kernel import address_of, call
from keep_protocol.errors import ErrorKind, KeepfleetError

_WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIRECTORY, _REMOVE_FILE, _MAKE_DIRECTORY, _MAKE_FILE, _MAKE_LINK = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE = 1 << 13, 1 << 14
"""LANDLOCK_ACCESS_FS_*; never given are EXECUTE, MAKE_CHAR, _SOCK, _FIFO, _BLOCK and IOCTL_DEV."""
READ = _READ_FILE | _READ_DIRECTORY
WRITE = READ | _WRITE_FILE | _TRUNCATE | _REFER | _MAKE_LINK
WRITE |= _REMOVE_DIRECTORY | _REMOVE_FILE | _MAKE_DIRECTORY | _MAKE_FILE
"""Everything WASI can do to a directory's files."""
READ_AND_REMOVE = READ | _REMOVE_FILE
NAMELESS = _READ_FILE | _WRITE_FILE | _TRUNCATE
"""Files without a name (O_TMPFILE) can be made and opened again, and those that are there read and written; no name can
be made, changed or taken away."""
OF_A_FILE = _WRITE_FILE | _READ_FILE | _TRUNCATE
"""What can be allowed for something that is no directory."""
Rights = int

_HANDLED = {1: (1 << 13) - 1, 2: _REFER, 3: _TRUNCATE, 5: 1 << 15}
"""ABI → the file rights that came with it."""
NETWORK_ABI, SCOPE_ABI = 4, 6
_TCP, _SCOPED, _SIGNALS = 0b11, 0b11, 0b10
"""Both of bind and connect; both of abstract Unix sockets and signals, and the latter alone."""
_VERSION, _PATH_BENEATH = 1, 1
"""LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_RULE_PATH_BENEATH."""


def kernel_abi() -> int:
    """The kernel's Landlock interface, 0 where it has none, or it was switched off at boot.

    Raises KeepfleetError(ISOLATION_FAILURE) where it may not be asked.
    """
    try:
        return call("landlock_create_ruleset", 0, 0, _VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise _cannot("it may not be used here, which the unit's SystemCallFilter= must allow", error) from error


def handled(abi: int) -> tuple[int, int, int]:
    """What a ruleset of this interface refuses unless it is allowed: file rights, TCP, and ways out of the domain."""
    files = 0
    for since, rights in _HANDLED.items():
        files |= rights if abi >= since else 0
    return files, _TCP if abi >= NETWORK_ABI else 0, _SCOPED if abi >= SCOPE_ABI else 0


def restrict(rules: Sequence[tuple[int, Rights]], abi: int | None = None, *, signals: bool = False) -> bool:
    """Of files allows what `rules` say, each an open file or directory and what may be done to it or beneath it, and
    nothing else; no TCP, no abstract socket out of the domain, and unless `signals` no signal out of it: a process that
    has children already, which are not in it, needs those.

    Binds the calling thread, which must be the only one, and all that it starts, permanently; what a process has, its
    forks can only have less of. False where the kernel has no Landlock. abi: the interface to go by, no later than the
    kernel's; the kernel's own where nothing is said.
    Raises KeepfleetError(ISOLATION_FAILURE) where it cannot be done. No new privileges must be set.
    """
    abi = kernel_abi() if abi is None else abi
    if abi < 1:
        return False
    files, tcp, scoped = handled(abi)
    scoped &= ~_SIGNALS if signals else scoped
    words = (files, tcp, scoped)[: 3 if scoped else 2 if tcp else 1]  # an older kernel knows a shorter structure
    attributes = struct.pack(f"{len(words)}Q", *words)  # struct landlock_ruleset_attr
    try:
        ruleset = call("landlock_create_ruleset", address_of(attributes), len(attributes), 0)
        try:
            for descriptor, rights in rules:
                _allow(ruleset, descriptor, rights & files)
            call("landlock_restrict_self", ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as error:
        raise _cannot("its rules cannot be set", error) from error
    return True


def _allow(ruleset: int, descriptor: int, rights: Rights) -> None:
    """One rule. What is no file of a mounted file system (a pipe, a socket, memory) takes none, and needs none: it can
    only be reached by its descriptor."""
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        rights &= OF_A_FILE
    rule = struct.pack("=Qi", rights, descriptor)  # struct landlock_path_beneath_attr
    try:
        call("landlock_add_rule", ruleset, _PATH_BENEATH, address_of(rule), 0)
    except OSError as error:
        if error.errno != errno.EBADFD:
            raise


def _cannot(what: str, error: OSError) -> KeepfleetError:
    return KeepfleetError(
        ErrorKind.ISOLATION_FAILURE, f"cannot lock the process: Landlock: {what}: {os.strerror(error.errno or 0)}"
    )
