"""Our standard input: a guest's while it runs (`run -i`), or the module itself (`run -`)."""

from __future__ import annotations

import os
import select
import sys
import tempfile
import threading
from _collections_abc import Iterator
from io import FileIO

from keep_client.manager import ManagerClient
from keep_client.peer import ConnectionFailed
from keep_protocol.constants import MAX_WORKLOAD_BYTES
from keep_protocol.errors import ErrorKind, KeepfleetError

INPUT_PART = 64 * 1024
"""Read at a time: what a pipe holds."""
MAX_MODULE_BYTES = 4 * MAX_WORKLOAD_BYTES
"""Of a module from a pipe, which is on our disk meanwhile; the keep's own limit, which says more, is far below."""


def parts() -> Iterator[bytes]:
    """Our standard input as it comes, to its end. Raises KeepfleetError(BAD_REQUEST) where it cannot be read."""
    descriptor = sys.stdin.fileno()
    while True:
        try:
            data = os.read(descriptor, INPUT_PART)
        except BlockingIOError:  # it is a descriptor that another process has made non-blocking
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll()
            continue
        except OSError as error:
            raise KeepfleetError(
                ErrorKind.BAD_REQUEST, f"cannot read standard input: {error.strerror or error}"
            ) from error
        if not data:
            return
        yield data


def spooled() -> FileIO:
    """A module from our standard input, in a file without a name. Raises KeepfleetError."""
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # its caller closes it
    try:
        for part in parts():
            file.write(part)
            if file.tell() > MAX_MODULE_BYTES:
                raise KeepfleetError(
                    ErrorKind.TOO_LARGE, f"cannot run standard input: it is over {MAX_MODULE_BYTES >> 20} MiB"
                )
    except OSError as error:
        file.close()
        raise KeepfleetError(
            ErrorKind.NO_SPACE, f"cannot keep the module from standard input: {error.strerror or error}"
        ) from error
    except BaseException:
        file.close()
        raise
    assert isinstance(file, FileIO)  # noqa: S101  # which is what no buffer means
    return file


class Feeding:
    """Sends a guest our standard input, from a thread of its own: it takes as long as the guest, and ends with us.

    error: why it could not be sent to its end. The guest does not take what it got for all of it: the manager ends a
    keep whose input breaks off, and one whose input cannot begin is stopped.
    """

    def __init__(self, manager: ManagerClient, kuuid: int) -> None:
        """manager: a connection of our own."""
        self.error: KeepfleetError | None = None
        self._manager, self._kuuid, self._has_begun = manager, kuuid, False
        threading.Thread(target=self._feed, name="input", daemon=True).start()

    def __repr__(self) -> str:
        return f"Feeding(keep {self._kuuid}, {self.error})"

    def _parts(self) -> Iterator[bytes]:
        self._has_begun = True
        try:
            yield from parts()
        except KeepfleetError as error:
            self.error = error  # before the connection breaks off, by which the keep ends
            raise

    def _feed(self) -> None:
        try:
            self._manager.send_input(self._kuuid, self._parts())
        except KeepfleetError as error:
            self.error = error
            if not self._has_begun or not isinstance(error, ConnectionFailed):
                self._stop()

    def _stop(self) -> None:
        try:
            self._manager.stop(self._kuuid)
        except KeepfleetError:
            return  # it has ended, or the first error is the one to report
