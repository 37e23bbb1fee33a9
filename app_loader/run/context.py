"""What a guest finds around it: its arguments, environment, input, directories and secrets, put into one WASI context.

Every passed descriptor is used up here: what the guest may reach is open in wasmtime, and nothing else stays open.
Secrets are copied into a directory of the keep's own, in memory and for no one else, which the guest sees read-only.
"""

from __future__ import annotations

import os
import stat

from app_loader.engine.foreign import EngineError
from app_loader.engine.store import Wasi
from app_loader.settings import Grants
from keep_isolation import landlock
from keep_protocol.constants import SECRETS_DIRECTORY
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.workload import MAX_SECRET_BYTES, SECRETS_GUEST


def _cannot(name: str, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot give the workload its secret {name}: {why}")


def _read(name: str, source: int) -> bytes:
    data = b""
    try:
        while len(data) <= MAX_SECRET_BYTES and (piece := os.pread(source, MAX_SECRET_BYTES + 1, len(data))):
            data += piece
    except OSError as error:
        raise _cannot(name, error.strerror or "it cannot be read") from error
    if len(data) > MAX_SECRET_BYTES:
        raise _cannot(name, f"it is over {MAX_SECRET_BYTES >> 20} MiB")
    return data


class SecretFiles:
    """The directory of one run's secrets, empty at first. descriptor: the open directory."""

    def __init__(self, runtime_directory: str, secrets: list[tuple[str, int]]) -> None:
        """Writes each (name, descriptor), bounded. Raises KeepfleetError(CONFIGURATION) naming the secret, never it."""
        self._names = [name for name, _ in secrets]
        path = os.path.join(runtime_directory, SECRETS_DIRECTORY)
        try:
            os.makedirs(path, 0o700, exist_ok=True)  # an earlier run's, which could not clean up
            self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            for left in os.listdir(self.descriptor):
                os.unlink(left, dir_fd=self.descriptor)
        except OSError as error:
            raise _cannot("files", f"{path}: {error.strerror}") from error
        for name, source in secrets:
            self._write(name, _read(name, source))

    def __repr__(self) -> str:
        return f"SecretFiles({len(self._names)})"

    def _write(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            file = os.open(name, flags, 0o400, dir_fd=self.descriptor)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
            finally:
                os.close(file)
        except OSError as error:
            raise _cannot(name, error.strerror or "it cannot be written") from error

    def wipe(self) -> None:
        """Removes the files; a locked process still can."""
        for name in self._names:
            try:
                os.unlink(name, dir_fd=self.descriptor)
            except OSError:
                continue  # the guest's own doing, or gone with the mount; the next run wipes what is left


class GuestContext:
    """What one guest is given. wasi: the context, to be used once; files: the open directories in it, each with the
    rights that Landlock is to leave, until `close_files`."""

    def __init__(self, grants: Grants | None, runtime_directory: str, words: tuple[str, ...]) -> None:
        """words: what its argv begins with. Raises KeepfleetError(CONFIGURATION) naming what cannot be given."""
        self.wasi = Wasi()
        self.files: list[tuple[int, int]] = []
        self._secrets: SecretFiles | None = None
        if grants is None:
            self.wasi.set_arguments(words)
            return
        workload, passed = grants.workload, list(grants.descriptors)
        self.wasi.set_arguments([*words, *workload.arguments])
        self.wasi.set_environment(workload.environment)
        os.close(grants.description)
        if workload.stdin or workload.streams_input:
            self._take_input(passed.pop(0))
        for directory in workload.directories:
            self._take_directory(passed.pop(0), directory.guest, directory.writable)
        if workload.secrets:
            self._secrets = SecretFiles(runtime_directory, list(zip(workload.secrets, passed, strict=True)))
            for secret in passed:
                os.close(secret)
            self._take_directory(self._secrets.descriptor, SECRETS_GUEST, writable=False)
            self.files[-1] = (self._secrets.descriptor, landlock.READ_AND_REMOVE)

    def __repr__(self) -> str:
        return f"GuestContext(files: {len(self.files)}, {self._secrets!r})"

    def _take_input(self, grant: int) -> None:
        """Standard input is this process's own; a file is read from its beginning, also when a run is repeated."""
        if stat.S_ISREG(os.fstat(grant).st_mode):
            os.lseek(grant, 0, os.SEEK_SET)
        os.dup2(grant, 0)
        os.close(grant)
        self.wasi.inherit_input()

    def _take_directory(self, grant: int, guest: str, writable: bool) -> None:
        try:
            self.wasi.open_directory(f"/proc/self/fd/{grant}", guest, writable)
        except EngineError as error:
            raise KeepfleetError(
                ErrorKind.CONFIGURATION,
                f"cannot give the workload its directory {guest}: the keep's user may not open it; make it readable "
                "and searchable for others",
            ) from error
        self.files.append((grant, landlock.WRITE if writable else landlock.READ))

    def close_files(self) -> None:
        """Closes the directories that were granted; the guest has its own descriptors of them."""
        kept = None if self._secrets is None else self._secrets.descriptor
        for descriptor, _ in self.files:
            if descriptor != kept:
                os.close(descriptor)
        self.files = []

    def wipe(self) -> None:
        """The guest has ended: its secrets go."""
        if self._secrets is not None:
            self._secrets.wipe()
