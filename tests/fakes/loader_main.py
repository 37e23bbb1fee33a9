"""The real loader, started without systemd: its isolation failures are given, its forks run a fake.

Arguments: the keep's ID, then what the endpoint and the runner are, "module:function" each.
FAKE_ISOLATION_FAILURES holds one failure a line.
FAKE_STORED holds `name=number` pairs: what systemd would pass back from its descriptor store, at 3 and up.
FAKE_CONSTANTS holds `module:NAME=number` pairs: deadlines that a test cannot wait for.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import sys

from keep_loader.loader import Loader
from keep_loader.settings import read_settings


def place_stored() -> None:
    """Puts the descriptors of FAKE_STORED where systemd would (man sd_listen_fds)."""
    pairs = [pair.partition("=") for pair in os.environ.pop("FAKE_STORED", "").split(",") if pair]
    clear = [fcntl.fcntl(int(number), fcntl.F_DUPFD_CLOEXEC, 100) for _, _, number in pairs]
    for _, _, number in pairs:
        os.close(int(number))
    for target, copy in enumerate(clear, 3):
        os.dup2(copy, target)
        os.close(copy)
    os.environ.update(
        LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(pairs)), LISTEN_FDNAMES=":".join(name for name, _, _ in pairs)
    )


def shorten_deadlines() -> None:
    """Sets the constants of FAKE_CONSTANTS."""
    for pair in filter(None, os.environ.pop("FAKE_CONSTANTS", "").split(",")):
        place, _, number = pair.partition("=")
        module, _, name = place.partition(":")
        setattr(importlib.import_module(module), name, float(number))


def main() -> int:
    """Runs the loader until SIGTERM, or until its workload is to be run again; returns the exit status."""
    shorten_deadlines()
    failures = tuple(os.environ.pop("FAKE_ISOLATION_FAILURES", "").splitlines())
    place_stored()
    settings = read_settings(sys.argv[1:2], os.environ)
    endpoint, runner = sys.argv[2:]
    entries = settings.entries.replace(endpoint=endpoint if settings.entries.endpoint else "", runner=runner)
    faked = settings.replace(entries=entries)
    # Its forks, the fake's, make sockets of their own: not locked.
    loader = Loader(faked, lambda _directory: failures, lambda: None, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: loader.leave())
    with loader:
        loader.run()
    return loader.exit_status


if __name__ == "__main__":
    sys.exit(main())
