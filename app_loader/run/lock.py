"""Load, then lock: what a process gives up permanently before it touches what a stranger made.

Two locks for the checker and the runner: PR_SET_MDWE where the kernel has it (Linux 6.3), and always a seccomp filter
of our own. The filter is installed by prctl(2), which systemd's @system-service allows and seccomp(2) may not be.
The upload endpoint, which talks to strangers, gives up to connect: `endpoint_program`.
The programs are pure and tested by running them; import rule: `ctypes`, `os`, `struct`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable

from keep_protocol.errors import ErrorKind, KeepfleetError

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_SET_MDWE = 4, 38, 22, 65
_SECCOMP_MODE_FILTER, _MDWE_REFUSE_EXEC_GAIN = 2, 1
_PROT_EXEC, _CLONE_THREAD = 0x4, 0x10000
_AT_FDCWD = 0xFFFFFF9C
"""-100 in the low half of an argument."""
_X32 = 0x40000000
"""The x32 system calls of x86_64 are the same calls under other numbers."""
KILL, ALLOW, ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
"""SECCOMP_RET_KILL_PROCESS, _ALLOW and _ERRNO (man seccomp)."""
LD_WORD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""The BPF instructions used: BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_JMP|JSET|K, BPF_RET|K."""
_NUMBER, _ARCHITECTURE = 0, 4
"""Offsets in struct seccomp_data; the arguments begin at 16, eight bytes each, low half first on our machines."""

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_*; a system call of any other kind kills the process."""

SYSCALLS: dict[str, tuple[int | None, int | None]] = {
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "pkey_mprotect": (329, 288),
    "shmat": (30, 196),
    "remap_file_pages": (216, 234),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "open": (2, None),
    "creat": (85, None),
    "openat": (257, 56),
    "openat2": (437, 437),
    "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
}
"""What is refused, whole or for some arguments (see `program`), with its numbers on x86_64 and aarch64."""
ENDPOINT_SYSCALLS = ("socket", "connect", "bind", "listen")
SENDING = {"sendto": (44, 206, 3), "sendmsg": (46, 211, 2), "sendmmsg": (307, 269, 3)}
"""Calls that connect as they send (TCP fast open), with their numbers and which argument holds their flags."""
_MSG_FASTOPEN = 0x20000000
Instruction = tuple[int, int, int, int]


def _refuse(error: int) -> Instruction:
    return (RETURN, 0, 0, ERRNO | error)


def _argument(index: int) -> Instruction:
    return (LD_WORD, 0, 0, 16 + 8 * index)


def _only_if(number: int, inner: list[Instruction]) -> list[Instruction]:
    """`inner` for this system call; it must end with a return. The number is loaded when it begins."""
    return [(JUMP_EQUAL, 0, len(inner), number), *inner]


def _begin(machine: str) -> list[Instruction]:
    """Kills on a call of another architecture, refuses those of x32, and loads the number."""
    return [
        (LD_WORD, 0, 0, _ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
        (LD_WORD, 0, 0, _NUMBER),
        (JUMP_AT_LEAST, 0, 1, _X32),
        _refuse(errno.EPERM),
    ]


def endpoint_program(machine: str) -> list[Instruction]:
    """The endpoint's filter for `machine`: what was passed to it is all the network it can have.

    Its listener belongs to the host's network, wherever PrivateNetwork= puts the process: shut down as a listener it
    would connect to anywhere. Raises KeyError for a machine that is not in ARCHITECTURES.
    """
    column = list(ARCHITECTURES).index(machine)
    code = _begin(machine)
    for name in ENDPOINT_SYSCALLS:
        number = SYSCALLS[name][column]
        if number is not None:
            code += _only_if(number, [_refuse(errno.EPERM)])
    for row in SENDING.values():
        flags = [_argument(row[2]), (JUMP_BITS, 0, 1, _MSG_FASTOPEN), _refuse(errno.EPERM), (RETURN, 0, 0, ALLOW)]
        code += _only_if(row[column], flags)
    return [*code, (RETURN, 0, 0, ALLOW)]


def program(machine: str, pid: int, *, executable_memory: bool, files: bool = False) -> list[Instruction]:
    """The filter for `machine` as BPF instructions: new executable memory unless `executable_memory`, other programs,
    new processes, sockets, opened files, signals to any process but `pid`, and the kernel's odd corners are refused.

    With `files`, files can be opened from an open directory, which is how a guest reaches its own; what lies beneath
    that directory wasmtime sees to (openat2 with RESOLVE_BENEATH). From the working directory none can be.
    Raises KeyError for a machine that is not in ARCHITECTURES.
    """
    column = list(ARCHITECTURES).index(machine)
    code = _begin(machine)
    for name, row in SYSCALLS.items():
        number = row[column]
        if number is None:
            continue
        if name in ("mmap", "mprotect", "pkey_mprotect"):
            if not executable_memory:
                code += _only_if(
                    number,
                    [_argument(2), (JUMP_BITS, 0, 1, _PROT_EXEC), _refuse(errno.EPERM), (RETURN, 0, 0, ALLOW)],
                )
        elif name == "clone":  # threads only
            code += _only_if(
                number,
                [_argument(0), (JUMP_BITS, 1, 0, _CLONE_THREAD), _refuse(errno.EPERM), (RETURN, 0, 0, ALLOW)],
            )
        elif name == "clone3":  # its flags cannot be seen; the C library falls back to clone
            code += _only_if(number, [_refuse(errno.ENOSYS)])
        elif name == "tgkill":  # how a process aborts itself
            code += _only_if(
                number, [_argument(0), (JUMP_EQUAL, 1, 0, pid), _refuse(errno.EPERM), (RETURN, 0, 0, ALLOW)]
            )
        elif files and name in ("openat", "openat2"):
            code += _only_if(
                number, [_argument(0), (JUMP_EQUAL, 0, 1, _AT_FDCWD), _refuse(errno.EPERM), (RETURN, 0, 0, ALLOW)]
            )
        else:
            code += _only_if(number, [_refuse(errno.EPERM)])
    return [*code, (RETURN, 0, 0, ALLOW)]


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _cannot(what: str, error: int) -> KeepfleetError:
    return KeepfleetError(ErrorKind.ISOLATION_FAILURE, f"cannot lock the process: {what}: {os.strerror(error)}")


def lock(*, executable_memory: bool, files: bool = False) -> bool:
    """Locks this process, which must have one thread, permanently; True when PR_SET_MDWE stands as well.

    With `executable_memory` it may still make code (the checker compiles); everything else is refused all the same.
    With `files` it may still open files beneath the directories it has open.
    Raises KeepfleetError(ISOLATION_FAILURE) when the filter cannot be installed.
    """
    code = program(_machine(), os.getpid(), executable_memory=executable_memory, files=files)
    prctl = _prctl()
    prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    mdwe = not executable_memory and prctl(_PR_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) == 0
    _install(code)
    return mdwe


def lock_endpoint() -> None:
    """Gives up connecting, and new sockets, permanently, here and in all that this process starts or becomes.

    Raises KeepfleetError(ISOLATION_FAILURE) when the filter cannot be installed.
    """
    _install(endpoint_program(_machine()))


def _machine() -> str:
    if len(os.listdir("/proc/self/task")) != 1:
        raise KeepfleetError(ErrorKind.ISOLATION_FAILURE, "cannot lock the process: it has several threads")
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise KeepfleetError(
            ErrorKind.ISOLATION_FAILURE, f"cannot lock the process: no filter is written for {machine}"
        )
    return machine


def _prctl() -> Callable[..., int]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    return prctl


def _install(code: list[Instruction]) -> None:
    data = b"".join(struct.pack("HBBI", *step) for step in code)
    buffer = ctypes.create_string_buffer(data, len(data))
    table = _Program(len(code), ctypes.addressof(buffer))
    prctl = _prctl()
    if prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise _cannot("no-new-privileges", ctypes.get_errno())
    if prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(table), 0, 0):
        raise _cannot("its system call filter", ctypes.get_errno())
