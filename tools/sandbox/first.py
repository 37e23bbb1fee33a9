"""Becomes PID 1 of a new sandbox: enters its cgroups, unshares, lays out the mounts, and execs systemd.

Run as a bare file by `sandbox.Sandbox.boot` with the sandbox's name, state directory and own number; every step that
fails is one line on standard error, which is the sandbox's console file. The first process writes the number of the
second, PID 1, to `booting` in the state directory and ends: nothing of the booting command stays behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys

if not __package__:
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tools.sandbox import agent, cgroups, channel, files, layout, linux

SYSTEMD = "/lib/systemd/systemd"
_HIDDEN = ("/usr/local/lib/systemd", "/lib/systemd/system-generators", "/lib/systemd/user-generators")
"""The machine's own units and what would generate units from its files; the default search path itself is kept."""
_NETWORK = """link set lo up
link add host0 type veth peer name host1
"""


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


def _mounts(name: str, state: str, found: list[cgroups.Hierarchy]) -> list[str]:
    """The sandbox's view of the machine's files; the cgroups of commands in it.

    Sources are opened before anything is mounted over them.
    """
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    with open(f"{state}/layout.json", encoding="utf-8") as file:
        wanted = layout.from_json(file.read())
    real_sources = [os.path.realpath(source) for source, _, _ in wanted.binds]
    _hold(real_sources)
    sources = [files.path_handle(source) for source, _, _ in wanted.binds]
    state_handle, units, console = (files.path_handle(f"{state}{part}") for part in ("", "/units", "/console"))
    machine = files.enter_root(wanted.root) if wanted.root else None
    if machine is None:
        files.own_proc()
    files.own_run(state_handle)
    files.own_etc(name)
    for directory in filter(os.path.isdir, layout.REBOUND):
        files.own_directory(directory)
    for directory in dict.fromkeys(map(os.path.realpath, layout.EMPTIED)):
        files.empty(directory, real_sources if machine is None else [])
    for directory in filter(os.path.isdir, _HIDDEN):
        if os.listdir(directory):
            linux.tmpfs(directory, "755")
    linux.bind(units, "/lib/systemd/system")
    if os.path.exists("/dev/console"):
        linux.bind(console, "/dev/console")
    shown = cgroups.shown_to(_systemd_version(), found)
    _own_cgroups(shown)
    linux.bind(files.path_handle("/proc/sys"), "/proc/sys", read_only=True)
    if os.path.isdir(layout.SYSTEMD_STATE):
        linux.tmpfs(layout.SYSTEMD_STATE, "755")
    for directory in wanted.tmpfs:
        files.mount_point(directory, directory=True)
        linux.tmpfs(directory, "755")
    for source, (path, place, read_only) in zip(sources, wanted.binds, strict=True):
        files.mount_point(place, directory=os.path.isdir(f"/proc/self/fd/{source}") or path.endswith("/"))
        linux.bind(source, place, read_only=read_only)
    if machine is not None:
        files.leave(machine)
    return [f"{hierarchy.directory}/{cgroups.COMMANDS}" for hierarchy in shown]


def _become_systemd(name: str, state: str, found: list[cgroups.Hierarchy]) -> None:
    _own_network()
    directories = _mounts(name, state, found)
    os.chdir("/")
    agent.start(channel.socket_in(files.INSIDE_STATE), directories)
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "container": "keepfleet-sandbox",
        "NOTIFY_SOCKET": f"{files.INSIDE_STATE}/notify",
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
