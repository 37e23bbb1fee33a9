"""System call filters as BPF programs: pure, tested by running them for every call; and their installation.

They stand behind the unit's own filter, which lets through what an ordinary service calls and kills on everything
else: what is listed here is what that one lets through, or may on another host, and a keep does not need. An error is
answered in place of a kill, since a library may try a call and do without.
Installed by prctl(2), which systemd's @system-service allows and seccomp(2) may not be.
Import rule: that of keep_isolation.
"""

from __future__ import annotations

import errno
import os
import struct

from keep_isolation.kernel import MACHINES, address_of, prctl
from keep_protocol.errors import ErrorKind, KeepfleetError

KILL, ALLOW, ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
"""SECCOMP_RET_KILL_PROCESS, _ALLOW and _ERRNO (man seccomp)."""
LD_WORD, JUMP, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_BITS, RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
"""The BPF instructions used: BPF_LD|W|ABS, BPF_JMP|JA, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_JMP|JSET|K, BPF_RET|K."""
ARCHITECTURES = dict(zip(MACHINES, (0xC000003E, 0xC00000B7), strict=True))
"""AUDIT_ARCH_*; a system call of any other kind kills the process."""
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_NUMBER, _ARCHITECTURE = 0, 4
"""Offsets in struct seccomp_data; the arguments begin at 16, eight bytes each, low half first on our machines."""
_X32 = 0x40000000
"""The x32 system calls of x86_64 are the same calls under other numbers."""
_PROT_WRITE, _PROT_EXEC, _CLONE_THREAD = 0x2, 0x4, 0x10000
_CLONE_NEW = 0x7E020080
"""All of CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET and TIME."""
_AT_FDCWD = 0xFFFFFF9C
"""-100 in the low half of an argument."""
_MSG_FASTOPEN, _AF_UNIX = 0x20000000, 1
_DATAGRAM_BIT = 0x2
"""Set in SOCK_DGRAM and SOCK_RAW, which send to an address of their own, and not in SOCK_STREAM and SOCK_SEQPACKET."""
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15
_SOCKET_CONTROLS = (0x8900, 0x8A00)
"""From and below: the ioctl numbers of sockets, of network devices, and of who gets a socket's signals."""
_PR_SET_DUMPABLE = 4
_BLOCK = 10
"""Calls tested one by one; about the root of how many there are, so that blocks and calls take as long."""

Instruction = tuple[int, int, int, int]
Rule = list[Instruction]
"""What is done about one call, whose number is loaded; ends with a return on every way."""

NETWORK = {"socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201)}
"""The listener belongs to the host's network, wherever PrivateNetwork= puts the process: shut down as a listener, or by
connect(AF_UNSPEC), it would connect to anywhere. A Unix socket goes wherever a descriptor of /proc or a grant does."""
PROGRAMS = {"execve": (59, 221), "execveat": (322, 281)}
OTHER_PROCESSES = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "perf_event_open": (298, 241),
}
NAMESPACES = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
}
KERNEL_CORNERS = {
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmat": (30, 196),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "remap_file_pages": (216, 234),
    "fanotify_init": (300, 262),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "sync": (162, 81),
    "syncfs": (306, 267),
}
"""What has been the way to a kernel's faults, to what processes share, or to other keeps' time."""
OWNERS_AND_MODES = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
}
"""WASI has none of them, Landlock does not know them, and they would close the control socket's directory to others."""
NEVER: dict[str, tuple[int | None, int | None]] = {
    **NETWORK,
    **PROGRAMS,
    **OTHER_PROCESSES,
    **NAMESPACES,
    **KERNEL_CORNERS,
    **OWNERS_AND_MODES,
}
"""What no process of a keep needs once the loader serves."""
SENDING = {"sendto": (44, 206, 3), "sendmsg": (46, 211, 2), "sendmmsg": (307, 269, 3)}
"""Calls that connect as they send (TCP fast open), with their numbers and which argument holds their flags."""
PROCESSES: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
}
"""What only a process with children needs: new ones, and signals. Also inotify, of which a user has few."""
CONNECTIONS: dict[str, tuple[int | None, int | None]] = {
    "accept": (43, 202),
    "accept4": (288, 242),
    "socketpair": (53, 199),
}
PATHS: dict[str, tuple[int | None, int | None]] = {
    "open": (2, None),
    "creat": (85, None),
    "mkdir": (83, None),
    "rmdir": (84, None),
    "unlink": (87, None),
    "rename": (82, None),
    "link": (86, None),
    "symlink": (88, None),
    "truncate": (76, 45),
    "chdir": (80, 49),
    "fchdir": (81, 50),
}
"""Files by name alone."""
BENEATH: dict[str, tuple[int | None, int | None]] = {
    "openat": (257, 56),
    "openat2": (437, 437),
    "mkdirat": (258, 34),
    "unlinkat": (263, 35),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "linkat": (265, 37),
    "symlinkat": (266, 36),
}
"""Files by an open directory and a name, which is how a guest reaches its own; from the working directory none is."""
CODE: dict[str, tuple[int | None, int | None]] = {"mmap": (9, 222), "mprotect": (10, 226), "pkey_mprotect": (329, 288)}
OTHERS: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "tgkill": (234, 131),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "socketpair": (53, 199),
}
"""Calls that are refused for some arguments."""


