"""Provides what a loader keeps its workload's output with: the ring, the record, and a socket to journald."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from keep_grants.resolve import keep
from keep_manager.model import Provision
from keep_protocol.control import JOURNAL, OUTPUT, RECORD
from keep_protocol.spec import KeepSpec

LOG = logging.getLogger("keepfleet.journal")
JOURNAL_SOCKET = "/run/systemd/journal/socket"
"""Where journald takes entries with fields of the sender's own (systemd's "Native Journal Protocol")."""
MakeFiles = Callable[[int, KeepSpec], tuple[int, int]]
"""The descriptors of a new ring and a new record of a keep. Raises KeepfleetError."""


def opener(make: MakeFiles, journal: str) -> Callable[[Provision, ExitStack], Mapping[str, int]]:
    """The provider of these three; `journal` is the path of journald's socket."""

    def opened(provision: Provision, held: ExitStack) -> Mapping[str, int]:
        if not provision.keeps_output:
            return {}
        output, record = make(provision.kuuid, provision.spec)
        return {OUTPUT: keep(held, output), RECORD: keep(held, record), JOURNAL: connected(held, journal)}

    return opened


def connected(held: ExitStack, path: str) -> int:
    """A datagram socket to journald, or where that is not there one that says so of each datagram: a keep is started
    all the same, and its loader reports it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
    except OSError as error:
        LOG.warning("cannot reach journald at %s: %s", path, error.strerror)
        sock.close()
        sock, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        other.close()
    return keep(held, sock.detach())
