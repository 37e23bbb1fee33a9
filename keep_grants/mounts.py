"""Makes granted directories: detached mounts that nothing leads out of, where a keep has a chosen user's rights; and
opens granted files, each as a detached mount, too.

Detached means that no path leads to it: `..` at its top is itself. An id map shows one user's files as the keep's own,
and stores what the keep makes as that user's. The descriptor works on after the mount has been dissolved.
Import rule: that of keep_grants.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import ExitStack

from keep_grants import kernel
from keep_grants.protocol import (
    FIRST_DYNAMIC,
    LAST_DYNAMIC,
    DiskIds,
    Granted,
    KeepIds,
    Wanted,
    WantedFile,
    WantedVolume,
)
from keep_grants.resolve import keep, open_below, open_root, refusal
from keep_grants.volumes import OWNER, mounted
from keep_protocol.errors import ErrorKind, KeepfleetError

ATTRIBUTES = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOEXEC
MOST_MOUNTS_NAMED = 64
"""Mounts below a directory that are tried one by one to name the one that cannot be id-mapped."""
NO_MAP = {errno.EINVAL: "cannot be id-mapped", errno.EPERM: "has an id map already"}
"""What mount_setattr says of a mount that it cannot map (man 2 mount_setattr)."""
_ESCAPED = re.compile(rb"\\([0-7]{3})")
SET_FILES_AS = "set `files_as: USER` for this root in the manager's configuration, under callers"


class NoMap(Exception):
    """A tree that cannot be id-mapped, for the reason given; other: a mount below the top is at fault."""

    def __init__(self, why: str, *, other: bool) -> None:
        super().__init__(why)
        self.other = other


class Maker:
    """Makes the directories of one request for the user `shown`; for None, in a user's own instance, unmapped.

    detached: "" where mounts can be made here, else why not: a directory is opened as it is then.
    """

    def __init__(self, shown: KeepIds | None, detached: str = "") -> None:
        self._shown, self._undetached = shown, detached
        self._namespaces: dict[DiskIds, int] = {}
        self._held = ExitStack()

    def __enter__(self) -> Maker:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def __repr__(self) -> str:
        return f"Maker(for {self._shown}, {len(self._namespaces)} user namespaces)"

    def make(self, held: ExitStack, wanted: Wanted) -> tuple[int, Granted]:
        """The directory's descriptor, which `held` closes, and what became of it. Raises KeepfleetError."""
        with ExitStack() as own:
            root = open_root(own, wanted.root)
            try:
                place = open_below(own, root, wanted.rest)
                if not stat.S_ISDIR(os.fstat(place).st_mode):
                    raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot grant {wanted.path}: it is no directory")
                if self._undetached:
                    lacks = f"it is no mount of its own: {self._undetached}"
                    return _opened(held, place), Granted(None, lacks)
                tree, granted = self._tree(own, wanted, root, place)
                return _opened(held, tree), granted
            except OSError as error:
                raise refusal(wanted.path, error) from error

    def open(self, held: ExitStack, wanted: WantedFile) -> tuple[int, Granted]:
        """The descriptor of one file of any owner, opened for reading, which `held` closes. Raises KeepfleetError.

        On a read-only mount of its own: nothing opens it again for writing, and its file system can be unmounted.
        """
        with ExitStack() as own:
            try:
                place = open_below(own, open_root(own, wanted.root), wanted.rest)
                _check_regular(wanted, os.fstat(place))
                if not self._undetached:
                    place = _cloned(own, place, ATTRIBUTES | kernel.MOUNT_ATTR_RDONLY)
                descriptor = keep(held, os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC))
                return descriptor, Granted(None, self._undetached and f"it is no mount of its own: {self._undetached}")
            except OSError as error:
                raise refusal(wanted.path, error) from error

    def volume(self, held: ExitStack, wanted: WantedVolume) -> tuple[int, Granted]:
        """The directory of a volume, which `held` closes, and the volume is the keep's until the last who has it closes
        it. Raises KeepfleetError."""
        if self._shown is None:
            why = "no user may mount a file system; declare the keep to the system's own manager"
            raise KeepfleetError(ErrorKind.UNSUPPORTED, f"cannot have volume {wanted.name}: {why}")
        with ExitStack() as own:
            tree = mounted(own, wanted)
            try:
                kernel.set_attributes(tree, ATTRIBUTES, self._namespace(OWNER, self._shown))
                return _opened(held, tree), Granted(OWNER)
            except OSError as error:
                why = f"it cannot be id-mapped: {error.strerror}"
                raise KeepfleetError(ErrorKind.UNSUPPORTED, f"cannot have volume {wanted.name}: {why}") from error

    def _tree(self, own: ExitStack, wanted: Wanted, root: int, place: int) -> tuple[int, Granted]:
        attributes = ATTRIBUTES | (0 if wanted.writable else kernel.MOUNT_ATTR_RDONLY)
        disk, unmapped = _disk(wanted, root) if self._shown and wanted.mapped else (None, "")
        if disk is not None and self._shown is not None:
            try:
                tree = _mapped(own, place, attributes, self._namespace(disk, self._shown))
                _check_rights(wanted, place, tree, disk)
                return tree, Granted(disk)
            except NoMap as fault:
                if wanted.writable or fault.other:
                    why = f"cannot grant {wanted.path} with files as user {disk.uid}: {fault}"
                    more = "" if fault.other else "; `files_as: keep` would leave them to users that come and go"
                    raise KeepfleetError(ErrorKind.UNSUPPORTED, why + more) from fault
                unmapped = str(fault)
        lacks = f"the keep reads what everybody may read: {unmapped}" if unmapped else ""
        return _cloned(own, place, attributes), Granted(None, lacks)

    def _namespace(self, disk: DiskIds, shown: KeepIds) -> int:
        """The user namespace that shows the files of `disk` as those of `shown`; one for all the directories."""
        if disk not in self._namespaces:
            made = kernel.user_namespace((disk.uid, shown.uid), (disk.gid, shown.gid))
            try:
                self._namespaces[disk] = self._held.enter_context(made)
            except OSError as error:
                why = f"this host makes no user namespace: {error.strerror}"
                raise KeepfleetError(ErrorKind.UNSUPPORTED, f"cannot grant directories: {why}") from error
        return self._namespaces[disk]


