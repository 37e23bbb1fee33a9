"""Messages to systemd, and the descriptors it hands back, against a socket in systemd's place."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keep_protocol.sdnotify import Notifier, take_stored


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(60)
        monkeypatch.chdir(tmp_path)  # a Unix socket's address holds 107 characters
        sock.bind("notify")
        yield sock


def test_assignments_go_out_as_one_message(systemd: socket.socket) -> None:
    assert Notifier({"NOTIFY_SOCKET": "notify"}).send("READY=1", "STATUS=fine") is True
    assert systemd.recv(100) == b"READY=1\nSTATUS=fine"


def test_a_connected_socket_is_kept_until_it_is_closed(systemd: socket.socket, tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "notify"})
    notifier.connect()
    (tmp_path / "notify").rename(tmp_path / "elsewhere")
    assert notifier.send("READY=1") is True
    assert systemd.recv(100) == b"READY=1"
    notifier.close()
    with pytest.raises(OSError, match="No such file"):
        notifier.send("READY=1")
    with pytest.raises(OSError, match="No such file"):
        notifier.connect()


def test_a_newline_cannot_add_an_assignment(systemd: socket.socket) -> None:
    Notifier({"NOTIFY_SOCKET": "notify"}).send("STATUS=a\nMAINPID=1")
    assert systemd.recv(100) == b"STATUS=a MAINPID=1"


def test_an_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(60)
        sock.bind(f"\0keepfleet-test-{os.getpid()}")
        Notifier({"NOTIFY_SOCKET": f"@keepfleet-test-{os.getpid()}"}).send("READY=1")
        assert sock.recv(100) == b"READY=1"


def test_the_address_is_taken_out_of_the_environment() -> None:
    environment = {"NOTIFY_SOCKET": "x", "OTHER": "y"}
    Notifier(environment)
    assert environment == {"OTHER": "y"}


def test_without_an_address_nothing_happens() -> None:
    assert Notifier({}).send("READY=1") is False
    assert Notifier({}).store("listener", 0) is False
    Notifier({}).connect()


def test_a_systemd_that_is_gone_is_an_os_error() -> None:
    with pytest.raises(OSError, match="No such file"):
        Notifier({"NOTIFY_SOCKET": "/nowhere/notify"}).send("READY=1")


def test_a_descriptor_is_parked_under_its_name(systemd: socket.socket, tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "notify"})
    (tmp_path / "file").write_text("held")
    with (tmp_path / "file").open() as file:
        notifier.store("revoked", file.fileno())
    data, (descriptor,), _, _ = socket.recv_fds(systemd, 100, 1)
    assert data == b"FDSTORE=1\nFDNAME=revoked\nFDPOLL=0"
    assert os.read(descriptor, 100) == b"held"
    os.close(descriptor)
    notifier.unstore("revoked")
    assert systemd.recv(100) == b"FDSTOREREMOVE=1\nFDNAME=revoked"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_FDS": "2"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"},
        {"LISTEN_PID": "42", "LISTEN_FDS": "x", "LISTEN_FDNAMES": "a"},
    ],
)
def test_what_is_not_for_us_is_not_taken_and_the_variables_go(environment: dict[str, str]) -> None:
    assert take_stored(environment, 42) == {}
    assert environment == {}


def test_stored_descriptors_come_by_name_close_on_exec_and_once() -> None:
    program = """
import os, sys
from keep_protocol.sdnotify import take_stored
for number in (3, 4, 5):
    os.dup2(0, number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="3", LISTEN_FDNAMES="a:b:a")
assert take_stored() == {"a": 5, "b": 4}, "names"
assert not os.get_inheritable(4) and not os.get_inheritable(5), "close-on-exec"
try:
    os.fstat(3)
except OSError:
    sys.exit(0)
sys.exit("the first of two of one name is still open")
"""
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, stdin=subprocess.DEVNULL, timeout=30)
    assert done.returncode == 0
