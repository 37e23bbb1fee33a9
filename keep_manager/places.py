"""Where the things of a manager lie on its host: what systemd makes, the bus, keeps' roots, and what outlives it."""

from __future__ import annotations

import fcntl
import os
import sys

from keep_manager.config import Instance, Settings
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_root.contents import target_of
from keep_root.trees import SYSTEM as SYSTEM_TREES
from keep_root.trees import VARIABLE as TREES
from keep_root.trees import Trees, user_directory

SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"


def runtime_root(instance: str) -> str:
    """The directory below which systemd makes runtime directories."""
    return "/run" if instance == "system" else os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")


def bus_address(instance: str) -> str:
    """The bus the service manager is on; the variables are D-Bus's own."""
    if instance == "system":
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", SYSTEM_BUS)
    return os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime_root(instance)}/bus")


def trees(instance: str) -> Trees:
    """The roots of keeps that run this manager's own version: not the link `current`, which an upgrade switches."""
    directory = os.environ.get(TREES) or (SYSTEM_TREES if instance == "system" else user_directory())
    packages = os.path.join(os.path.dirname(__file__), "..")
    return Trees(directory, target_of(sys.executable, packages))


def state_directory(instance: str) -> str:
    """Where this manager keeps what outlives it: what systemd gave it (StateDirectory=), or a user's own."""
    given = os.environ.get("STATE_DIRECTORY")
    if given or instance == "system":
        return given or "/var/lib/keepfleet"
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "keepfleet")


def hold_declared(directory: str) -> int:
    """Keeps every other manager from what is declared in `directory`, until the descriptor is closed: two of them
    would end each other's keeps. Raises KeepfleetError(CONFIGURATION)."""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)  # which no other user may open, and so lock
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot open {directory}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        why = "another manager does so; see: systemctl status keep-manager"
        raise KeepfleetError(
            ErrorKind.CONFIGURATION, f"cannot work for what is declared in {directory}: {why}"
        ) from None
    return lock


def store_directory(settings: Settings) -> str:
    """Where this manager's module store is: the one in which `keepctl store` works for the same user."""
    if settings.store:
        return settings.store
    system = settings.instance is Instance.SYSTEM
    return os.path.join(state_directory(settings.instance.value), "store") if system else ""


def artifacts_directory(instance: str) -> str | None:
    """Where this manager keeps compiled code: below its state directory, a user's below the XDG cache home."""
    return os.path.join(state_directory(instance), "artifacts") if instance == Instance.SYSTEM.value else None
