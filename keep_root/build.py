"""Makes a tree: next to its place, and then renamed to it, so that a crash leaves nothing that is taken for a tree.

Import rule: that of keep_root.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_root.contents import MODE_OF_PROGRAM, MOUNT_POINTS, Contents, Entry, Target, compiled_place, run
from keep_root.tree import TREE, Tree, is_in_use, is_trusted, read_tree, write_records

UNFINISHED, REMOVED = ".new-", ".removed-"
"""How the names of directories begin that are being made or removed; `trees` takes away what a crash left of them."""
DIRECTORY_MODE = 0o755
"""Whatever the umask is: each keep is a user of its own."""
COPY_BYTES = 1024 * 1024
_NOT_LINKED = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.EOPNOTSUPP)
"""Another file system, or another mount of the same; fs.protected_hardlinks; too many links already."""
_READABLE = 0o444
_COMPILE = """import json, py_compile, sys
for source, target, shown in json.load(sys.stdin):
    py_compile.compile(source, target, shown, True, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
"""


def build(directory: str, name: str, target: Target, contents: Contents) -> Tree:
    """The tree DIRECTORY/NAME of these contents; where another process makes the same one, the first that is finished.

    Raises KeepfleetError: NO_SPACE where the disk is full, CONFIGURATION where it cannot be written; nothing is left.
    """
    place = os.path.join(directory, name)
    try:
        os.makedirs(directory, DIRECTORY_MODE, exist_ok=True)
        new = tempfile.mkdtemp(prefix=f"{UNFINISHED}{name}-", dir=directory)
    except OSError as error:
        raise _explained(directory, error) from error
    lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.chmod(new, DIRECTORY_MODE)
        _fill(os.path.join(new, TREE), target, contents)
        write_records(new, target, contents)
        run(["sync", "--file-system", new], "it cannot flush it to disk")
        return _put(new, place)
    except OSError as error:
        raise _explained(directory, error) from error
    finally:
        os.close(lock)
        if os.path.isdir(new):
            shutil.rmtree(new)


def _put(new: str, place: str) -> Tree:
    """Gives the finished tree its name. Raises OSError."""
    try:
        os.rename(new, place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        there = read_tree(place)
        if there is not None and is_trusted(there) and there.damage() is None:
            return there
        remove(place)
        os.rename(new, place)
    made = read_tree(place)
    if made is None:
        raise KeepfleetError(ErrorKind.INTERNAL, f"cannot read what was just made in {place}")
    return made


def remove(place: str) -> None:
    """Takes a tree's name from it, so that what is left of it is not taken for one, and removes it; one that was
    damaged under living keeps waits for their end (`trees` sees to it). Raises OSError."""
    away = tempfile.mkdtemp(prefix=REMOVED, dir=os.path.dirname(place))
    os.rename(place, away)
    if not is_in_use(away):
        shutil.rmtree(away)


def _explained(directory: str, error: OSError) -> KeepfleetError:
    what = f"cannot build the keeps' root in {directory}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return KeepfleetError(ErrorKind.NO_SPACE, f"{what}; it takes up to 80 MB")
    return KeepfleetError(ErrorKind.CONFIGURATION, what + (f" ({error.filename})" if error.filename else ""))


def _fill(tree: str, target: Target, contents: Contents) -> None:
    made = {""}
    os.mkdir(tree)
    os.chmod(tree, DIRECTORY_MODE)
    for point in MOUNT_POINTS:
        _directories(tree, point, made)
    for entry in contents.entries:
        _directories(tree, os.path.dirname(entry.place), made)
        _put_file(entry, f"{tree}/{entry.place}")
    _compile(tree, target, contents, made)


def _directories(tree: str, place: str, made: set[str]) -> None:
    if place not in made:
        _directories(tree, os.path.dirname(place), made)
        os.mkdir(f"{tree}/{place}")
        os.chmod(f"{tree}/{place}", DIRECTORY_MODE)
        made.add(place)


def _put_file(entry: Entry, path: str) -> None:
    """A hard link where every keep may read the file and only its owner write it; a copy elsewhere."""
    source = os.path.realpath(entry.source)
    status = os.stat(source)
    ours = status.st_uid in (0, os.geteuid()) and status.st_mode & 0o022 == 0
    if entry.mode != MODE_OF_PROGRAM and ours and status.st_mode & _READABLE == _READABLE:
        try:
            os.link(source, path)
        except OSError as error:
            if error.errno not in _NOT_LINKED:
                raise
        else:
            return
    _copy(source, path, entry.mode, (status.st_atime_ns, status.st_mtime_ns))


def _copy(source: str, path: str, mode: int, times: tuple[int, int]) -> None:
    """With its time, which the compiled form of a source names."""
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            while data := os.read(reader, COPY_BYTES):
                view = memoryview(data)
                while view:
                    view = view[os.write(writer, view) :]
            os.fchmod(writer, mode)
            os.utime(writer, ns=times)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _compile(tree: str, target: Target, contents: Contents, made: set[str]) -> None:
    """What the host has no compiled form of is compiled now: a keep cannot, and would do it at each of its starts."""
    if not contents.uncompiled:
        return
    wanted = []
    for place in contents.uncompiled:
        compiled = compiled_place(place, contents.tag)
        _directories(tree, os.path.dirname(compiled), made)
        wanted.append((f"{tree}/{place}", f"{tree}/{compiled}", f"/{place}"))
    done = run([target.python, "-I", "-S", "-c", _COMPILE], "it cannot compile", json.dumps(wanted))
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise KeepfleetError(ErrorKind.CONFIGURATION, f"cannot build the keeps' root: it cannot compile: {why[0]}")
    for _, compiled, _ in wanted:
        os.chmod(compiled, 0o644)
