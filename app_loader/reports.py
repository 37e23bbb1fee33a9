"""Reports to the keep-loader over the status socket, one packet each.

Import rule: `os`, `array` and the light part of keep_protocol; the runner must start fast, so `socket` is imported
only where a descriptor travels.
"""

from __future__ import annotations

import os

from app_loader.limits import STATUS_FD
from keep_protocol.control import Report, encode_report


class Reporter:
    """Sends reports over one descriptor. A loader that is gone is not an error: systemd ends this process with it."""

    def __init__(self, descriptor: int = STATUS_FD) -> None:
        self.descriptor = descriptor

    def __repr__(self) -> str:
        return f"Reporter({self.descriptor})"

    def send(self, report: Report) -> bool:
        """Sends `report`; False when nobody is there to take it."""
        try:
            os.write(self.descriptor, encode_report(report))
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def send_with(self, report: Report, descriptor: int) -> bool:
        """Sends `report` and, as SCM_RIGHTS, `descriptor`; False when nobody is there to take them."""
        import socket

        with socket.socket(fileno=os.dup(self.descriptor)) as status:
            try:
                socket.send_fds(status, [encode_report(report)], [descriptor])
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True
