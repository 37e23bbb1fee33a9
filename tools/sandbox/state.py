"""What a sandbox leaves on the machine while it runs: a directory in /run, a cgroup in each hierarchy, processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator

from tools.sandbox import cgroups
from tools.sandbox.channel import STATE, state_directory
from tools.sandbox.errors import SandboxError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_CONTROLLERS = f"{STATE}/.controllers"
"""The v2 controllers sandboxes switched on for the machine; the last sandbox to go switches them off."""


def names() -> list[str]:
    """The sandboxes that have a state directory on this machine, running or left by an interrupt."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(STATE) if NAME.fullmatch(name))
    return []


def remember_controllers(controllers: list[str]) -> None:
    """Notes what to switch off in the end."""
    with open(_CONTROLLERS, "a", encoding="utf-8") as file:
        file.write(" ".join(["", *controllers]))


@contextlib.contextmanager
def lock(path: str) -> Iterator[None]:
    """One command at a time works on a state directory; the kernel ends the lock of one that was killed.

    The lock is on the directory itself, which its holder may remove; a command that waited for it then makes it again.
    """
    while True:
        os.makedirs(path, mode=0o700, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.isdir(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                yield
                return
        finally:
            os.close(descriptor)


def clear(name: str) -> None:
    """Ends every process of the sandbox and removes its cgroups and files; its mounts end with its processes.

    The state directory itself stays, with the caller's lock on it. Raises SandboxError where a process does not
    end or a cgroup stays busy.
    """
    found = cgroups.hierarchies()
    try:
        cgroups.kill_all(name, found)
        for hierarchy in found:
            cgroups.remove(hierarchy.of(name))
    except (OSError, TimeoutError) as error:
        raise SandboxError(f"cannot remove the sandbox {name}: {error}") from error
    for entry in os.scandir(state_directory(name)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def remove(name: str) -> None:
    """`clear`, and the state directory too; after the last sandbox, everything that any of them changed here."""
    clear(name)
    os.rmdir(state_directory(name))
    if names():
        return
    with contextlib.suppress(FileNotFoundError), open(_CONTROLLERS, encoding="utf-8") as file:
        switched_on = file.read().split()
        for hierarchy in cgroups.hierarchies():
            cgroups.withdraw(hierarchy, switched_on)
        os.unlink(_CONTROLLERS)
    with contextlib.suppress(OSError):
        os.rmdir(STATE)