def _check_regular(wanted: WantedFile, status: os.stat_result) -> None:
    """Raises KeepfleetError unless a regular file with one name was found, which no other user can have put there."""
    if not stat.S_ISREG(status.st_mode):
        why = "it is no regular file, as standard input and secrets are"
        raise KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot grant {wanted.path}: {why}")
    if status.st_nlink > 1:
        why = "the file has a second name (a hard link), which may lie anywhere"
        raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot grant {wanted.path}: {why}")


def _disk(wanted: Wanted, root: int) -> tuple[DiskIds | None, str]:
    """Whose the files are on disk, or None and why they stay unmapped. Raises KeepfleetError(CONFIGURATION)."""
    status = os.fstat(root)
    uid, gid = (status.st_uid, status.st_gid) if wanted.disk is None else (wanted.disk.uid, wanted.disk.gid)
    whose = "it has files_as" if wanted.disk else f"{wanted.root} belongs to"
    if 0 in (uid, gid):
        why = f"{whose} {uid}:{gid}, which is {'root' if uid == 0 else 'root as a group'}"
    elif any(FIRST_DYNAMIC <= number <= LAST_DYNAMIC for number in (uid, gid)):
        why = f"{whose} {uid}:{gid}, which systemd gives to one service after another"
    else:
        return DiskIds(uid, gid), ""
    if wanted.writable or wanted.disk:
        raise KeepfleetError(
            ErrorKind.CONFIGURATION,
            f"cannot grant {wanted.path}: {why}, and no keep may be that; {SET_FILES_AS}, or give it another owner",
        )
    return None, why


def _check_rights(wanted: Wanted, place: int, tree: int, disk: DiskIds) -> None:
    """Raises KeepfleetError(FORBIDDEN) where a keep with the rights of `disk` could not use the directory.

    What belongs to a user or a group that the map does not have is never written to, whatever its mode says: the kernel
    could not write its owner back, and says EACCES. Read it is by its mode, as the helper may here no more than that.
    """
    status, owner, why = os.fstat(place), f"{disk.uid}:{disk.gid}", ""
    found = f"it belongs to {status.st_uid}:{status.st_gid}"
    if wanted.writable and (status.st_uid, status.st_gid) != (disk.uid, disk.gid):
        why = f"for writing: {found}, and the keep writes to what is {owner}'s alone"
    try:
        with ExitStack() as own:
            _opened(own, tree)
    except PermissionError:
        why = why or f"with the rights of {owner}, who may not read it: {found}"
    if why:
        raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot grant {wanted.path} {why}; run: chown {owner} {wanted.path}")


def _opened(held: ExitStack, tree: int) -> int:
    """The tree's directory, opened for reading and not only as a place: systemd's store takes no O_PATH."""
    return keep(held, kernel.open_strictly(".", os.O_RDONLY | os.O_DIRECTORY, tree))


