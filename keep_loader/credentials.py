"""Secrets that systemd gives this unit as credentials (man 5 systemd.exec, LoadCredential=): copied, each into a file
of the keep's own in memory that no name leads to, so that they are kept like every other descriptor of a start.

systemd unmounts what it made for them with each end of the loader, and what is open there would keep it from that.
Import rule: that of keep_loader; with the first start that has some.
"""

from __future__ import annotations

import os

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.workload import MAX_SECRET_BYTES


def open_credential(name: str, directory: str) -> int:
    """A descriptor for reading alone of a copy of the credential `name`, in `directory`. Raises
    KeepfleetError(CONFIGURATION) naming the secret, never it."""
    given = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not given:
        raise _cannot(name, "systemd has given this unit no credentials")
    try:
        with open(f"{given}/{name}", "rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise _cannot(name, f"{error.strerror}; are the host's mounts shared (man 7 mount_namespaces)?") from error
    if len(data) > MAX_SECRET_BYTES:
        raise _cannot(name, f"it is over {MAX_SECRET_BYTES} bytes")
    try:
        writable = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o400)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(writable, view) :]
            return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(writable)
    except OSError as error:
        raise _cannot(name, str(error.strerror)) from error


def _cannot(name: str, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.CONFIGURATION, f"cannot give the workload its secret {name}: {why}")
