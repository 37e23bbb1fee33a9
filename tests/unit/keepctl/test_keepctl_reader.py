"""Who reads keepctl's output goes away: `keepctl run … | head -n 1`."""

from __future__ import annotations

import os
import pty
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from keep_protocol.sse import EventType, KeepEvent
from keep_protocol.states import State
from keepctl.display import output_reader
from tests.fakes.manager_in_memory import FIRST_ID, ManagerInMemory
from tests.unit.keepctl.conftest import GOOD, MakeStub, Run, say


def test_a_reader_that_goes_away_stops_the_workload_quietly(
    manager: ManagerInMemory, stub: MakeStub, module: str
) -> None:
    say(manager, *(f"line {number}" for number in range(20_000)))
    command = [sys.executable, "-m", "keepctl", "run", module]
    with stub(None), subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
    assert manager.requests[-1] == f"POST /v1/keeps/{FIRST_ID}/stop"


def silent(manager: ManagerInMemory) -> Callable[[ssl.SSLSocket], None]:
    """A guest that says no more, until the client hangs up; for a client that does not, all has ended well."""

    def say_nothing(connection: ssl.SSLSocket) -> None:
        try:
            connection.recv(1)
        except TimeoutError:
            manager.change(FIRST_ID, state=State.COMPLETE, outcome=GOOD)
            manager.happened.append(KeepEvent(1.0, EventType.REMOVED, manager.keeps[FIRST_ID]))

    return say_nothing


@pytest.mark.parametrize("over", ["pipe", "socket"])
def test_a_reader_that_goes_away_is_seen_also_while_the_guest_is_silent(
    manager: ManagerInMemory, stub: MakeStub, module: str, over: str
) -> None:
    say(manager, "line 0")
    manager.on_follow = silent(manager)
    reader, writer = os.pipe() if over == "pipe" else (end.detach() for end in socket.socketpair())
    command = [sys.executable, "-m", "keepctl", "run", "--rm", module]
    with stub(None), subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        assert process.stderr is not None
        assert os.read(reader, 7) == b"line 0\n"
        os.close(reader)
        assert process.stderr.read() == b""
        assert process.wait() == 141
    assert manager.keeps == {}, "a keep that is removed is stopped first"


@pytest.mark.parametrize("words", [("logs", "-f", "web"), ("events", "web")], ids=" ".join)
def test_what_only_watches_ends_when_its_reader_has_gone(
    run: Run, manager: ManagerInMemory, words: tuple[str, ...]
) -> None:
    run("new", "--name", "web")
    say(manager, "line 0")
    manager.happened = [KeepEvent(0.0, EventType.CREATED, manager.keeps[FIRST_ID], "bob")]
    manager.on_follow = silent(manager)
    with subprocess.Popen([sys.executable, "-m", "keepctl", *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait() == 1
    assert manager.keeps[FIRST_ID].state is State.LISTENING


def test_only_a_pipe_and_a_socket_show_that_their_reader_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = socket.socketpair()
    ends = {"pipe": os.pipe(), "socket": (near.detach(), far.detach()), "terminal": pty.openpty()}
    ends["file"] = (os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY), os.open(os.devnull, os.O_WRONLY))
    for name, (one, other) in ends.items():
        for descriptor in (one, other):
            with os.fdopen(descriptor, "wb", buffering=0) as stream, monkeypatch.context() as patch:
                patch.setattr(sys, "stdout", stream)
                assert output_reader() == (descriptor if name in ("pipe", "socket") else None), name
    for nothing in (None, stream):  # never opened, and closed
        monkeypatch.setattr(sys, "stdout", nothing)
        assert output_reader() is None
