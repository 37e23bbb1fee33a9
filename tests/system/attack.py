"""What native code in the place of a keep's process tries next: an escaped guest, a taken-over endpoint or loader.

It is put into an installation as `keep_isolation/attack.py` (see `attacked.py`), and called in each process of a keep
directly after its lock. Python with ctypes is native code enough: it can make every system call. Each attack is a
generator of attempts, by name; an attempt that comes to its end has succeeded, and shows in the report as "done".
Standard library alone, all imported before the lock; no tests here.
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial

Attempts = Iterator[tuple[str, Callable[[], object]]]
LIBC = ctypes.CDLL(None, use_errno=True)
NUMBERS = {
    "connect": (42, 203), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "open_tree": (428, 428), "clone": (56, 220),
    "mount_setattr": (442, 442), "fsopen": (430, 430), "chroot": (161, 51), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "personality": (135, 92), "open_by_handle_at": (304, 265), "shmget": (29, 194), "mq_open": (240, 180),
    "fanotify_init": (300, 262), "execveat": (322, 281), "prctl": (157, 167), "init_module": (175, 105),
}  # fmt: skip
"""On x86_64 and aarch64."""
COLUMN = ("x86_64", "aarch64").index(os.uname().machine)
UID = os.getuid()
BUSES = ("/run/dbus/system_bus_socket", "/run/systemd/private", f"/run/user/{UID}/bus",
         f"/run/user/{UID}/systemd/private")  # fmt: skip
NOTIFY = ("/run/systemd/notify", f"/run/user/{UID}/systemd/notify")
JOURNAL = ("/run/systemd/journal/socket", "/run/systemd/journal/dev-log", "/dev/log")
STREAM = "/run/systemd/journal/stdout"
FORGED = b"STATUS=forged\nREADY=1\nMAINPID=1\nFDSTORE=1\nFDNAME=forged"
SECRETS = ("/etc/shadow", "/etc/keepfleet/pki/ca.key", "/root", "/home/ada", "/var/log/journal", "/var/lib/keepfleet",
           "/proc/1/root/etc/shadow", "/proc/1/environ")  # fmt: skip
MANAGERS_PORT = 3030
DESCRIPTORS, PROCESSES = range(256), range(1, 32768)
"""All that a keep may have open (LimitNOFILE=), and all processes of a host with the default limit."""
READ_ONLY = "granted-read-only"
"""The name of a file in a directory that is granted to be read."""


def call(name: str, *arguments: object) -> None:
    """The system call itself, as code that was written into the process would make it."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    if LIBC.syscall(ctypes.c_long(NUMBERS[name][COLUMN]), *words) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _open(where: int | None, path: str, flags: int = os.O_RDONLY) -> None:
    os.close(os.open(path, flags | os.O_NONBLOCK, 0o600, dir_fd=where))


def _sockets() -> dict[int, tuple[int, int]]:
    """Each open socket → its family and type, which need no path."""
    found = {}
    for number in DESCRIPTORS:
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
        except OSError:
            continue
        with socket.socket(fileno=os.dup(number)) as sock:
            found[number] = (int(sock.family), int(sock.type))
    return found


def _directories() -> list[int]:
    found = []
    for number in DESCRIPTORS:
        try:
            if stat.S_ISDIR(os.fstat(number).st_mode):
                found.append(number)
        except OSError:
            continue
    return found


def _unix_address(path: str) -> bytes:
    return struct.pack("=H", socket.AF_UNIX) + os.fsencode(path) + b"\0"


def _connect(number: int, address: bytes) -> None:
    call("connect", number, address, len(address))


def _others() -> list[int]:
    """Processes to try: those above us, our siblings, and those that /proc shows."""
    near = range(max(2, os.getppid() - 3), os.getpid() + 8)
    try:
        seen = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        seen = []
    return [pid for pid in sorted({1, os.getppid(), *near, *seen}) if pid != os.getpid() and not _is_child(pid)]


def _is_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return False
    return True


