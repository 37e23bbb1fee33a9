"""`./run up`, `exec` and `down`: a host to try keepfleet on, which meets neither the machine nor another one."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.sandbox.layout import Layout
from tools.sandbox.sandbox import Sandbox

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300
"""Where nothing is built yet, the first run builds it."""


@pytest.fixture(scope="module")
def playground() -> Iterator[str]:
    name = f"playground-{os.getpid()}"
    yield name
    Sandbox(name).off()


def run(playground: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KEEPFLEET_PLAYGROUND": playground}
    command = [str(ROOT / "run"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)


def test_up_while_the_usual_port_is_busy_on_the_machine_and_again_while_it_is_up(playground: str) -> None:
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            busy.bind(("127.0.0.1", 3030))
            busy.listen()
        except OSError:  # something else listens there, which does as well
            pass
        first = run(playground, "up")
        assert (first.returncode, first.stderr.splitlines()[-1][:8]) == (0, "run: up."), first.stderr
        again = run(playground, "up")
    assert (again.returncode, again.stderr) == (0, f"run: already up: {playground}\n")
    assert "Enarx-Keep-Manager" in run(playground, "exec", "--", "keep-manager-tester", "--yes").stdout


def test_exec_is_in_the_playground_with_the_command_s_status(playground: str) -> None:
    done = run(playground, "exec", "--", "sh", "-c", "hostname; pwd; exit 7")
    assert (done.returncode, done.stdout) == (7, f"{playground}\n{Path.cwd()}\n")


def test_down_ends_it_and_exec_says_so(playground: str) -> None:
    assert run(playground, "down").returncode == 0
    done = run(playground, "exec", "--", "true")
    assert (done.returncode, "is not running; boot it first" in done.stderr) == (125, True)


def test_a_sandbox_holds_a_lock_on_each_directory_that_it_shows(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with Sandbox(f"holds-{os.getpid()}", Layout(((str(tmp_path), "/opt/shown", True),))) as sandbox:
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert [bind[0] for bind in sandbox.shown().binds] == [str(tmp_path)]
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
