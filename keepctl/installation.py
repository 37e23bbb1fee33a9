"""Puts the units where systemd finds them, and takes them away again."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl import files
from keepctl.rendering import MARK, render

SYSTEM_UNITS = "/etc/systemd/system"
SYSTEMCTL_SECONDS = 60.0
"""daemon-reload reads every unit again: half a second with 2,000 keeps, on a busy host several."""


@dataclass(frozen=True)
class Target:
    """Which service manager, where its units lie, and whether it is told to read them."""

    variant: str
    directory: str
    reload: bool = True


@dataclass(frozen=True)
class Change:
    """What became of one unit file: "written", "unchanged" or "removed"."""

    path: str
    what: str


def target(variant: str, directory: str | None, *, reload: bool) -> Target:
    """Where `variant`, "system" or "user", looks for units its administrator made, unless `directory` is given."""
    if directory is None:
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        directory = SYSTEM_UNITS if variant == "system" else os.path.join(home, "systemd", "user")
    return Target(variant, os.path.abspath(directory), reload)


def templates(variant: str, root: Traversable | None = None) -> dict[str, str]:
    """The variant's templates by their names below the unit directory, as in `keep@.service.d/10-keepfleet.conf`."""
    found: dict[str, str] = {}

    def walk(directory: Traversable, before: str) -> None:
        for entry in directory.iterdir():
            if entry.is_dir():
                walk(entry, f"{before}{entry.name}/")
            else:
                found[before + entry.name] = entry.read_text(encoding="utf-8")

    top = (resources.files("units") if root is None else root) / variant
    if top.is_dir():
        walk(top, "")
    if not found:
        raise KeepfleetError(ErrorKind.INTERNAL, f"cannot install: the package holds no {variant} units")
    return dict(sorted(found.items()))


def _existing(path: str) -> str | None:
    try:
        text = files.read(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    if not text.startswith(MARK):
        raise KeepfleetError(
            ErrorKind.CONFLICT, f"cannot replace {path}: `keepctl install` did not write it; move it away first"
        )
    return text


def install(where: Target, values: dict[str, str], root: Traversable | None = None) -> list[Change]:
    """Writes every unit that is not there as it should be, each file atomically, and reloads systemd.

    Everything is rendered and checked before the first file changes. Raises KeepfleetError.
    """
    changes = []
    with files.explained(f"install units in {where.directory}"):
        wanted = {
            os.path.join(where.directory, n): render(n, t, values) for n, t in templates(where.variant, root).items()
        }
        found = {path: _existing(path) for path in wanted}
        for path, text in wanted.items():
            if found[path] != text:
                files.make_directories(os.path.dirname(path), files.PUBLIC_DIRECTORY)
                files.replace(path, text.encode("utf-8"), files.PUBLIC_FILE)
            changes.append(Change(path, "unchanged" if found[path] == text else "written"))
    if where.reload:
        systemctl(where.variant, "daemon-reload")
    return changes


def uninstall(where: Target, root: Traversable | None = None) -> list[Change]:
    """Removes the units we wrote and reloads systemd. Raises KeepfleetError(CONFLICT) while anything of ours runs."""
    if where.reload:
        running = systemctl(
            where.variant, "list-units", "--plain", "--no-legend", "--state=active,activating,deactivating,reloading",
            "keep@*.service", "keep-manager.service",
        ).split("\n")  # fmt: skip
        units = [line.split()[0] for line in running if line.strip()]
        if units:
            raise KeepfleetError(
                ErrorKind.CONFLICT,
                f"cannot uninstall while {len(units)} of our units run; remove the keeps, then stop the manager",
                tuple(units[:10]),
            )
    changes = []
    with files.explained(f"remove units from {where.directory}"):
        paths = [os.path.join(where.directory, name) for name in templates(where.variant, root)]
        for path in [path for path in paths if _existing(path) is not None]:
            os.unlink(path)
            changes.append(Change(path, "removed"))
            if os.path.dirname(path) != where.directory and not os.listdir(os.path.dirname(path)):
                os.rmdir(os.path.dirname(path))
    if where.reload:
        systemctl(where.variant, "daemon-reload")
    return changes


def systemctl(variant: str, *arguments: str) -> str:
    """What `systemctl` prints. Raises KeepfleetError(SYSTEMD) with its complaint."""
    command = ["systemctl", *(["--user"] if variant == "user" else []), *arguments]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KeepfleetError(ErrorKind.SYSTEMD, f"cannot run {' '.join(command)}: {error}") from error
    if done.returncode:
        raise KeepfleetError(
            ErrorKind.SYSTEMD,
            f"cannot run {' '.join(command)}: it failed; is this host running systemd? (--no-reload leaves it out)",
            tuple(done.stderr.strip().splitlines()[-5:]),
        )
    return done.stdout
