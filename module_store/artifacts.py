"""Compiled code kept on this host: made once for each module, engine and settings, mapped by every keep that runs it.

An artifact is native code, so that nothing but what this cache wrote itself is ever used: each file is sealed
(`sealing`), which is checked at each opening, by reading the very descriptor that is then passed on. What does not fit
is removed and compiled again: nothing is here that could not be made again, and the directory may be deleted any time.

    DIRECTORY/key            32 random bytes; another key voids every artifact
    DIRECTORY/HEX            an artifact, named by the digest of its Key: contents, header, tail
    DIRECTORY/.new-…         what is being written

The files can be read by everybody and the directory only by its owner: a keep, another user's, opens the descriptor
that it was given a second time to map it as code. Who holds that descriptor holds a shared lock, by which the cache
knows what is in use. Import rule: that of module_store.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from module_store.disk import OPEN_DIRECTORY, OPEN_FILE, Disk, explained, lock_now
from module_store.opening import Opened, check_own, open_path
from module_store.sealing import (
    ARTIFACT_MODE,
    SECRET,
    Key,
    Seal,
    fault_of,
    key_in,
    new_secret,
    read_secret,
    size_of_code,
)

LOG = logging.getLogger("keepfleet.artifacts")
SYSTEM = "/var/lib/keepfleet/artifacts"
"""The system's cache; a user's is below the XDG cache home."""
CACHE_BYTES = 4 * 1024 * 1024 * 1024
"""Of all artifacts together: CPython's component has 45 MB, so that ninety like it fit."""
MAX_ARTIFACT_BYTES = 1024 * 1024 * 1024
"""Of one: compiled code is three to six times as long as the module it is made of."""
_NEW = ".new-"


class Artifact(Record):
    """An artifact that was checked. descriptor: of the file, for reading alone, which the holder closes; while it, or a
    copy of it in any process, is open the artifact counts as used. size: of the compiled code; its header is behind."""

    key: Key
    descriptor: int
    size: int


