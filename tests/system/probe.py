"""Tried out as a keep's main process: everything a loader that has been taken over could do next.

Runs inside a keep in the loader's place, `python -I -S probe.py PORT PID` (the manager's), and prints one line of JSON:
attempt → how it went: "done" or what was found, the errno's name, or the signal that ended the attempt. Each attempt
is a process of its own, because the unit's system call filter kills. Standard library alone; no tests here.
"""

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial

Attempts = dict[str, Callable[[], object]]
LIBC = ctypes.CDLL(None, use_errno=True)
SYSCALLS = {
    "ptrace": (101, 117), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "chroot": (161, 51), "pivot_root": (155, 41), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "bpf": (321, 280), "perf_event_open": (298, 241),
    "keyctl": (250, 219), "add_key": (248, 217), "init_module": (175, 105), "kexec_load": (246, 104),
    "reboot": (169, 142), "swapon": (167, 224), "settimeofday": (164, 170), "sethostname": (170, 161),
    "setuid": (105, 146), "setgroups": (116, 159), "mlockall": (151, 230), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438), "open_by_handle_at": (304, 265), "fsopen": (430, 430),
    "move_mount": (429, 429), "acct": (163, 89), "syslog": (103, 116), "timer_create": (222, 107),
    "setpriority": (141, 140), "personality": (135, 92), "sched_setscheduler": (144, 119),
}  # fmt: skip
"""System calls no keep needs, with their numbers on x86_64 and aarch64."""
ARGUMENTS = {
    "ptrace": (16, 1), "unshare": (0x10000000,), "mount": (b"none", b"/tmp", b"tmpfs", 0, 0), "chroot": (b"/tmp",),
    "memfd_create": (b"x", 0), "keyctl": (0, -3, 1), "sethostname": (b"x", 1), "setuid": (0,), "mlockall": (1,),
    "timer_create": (1, 0, ctypes.create_string_buffer(8)), "setpriority": (0, 0, -5),
    "personality": (0x0040000,), "reboot": (0, 0, 0, 0), "sched_setscheduler": (0, 1, struct.pack("i", 1)),
}  # fmt: skip
"""Where zeros alone would be refused by the kernel for their own sake. `reboot` has no magic: it can only fail."""
BUSES = ("/run/dbus/system_bus_socket", "/run/systemd/private", "/run/systemd/journal/stdout", "/dev/log")
SECRETS = (
    "/keepfleet/python",
    "/etc/shadow",
    "/etc/passwd",
    "/usr/bin",
    "/sys/fs/cgroup",
    "/etc/keepfleet/pki/ca.key",
    "/root",
    "/home",
    "/var/log/journal",
    "/run/log/journal",
)
PLACES = ("/", "/etc", "/usr", "/usr/lib", "/var", "/var/lib", "/run", "/run/keepfleet", "/opt/keepfleet", "/opt",
          "/sys/fs/cgroup", "/sys/kernel", "/proc/sys/kernel", "/dev", "/dev/shm", "/home", "/root",
          "/srv")  # fmt: skip
LINKERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
SHELL_SCRIPT = b"#!/bin/sh\nexit 0\n"


def run_apart(attempt: Callable[[], object]) -> str:
    """How `attempt` went in a process of its own: what it returned, the errno it met, or the signal it died of."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = attempt()
            result = said if isinstance(said, str) else "done"
        except OSError as error:
            result = errno.errorcode.get(error.errno or 0, str(error))
        os.write(writer, result.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else said


def call(name: str, number: int) -> None:
    """The system call itself; nothing of the C library's stands before it."""
    if LIBC.syscall(number, *(ARGUMENTS.get(name, (0, 0, 0, 0)))) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)


def reach(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 2):
        pass


def execute(path: str, *arguments: str) -> None:
    os.execv(path, [path, *arguments])  # noqa: S606


def execute_written(directory: str) -> None:
    path = f"{directory}/script"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o700)
    os.write(descriptor, SHELL_SCRIPT)
    os.close(descriptor)
    execute(path)


def a_program() -> bytes:
    """The code of one that can be read: in a keep's root, the dynamic linker is the only one."""
    with open(next(path for path in LINKERS if os.path.exists(path)), "rb") as program:
        return program.read()


def execute_unnamed(directory: str) -> None:
    code = a_program()
    descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o700)
    os.write(descriptor, code)
    readable = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    os.close(descriptor)
    os.execve(readable, ["true"], {})  # noqa: S606


def map_code(directory: str) -> None:
    descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.truncate(descriptor, 4096)
    mmap.mmap(descriptor, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE)


def read(path: str) -> str:
    if os.path.isdir(path):
        return f"listed {sorted(os.listdir(path))}" if os.listdir(path) else "empty"
    with open(path, "rb") as file:
        return f"read {len(file.read(100))} bytes"


