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
BLOCK = 4096
SUPERBLOCK = 1024
"""Where ext4 begins to describe itself, with the number of its inodes."""
OWNER = "65534:65534"
"""Of its directory on disk, and of all in it: see keep_grants.volumes.OWNER."""


def format_image(path: str, size: int, inodes: int) -> None:
    """Makes a file system of `size` bytes in the file at `path`, which has room for it. Raises KeepfleetError."""
    journal = min(max(size // (64 * MIB), 4), 64)
    options = f"nodiscard,lazy_itable_init=0,lazy_journal_init=0,root_owner={OWNER}"
    _run(
        "mkfs.ext4",
        *("-q", "-F", "-b", str(BLOCK), "-I", "256", "-m", "0", "-O", ",".join(FEATURES), "-E", options),
        *("-J", f"size={journal}", "-N", str(inodes), "-L", "keepfleet", path),
    )
    _without_lost_and_found(path)


def grow_image(path: str, size: int) -> None:
    """Has the file system in the file at `path`, which no one has mounted and which has that much room, fill `size`
    bytes. Raises KeepfleetError; then it may be damaged, and is to be thrown away."""
    _run("e2fsck", "-f", "-p", path, well=(0, 1))  # resize2fs wants it; 1: what its journal had was carried out
    _run("resize2fs", path, str(size // BLOCK))
    _without_lost_and_found(path)


def _without_lost_and_found(path: str) -> None:
    """A guest's directory is empty at first; what a check makes is removed again where there is nothing in it."""
    _run("debugfs", "-w", "-R", "rmdir lost+found", path)


def inodes_of(image: int) -> int:
    """How many files and directories the file system in the open file has room for. Raises OSError."""
    return int.from_bytes(os.pread(image, 4, SUPERBLOCK), "little")


def _run(program: str, *words: str, well: tuple[int, ...] = (0,)) -> None:
    found = shutil.which(program, path=PROGRAMS)
    if found is None:
        why = f"this host has no {program}; install e2fsprogs"
        raise KeepfleetError(ErrorKind.UNSUPPORTED, f"cannot make a volume: {why}")
    environment = {"PATH": PROGRAMS, "LC_ALL": "C", "MKE2FS_CONFIG": os.devnull}
    try:
        done = subprocess.run(
            [found, *words],
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=FORMAT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        why = f"{program} took more than {FORMAT_SECONDS:g} s"
        raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot make a volume: {why}") from error
    if done.returncode not in well:
        said = done.stderr.decode(errors="replace").split("\n")
        why = f"{program} exited {done.returncode}"
        raise KeepfleetError(ErrorKind.UNAVAILABLE, f"cannot make a volume: {why}", tuple(said[-10:]))