def _first(action: Callable[[int], object], pids: list[int]) -> None:
    """Does it to the first process it can be done to; raises the last refusal that is not the process's absence."""
    refusal = OSError(errno.ESRCH, "")
    for pid in pids:
        try:
            action(pid)
            return
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.ENOENT):
                refusal = error
    raise refusal


def sockets(_own: str) -> Attempts:
    for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"):
        yield family, partial(socket.socket, getattr(socket, family), socket.SOCK_DGRAM)
    yield "a pair of datagram sockets", partial(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM)
    yield "a pair of another family", partial(socket.socketpair, 30, socket.SOCK_STREAM)


def listener(_own: str) -> Attempts:
    target = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", MANAGERS_PORT, b"\x7f\0\0\1")
    for number, (family, kind) in _sockets().items():
        if family in (socket.AF_INET, socket.AF_INET6) and kind == socket.SOCK_STREAM:
            yield f"connect {number}", partial(_connect, number, target)
            yield f"connect {number} to nothing first", partial(_connect, number, bytes(16))
            with socket.socket(fileno=os.dup(number)) as sock:
                yield f"send {number} first", partial(sock.sendto, b"x", socket.MSG_FASTOPEN, ("127.0.0.1", 3030))
            yield f"ask {number} for the host's devices", partial(_devices, number)


def _devices(number: int) -> None:
    if LIBC.ioctl(number, ctypes.c_ulong(0x8912), ctypes.create_string_buffer(16)) < 0:
        raise OSError(ctypes.get_errno(), "")


def buses(own: str) -> Attempts:
    ours = [number for number, (family, _) in _sockets().items() if family == socket.AF_UNIX]
    for path in (*BUSES, f"{own}/control.sock"):
        for number in ours:
            yield f"{path} by {number}", partial(_connect, number, _unix_address(path))
        for number in _directories():
            yield f"{path} by {number}'s root", partial(_connect, 3, _unix_address(f"/proc/self/fd/{number}/socket"))


def journal(_own: str) -> Attempts:
    for number, (family, kind) in _sockets().items():
        if (family, kind) == (socket.AF_UNIX, socket.SOCK_DGRAM):
            for path in JOURNAL:
                yield f"send to {path} by {number}", partial(_send, number, path, b"MESSAGE=forged\n")
    yield "send by a new pair", partial(_send_by_pair, JOURNAL[0], b"MESSAGE=forged\n")
    yield "open another's stream", partial(_connect, 1, _unix_address(STREAM))


def _send(number: int, path: str, text: bytes) -> None:
    with socket.socket(fileno=os.dup(number)) as sock:
        sock.sendto(text, path)


def _send_by_pair(path: str, text: bytes) -> None:
    sender, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, other:
        sender.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", 0))], 0, path)


def notify(_own: str) -> Attempts:
    for path in NOTIFY:
        yield f"send to {path} by a new pair", partial(_send_by_pair, path, FORGED)
        for number, (family, kind) in _sockets().items():
            if (family, kind) == (socket.AF_UNIX, socket.SOCK_DGRAM):
                yield f"send to {path} by {number}", partial(_send, number, path, FORGED)


def left_open(_own: str) -> Attempts:
    for number, (family, kind) in _sockets().items():
        with socket.socket(fileno=os.dup(number)) as sock:
            peer = sock.getpeername() if family == socket.AF_UNIX and _has_peer(sock) else ""
        if (family, kind) == (socket.AF_UNIX, socket.SOCK_DGRAM) or peer in (STREAM, *JOURNAL, *NOTIFY):
            yield f"{number}: {peer}", lambda: None


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def memory_of_others(_own: str) -> Attempts:
    pids, room = _others(), ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(room), 8)
    for name in ("mem", "maps", "environ", "auxv"):
        yield f"read {name}", partial(_first, partial(_read_of, name), pids)
    yield "write mem", partial(_first, lambda pid: _open(None, f"/proc/{pid}/mem", os.O_RDWR), pids)
    yield "trace", partial(_first, lambda pid: call("ptrace", 0x4206, pid, 0, 0), pids)
    for name in ("process_vm_readv", "process_vm_writev"):
        yield name, partial(_first, partial(_copy, name, vector), pids)


