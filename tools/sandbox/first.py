"""Becomes PID 1 of a new sandbox: enters its cgroups, unshares, lays out the mounts, and execs systemd.

Run as a bare file by `sandbox.Sandbox.boot` with the sandbox's name, state directory and own number; every step that
fails is one line on standard error, which is the sandbox's console file. The first process writes the number of the
second, PID 1, to `booting` in the state directory and ends: nothing of the booting command stays behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

if not __package__:
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tools.sandbox import accounts, agent, cgroups, channel, layout, linux

SYSTEMD = "/lib/systemd/systemd"
INSIDE_STATE = "/run/sandbox"
"""Where the state directory is seen inside."""
_HIDDEN = ("/usr/local/lib/systemd", "/lib/systemd/system-generators", "/lib/systemd/user-generators")
"""The machine's own units and what would generate units from its files; the default search path itself is kept."""
_RUN = (
    *("lock", "log/journal", "dbus", "user", "systemd/system", INSIDE_STATE.removeprefix("/run/")),
    *("systemd/unit-root", "systemd/mount-rootfs"),
)
"""What systemd expects in /run. The last two: a user manager cannot lay out mounts before a system unit did once."""
_NETWORK = """link set lo up
link add host0 type veth peer name host1
"""
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


def _path_handle(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def _own_etc(name: str) -> None:
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


def _own_directory(directory: str) -> None:
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
    handles = {name: _path_handle(path) for name, is_link, _, path in entries if not is_link}
    linux.tmpfs(directory, "755")
    for name, is_link, is_directory, path in entries:
        if is_link:
            os.symlink(links[name], path)
            continue
        _mount_point(path, directory=is_directory)
        linux.bind(handles[name], path)
        os.close(handles[name])


def _mount_point(path: str, *, directory: bool) -> None:
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


def _own_cgroups(shown: list[cgroups.Hierarchy]) -> None:
    """Mounts these hierarchies again: this cgroup namespace shows them from the sandbox's own cgroup down."""
    linux.detach(cgroups.ROOT)
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    if all(hierarchy.directory != cgroups.ROOT for hierarchy in shown):
        linux.tmpfs(cgroups.ROOT, "755", flags)
    for hierarchy in shown:
        os.makedirs(hierarchy.directory, exist_ok=True)
        kind = "cgroup2" if hierarchy.options is None else "cgroup"
        linux.mount(kind, hierarchy.directory, kind, flags, hierarchy.options)


def _systemd_version() -> int:
    """Of the system that is booted. Raises ValueError for one that does not say it."""
    said = subprocess.run([SYSTEMD, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return cgroups.version_of(said)


def _own_network() -> None:
    """The network namespace is new: its loopback is switched on, and as every host it has a device more."""
    subprocess.run(["/bin/ip", "-batch", "-"], check=True, input=_NETWORK, text=True)


def _hold(sources: list[str]) -> None:
    """A lock on each directory that is shown, as long as the agent runs: what builds them leaves them alone."""
    for source in filter(os.path.isdir, sources):
        fcntl.flock(os.open(source, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_SH)


def _enter_root(root: str) -> int:
    """Makes the directory `root` the root; what was it until now goes with the returned descriptor, see `_leave`."""
    devices, kernel = _path_handle("/dev"), _path_handle("/sys")
    linux.bind(_path_handle(root), root)
    machine = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir(root)
    linux.pivot_root(".", ".")
    _own_proc()
    linux.bind(devices, "/dev")
    linux.bind(kernel, "/sys")
    return machine


def _leave(machine: int) -> None:
    os.fchdir(machine)
    linux.detach(".")
    os.chdir("/")


def _own_proc() -> None:
    linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)


def _own_run(state: int) -> None:
    linux.tmpfs("/run", "755")
    for directory in _RUN:
        os.makedirs(f"/run/{directory}")
    with contextlib.suppress(LookupError):  # as tmpfiles does on a host: members of that group may read the journal
        os.chown("/run/log/journal", 0, accounts.group("systemd-journal"))
        os.chmod("/run/log/journal", 0o2755)  # noqa: S103
    linux.bind(state, INSIDE_STATE)


def _empty(directory: str, sources: list[str]) -> None:
    """Taken away rather than mounted over: fewer mounts. But what lies on a mount that is gone cannot be bound."""
    needed = any(f"{source}/".startswith(f"{directory}/") for source in sources)
    while not needed and os.path.ismount(directory):
        linux.detach(directory)
    linux.tmpfs(directory, "1777")


def _mounts(name: str, state: str, found: list[cgroups.Hierarchy]) -> list[str]:
    """The sandbox's view of the machine's files; the cgroups of commands in it.

    Sources are opened before anything is mounted over them.
    """
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    with open(f"{state}/layout.json", encoding="utf-8") as file:
        wanted = layout.from_json(file.read())
    real_sources = [os.path.realpath(source) for source, _, _ in wanted.binds]
    _hold(real_sources)
    sources = [_path_handle(source) for source, _, _ in wanted.binds]
    state_handle, units, console = (_path_handle(f"{state}{part}") for part in ("", "/units", "/console"))
    machine = _enter_root(wanted.root) if wanted.root else None
    if machine is None:
        _own_proc()
    _own_run(state_handle)
    _own_etc(name)
    for directory in filter(os.path.isdir, layout.REBOUND):
        _own_directory(directory)
    for directory in dict.fromkeys(map(os.path.realpath, layout.EMPTIED)):
        _empty(directory, real_sources if machine is None else [])
    for directory in filter(os.path.isdir, _HIDDEN):
        if os.listdir(directory):
            linux.tmpfs(directory, "755")
    linux.bind(units, "/lib/systemd/system")
    if os.path.exists("/dev/console"):
        linux.bind(console, "/dev/console")
    shown = cgroups.shown_to(_systemd_version(), found)
    _own_cgroups(shown)
    linux.bind(_path_handle("/proc/sys"), "/proc/sys", read_only=True)
    for directory in wanted.tmpfs:
        _mount_point(directory, directory=True)
        linux.tmpfs(directory, "755")
    for source, (path, place, read_only) in zip(sources, wanted.binds, strict=True):
        _mount_point(place, directory=os.path.isdir(f"/proc/self/fd/{source}") or path.endswith("/"))
        linux.bind(source, place, read_only=read_only)
    if machine is not None:
        _leave(machine)
    return [f"{hierarchy.directory}/{cgroups.COMMANDS}" for hierarchy in shown]


def _become_systemd(name: str, state: str, found: list[cgroups.Hierarchy]) -> None:
    _own_network()
    directories = _mounts(name, state, found)
    os.chdir("/")
    agent.start(channel.socket_in(INSIDE_STATE), directories)
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "container": "keepfleet-sandbox",
        "NOTIFY_SOCKET": f"{INSIDE_STATE}/notify",
    }
    options = ["--show-status=0", "--log-target=journal", "--default-standard-output=journal"]
    os.execve(SYSTEMD, [SYSTEMD, "--system", "--unit=sandbox.target", *options], environment)  # noqa: S606


def main(name: str, state: str, boot: int) -> int:
    """Run by the process `boot`, whose death ends it: another boot of that name may be under way already.

    0 when the second process is on its way to be systemd; 1, with a line on standard error, when not."""
    try:
        linux.die_with_parent(signal.SIGKILL)
        if os.getppid() != boot:
            raise ProcessLookupError(errno.ESRCH, "its boot was interrupted")
        found = cgroups.hierarchies()
        cgroups.enter([hierarchy.of(name) for hierarchy in found])
        namespaces = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWCGROUP | linux.CLONE_NEWNET
        linux.unshare(namespaces | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC)
        # Opened before the fork: the child mounts over /run, and both are in the new mount namespace.
        with open(f"{state}/booting", "w", encoding="utf-8") as file:
            child = os.fork()
            if child == 0:
                _become_systemd(name, state, found)
            file.write(str(child))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"cannot set the sandbox up: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
