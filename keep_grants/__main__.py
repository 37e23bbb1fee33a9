"""Starts the grants helper: `python -I -S …/keep_grants/__main__.py system`, or `user` in a user's own instance.

keepfleet-grants.service does so for the first request, with the socket on which that waits. Import rule: the standard
library and the light part of keep_protocol.
"""

import functools
import gc
import os
import socket
import sys

if not __package__:  # run by path under -I -S: our packages lie together, and the standard library must win
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from keep_grants import serve
from keep_grants.mounts import no_view_of_the_host
from keep_protocol.sdnotify import take_stored

BAD_START = 2


def main() -> int:
    """Serves requests until none come; returns the exit status."""
    passed = take_stored()
    if sys.argv[1:] not in (["system"], ["user"]) or len(passed) != 1:
        print("usage: keep_grants/__main__.py system|user, with one socket as systemd passes it", file=sys.stderr)
        return BAD_START
    mapped = sys.argv[1] == "system"
    blind = no_view_of_the_host(os.getppid())
    check = serve.check_manager if mapped else serve.check_same_user
    gc.freeze()  # what is there now is never written to by the processes forked later
    prepare = functools.partial(serve.prepared, blind, mapped=mapped)
    work = functools.partial(serve.answer, check=check, prepare=prepare, mapped=mapped)
    with socket.socket(fileno=passed.popitem()[1]) as listener:
        serve.Server(listener, work).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