def _read_of(name: str, pid: int) -> None:
    _read(f"/proc/{pid}/{name}")


def _copy(name: str, vector: object, pid: int) -> None:
    call(name, pid, vector, 1, vector, 1, 0)


def descriptors_of_others(_own: str) -> Attempts:
    pids = _others()
    yield "look", partial(_first, lambda pid: os.readlink(f"/proc/{pid}/fd/0"), pids)
    yield "open", partial(_first, lambda pid: _open(None, f"/proc/{pid}/fd/0"), pids)
    yield "root", partial(_first, lambda pid: os.listdir(f"/proc/{pid}/root/"), pids)
    yield "take", partial(_first, _take, pids)


def _take(pid: int) -> None:
    handle = os.pidfd_open(pid)
    try:
        call("pidfd_getfd", handle, 0, 0)
    finally:
        os.close(handle)


def signals(_own: str) -> Attempts:
    pids = [pid for pid in PROCESSES if pid != os.getpid() and not _is_child(pid)]
    yield "kill", partial(_first, lambda pid: os.kill(pid, 0), pids)
    yield "kill a thread", partial(_first, lambda pid: call("tgkill", pid, pid, 0), _others())
    yield "queue", partial(_first, lambda pid: call("rt_sigqueueinfo", pid, 0, bytes(128)), _others())
    for command in (8, 10):  # F_SETOWN, F_SETSIG: the kernel signals when the descriptor has news
        yield f"have the kernel do it, {command}", partial(_control, command, os.getppid())
    yield "limits", partial(_first, lambda pid: resource.prlimit(pid, resource.RLIMIT_NOFILE), _others())


def _control(command: int, value: int) -> None:
    import fcntl

    fcntl.fcntl(0, command, value)


def other_keeps(own: str) -> Attempts:
    siblings = os.path.dirname(own)
    yield "list", partial(_list_beyond, siblings, os.path.basename(own))
    yield "make one", partial(os.mkdir, f"{siblings}/1")


def _list_beyond(directory: str, own: str) -> None:
    if set(os.listdir(directory)) <= {own}:
        raise OSError(errno.ENOENT, "there is no other")


def host_files(_own: str) -> Attempts:
    for path in SECRETS:
        yield f"read {path}", partial(_read, path)
    for path in ("/etc", "/usr/lib", "/opt/keepfleet", "/run"):
        yield f"write in {path}", partial(_open, None, f"{path}/written", os.O_CREAT | os.O_WRONLY)


def _read(path: str) -> None:
    if os.path.isdir(path):
        if not os.listdir(path):
            raise OSError(errno.ENOENT, "empty")
    else:
        with open(path, "rb", buffering=0) as file:
            if not file.read(1):
                raise OSError(errno.ENOENT, "empty")


def beyond_grants(own: str) -> Attempts:
    for number in _directories():
        yield f"list {number}/..", partial(_list_parent, number)
        for path in ("/etc/passwd", "../../../../etc/passwd", "link", "/proc/self/root/etc/passwd"):
            yield f"read {number}: {path}", partial(_open, number, path)
        yield f"make {number}: a name next to the socket", partial(os.mkdir, f"{own}/made-from-a-grant", dir_fd=number)
        yield f"make {number}: a device", partial(os.mknod, "device", 0o20666, os.makedev(1, 3), dir_fd=number)
        yield f"make {number}: a pipe", partial(os.mknod, "pipe", 0o10666, dir_fd=number)
        yield f"run from {number}", partial(call, "execveat", number, b"run", 0, 0, 0)
        if _has(number, READ_ONLY):
            yield f"write {number}", partial(_open, number, "new", os.O_CREAT | os.O_WRONLY)
            yield f"write {number}'s", partial(_open, number, READ_ONLY, os.O_WRONLY)
            yield f"remove {number}'s", partial(os.unlink, READ_ONLY, dir_fd=number)


