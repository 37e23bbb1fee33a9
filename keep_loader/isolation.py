"""The isolation check, made from inside the keep: a loader takes no workload where some is missing.

systemd accepts many directives that do nothing where the kernel or the kind of manager cannot obey them, so what
the unit asks for proves nothing. Each probe tries, or reads from the kernel, what a workload could try.
Import rule: that of keep_loader.
"""

from __future__ import annotations

import os
import sys

from keep_isolation.kernel import prctl
from keep_protocol import sockets as socket

_PR_SET_DUMPABLE = 4
PYTHON = "/keepfleet/python"
"""The interpreter of a keep's root: no one may read it, so that no other process may look into one that runs it."""
READ_ONLY = ("/", "/etc", "/usr", "/var", "/run")
"""The keep's root and the empty /run; /tmp and the keep's own directory stay writable, and private."""
NO_EXEC = ("/tmp", "/var/tmp", "/run")  # noqa: S108 - looked at, never written to
"""NoExecPaths=; the keep's own directory is added. The root itself is read-only, and holds nothing but what may run."""
HOST = ("/usr/bin", "/usr/sbin", "/bin/sh", "/etc/passwd", "/var/lib", "/opt", "/boot", "/sys/kernel")
"""What every host has, and no keep's root."""
HOMES = ("/home", "/root")
DEVICES = ("/dev/mem", "/dev/kmsg", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/loop-control")
"""What PrivateDevices= takes away, as far as a host has it."""

MAX_MOUNTINFO = 1024 * 1024
"""Five thousand mounts; a keep sees a hundred."""
MAX_NAMED = 4
"""Network devices named in one sentence; a host may have hundreds."""


def isolation_failures(directory: str, *, strict: bool = False) -> tuple[str, ...]:
    """A sentence for each failure; `directory` is the keep's own, `strict` its profile."""
    uid = os.geteuid()
    found = [*_buses(_bus_sockets(uid)), *_networks(), *_mounts(directory), *_privileges(uid)]
    found += [f"the device {path} is there" for path in DEVICES if os.path.exists(path)]
    found += [f"the host's {path} is there" for path in HOST if _is_there(path)]
    found += _dumpable(uid)
    return tuple(found + _executable_memory() if strict else found)


def _executable_memory() -> list[str]:
    import mmap  # of a strict keep alone

    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except OSError:
        return []
    return ["memory can be made that is both writable and executable (MemoryDenyWriteExecute=)"]


def _is_there(path: str) -> bool:
    """Whether there is more than an empty place, which systemd makes in a root to mount something over."""
    try:
        return bool(os.listdir(path) if os.path.isdir(path) else os.stat(path).st_size)
    except OSError:
        return os.path.exists(path)


def give_up_being_read() -> None:
    """Lets no other process look into us, from our first line on: where the tree is the user's own, its mode does not
    do that yet when systemd starts us, with capabilities in the keep's user namespace."""
    prctl(_PR_SET_DUMPABLE, 0)


def hold_root() -> None:
    """Says by a lock on our root, for as long as we run, that it is in use: what removes unused ones respects it.

    One that another process keeps from us is no failure: the unit names the root, too.
    """
    import fcntl

    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(root, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(root)


def _dumpable(uid: int) -> list[str]:
    """Whether other processes of our user may look into us: then our files in /proc are ours, and else root's (man 5
    proc). And whether that would be so after an exec, too."""
    found = []
    if os.stat("/proc/self/environ").st_uid == uid:
        found.append("other processes of the keep's user can read the loader's memory")
    if sys.executable != PYTHON:
        found.append(f"the loader is run by {sys.executable}, not by the {PYTHON} of a root of its own")
    elif os.access(PYTHON, os.R_OK):
        found.append(f"{PYTHON} can be read")
    return found


def _bus_sockets(uid: int) -> tuple[str, ...]:
    """Where a host's and a user's service managers can be asked to start something unconfined."""
    return (
        "/run/dbus/system_bus_socket",
        "/run/systemd/private",
        "/run/systemd/journal/stdout",
        f"/run/user/{uid}/bus",
        f"/run/user/{uid}/systemd/private",
    )


def _buses(paths: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for path in paths:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                sock.connect(path)
            except OSError:
                continue
        found.append(f"{path} can be connected to")
    return found


def _networks() -> list[str]:
    found: list[str] = []
    for name, family in (("AF_INET", socket.AF_INET), ("AF_INET6", socket.AF_INET6)):
        try:
            socket.socket(family, socket.SOCK_STREAM).close()
        except OSError:
            continue
        found.append(f"a socket of {name} can be made")
    # The first two lines are headings; each other begins with a device's name.
    devices = [line.partition(b":")[0].strip().decode(errors="replace") for line in _lines("/proc/self/net/dev")[2:]]
    others = [name for name in devices if name != "lo"]
    if others:
        found.append(f"there are network devices: {', '.join(others[:MAX_NAMED])}")
    return found


def _flags(path: str) -> int | None:
    try:
        return os.statvfs(path).f_flag
    except OSError:
        return None  # what cannot be looked at cannot be written to either


def _mounts(directory: str) -> list[str]:
    found: list[str] = []
    for path in READ_ONLY:
        flags = _flags(path)
        if flags is not None and not flags & os.ST_RDONLY:
            found.append(f"{path} is not mounted read-only")
    for path in (*NO_EXEC, directory):
        flags = _flags(path)
        if flags is not None and not flags & os.ST_NOEXEC:
            found.append(f"programs in {path} can be run")
    found += [f"programs can be written to {path} and run there" for path in _writable_code()]
    found += [f"{path} is not hidden" for path in HOMES if not _is_hidden(path)]
    return found


def _is_hidden(home: str) -> bool:
    """Whether something is mounted over `home` that shows nothing of it but the way to our own files.

    A mount alone proves nothing: /home is often a file system of its own.
    """
    ours = {os.path.realpath(path)[len(home) + 1 :].partition("/")[0] for path in (__file__, sys.executable)}
    try:
        return not set(os.listdir(home)) - ours and os.path.ismount(home)
    except OSError:
        return os.path.ismount(home) or not os.path.isdir(home)


def _writable_code() -> list[str]:
    """The places where a file system is mounted that takes files from us and runs them, other than those of NO_EXEC.

    Of several mounts at one place the last counts, which is what is looked at.
    """
    # Each line's fifth word is the place, with odd characters in octal (man proc).
    words = [line.split(b" ", 5) for line in _lines("/proc/self/mountinfo", MAX_MOUNTINFO)]
    places = {word[4].decode("unicode_escape").encode("latin-1") for word in words if len(word) > 5}
    found = [os.fsdecode(place) for place in places if os.path.isdir(place) and os.access(place, os.W_OK)]
    return [path for path in sorted(found) if path not in NO_EXEC and not (_flags(path) or 0) & os.ST_NOEXEC]


def _privileges(uid: int) -> list[str]:
    """What /proc/self/status says of capabilities, new privileges and the system call filter."""
    status = dict(line.split(b":", 1) for line in _lines("/proc/self/status") if b":" in line)
    values = {name.decode(): value.strip() for name, value in status.items()}
    found = ["the keep runs as root"] if uid == 0 else []
    for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
        if int(values.get(name, b"1"), 16):
            found.append(f"capabilities are left in {name}")
    if values.get("NoNewPrivs") != b"1":
        found.append("new privileges can be gained")
    if values.get("Seccomp") != b"2":
        found.append("system calls are not filtered")
    return found


def _lines(path: str, limit: int = 64 * 1024) -> list[bytes]:
    """The lines of a file of /proc, in its first `limit` bytes; none where it is hidden."""
    try:
        with open(path, "rb") as file:
            return file.read(limit).splitlines()
    except OSError:
        return []
