"""The folder of each keep that was started: its output, its record and what it is, below the manager's state directory.

    ID/output   the ring that its loader writes its workload's output into (keep_protocol.ring)
    ID/record   what its loader wrote down of it (keep_protocol.record)
    ID/spec     what the keep is, in which boot of the host it was started, and since when a later one knows it; written
                last and removed first, so that a folder without it is one that was not finished, or is going; replaced
                whole, so that no host that loses its power finds half of it

A keep that has ended has no process: these are what is left of it, and any manager answers from them. The loader has
two of the files open and may have been taken over: it can have written anything into them, but it can neither name nor
reach a file here. Import rule: the manager's model and keep_protocol.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from keep_manager.model import Remains, is_exhausted
from keep_protocol import strict_json
from keep_protocol.constants import parse_kuuid, unit_name
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Maybe, Nested, Record, Seconds, Text, field, parse
from keep_protocol.record import KeepRecord, read_record
from keep_protocol.ring import RingWriter
from keep_protocol.spec import KeepSpec

LOG = logging.getLogger("keepfleet.keeps")
SCHEMA = 1
"""Of `spec`; one of another number is never guessed at."""
MAX_SPEC_BYTES = 256 * 1024
"""Twice what the spec has in a unit's environment, where it is encoded."""
BOOT_ID = "/proc/sys/kernel/random/boot_id"
OUTPUT, RECORD, SPEC = "output", "record", "spec"
NEW_SPEC = "spec.new"
"""What takes the place of `spec` once it is whole."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC


class _Described(Record):
    """What `spec` says. boot: the boot of the host in which the keep was started; found_in and found_at: a later boot,
    and when in it, in seconds since it began, a manager found that the keep had not outlived its own."""

    spec: KeepSpec = field(Nested(KeepSpec, "spec"))
    boot: str = field(Text(64))
    unit: str = field(Text(64))
    found_in: str = field(Text(64), default="")
    found_at: float | None = field(Maybe(Seconds()), default=None)


def current_boot() -> str:
    """The ID of the boot the host is in."""
    with open(BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


class Folders:
    """The folders in `directory`, of keeps of the boot `boot` and of those before it.

    Methods read and write a disk: they are for threads. Only `open_output` is quick. Where the manager has no
    descriptor left what they do is not done, and raises OSError: it is no fault of the folder's.
    """

    def __init__(self, directory: str, boot: str) -> None:
        self._directory, self._boot = directory, boot

    def __repr__(self) -> str:
        return f"Folders({self._directory!r})"

    def open(self) -> None:
        """Makes the directory where it is not there. Raises KeepfleetError(CONFIGURATION)."""
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            os.close(self._base())
        except OSError as error:
            raise KeepfleetError(
                ErrorKind.CONFIGURATION, f"cannot keep what keeps write in {self._directory}: {error.strerror}"
            ) from error

    def make(self, kuuid: int, spec: KeepSpec) -> tuple[int, int]:
        """A new folder for the keep, in place of one of a start that failed: descriptors of its empty ring and its
        empty record, both for reading and writing, and the caller's.

        Raises KeepfleetError: NO_SPACE on a full disk, UNAVAILABLE; then nothing is left of it.
        """
        name = str(kuuid)
        try:
            with ExitStack() as held:
                base = self._base()
                held.callback(os.close, base)
                self._clear(base, name)
                os.mkdir(name, 0o700, dir_fd=base)
                try:
                    return self._fill(base, name, spec, unit_name(kuuid))
                except BaseException:
                    self._clear(base, name)
                    raise
        except OSError as error:
            full = error.errno in _FULL
            raise KeepfleetError(
                ErrorKind.NO_SPACE if full else ErrorKind.UNAVAILABLE,
                f"cannot start keep {kuuid}: cannot make the files for its output in {self._directory}: "
                f"{error.strerror}{'; make room there' if full else ''}",
            ) from error

    def _fill(self, base: int, name: str, spec: KeepSpec, unit: str) -> tuple[int, int]:
        with ExitStack() as undone:
            folder = os.open(name, os.O_PATH | os.O_DIRECTORY | _OPEN, dir_fd=base)
            try:
                made: list[int] = []
                for file in (OUTPUT, RECORD):
                    made.append(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=folder))
                    undone.callback(os.close, made[-1])
                RingWriter.create(made[0], spec.limits.output_buffer_bytes)
                _write_spec(folder, _Described(spec, self._boot, unit), SPEC)
            finally:
                os.close(folder)
            undone.pop_all()
            return made[0], made[1]

    def settle(self, kuuids: Iterable[int]) -> None:
        """Has the disk hold what these keeps are and what their loaders have written down so far: a host that loses its
        power finds that again, and removes a folder of which nothing says whose it was. Not part of a start, which a
        busy disk would hold up. Those that have gone are no error; what cannot be written is logged."""
        try:
            base = self._base()
            try:
                for kuuid in kuuids:
                    with suppress(FileNotFoundError):
                        self._settle(kuuid)
                os.fsync(base)
            finally:
                os.close(base)
        except OSError as error:
            _raise_exhaustion(error)
            LOG.warning("cannot have the files of keeps written to the disk: %s", error.strerror)

    def _settle(self, kuuid: int) -> None:
        for name in (SPEC, RECORD, "."):
            file = self._open(kuuid, name)
            try:
                os.fsync(file)
            finally:
                os.close(file)

    def remove(self, kuuid: int) -> None:
        """Removes the keep's folder. One that is not there is no error; one that cannot be removed is logged."""
        try:
            base = self._base()
            try:
                self._clear(base, str(kuuid))
            finally:
                os.close(base)
        except OSError as error:
            _raise_exhaustion(error)
            LOG.warning("cannot remove the files of %s: %s", unit_name(kuuid), error.strerror)

    def kuuids(self) -> set[int]:
        """The keeps that have a folder."""
        found: set[int] = set()
        with suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(KeepfleetError):
                    found.add(parse_kuuid(entry.name))
        return found

    def open_output(self, kuuid: int) -> int | None:
        """The keep's ring, for reading, and the caller's; None where it was not started. Raises
        KeepfleetError(KEEP_FAILED)."""
        try:
            return self._open(kuuid, OUTPUT)
        except FileNotFoundError:
            return None
        except OSError as error:
            kind = ErrorKind.UNAVAILABLE if is_exhausted(error) else ErrorKind.KEEP_FAILED
            raise KeepfleetError(kind, f"cannot read the output of keep {kuuid}: {error.strerror}") from error

    def record(self, kuuid: int) -> KeepRecord | None:
        """What the keep's loader wrote down last; None where there is none, or none of this keep's that can be read."""
        try:
            file = self._open(kuuid, RECORD)
        except OSError as error:
            _raise_exhaustion(error)
            return None
        try:
            record, _ = read_record(file)
        except KeepfleetError as error:
            LOG.debug("%s: %s", unit_name(kuuid), error.message)
            return None
        finally:
            os.close(file)
        return record if record.report.kuuid == kuuid else None

    def records(self, kuuids: Iterable[int]) -> dict[int, KeepRecord]:
        """The records of many keeps; those that have none are left out."""
        found = ((kuuid, self.record(kuuid)) for kuuid in kuuids)
        return {kuuid: record for kuuid, record in found if record is not None}

    def remains(self, kuuids: Iterable[int], now: float) -> dict[int, Remains]:
        """What is left of keeps that have no unit and were started in an earlier boot; `now` is in seconds since this
        one. The folders of others, whose keeps were being removed, are removed."""
        found: dict[int, Remains] = {}
        for kuuid in kuuids:
            try:
                described = self._described(kuuid)
                if described is not None and described.boot != self._boot:
                    found[kuuid] = self._remains(kuuid, described, now)
                    continue
            except (KeepfleetError, OSError) as error:
                _raise_exhaustion(error)
                LOG.warning("removing the files of %s, as nothing says whose it was: %s", unit_name(kuuid), error)
            self.remove(kuuid)
        return found

    def _remains(self, kuuid: int, described: _Described, now: float) -> Remains:
        if described.found_in != self._boot or described.found_at is None:
            described = described.replace(found_in=self._boot, found_at=now)
            folder = self._open(kuuid, ".")
            try:
                _write_spec(folder, described, NEW_SPEC)
                os.rename(NEW_SPEC, SPEC, src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)
            except OSError as error:  # a full disk: it is found again by the next manager, and stays longer
                LOG.warning("cannot write down that %s has ended: %s", unit_name(kuuid), error.strerror)
            finally:
                os.close(folder)
        return Remains(described.spec, self.record(kuuid), described.found_at or now)

    def _described(self, kuuid: int) -> _Described | None:
        """What `spec` says; None where there is none. Raises KeepfleetError, OSError."""
        try:
            file = self._open(kuuid, SPEC)
        except FileNotFoundError:
            return None
        try:
            data = os.pread(file, MAX_SPEC_BYTES + 1, 0)
        finally:
            os.close(file)
        value = strict_json.loads_object(data, MAX_SPEC_BYTES, "the keep's spec")
        if value.pop("schema", None) != SCHEMA:
            raise KeepfleetError(ErrorKind.BAD_REQUEST, f"its schema is not {SCHEMA}")
        return parse(_Described, value, "spec")

    def _base(self) -> int:
        return os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | _OPEN)

    def _folder(self, kuuid: int) -> int:
        base = self._base()
        try:
            return os.open(str(kuuid), os.O_PATH | os.O_DIRECTORY | _OPEN, dir_fd=base)
        finally:
            os.close(base)

    def _open(self, kuuid: int, file: str) -> int:
        """One file of the keep's, for reading; no link is followed. Raises OSError."""
        folder = self._folder(kuuid)
        try:
            return os.open(file, os.O_RDONLY | _OPEN, dir_fd=folder)
        finally:
            os.close(folder)

    @staticmethod
    def _clear(base: int, name: str) -> None:
        """Removes a folder with all that is in it, `spec` first. Raises OSError."""
        with suppress(FileNotFoundError):
            folder = os.open(name, os.O_PATH | os.O_DIRECTORY | _OPEN, dir_fd=base)
            try:
                with suppress(FileNotFoundError):
                    os.unlink(SPEC, dir_fd=folder)
            finally:
                os.close(folder)
            shutil.rmtree(name, dir_fd=base)


def _raise_exhaustion(error: Exception) -> None:
    """Raises `error` where it only says that the manager has no descriptor left."""
    if is_exhausted(error):
        raise error


def _write_spec(folder: int, described: _Described, name: str) -> None:
    """Writes a file of that name, on the disk where it is to take another one's place. Raises OSError: also where not
    all of it could be written."""
    data = strict_json.dumps({"schema": SCHEMA, **described.to_wire()})
    flags = os.O_TRUNC if name == NEW_SPEC else os.O_EXCL
    file = os.open(name, os.O_WRONLY | os.O_CREAT | flags | _OPEN, 0o600, dir_fd=folder)
    try:
        if os.write(file, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if name == NEW_SPEC:
            os.fsync(file)
    finally:
        os.close(file)
