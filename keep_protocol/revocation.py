"""The list of revoked certificates: its one notation, its one reader and its limits, for manager, keep and keepctl.

A serial number in hexadecimal a line, of either case, with or without `0x` and with or without colons between its
bytes, as OpenSSL prints it; `#` begins a comment. A line that is anything else makes the whole list unreadable, and
then no client is served anywhere: it may be the one that was to lock a client out.

Import rule: `os`, `re`, `stat` and the light part of keep_protocol.
"""

from __future__ import annotations

import os
import stat

from keep_protocol.errors import ErrorKind, KeepfleetError

MAX_REVOKED_BYTES = 4 * 1024 * 1024
"""A hundred thousand serial numbers of 40 digits."""
MAX_SERIAL = (1 << 160) - 1
"""RFC 5280 (4.1.2.2) allows a serial number 20 bytes; a certificate with a longer one is refused, as it could not be
revoked."""
_SERIAL = rb"(?:0[xX])?([0-9a-fA-F]{1,42}|[0-9a-fA-F]{1,2}(?::[0-9a-fA-F]{2}){1,20})"


def serial_text(serial: int) -> str:
    """A serial number as keepctl writes it: lowercase hexadecimal without leading zeros."""
    return f"{serial:x}"


def parse_serial(word: bytes) -> int:
    """One serial number. Raises ValueError unless it is written in the list's notation and at most MAX_SERIAL."""
    import re  # here: most lists are empty, and each keep reads one

    match = re.fullmatch(_SERIAL, word)
    serial = int(match[1].replace(b":", b""), 16) if match else MAX_SERIAL + 1
    if serial > MAX_SERIAL:
        raise ValueError
    return serial


def parse_revoked(data: bytes, where: str = "the list of revoked certificates") -> frozenset[int]:
    """The serial numbers in a list. A last line without its newline is being written, and counts.

    Raises KeepfleetError(CERTIFICATE) naming `where` and the first line that cannot be read, or a list over
    MAX_REVOKED_BYTES.
    """
    if len(data) > MAX_REVOKED_BYTES:
        raise _unreadable(where, f"it is over {MAX_REVOKED_BYTES} bytes")
    serials = set()
    for number, line in enumerate(data.split(b"\n"), 1):
        word = line.split(b"#", 1)[0].strip()
        if not word:
            continue
        try:
            serials.add(parse_serial(word))
        except ValueError:
            raise _unreadable(where, f"line {number} must be one serial number in hexadecimal") from None
    return frozenset(serials)


def _unreadable(where: str, why: object) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CERTIFICATE, f"cannot accept any certificate: cannot read {where}: {why}")


class RevokedFile:
    """A list on disk, by its path or an open descriptor, read again whenever it has changed.

    A descriptor shows one file for ever: where another was put in its place, the list counts as unreadable.
    """

    def __init__(self, file: str | int) -> None:
        self._file = file
        self._where = file if isinstance(file, str) else "the list of revoked certificates"
        self._version: tuple[int, ...] | None = None
        self._serials: frozenset[int] = frozenset()

    def __repr__(self) -> str:
        return f"RevokedFile({self._file!r}, {len(self._serials)})"

    def serials(self) -> frozenset[int]:
        """Every revoked serial number. Raises KeepfleetError(CERTIFICATE) when the list cannot be read whole."""
        try:
            status = os.stat(self._file)
            version = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_nlink)
            if version != self._version:
                self._serials = parse_revoked(self._read(status), self._where)
                self._version = version
        except OSError as error:
            raise _unreadable(self._where, error.strerror) from error
        return self._serials

    def _read(self, status: os.stat_result) -> bytes:
        if not stat.S_ISREG(status.st_mode):
            raise _unreadable(self._where, "it is not a regular file")
        if not isinstance(self._file, int):
            with open(self._file, "rb") as file:
                return file.read(MAX_REVOKED_BYTES + 1)
        if status.st_nlink == 0:
            raise _unreadable(self._where, "it was replaced by another file; start the keep again")
        data = b""
        while part := os.pread(self._file, MAX_REVOKED_BYTES + 1 - len(data), len(data)):
            data += part
        return data


def append_revoked(path: str, serial: int) -> None:
    """Adds a serial number to an existing list with one write, after ending a last line that a crash cut short.

    Raises OSError, and KeepfleetError(NO_SPACE) where the list would become longer than its readers take.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        line = b"\n" * torn + serial_text(serial).encode("ascii") + b"\n"
        if size + len(line) > MAX_REVOKED_BYTES:
            raise KeepfleetError(ErrorKind.NO_SPACE, f"cannot revoke: {path} would be over {MAX_REVOKED_BYTES} bytes")
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