def _has(number: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=number)
    except OSError:
        return False
    return True


def _list_parent(number: int) -> None:
    parent = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=number)
    try:
        if os.path.sameopenfile(parent, number):
            raise OSError(errno.ENOENT, "it is its own")
        os.listdir(parent)
    finally:
        os.close(parent)


def keys(_own: str) -> Attempts:
    yield "read", partial(call, "keyctl", 0, -3, 1)
    yield "add", partial(call, "add_key", b"user", b"forged", b"x", 1, -3)
    yield "request", partial(call, "request_key", b"user", b"forged", 0, -3)


def programs(_own: str) -> Attempts:
    yield "execve", partial(os.execve, "/nowhere", ["nowhere"], {})
    yield "execveat", partial(call, "execveat", 0, b"", 0, 0, 0x1000)


def processes(_own: str) -> Attempts:
    yield "fork", _fork
    yield "clone", partial(_clone, 0)


def _fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def code(own: str) -> Attempts:
    everything = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    yield "written", partial(mmap.mmap, -1, 4096, prot=everything)
    yield "changed", _change_to_code
    yield "of a file of ours", partial(_map_file, own)
    yield "of memory", partial(call, "memfd_create", b"x", 0)
    yield "of our own", partial(_open, None, "/proc/self/mem", os.O_RDWR)


def _change_to_code() -> None:
    page = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    if LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), "")


def _map_file(own: str) -> None:
    refusal = OSError(errno.ENOENT, "")
    for directory in ("/var/tmp", "/tmp", own):
        try:
            file = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o700)
            os.truncate(file, 4096)
            mmap.mmap(file, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE)
            return
        except OSError as error:
            refusal = error
    raise refusal


def namespaces(_own: str) -> Attempts:
    for bit in (0x10000000, 0x20000, 0x40000000):
        yield f"unshare {bit:#x}", partial(call, "unshare", bit)
        yield f"clone {bit:#x}", partial(_clone, bit)
    yield "setns", partial(call, "setns", 0, 0)
    yield "mount", partial(call, "mount", b"none", b"/tmp", b"tmpfs", 0, 0)
    yield "open_tree", partial(call, "open_tree", -100, b"/", 1)
    yield "mount_setattr", partial(call, "mount_setattr", -100, b"/", 0, bytes(32), 32)
    yield "fsopen", partial(call, "fsopen", b"tmpfs", 0)
    yield "chroot", partial(call, "chroot", b"/tmp")


def _clone(bits: int) -> None:
    returned = LIBC.syscall(ctypes.c_long(NUMBERS["clone"][COLUMN]), ctypes.c_long(bits | 17), 0, 0, 0, 0)
    if returned == 0:
        os._exit(0)
    if returned < 0:
        raise OSError(ctypes.get_errno(), "")
    os.waitpid(returned, 0)


def corners(_own: str) -> Attempts:
    yield "bpf", partial(call, "bpf", 0, bytes(64), 64)
    yield "perf_event_open", partial(call, "perf_event_open", bytes(128), 0, -1, -1, 0)
    yield "userfaultfd", partial(call, "userfaultfd", 1)
    yield "io_uring_setup", partial(call, "io_uring_setup", 1, bytes(128))
    yield "memfd_secret", partial(call, "memfd_secret", 0)
    yield "personality", partial(call, "personality", 0x0040000)
    yield "open_by_handle_at", partial(call, "open_by_handle_at", 0, bytes(16), 0)
    yield "shmget", partial(call, "shmget", 0x6B66, 4096, 0o1666)
    yield "mq_open", partial(call, "mq_open", b"forged", 0o102, 0o600, 0)
    yield "fanotify_init", partial(call, "fanotify_init", 0x200, 0)
    yield "init_module", partial(call, "init_module", bytes(8), 8, b"")


