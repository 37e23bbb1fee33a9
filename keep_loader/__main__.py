"""Starts the keep-loader: `python -I -S …/keep_loader/__main__.py ID`, as the unit keep@ID.service does.

Import rule: that of keep_loader.
"""

import _signal  # type: ignore[import-not-found] # `signal` only makes its numbers enumerations: 47 KB and 2 ms
import os
import sys

if not __package__:  # run by path under -I -S: our packages lie together, and the standard library must win
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from keep_isolation.locks import lock_loader, lock_loader_files
from keep_loader.isolation import give_up_being_read, hold_root, isolation_failures
from keep_loader.loader import Loader
from keep_loader.settings import read_settings
from keep_protocol.errors import KeepfleetError
from keep_protocol.outcome import LOADER_FAILED
from keep_protocol.spec import Profile

BAD_START = 2
"""The exit status of a loader that was started wrongly; starting it again would not help."""


def main() -> int:
    """Runs one keep until SIGTERM, or until it has ended or is to be run again; returns the exit status."""
    give_up_being_read()
    hold_root()
    try:
        settings = read_settings(sys.argv[1:], os.environ)
        strict = settings.spec.profile is Profile.STRICT
        loader = Loader(settings, lambda own: isolation_failures(own, strict=strict), lock_loader, lock_loader_files)
    except KeepfleetError as error:
        print(f"keep-loader: {error}", file=sys.stderr)
        return BAD_START
    for number in (_signal.SIGTERM, _signal.SIGINT):
        _signal.signal(number, lambda *_: loader.leave())
    try:
        with loader:
            loader.run()
            # Immediately, with every connection still open: a peer that waits sees it close when systemd sees the exit
            # too, and not some milliseconds before, when the unit would still look alive.
            os._exit(loader.exit_status)
    except BaseException:  # noqa: BLE001 - whatever it was is ours: systemd starts another loader for the keep
        sys.excepthook(*sys.exc_info())
        return LOADER_FAILED


if __name__ == "__main__":
    sys.exit(main())
