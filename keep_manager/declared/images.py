"""File systems in files, made by e2fsprogs: what a volume is."""

from __future__ import annotations

import os
import shutil
import subprocess

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.limits import MIB

PROGRAMS = os.pathsep.join(("/usr/sbin", "/sbin", "/usr/bin", "/bin"))
FORMAT_SECONDS = 120.0
"""Formatting writes one part in sixty-four of a volume, at most; this is for the largest on a slow disk."""
FEATURES = (
    *("has_journal", "extent", "huge_file", "flex_bg", "metadata_csum", "64bit", "dir_nlink", "extra_isize"),
    *("sparse_super", "large_file", "filetype", "dir_index", "ext_attr", "^resize_inode"),
)
"""ext4 as mke2fs makes it by default; named, so that no host's mke2fs.conf decides."""
OWNER = "65534:65534"
"""Of its directory on disk, and of all in it: see keep_grants.volumes.OWNER."""


def format_image(path: str, size: int, inodes: int) -> None:
    """Makes a file system of `size` bytes in the file at `path`, which has room for it. Raises KeepfleetError."""
    journal = min(max(size // (64 * MIB), 4), 64)
    options = f"nodiscard,lazy_itable_init=0,lazy_journal_init=0,root_owner={OWNER}"
    _run(
        "mkfs.ext4",
        *("-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-O", ",".join(FEATURES), "-E", options),
        *("-J", f"size={journal}", "-N", str(inodes), "-L", "keepfleet", path),
    )
    _run("debugfs", "-w", "-R", "rmdir lost+found", path)  # a guest's directory is empty at first


def _run(program: str, *words: str) -> None:
    found = shutil.which(program, path=PROGRAMS)
    if found is None:
        why = f"this host has no {program}; install e2fsprogs"
        raise KeepfleetError(ErrorKind.UNSUPPORTED, f"cannot make a volume: {why}")
    environment = {"PATH": PROGRAMS, "LC_ALL": "C", "MKE2FS_CONFIG": os.devnull}
    try:
        subprocess.run(
            [found, *words],
            check=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=FORMAT_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").split("\n")
        raise KeepfleetError(
            ErrorKind.UNAVAILABLE, f"cannot make a volume: {program} exited {error.returncode}", tuple(said[-10:])
        ) from error
    except subprocess.TimeoutExpired as error:
        why = f"{program} took more than {FORMAT_SECONDS:g} s"
        raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot make a volume: {why}") from error