def refuse(error: int = errno.EPERM) -> Instruction:
    """Answers `error`."""
    return (RETURN, 0, 0, ERRNO | error)


def _argument(index: int) -> Instruction:
    return (LD_WORD, 0, 0, 16 + 8 * index)


_ALLOWED: Instruction = (RETURN, 0, 0, ALLOW)


def _refused_if(index: int, *values: int) -> Rule:
    """For one of `values` in the low half of the argument."""
    tests = [step for value in values for step in ((JUMP_EQUAL, 0, 1, value), refuse())]
    return [_argument(index), *tests, _ALLOWED]


def _refused_unless(index: int, value: int) -> Rule:
    return [_argument(index), (JUMP_EQUAL, 1, 0, value), refuse(), _ALLOWED]


def _refused_with(index: int, bits: int) -> Rule:
    """For an argument that has one of `bits`."""
    return [_argument(index), (JUMP_BITS, 0, 1, bits), refuse(), _ALLOWED]


def only_if(number: int, rule: Rule) -> Rule:
    """`rule` for this system call; the number is loaded when it begins."""
    return [(JUMP_EQUAL, 0, len(rule), number), *rule]


def begin(machine: str) -> Rule:
    """Kills on a call of another architecture, refuses those of x32, and loads the number."""
    return [
        (LD_WORD, 0, 0, _ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
        (LD_WORD, 0, 0, _NUMBER),
        (JUMP_AT_LEAST, 0, 1, _X32),
        refuse(),
    ]


class Program:
    """A filter in the making for one machine. Raises KeyError for a machine that is not in ARCHITECTURES."""

    def __init__(self, machine: str) -> None:
        self._begin, self._column = begin(machine), MACHINES.index(machine)
        self._rules: dict[int, Rule] = {}

    def __repr__(self) -> str:
        return f"Program({len(self._rules)} calls)"

    def refuse_all(self, calls: dict[str, tuple[int | None, int | None]]) -> None:
        """Refuses each, whatever its arguments."""
        for row in calls.values():
            number = row[self._column]
            if number is not None:
                self._rules[number] = [refuse()]

    def refuse_some(self, name: str, rule: Rule) -> None:
        """What `rule` does about a call of OTHERS, CODE or BENEATH, each of which every machine has."""
        number = {**OTHERS, **CODE, **BENEATH}[name][self._column]
        if number is not None:
            self._rules[number] = rule

    def refuse_what_none_needs(self) -> None:
        """What every process of a keep gives up."""
        self.refuse_all(NEVER)
        for row in SENDING.values():
            self._rules[(row[0], row[1])[self._column]] = _refused_with(row[2], _MSG_FASTOPEN)
        low, high = _SOCKET_CONTROLS
        self.refuse_some(
            "ioctl", [_argument(1), (JUMP_AT_LEAST, 0, 2, low), (JUMP_AT_LEAST, 1, 0, high), refuse(), _ALLOWED]
        )
        # A signal of any number to any process of the same user, sent by the kernel when a descriptor has news.
        self.refuse_some("fcntl", _refused_if(1, _F_SETOWN, _F_SETSIG, _F_SETOWN_EX))
        # Another process's limits: no more than the same user is asked for.
        self.refuse_some("prlimit64", _refused_unless(0, 0))
        # To become readable for others again, or to leave a dump.
        self.refuse_some("prctl", [_argument(0), (JUMP_EQUAL, 0, 3, _PR_SET_DUMPABLE), *_refused_unless(1, 0)])
        # clone3's flags cannot be seen; the C library falls back to clone.
        self.refuse_some("clone3", [refuse(errno.ENOSYS)])

    def refuse_processes(self, pid: int) -> None:
        """New processes, and signals to any but `pid`."""
        self.refuse_all(PROCESSES)
        threads_only = [_argument(0), (JUMP_BITS, 1, 0, _CLONE_THREAD), refuse(), _ALLOWED]
        self.refuse_some("clone", threads_only)
        self.refuse_some("tgkill", _refused_unless(0, pid))  # how a process aborts itself

    def refuse_namespaces(self) -> None:
        """In a process that may have children: new namespaces with them."""
        self.refuse_some("clone", _refused_with(0, _CLONE_NEW))

    def refuse_datagrams(self) -> None:
        """Pairs of sockets of which one could send to an address, as to systemd's or the journal's."""
        pair = [_argument(0), (JUMP_EQUAL, 1, 0, _AF_UNIX), refuse(), *_refused_with(1, _DATAGRAM_BIT)]
        self.refuse_some("socketpair", pair)

    def refuse_written_code(self) -> None:
        """What PR_SET_MDWE does, for kernels before it: memory that was or is writable does not become code; a
        library can be mapped from its file."""
        self.refuse_some("mmap", [*_refused_with(2, _PROT_EXEC)[:1], *_both(_PROT_WRITE, _PROT_EXEC), _ALLOWED])
        for name in ("mprotect", "pkey_mprotect"):
            self.refuse_some(name, _refused_with(2, _PROT_EXEC))

    def refuse_code(self) -> None:
        """New executable memory of every kind."""
        for name in CODE:
            self.refuse_some(name, _refused_with(2, _PROT_EXEC))

    def refuse_files(self, *, beneath: bool) -> None:
        """Files by their names; with `beneath`, those of an open directory stay. What lies beneath it, and where `..`
        leads, is for Landlock and the mount to say."""
        self.refuse_all(PATHS)
        if beneath:
            for name in BENEATH:
                self.refuse_some(name, _refused_if(0, _AT_FDCWD))
        else:
            self.refuse_all(BENEATH)

    def end(self) -> list[Instruction]:
        """The whole program. The kernel runs it for every call there is when it is installed, so it is made to be short
        on every way: blocks of calls in the order of their numbers, each passed over by its last."""
        ordered, code = sorted(self._rules), [*self._begin]
        blocks = [ordered[first : first + _BLOCK] for first in range(0, len(ordered), _BLOCK)]
        for block in blocks:
            rules = [step for number in block for step in only_if(number, self._rules[number])]
            code += [(JUMP_AT_LEAST, 0, 1, block[-1] + 1), (JUMP, 0, 0, len(rules) + 1), *rules, _ALLOWED]
        return [*code, _ALLOWED]


def _both(first: int, second: int) -> Rule:
    """Refuses where the loaded word has a bit of `first` and one of `second`."""
    return [(JUMP_BITS, 0, 2, first), (JUMP_BITS, 0, 1, second), refuse()]


def loader_program(machine: str) -> list[Instruction]:
    """The loader's, which every fork of it inherits."""
    made = Program(machine)
    made.refuse_what_none_needs()
    made.refuse_datagrams()
    made.refuse_namespaces()
    return made.end()


def endpoint_program(machine: str, pid: int) -> list[Instruction]:
    """The endpoint's: it accepts, reads and writes, and passes descriptors on."""
    made = Program(machine)
    made.refuse_what_none_needs()
    made.refuse_datagrams()
    made.refuse_processes(pid)
    made.refuse_written_code()
    return made.end()


def closed_program(machine: str, pid: int, *, executable_memory: bool, files: bool) -> list[Instruction]:
    """The checker's, which makes code, and the runner's, which may have files."""
    made = Program(machine)
    made.refuse_what_none_needs()
    made.refuse_processes(pid)
    made.refuse_all(CONNECTIONS)
    made.refuse_files(beneath=files)
    if not executable_memory:
        made.refuse_code()
    return made.end()


def install(code: list[Instruction]) -> None:
    """Puts the filter on this thread and what it starts, permanently. Raises KeepfleetError(ISOLATION_FAILURE)."""
    instructions = b"".join(struct.pack("HBBI", *step) for step in code)
    program = struct.pack("HxxxxxxQ", len(code), address_of(instructions))  # struct sock_fprog
    try:
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, address_of(program))
    except OSError as error:
        raise KeepfleetError(
            ErrorKind.ISOLATION_FAILURE,
            f"cannot lock the process: its system call filter: {os.strerror(error.errno or 0)}",
        ) from error
