"""`keepctl` of the checkout in the tests' own process."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import click
from click.testing import CliRunner

from keepctl.__main__ import exit_code
from tests.system.host import CommandFailed

KEEPCTL_SECONDS = 60
"""What a call of keepctl's may take; most take milliseconds, and none of a test waits for more than a keep's end."""
IN_PROCESS = (
    *("apply", "delete", "events", "get", "history", "inspect", "logs", "new", "pki", "restart", "rm", "secret"),
    *("start", "stop", "store", "volume", "wait"),
)
"""Commands of keepctl's that read and write no file of the host's but the PKI's, with a manager named."""


class _Keepctl(click.Command):
    """What click's runner takes for a command, and what a person gets: the reader of tables first, then click."""

    def __init__(self) -> None:
        super().__init__("keepctl")

    def main(self, args: Sequence[str] = (), *_: object, **__: object) -> None:  # type: ignore[override]  # as called
        raise SystemExit(exit_code(list(args)))


def keepctl_here(port: int, pki: Path, words: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`keepctl` of the checkout, as it goes on the host, but in this process: a fiftieth of what a start of the
    installed one costs. For tests of the manager; those of keepctl type it on the host. Raises CommandFailed for a
    status other than 0, unless `check` is false.
    """
    assert words[0] in IN_PROCESS, f"{words[0]} is to be typed on the host"
    files = {"KEEPFLEET_PKI": str(pki), "XDG_CONFIG_HOME": "/nowhere", "KEEPFLEET_CONTEXT": None}
    runner = CliRunner(env={**files, "KEEPFLEET_MANAGER": f"127.0.0.1:{port}"})
    command = f"keepctl {' '.join(words)}"

    def give_up(_: int, __: FrameType | None) -> None:
        raise CommandFailed(f"{command} takes more than {KEEPCTL_SECONDS} s")

    before = signal.signal(signal.SIGALRM, give_up)
    left = signal.alarm(KEEPCTL_SECONDS)  # of the test's own alarm
    try:
        done = runner.invoke(_Keepctl(), words)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        signal.alarm(left)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    if check and done.exit_code != 0:
        raise CommandFailed(f"{command} exited {done.exit_code}:\n{done.output}")
    return subprocess.CompletedProcess(["keepctl", *words], done.exit_code, done.stdout, done.stderr)
