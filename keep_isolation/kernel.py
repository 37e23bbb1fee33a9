"""System calls that the standard library lacks, made through `_ctypes` alone: `ctypes` would cost every keep 4 ms.

Import rule: that of keep_isolation.
"""

from __future__ import annotations

import _ctypes
import os
import sys

NUMBERS = {
    "prctl": (157, 167),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
"""The calls made here, with their numbers on each of MACHINES."""
MACHINES = ("x86_64", "aarch64")
"""What `os.uname` calls them."""
MAX_ARGUMENTS = 6
_RTLD_NOW = 2


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg] # what ctypes.c_long is
    _type_ = "l"


class _Function(_ctypes.CFuncPtr):
    """syscall(2): a number and MAX_ARGUMENTS arguments, each as wide as a pointer; its errno is kept for us."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long
    _argtypes_ = (_Long,) * (MAX_ARGUMENTS + 1)


class _Bytes(_ctypes._SimpleCData):  # type: ignore[type-arg] # what ctypes.c_char_p is
    _type_ = "z"


_program = _ctypes.dlopen(None, _RTLD_NOW)  # type: ignore[arg-type] # None is this program, with its C library
_syscall = _Function(_ctypes.dlsym(_program, "syscall"))


def call(name: str, *arguments: int) -> int:
    """The call `name` of NUMBERS, and what it returned. Raises OSError; ENOSYS on a machine that is not in MACHINES."""
    machine = os.uname().machine
    return system_call(NUMBERS[name][MACHINES.index(machine)] if machine in MACHINES else -1, *arguments)


def system_call(number: int, *arguments: int) -> int:
    """The call with this number on this machine, and what it returned. Raises OSError."""
    padded = (*arguments, *(0,) * (MAX_ARGUMENTS - len(arguments)))
    returned: int = _syscall(number, *padded)
    if returned < 0:
        error = _ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return returned


def prctl(option: int, value: int = 0, address: int = 0) -> int:
    """prctl(2). Raises OSError."""
    return call("prctl", option, value, address)


def address_of(data: bytes) -> int:
    """Where `data` lies, for a call that reads it, as long as it is held. `array` has that, too, and imports
    `collections`: 3 ms of every keep's start."""
    return int.from_bytes(memoryview(_Bytes(data)).tobytes(), sys.byteorder)