def _cloned(
    own: ExitStack, place: int, attributes: int, namespace: int | None = None, *, recursive: bool = True
) -> int:
    """A detached mount of the directory at `place`, with what is mounted below it: without that the keep would see what
    lies hidden there. Raises OSError."""
    tree = keep(own, kernel.clone_tree(place, recursive=recursive))
    kernel.set_attributes(tree, attributes, namespace)
    return tree


def _mapped(own: ExitStack, place: int, attributes: int, namespace: int) -> int:
    """The same, id-mapped. Raises OSError, NoMap where that is not possible."""
    try:
        return _cloned(own, place, attributes, namespace)
    except OSError as error:
        if error.errno not in NO_MAP:
            raise
        mounts = MountTable()
        if not _can_map(place, namespace):
            raise NoMap(f"its file system, {mounts.kind_of(place)}, {NO_MAP[error.errno]}", other=False) from error
        for point, kind in mounts.below(place):
            with ExitStack() as each:
                below = keep(each, kernel.open_strictly(point, os.O_PATH, kernel.AT_FDCWD, kernel.NO_LINKS))
                if not _can_map(below, namespace):
                    raise NoMap(f"{kind}, mounted at {point}, {NO_MAP[error.errno]}", other=True) from error
        raise NoMap(f"something mounted in it {NO_MAP[error.errno]}", other=True) from error


def _can_map(place: int, namespace: int) -> bool:
    """Whether the one mount at `place` can be id-mapped. Raises OSError where it cannot be tried."""
    with ExitStack() as own:
        try:
            _cloned(own, place, 0, namespace, recursive=False)
        except OSError as error:
            if error.errno in NO_MAP:
                return False
            raise
    return True


class MountTable:
    """The mounts that a process sees, this one by default: number, place, kind of each (man 5 proc_pid_mountinfo)."""

    def __init__(self, process: int | str = "self") -> None:
        self._mounts: list[tuple[int, str, str]] = []
        with open(f"/proc/{process}/mountinfo", "rb") as file:
            for line in file:
                before, _, after = line.partition(b" - ")
                fields = before.split()
                point = _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), fields[4])
                self._mounts.append((int(fields[0]), os.fsdecode(point), os.fsdecode(after.split()[0])))

    def __repr__(self) -> str:
        return f"MountTable({len(self._mounts)} mounts)"

    def kind_of(self, place: int) -> str:
        """The kind of file system that a descriptor lies on."""
        number = _number_of(place)
        return next((kind for known, _, kind in self._mounts if known == number), "of an unknown kind")

    def has(self, place: int) -> bool:
        """Whether the mount that a descriptor lies on is one of these."""
        number = _number_of(place)
        return any(known == number for known, _, _ in self._mounts)

    def below(self, place: int) -> list[tuple[str, str]]:
        """Place and kind of the mounts below a directory, at most MOST_MOUNTS_NAMED."""
        above = os.readlink(f"/proc/self/fd/{place}").rstrip("/") + "/"
        found = [(point, kind) for _, point, kind in self._mounts if point.startswith(above)]
        return found[:MOST_MOUNTS_NAMED]


def _number_of(place: int) -> int:
    """The number of the mount that a descriptor lies on."""
    with open(f"/proc/self/fdinfo/{place}", encoding="ascii") as file:
        return int(dict(line.split(":", 1) for line in file)["mnt_id"])


def no_view_of_the_host(service_manager: int) -> str:
    """Why this process would not see what is mounted from now on: it is in another mount namespace than the process
    `service_manager`, which started it; "" where it is in the same one.

    What lies hidden under such a mount would be granted then. A namespace's mounts have numbers that no other's have,
    so that two processes with one mount in common are in one namespace; /proc/PID/ns would say it directly, and is
    refused for a process with more capabilities. Where / is shared, mounts made on the host appear in other namespaces,
    too; that depends on each mount above, and is not relied upon.
    """
    try:
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            if MountTable(service_manager).has(root):
                return ""
        finally:
            os.close(root)
    except OSError as error:
        return f"it cannot know whether it sees the host's mounts: /proc/{service_manager}/mountinfo: {error.strerror}"
    return "it has a mount namespace of its own, and would miss what is mounted on the host"


def own_namespaces() -> str:
    """Gives this process a user and a mount namespace of its own, in which a user may make mounts; "", or why not.

    It shows the mounts of this moment: what is mounted later appears in it only where the mount above is shared.
    """
    uid, gid = os.getuid(), os.getgid()
    try:
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "wb", buffering=0) as file:
                file.write(text.encode())
    except OSError as error:
        return f"this host lets no user make mounts of its own: {error.strerror}"
    return ""
