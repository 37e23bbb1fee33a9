"""The sandbox's own cgroup in every hierarchy of the machine: v1, v2, or both.

It is made and entered before the cgroup namespace, so that it is that namespace's root: the private systemd
cannot see, and so cannot move, a process of the machine's. What is in it belongs to the sandbox,
however it was started; that is what makes clean-up possible after any interrupt.

Import rule: the standard library's light part (`os`, `re`, `signal`, `select`, `time`), for `first`.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time

ROOT = "/sys/fs/cgroup"
UNIFIED_ALONE = 258
"""The first systemd that cannot use cgroup v1 (its NEWS)."""
PREFIX = "keepfleet-sandbox-"
COMMANDS = "exec.scope"
"""The cgroup, below a sandbox's own, of the agent and of the commands it starts. The sandbox's systemd, which removes
empty cgroups that it did not make, never finds it empty."""
KILL_SECONDS = 20.0
"""A killed process is gone in milliseconds, 150 of them next to two busy ones in 0.2 s; one that is not in this time
hangs in the kernel."""
_RETRY_SECONDS = 0.01
"""A cgroup can stay busy for a moment after its last process: the kernel reports no end of that."""


class Hierarchy:
    """One mounted cgroup hierarchy: where, and what to mount to see it again (`options` is None for v2)."""

    def __init__(self, directory: str, options: str | None) -> None:
        self.directory = directory
        self.options = options

    def __repr__(self) -> str:
        return f"Hierarchy({self.directory}, {self.options or 'v2'})"

    def of(self, name: str) -> str:
        """The directory of the sandbox `name` in this hierarchy."""
        return f"{self.directory}/{PREFIX}{name}"


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def parse_mounts(mounts: str, controllers: frozenset[str]) -> list[Hierarchy]:
    """The hierarchies below /sys/fs/cgroup in the text of /proc/mounts, each once; `controllers` are v1's names."""
    found: dict[str, Hierarchy] = {}
    for line in mounts.splitlines():
        _, directory, kind, options, *_ = line.split(" ")
        if kind not in ("cgroup", "cgroup2") or not f"{directory}/".startswith(ROOT + "/"):
            continue
        if kind == "cgroup2":
            found.setdefault("v2", Hierarchy(directory, None))
            continue
        chosen = sorted(option for option in options.split(",") if option in controllers or option.startswith("name="))
        text = ",".join(["none", *chosen] if chosen and chosen[0].startswith("name=") else chosen)
        found.setdefault(text, Hierarchy(directory, text))
    return list(found.values())


def hierarchies() -> list[Hierarchy]:
    """This machine's hierarchies, read from /proc."""
    controllers = [line.split()[0] for line in _read("/proc/cgroups").splitlines() if not line.startswith("#")]
    return parse_mounts(_read("/proc/self/mounts"), frozenset(controllers))


def version_of(said: str) -> int:
    """The number in what `systemd --version` prints. Raises ValueError where there is none."""
    if not (found := re.match(r"systemd (\d+)", said)):
        raise ValueError(f"cannot find a version in {said[:80]!r}")
    return int(found[1])


def shown_to(version: int, found: list[Hierarchy]) -> list[Hierarchy]:
    """What is mounted inside for a systemd of that version: all of it, or v2 alone from UNIFIED_ALONE on.

    There the controllers that the machine uses in v1 are missing, and limits by them have no effect. Raises ValueError
    where the machine has no v2.
    """
    if version < UNIFIED_ALONE:
        return found
    if all(hierarchy.options is not None for hierarchy in found):
        raise ValueError(
            f"systemd {version} knows cgroup v2 alone, and none is mounted here; run: "
            f"mkdir {ROOT}/unified; mount -t cgroup2 none {ROOT}/unified"
        )
    return [Hierarchy(ROOT, None)]


def make(directory: str) -> None:
    """Makes a cgroup that processes can enter: a v1 cpuset must first be given processors and memory nodes."""
    os.makedirs(directory, exist_ok=True)
    for file in ("cpuset.cpus", "cpuset.mems"):
        path = f"{directory}/{file}"
        if os.path.exists(path) and os.path.exists(f"{directory}/cpuset.effective_cpus") and not _read(path).strip():
            _write(path, _read(f"{os.path.dirname(directory)}/{file}"))