def write(directory: str) -> None:
    os.close(os.open(f"{directory}/written-by-a-keep", os.O_CREAT | os.O_WRONLY, 0o600))


def make_set_user_id() -> None:
    os.close(os.open("/tmp/sticky", os.O_CREAT | os.O_WRONLY, 0o700))
    os.chmod("/tmp/sticky", 0o4700)


def shared_memory() -> str:
    identifier = LIBC.shmget(0x6B66, 4096, 0o1666)
    if identifier < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return "done"


def mounts() -> dict[str, str]:
    """Every place something is mounted → "w" where this process may write there, "x" where programs could be run.

    As statvfs() sees it: of several mounts at one place, or above it, the last one counts.
    """
    found: dict[str, str] = {}
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        places = {line.split()[4] for line in file}
    for place in sorted(places):
        try:
            flags = os.statvfs(place).f_flag
        except OSError:
            continue
        writable = os.path.isdir(place) and os.access(place, os.W_OK)
        found[place] = ("w" if writable else "") + ("" if flags & os.ST_NOEXEC else "x")
    return found


def status() -> dict[str, str]:
    with open("/proc/self/status", encoding="utf-8") as file:
        lines = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    wanted = ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Groups")
    return {name: lines[name] for name in wanted}


def outside(port: int, manager: int) -> Attempts:
    """Ways to other processes, the host and its network."""
    user = f"/run/user/{os.getuid()}"
    made: Attempts = {"connect to the manager": partial(reach, port)}
    for path in (*BUSES, f"{user}/bus", f"{user}/systemd/private"):
        made[f"connect {path}"] = partial(connect, path)
    for family in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_ALG", "AF_VSOCK"):
        made[f"socket {family}"] = partial(socket.socket, getattr(socket, family), socket.SOCK_RAW)
    made["signal PID 1"] = partial(os.kill, 1, 0)
    made["signal the manager"] = partial(os.kill, manager, 0)
    for name in ("environ", "mem", "fd/0", "root/etc", "maps"):
        made[f"read the manager's {name}"] = partial(read, f"/proc/{manager}/{name}")
    made["make shared memory"] = shared_memory
    return made


def files(own: str) -> Attempts:
    """Ways to write, to read secrets, and to run something else."""
    made: Attempts = {"execute /bin/sh": partial(execute, "/bin/sh", "-c", "exit 0")}
    made["execute a written program through the dynamic linker"] = execute_by_linker
    for directory in ("/tmp", "/var/tmp", own):
        made[f"write in {directory}"] = partial(write, directory)
        made[f"execute a script in {directory}"] = partial(execute_written, directory)
        made[f"execute a nameless program in {directory}"] = partial(execute_unnamed, directory)
        made[f"map code in {directory}"] = partial(map_code, directory)
    made |= {f"read {path}": partial(read, path) for path in SECRETS}
    made |= {f"write in {place}": partial(write, place) for place in PLACES}
    made["make a device"] = partial(os.mknod, "/tmp/null", 0o20666, os.makedev(1, 3))
    made["make a set-user-ID file"] = make_set_user_id
    return made


def calls() -> Attempts:
    column = ("x86_64", "aarch64").index(os.uname().machine)
    return {f"call {name}": partial(call, name, numbers[column]) for name, numbers in SYSCALLS.items()}


def execute_by_linker() -> str:
    """The linker may be executed; what it maps as code may not. Its own exit status says so."""
    with open("/tmp/program", "wb") as program:
        program.write(a_program())
    child = os.fork()
    if child == 0:
        os.close(2)
        execute(next(path for path in LINKERS if os.path.exists(path)), "/tmp/program", "--version")
    return "done" if os.waitpid(child, 0)[1] == 0 else "refused by the linker"


def surroundings(own: str) -> dict[str, object]:
    with open("/proc/self/net/dev", encoding="utf-8") as file:
        interfaces = [line.split(":")[0].strip() for line in file.readlines()[2:]]
    return {
        "mounts": mounts(),
        "status": status(),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()),
        "me": os.getpid(),
        "own": own,
        "keeps": sorted(os.listdir(os.path.dirname(own))),
        "devices": sorted(os.listdir("/dev")),
        "interfaces": interfaces,
        "environment": sorted(os.environ),
        "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    }


def main() -> None:
    port, manager = int(sys.argv[1]), int(sys.argv[2])
    own = os.environ["RUNTIME_DIRECTORY"]
    attempts = {**outside(port, manager), **files(own), **calls()}
    found = {name: run_apart(attempt) for name, attempt in attempts.items()}
    print("probe " + json.dumps({"attempts": found, **surroundings(own)}), flush=True)


if __name__ == "__main__":
    main()
