"""Reads an app-loader's reports, bounded: from ACCEPTED on, its process runs foreign code.

Import rule: that of keep_loader.
"""

from __future__ import annotations

from collections.abc import Callable

from keep_loader.child import Child
from keep_loader.fdstore import close_all
from keep_loader.log import log, plain
from keep_loader.loop import READABLE, Loop
from keep_protocol.control import Report, decode_report
from keep_protocol.errors import ErrorKind, KeepfleetError

MAX_LAST_REPORTS = 64
"""Reports read of a process that has ended; what it spawned could go on sending for ever."""
_MAX_COMPLAINT = 400


class ReportReader:
    """Hands each report and its descriptors to `take`, which takes the descriptors it keeps out of the list.

    What cannot be read is ignored, and logged once. `lost` is called when the sender has closed its end.
    """

    def __init__(
        self, loop: Loop, child: Child, take: Callable[[Report, list[int]], None], lost: Callable[[], None]
    ) -> None:
        self._loop, self._child, self._take, self._lost = loop, child, take, lost
        self._left: int | None = None
        self._complained = self._closed = False
        loop.watch(child.reports.fileno(), READABLE, self._ready)

    def __repr__(self) -> str:
        return f"ReportReader({self._child}{', closed' if self._closed else ''})"

    def limit(self, count: int) -> None:
        """Reads `count` more reports and then closes the socket."""
        self._left = count

    def drain(self) -> None:
        """Reads what an ended process has left behind."""
        for _ in range(MAX_LAST_REPORTS):
            if not self._read():
                return

    def close(self) -> None:
        """Reads nothing more: the sender gets EPIPE."""
        if not self._closed:
            self._closed = True
            self._loop.forget(self._child.reports.fileno())
            self._child.reports.close()

    def _ready(self, _events: int) -> None:
        self._read()

    def _read(self) -> bool:
        """Reads one report; false when there is none."""
        if self._closed:
            return False
        try:
            packet = self._child.receive()
        except EOFError:
            self.close()
            self._lost()
            return False
        if packet is None:
            return False
        if self._left is not None:
            self._left -= 1
        try:
            if packet.data is None:
                raise KeepfleetError(ErrorKind.TOO_LARGE, "cannot read the app-loader's report: it is too long")
            self._take(decode_report(packet.data), packet.descriptors)
        except KeepfleetError as error:
            self._complain(error)
        finally:
            close_all(packet.descriptors)
        if self._left is not None and self._left <= 0:
            self.close()
        return True

    def _complain(self, error: KeepfleetError) -> None:
        if not self._complained:
            self._complained = True
            log(plain(f"ignored a report, and will ignore more of them in silence: {error}", _MAX_COMPLAINT))