def inodes(own: str) -> Attempts:
    for directory in (own, "/tmp", "/var/tmp", "/run", "/dev/shm", "/"):
        yield f"a directory in {directory}", partial(os.mkdir, f"{directory}/made")
        yield f"a file in {directory}", partial(_open, None, f"{directory}/made", os.O_CREAT | os.O_WRONLY)
        yield f"a link in {directory}", partial(os.symlink, "x", f"{directory}/made")
        yield f"a node in {directory}", partial(os.mknod, f"{directory}/made")


def control_socket(own: str) -> Attempts:
    path = f"{own}/control.sock"
    yield "rename", partial(os.rename, path, f"{own}/away")
    yield "remove", partial(os.unlink, path)
    yield "replace", partial(os.symlink, "/dev/null", path + "2")
    yield "close", partial(os.chmod, path, 0)
    yield "close its directory", partial(os.chmod, own, 0)


def dumps(_own: str) -> Attempts:
    yield "be readable again", partial(call, "prctl", 4, 1, 0, 0, 0)
    yield "raise the limit", _raise_core_limit


def _raise_core_limit() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except ValueError as error:  # what Python makes of EPERM here
        raise PermissionError(errno.EPERM, str(error)) from error


ATTACKS: dict[str, Callable[[str], Attempts]] = {
    "make a socket": sockets,
    "turn the listener round": listener,
    "reach a bus, a service manager or the keep's control socket": buses,
    "write in another unit's name to the journal": journal,
    "notify systemd in the loader's name": notify,
    "use a socket of systemd's that was left open": left_open,
    "read or change another process's memory": memory_of_others,
    "take another process's descriptors": descriptors_of_others,
    "signal another process, or change its limits": signals,
    "reach another keep": other_keeps,
    "read or change the host's files": host_files,
    "leave what was granted, or change what was granted to be read": beyond_grants,
    "use kernel keys": keys,
    "run a program": programs,
    "start a process": processes,
    "make code": code,
    "make a namespace or a mount": namespaces,
    "reach rarely used parts of the kernel": corners,
    "use up the inodes of /run or of a temporary directory": inodes,
    "take the control socket away": control_socket,
    "leave a dump of its memory": dumps,
}
"""What is tried, by the name that docs/security.md has for it."""


AT_ONCE = 6
"""Attempts in one line."""


def outcome(action: Callable[[], object]) -> str:
    """How one attempt went: "done", or the errno's name."""
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except Exception as error:  # noqa: BLE001 - a fault of the attempt's own: shown, and no answer allows it
        return repr(error)
    return "done"


def reports(place: str, own: str) -> Iterator[str]:
    """Tries everything; lines for each attack, none longer than the loader logs of its forks, and one at the end."""
    for name, attack in ATTACKS.items():
        results = [(attempt, outcome(action)) for attempt, action in attack(own)]
        for first in range(0, max(1, len(results)), AT_ONCE):
            some = dict(results[first : first + AT_ONCE])
            yield "attack " + json.dumps({"place": place, "name": name, "results": some})
    yield f"attack end of {place}"


def after(lock: Callable[..., object], place: str) -> Callable[..., object]:
    """`lock`, and then the attacks; reported on standard error, which is the checker's parent's alone: by its note."""
    own = os.environ.get("RUNTIME_DIRECTORY", "")

    def locked(*arguments: object, **keywords: object) -> object:
        directory = os.environ.get("KEEPFLEET_RUNTIME_DIRECTORY") or own
        returned = lock(*arguments, **keywords)
        if place == "checker":
            compiler = sys.modules["app_loader.check.compiler"]
            compiler.examine = partial(_noted, compiler.examine, list(reports(place, directory)))  # type: ignore[attr-defined]
        else:
            for line in reports(place, directory):
                os.write(2, f"{line}\n".encode())
        return returned

    return locked


def _noted(examine: Callable[..., object], lines: list[str], *arguments: object) -> object:
    """What the check comes to, the report in its note."""
    found = examine(*arguments)
    return "\n".join(["", *lines]) if isinstance(found, str) else found