def another(artifact: Artifact) -> Artifact:
    """The same file opened a second time, for another holder: neither's locks or position are the other's."""
    descriptor = os.open(f"/proc/self/fd/{artifact.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return artifact.replace(descriptor=descriptor)


def default_directory() -> str:
    """The system's cache for root, else the user's own."""
    if os.geteuid() == 0:
        return SYSTEM
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(home, "keepfleet/artifacts")


class Artifacts(Opened):
    """A cache, open; made where there is none. What it raises is KeepfleetError; threads may share one."""

    def __init__(self, directory: str | None = None, disk: Disk | None = None, limit: int = CACHE_BYTES) -> None:
        self.path = os.path.normpath(directory or default_directory())
        self._disk, self._limit = disk or Disk(), limit
        with ExitStack() as held, explained(f"open the compiled code in {self.path}"):
            self._directory = open_path(held, self.path, self._disk)
            check_own(self._directory, self.path)
            self._held = held.pop_all()
        try:
            with explained(f"open the compiled code in {self.path}"), self._locked():
                self._clear_abandoned()
                self._seal = Seal(read_secret(self._directory, self.path) or self._make_secret())
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Artifacts({self.path})"

    def close(self) -> None:
        """Closes it; descriptors of artifacts go on."""
        self._held.close()

    @property
    def maps_code(self) -> bool:
        """Whether what lies here may be mapped as code; a mount with noexec forbids that, and each keep then makes a
        copy of its own."""
        return not os.fstatvfs(self._directory).f_flag & os.ST_NOEXEC

    # --- what is there -----------------------------------------------------------------------------------------------

    def open(self, key: Key) -> Artifact | None:
        """The artifact for `key`, checked, and as young as a new one; None where there is none that can be used, and
        then nothing is there any more. Raises KeepfleetError where the disk fails."""
        with explained(f"read compiled code in {self.path}"), ExitStack() as held:
            file = self._open(key.name)
            if file is None:
                return None
            held.callback(os.close, file)
            status = os.fstat(file)
            with suppress(OSError):  # one that a keep has locked for itself can be used all the same
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fault = fault_of(status) or self._seal.fault_in(file, status.st_size, key)
            if fault:
                self._remove(key.name, status, fault)
                return None
            self._disk.renew(file)
            held.pop_all()
            return Artifact(key, file, size_of_code(status.st_size, key))

    def _open(self, name: str) -> int | None:
        """The file of this name; None where there is none, or a link was, which is removed. Raises OSError."""
        while True:
            try:
                file = os.open(name, OPEN_FILE, dir_fd=self._directory)
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.EACCES, errno.ENXIO):
                    raise
                self._remove(name, None, "it is a link, or no file of this cache's")
                return None
            if os.fstat(file).st_nlink:
                return file
            os.close(file)  # another has taken its place in this moment

    def has(self, key: Key) -> bool:
        """Whether there is a file for `key`; not checked."""
        try:
            os.stat(key.name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def keys(self) -> list[Key]:
        """What there are artifacts for, of earlier engines, too; what was used last comes first. Not checked."""
        found: list[tuple[int, Key]] = []
        with explained(f"list the compiled code in {self.path}"):
            for name, status in self._listed():
                file = self._open(name)
                if file is None:
                    continue
                try:
                    key = key_in(file, status.st_size)
                finally:
                    os.close(file)
                if key is not None:
                    found.append((status.st_mtime_ns, key))
        return [key for _, key in sorted(found, key=lambda entry: entry[0], reverse=True)]

    def total(self) -> int:
        """Bytes of all artifacts."""
        with explained(f"list the compiled code in {self.path}"):
            return sum(status.st_size for _, status in self._listed())

    # --- what comes and goes -----------------------------------------------------------------------------------------

    @contextmanager
    def scratch(self) -> Iterator[int]:
        """A file without a name, on the same disk, for what a compiler writes; it is gone with its last descriptor."""
        with explained(f"make room for compiled code in {self.path}"), ExitStack() as held:
            with self._locked():
                file, name = self._create()
                held.callback(os.close, file)
                self._disk.remove(self._directory, name)
            held.pop_all()
        try:
            yield file
        finally:
            os.close(file)

    def put(self, key: Key, code: int, reached: Callable[[str], None] = lambda _: None) -> Artifact:
        """Keeps a copy of the file `code` as the artifact for `key`, on disk when this returns, opened as by `open`.

        It is copied, so that no other process ever had what is kept here open for writing. `reached` is called with the
        name of each step that was made. Raises KeepfleetError: NO_SPACE, also where the cache is full of what is used,
        TOO_LARGE; nothing is left of what failed.
        """
        size = os.fstat(code).st_size
        if not 0 < size <= MAX_ARTIFACT_BYTES:
            raise KeepfleetError(
                ErrorKind.TOO_LARGE,
                f"cannot keep compiled code: it has {size} bytes, and 1 to {MAX_ARTIFACT_BYTES} can be kept",
            )
        with explained(f"keep compiled code in {self.path}"):
            with self._locked():
                file, new_name = self._create()
            try:
                reached("created")
                self._seal.write(self._disk, file, code, size, key)
                os.fchmod(file, ARTIFACT_MODE)
                self._disk.sync(file)
                reached("written")
                reader = self._give_name(file, new_name, key, reached)
            finally:
                self._drop(file, new_name)
            try:
                fault = self._seal.fault_in(reader, os.fstat(reader).st_size, key)
            except OSError:
                os.close(reader)
                raise
        if fault:
            os.close(reader)
            self.discard(key, fault)
            why = f"{fault} when it was read again; is the disk failing?"
            raise KeepfleetError(ErrorKind.INTERNAL, f"cannot keep compiled code in {self.path}: {why}")
        return Artifact(key, reader, size)

    def _give_name(self, file: int, new_name: str, key: Key, reached: Callable[[str], None]) -> int:
        """Gives a new file its place, and makes room for it; a descriptor for reading by which it counts as used.
        Raises OSError, KeepfleetError(NO_SPACE)."""
        with self._locked(), ExitStack() as held:
            reader = os.open(new_name, OPEN_FILE, dir_fd=self._directory)
            held.callback(os.close, reader)
            if not self._make_room(os.fstat(file).st_size, key.name):
                why = f"the {self._limit >> 20} MiB that it may take are in use"
                raise KeepfleetError(ErrorKind.NO_SPACE, f"cannot keep compiled code in {self.path}: {why}")
            fcntl.flock(file, fcntl.LOCK_UN)
            fcntl.flock(reader, fcntl.LOCK_SH)
            self._disk.rename(self._directory, new_name, self._directory, key.name)
            reached("renamed")
            self._disk.sync(self._directory)
            held.pop_all()
            return reader

    def discard(self, key: Key, why: str) -> None:
        """Removes the artifact for `key`, if there is one: an engine did not take it."""
        with explained(f"remove compiled code in {self.path}"):
            self._remove(key.name, None, why)

    def _remove(self, name: str, status: os.stat_result | None, why: str) -> None:
        """Removes a bad file, unless another has taken its place. Raises OSError."""
        with self._locked():
            try:
                now = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
            except FileNotFoundError:
                return
            if status is not None and not os.path.samestat(now, status):
                return
            if stat.S_ISDIR(now.st_mode):
                raise OSError(errno.EISDIR, f"{self.path}/{name} is a directory; remove it")
            self._disk.remove(self._directory, name)
        LOG.warning("compiled code %s was removed: %s", name[:16], why)

    # --- room --------------------------------------------------------------------------------------------------------

    def _make_room(self, size: int, replaced: str) -> bool:
        """Removes what was used least recently, and is not used, until `size` more bytes fit; whether they do. Under
        the lock. Raises OSError."""
        found = [(name, status) for name, status in self._listed() if name != replaced]
        total = size + sum(status.st_size for _, status in found)
        for name, status in sorted(found, key=lambda entry: entry[1].st_mtime_ns):
            if total <= self._limit:
                break
            if not self._is_used(name):
                self._disk.remove(self._directory, name)
                total -= status.st_size
        return total <= self._limit

    def _is_used(self, name: str) -> bool:
        """Whether some process holds the artifact's descriptor."""
        try:
            file = os.open(name, OPEN_FILE, dir_fd=self._directory)
        except OSError:
            return False  # no artifact
        try:
            return not lock_now(file)
        finally:
            os.close(file)

    def _listed(self) -> list[tuple[str, os.stat_result]]:
        found = []
        for name in os.listdir(self._directory):
            if name != SECRET and not name.startswith(_NEW):
                with suppress(FileNotFoundError):  # another process has removed it
                    found.append((name, os.stat(name, dir_fd=self._directory, follow_symlinks=False)))
        return found

    def _create(self) -> tuple[int, str]:
        """A new file and its name, locked, so that it is seen to be written. Under the lock. Raises OSError."""
        name = _NEW + secrets.token_hex(8)
        file = self._disk.create(self._directory, name)
        fcntl.flock(file, fcntl.LOCK_EX)
        return file, name

    def _drop(self, file: int, name: str) -> None:
        """Closes a new file, and removes it unless it has got its place. Raises OSError."""
        try:
            with suppress(FileNotFoundError):
                self._disk.remove(self._directory, name)
        finally:
            os.close(file)

    def _clear_abandoned(self) -> None:
        """Removes what a process that was killed was writing. Raises OSError."""
        for name in os.listdir(self._directory):
            if name.startswith(_NEW) and not self._is_used(name):
                with suppress(FileNotFoundError):
                    self._disk.remove(self._directory, name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one thread of one process changes names here: for microseconds, so that it is waited for."""
        lock = os.open(".", OPEN_DIRECTORY, dir_fd=self._directory)  # of its own, so that threads exclude each other
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _make_secret(self) -> bytes:
        """A new secret, on disk when this returns. Raises OSError."""
        file, name = self._create()
        try:
            secret = new_secret(self._disk, file)
            self._disk.rename(self._directory, name, self._directory, SECRET)
        finally:
            self._drop(file, name)
        self._disk.sync(self._directory)
        return secret
