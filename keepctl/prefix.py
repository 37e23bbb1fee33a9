"""Where keepfleet is installed: what each placeholder of a unit stands for, and whether a keep could use it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess

from keep_protocol.errors import ErrorKind, KeepfleetError
from keepctl.rendering import check_path

PYTHON_SECONDS = 20.0
"""An interpreter starts in 20 ms."""
HIDDEN_FROM_KEEPS = ("/root", "/home", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - looked at, never written to
"""What ProtectHome= and PrivateTmp= take out of a keep's sight (man systemd.exec)."""
_OURS = "keep_loader"
_WHERE = f"import os, {_OURS}; print(os.path.dirname(os.path.dirname(os.path.abspath({_OURS}.__file__))))"


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
            f"run: {python} -m pip install keepfleet",
            tuple(done.stderr.strip().splitlines()[-1:]),
        )
    return done.stdout.strip()


def values_for(prefix: str, variant: str) -> dict[str, str]:
    """What stands for each placeholder when keepfleet lives in the virtual environment `prefix`.

    Raises KeepfleetError(CONFIGURATION) when something is missing, or a keep could not read it.
    """
    prefix = os.path.abspath(prefix)
    python = os.path.join(prefix, "bin", "python")
    if not os.access(python, os.X_OK):
        raise KeepfleetError(
            ErrorKind.CONFIGURATION,
            f"cannot install units for {prefix}: {python} does not exist; name it with --prefix",
        )
    openssl = shutil.which("openssl", path="/usr/bin:/bin:/usr/local/bin")
    if openssl is None:
        raise KeepfleetError(
            ErrorKind.CONFIGURATION, "cannot install: keeps make their keys with openssl; run: apt-get install openssl"
        )
    values = {
        "PREFIX": prefix,
        "PYTHON": python,
        "PYTHON_REAL": os.path.realpath(python),
        "PACKAGES": packages_of(python),
        "OPENSSL": os.path.realpath(openssl),
    }
    if variant == "system":
        for name, path in values.items():
            check_visible(check_path(path, f"@{name}@"))
        check_visible(os.path.join(values["PACKAGES"], _OURS, "__main__.py"))
    return values


def check_visible(path: str) -> None:
    """Raises KeepfleetError(CONFIGURATION) unless a keep, which is a user of its own, can reach and read `path`,
    and nobody but its owner or root could put something else there."""
    path = os.path.abspath(path)
    for hidden in HIDDEN_FROM_KEEPS:
        if path == hidden or path.startswith(hidden + "/"):
            raise KeepfleetError(
                ErrorKind.CONFIGURATION,
                f"cannot install for all users: {path} lies below {hidden}, which keeps do not see; "
                "install keepfleet elsewhere, for example in /opt/keepfleet",
            )
    step = path
    while True:
        mode = os.stat(step).st_mode
        needed = 0o001 if step != path else 0o005 if mode & 0o100 else 0o004
        if mode & needed != needed:
            raise KeepfleetError(
                ErrorKind.CONFIGURATION,
                f"cannot install for all users: {step} has mode {stat.S_IMODE(mode):04o}, and keeps, each a user of "
                f"its own, could not use {path}; install keepfleet elsewhere, for example in /opt/keepfleet",
            )
        if mode & 0o002 and not mode & stat.S_ISVTX:
            raise KeepfleetError(
                ErrorKind.CONFIGURATION,
                f"cannot install for all users: anybody can change {step}; run: chmod o-w {step}",
            )
        if step == "/":
            return
        step = os.path.dirname(step)