def delegate(found: list[Hierarchy]) -> list[str]:
    """Where v2 is all there is: switches on what can be for the cgroups below its root; returns what was off before.

    Where processes of the machine sit in that root (some containers) the kernel refuses, and limits of units in
    the sandbox have no effect: the sandbox works all the same.
    """
    if len(found) != 1 or found[0].options is not None:
        return []
    switch = f"{found[0].directory}/cgroup.subtree_control"
    done = []
    for controller in _read(f"{found[0].directory}/cgroup.controllers").split():
        if controller not in _read(switch).split():
            with contextlib.suppress(OSError):
                _write(switch, f"+{controller}")
                done.append(controller)
    return done


def withdraw(hierarchy: Hierarchy, switched_on: list[str]) -> None:
    """Undoes `delegate`, except for what is in use by now."""
    for controller in switched_on if hierarchy.options is None else []:
        with contextlib.suppress(OSError):
            _write(f"{hierarchy.directory}/cgroup.subtree_control", f"-{controller}")


def enter(directories: list[str]) -> None:
    """Moves the calling process, alone, into these cgroups."""
    for directory in directories:
        _write(f"{directory}/cgroup.procs", "0")


def members(directory: str) -> set[int]:
    """Every process in the cgroup `directory` and below, as this process numbers them; none where it is gone."""
    found: set[int] = set()
    for path, _, _ in os.walk(directory):
        try:
            found.update(int(line) for line in _read(f"{path}/cgroup.procs").split())
        except OSError:
            continue
    return found - {0}


def belongs(pid: int, name: str) -> bool:
    """Whether the process `pid` is in a cgroup of the sandbox `name` now."""
    try:
        lines = _read(f"/proc/{pid}/cgroup").splitlines()
    except OSError:
        return False
    return any(f"/{PREFIX}{name}/" in f"{line}/" for line in lines)


def kill_all(name: str, found: list[Hierarchy]) -> None:
    """SIGKILL to every process in the cgroups of the sandbox `name`, until none is left.

    Raises TimeoutError after KILL_SECONDS. All are signalled before any is waited for: PID 1 ends only when
    those that entered its namespace from outside have been reaped by parents that may be stopped.
    """
    deadline = time.monotonic() + KILL_SECONDS
    while pids := set().union(*(members(hierarchy.of(name)) for hierarchy in found)):
        _signal_all(name, pids, signal.SIGKILL, deadline)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(pids)} do not end")


def end_commands(name: str, agent: int, seconds: float) -> None:
    """SIGTERM, and after `seconds` SIGKILL, to what `agent` started: power-off would wait for it far longer.

    The agent and those that watch its commands, its children, go on: they say how the commands ended.
    """
    directories = [f"{hierarchy.of(name)}/{COMMANDS}" for hierarchy in hierarchies()]
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, KILL_SECONDS)):
        pids = {pid for pid in set().union(*map(members, directories)) if pid != agent and parent(pid) != agent}
        _signal_all(name, pids, number, time.monotonic() + patience)


def parent(pid: int) -> int | None:
    """The process that started `pid`, or took it over; None where it is gone (man 5 proc, /proc/pid/stat)."""
    try:
        return int(_read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
    except OSError:
        return None


def _signal_all(name: str, pids: set[int], number: int, deadline: float) -> None:
    """Sends the signal to all, then waits for all to end, until `deadline` of the monotonic clock."""
    descriptors = [descriptor for pid in pids if (descriptor := _signal_member(pid, name, number)) is not None]
    for descriptor in descriptors:
        select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        os.close(descriptor)


def _signal_member(pid: int, name: str, number: int) -> int | None:
    """Sends the signal to `pid` and returns its pidfd to wait on; None where it is gone.

    Membership is read again behind the open pidfd, so a number that the kernel gave to another process meanwhile
    is never hit.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        if belongs(pid, name):
            signal.pidfd_send_signal(descriptor, number)
            return descriptor
    except ProcessLookupError:
        pass
    os.close(descriptor)
    return None


def remove(directory: str) -> None:
    """Removes the cgroup and those below it. Raises OSError when one stays busy for KILL_SECONDS."""
    deadline = time.monotonic() + KILL_SECONDS
    for path, _, _ in list(os.walk(directory, topdown=False)):
        while True:
            try:
                os.rmdir(path)
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                break
