"""The real grants helper, started for a request and again for a later one, as systemd does it for its socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAIN = Path(__file__).resolve().parents[2] / "keep_grants" / "__main__.py"
_ACTIVATE = """
import os, select, sys
listener = int(sys.argv[1])
while True:
    select.select([listener], [], [])
    if os.fork() == 0:
        os.dup2(listener, 3)
        environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "requests"}
        os.execve(sys.executable, [sys.executable, "-I", "-S", *sys.argv[2:]], environment)
    os.wait()
"""


@contextmanager
def grants_helper(path: Path) -> Iterator[None]:
    """A helper as in a user's own instance, to be asked at `path` while the block runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(64)
        command = [sys.executable, "-I", "-S", "-c", _ACTIVATE, str(listener.fileno()), str(MAIN), "user"]
        with subprocess.Popen(command, pass_fds=(listener.fileno(),), start_new_session=True) as systemd:
            try:
                yield
            finally:
                os.killpg(systemd.pid, signal.SIGKILL)
                path.unlink()
