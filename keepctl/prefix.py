"""Where keepfleet is installed, what the units say of it, and whether the manager could use it.

    ROOT/versions/NAME   a version: a whole virtual environment, which nothing changes once it is there
    ROOT/current         a link to the version that the manager and the programs on PATH run

`versions` switches and removes them. A virtual environment that lies in no folder `versions` can be used as well, as in
a sandbox or an image; it is its own only version, and it is never switched or removed.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from dataclasses import dataclass

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_root.contents import Target, target_of

PYTHON_SECONDS = 20.0
"""An interpreter starts in 20 ms."""
HIDDEN_FROM_MANAGER = ("/root", "/home", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - looked at, never written to
"""What ProtectHome= and PrivateTmp= hide from the system's manager (man systemd.exec)."""
OURS = "keep_loader"
"""A package that each installation has."""
_WHERE = f"import os, {OURS}; print(os.path.dirname(os.path.dirname(os.path.abspath({OURS}.__file__))))"
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9/._+-]*")
"""What a unit file takes without quoting: no white space, no %, no $, no quotes, no backslash."""
_ELSEWHERE = "install keepfleet elsewhere, for example in /opt/keepfleet"


@dataclass(frozen=True)
class Prefix:
    """One installed version: `directory` is its virtual environment, without symbolic links in its path."""

    directory: str

    @property
    def versions(self) -> str:
        """The folder this version lies in; it holds versions alone where `is_versioned`."""
        return os.path.dirname(self.directory)

    @property
    def is_versioned(self) -> bool:
        """Whether there can be other versions, of which one is current."""
        return os.path.basename(self.versions) == "versions"

    @property
    def is_managed(self) -> bool:
        """Whether this user may switch and remove versions: not in another user's installation."""
        return self.is_versioned and os.access(self.versions, os.W_OK)

    @property
    def root(self) -> str:
        """The directory of the whole installation."""
        return os.path.dirname(self.versions) if self.is_versioned else self.directory

    @property
    def current(self) -> str:
        """The link to the current version, or the virtual environment itself where there is no other version."""
        return os.path.join(self.root, "current") if self.is_versioned else self.directory

    @property
    def in_units(self) -> str:
        """The path by which units start this version's programs: `current`, unless that is another user's choice."""
        return self.current if self.is_managed or os.path.realpath(self.current) == self.directory else self.directory


def find_prefix(directory: str) -> Prefix:
    """The version in the virtual environment `directory`. Raises KeepfleetError(CONFIGURATION) when there is none."""
    found = Prefix(os.path.realpath(directory))
    python = os.path.join(found.directory, "bin", "python")
    if not os.access(python, os.X_OK):
        raise KeepfleetError(
            ErrorKind.CONFIGURATION,
            f"cannot install units for {directory}: {python} does not exist; name it with --prefix",
        )
    return found


def packages_of(python: str) -> str:
    """The directory `python` finds keepfleet's packages in. Raises KeepfleetError(CONFIGURATION) when it does not."""
    command = [python, "-I", "-c", _WHERE]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PYTHON_SECONDS, cwd="/")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot run {python}: {error}") from error
    if done.returncode:
        raise KeepfleetError(
            ErrorKind.CONFIGURATION,
            f"cannot install units for {python}: keepfleet is not installed there; "
            "run ./run install in keepfleet's sources, or install its wheel there",
            tuple(done.stderr.strip().splitlines()[-1:]),
        )
    return done.stdout.strip()


def target_for(prefix: Prefix) -> Target:
    """What the keeps of this version run. Raises KeepfleetError(CONFIGURATION) where it is not whole."""
    python = os.path.join(prefix.directory, "bin", "python")
    return target_of(python, packages_of(python))


def values_for(prefix: Prefix, variant: str, trees: str) -> dict[str, str]:
    """The value of each placeholder in the units of `variant`, "system" or "user", whose roots are in `trees`.

    Raises KeepfleetError(CONFIGURATION) when something is missing, or the system's manager could not use it.
    """
    if variant == "system":
        target = target_for(prefix)
        for path in (prefix.directory, target.python, target.packages):
            check_visible(check_path(path, "which the manager uses"))
    return {"PREFIX": prefix.in_units, "TREES": trees}


def check_path(path: str, what: str) -> str:
    """`path` when a unit file can hold it as it is. Raises KeepfleetError(CONFIGURATION) otherwise."""
    if not _PLAIN_PATH.fullmatch(path):
        raise KeepfleetError(
            ErrorKind.CONFIGURATION,
            f"cannot name {path!r}, {what}, in a unit: it may only have letters, digits and / . _ + -; {_ELSEWHERE}",
        )
    return path


def check_visible(path: str) -> None:
    """Raises KeepfleetError(CONFIGURATION) unless the system's manager sees `path`, and only its owner and root can
    replace it."""
    path = os.path.abspath(path)
    for hidden in HIDDEN_FROM_MANAGER:
        if path == hidden or path.startswith(hidden + "/"):
            raise KeepfleetError(
                ErrorKind.CONFIGURATION,
                f"cannot install for all users: {path} lies below {hidden}, which the manager does not see; "
                + _ELSEWHERE,
            )
    step = path
    while True:
        mode = os.stat(step).st_mode
        if mode & 0o002 and not mode & stat.S_ISVTX:
            raise KeepfleetError(
                ErrorKind.CONFIGURATION,
                f"cannot install for all users: anybody can change {step}; run: chmod o-w {step}",
            )
        if step == "/":
            return
        step = os.path.dirname(step)
