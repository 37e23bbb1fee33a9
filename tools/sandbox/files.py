"""A sandbox's own files: what is private in /run, /etc, /opt, /home and /var/lib, another root, and what is mounted.

Import rule: that of `first`, whose part this is.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess

from tools.sandbox import accounts, layout, linux

INSIDE_STATE = "/run/sandbox"
"""Where the state directory is seen inside."""
_RUN = (
    *("lock", "log/journal", "dbus", "user", "systemd/system", INSIDE_STATE.removeprefix("/run/")),
    *("systemd/unit-root", "systemd/mount-rootfs"),
)
"""What systemd expects in /run. The last two: a user manager cannot lay out mounts before a system unit did once."""
_JOURNAL = """[Journal]
Storage=volatile
RuntimeMaxUse=256M
ReadKMsg=no
Audit=no
ForwardToSyslog=no
ForwardToKMsg=no
ForwardToConsole=no
ForwardToWall=no
"""


def path_handle(path: str) -> int:
    """What to bind by: it names the same file whatever is mounted over its path later."""
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def enter_root(root: str) -> int:
    """Makes the directory `root` the root; what was it until now goes with the returned descriptor, see `leave`."""
    devices, kernel = path_handle("/dev"), path_handle("/sys")
    linux.bind(path_handle(root), root)
    machine = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir(root)
    linux.pivot_root(".", ".")
    own_proc()
    linux.bind(devices, "/dev")
    linux.bind(kernel, "/sys")
    return machine


def leave(machine: int) -> None:
    """Takes the root that `enter_root` replaced away; nothing of it can be bound any more."""
    os.fchdir(machine)
    linux.detach(".")
    os.chdir("/")


def own_proc() -> None:
    """The processes of the new PID namespace."""
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)


def own_run(state: int) -> None:
    """An empty /run with what systemd expects there, and the state directory, of which `state` is a handle."""
    linux.tmpfs("/run", "755")
    for directory in _RUN:
        os.makedirs(f"/run/{directory}")
    with contextlib.suppress(LookupError):  # as tmpfiles does on a host: members of that group may read the journal
        os.chown("/run/log/journal", 0, accounts.group("systemd-journal"))
        os.chmod("/run/log/journal", 0o2755)  # noqa: S103
    linux.bind(state, INSIDE_STATE)


def own_etc(name: str) -> None:
    """A copy of /etc in memory, so that anything may be installed, any user added, and the machine never sees it."""
    copy = "/run/etc"
    os.mkdir(copy)
    linux.tmpfs(copy, "755")
    subprocess.run(["cp", "--archive", "/etc/.", copy], check=True)
    subprocess.run(["rm", "--recursive", "--force", f"{copy}/systemd", f"{copy}/machine-id"], check=True)
    for directory in ("system", "user", "journald.conf.d"):
        os.makedirs(f"{copy}/systemd/{directory}")
    files = {"hostname": f"{name}\n", "machine-id": os.urandom(16).hex() + "\n", "systemd/journald.conf": _JOURNAL}
    for file, text in files.items():
        with open(f"{copy}/{file}", "w", encoding="utf-8") as stream:
            stream.write(text)
    with open(f"{copy}/hosts", "a", encoding="utf-8") as stream:
        stream.write(f"127.0.1.1 {name}\n")
    linux.mount(copy, "/etc", None, linux.MS_MOVE)
    os.rmdir(copy)
    socket.sethostname(name)


def own_directory(directory: str) -> None:
    """The machine's `directory`, where what is written in it is the sandbox's alone.

    An overlay where the kernel can: one mount, and a unit's start pays for every mount there is. It cannot show
    what is mounted below, nor lie on many others; then entries are bound one by one, and only new ones are private.
    """
    with open("/proc/self/mounts", encoding="utf-8") as file:
        mounted = [line.split(" ")[1] for line in file]
    if not any(place == directory or place.startswith(f"{directory}/") for place in mounted):
        own = f"/run/sandbox-own{directory}"
        os.makedirs(f"{own}/upper", mode=0o755)
        os.makedirs(f"{own}/work", mode=0o700)
        options = f"lowerdir={directory},upperdir={own}/upper,workdir={own}/work"
        with contextlib.suppress(OSError):
            linux.mount("overlay", directory, "overlay", linux.MS_NOSUID | linux.MS_NODEV, options)
            return
    _rebound(directory)


def _rebound(directory: str) -> None:
    """An empty directory with the machine's entries bound into it."""
    entries = [(e.name, e.is_symlink(), e.is_dir(follow_symlinks=False), e.path) for e in os.scandir(directory)]
    links = {name: os.readlink(path) for name, is_link, _, path in entries if is_link}
    handles = {name: path_handle(path) for name, is_link, _, path in entries if not is_link}
    linux.tmpfs(directory, "755")
    for name, is_link, is_directory, path in entries:
        if is_link:
            os.symlink(links[name], path)
            continue
        mount_point(path, directory=is_directory)
        linux.bind(handles[name], path)
        os.close(handles[name])


def empty(directory: str, sources: list[str]) -> None:
    """Taken away rather than mounted over: fewer mounts. But what lies on a mount that is gone cannot be bound."""
    needed = any(f"{source}/".startswith(f"{directory}/") for source in sources)
    while not needed and os.path.ismount(directory):
        linux.detach(directory)
    linux.tmpfs(directory, "1777")


def mount_point(path: str, *, directory: bool) -> None:
    """Makes the mount point `path` where the sandbox has its own files. Raises OSError elsewhere, changing nothing."""
    if os.path.exists(path):
        return
    if not any(f"{os.path.realpath(path)}/".startswith(f"{own}/") for own in layout.OWN):
        raise FileNotFoundError(
            2, f"it does not exist on this machine; choose a place in {', '.join(layout.OWN)}", path
        )
    os.makedirs(path if directory else os.path.dirname(path), exist_ok=True)
    if not directory:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
