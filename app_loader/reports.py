"""Reports to the keep-loader over the report socket, one packet each.

Import rule: `os` and the light part of keep_protocol: the runner must start fast, and can import nothing once it is
locked.
"""

from __future__ import annotations

import os
from _collections_abc import Sequence

from keep_protocol import sockets as socket
from keep_protocol.forking import REPORT_DESCRIPTOR
from keep_protocol.reports import Report, encode_report


class Reporter:
    """Sends reports over one descriptor. A loader that is gone is not an error: systemd ends this process with it."""

    def __init__(self, descriptor: int = REPORT_DESCRIPTOR) -> None:
        self.descriptor = descriptor

    def __repr__(self) -> str:
        return f"Reporter({self.descriptor})"

    def send(self, report: Report, descriptors: Sequence[int] = ()) -> bool:
        """Sends `report`, and with it the descriptors that `report.descriptors` names; False without a loader."""
        packet = encode_report(report)
        try:
            if not descriptors:
                os.write(self.descriptor, packet)
                return True
            with socket.socket(fileno=os.dup(self.descriptor)) as reports:
                socket.send_fds(reports, [packet], list(descriptors))
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True
