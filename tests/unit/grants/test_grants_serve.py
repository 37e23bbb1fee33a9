"""The grants helper as a process: whom it answers, what it survives, and when it leaves."""

from __future__ import annotations

import functools
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from keep_grants import serve
from keep_grants.protocol import DiskIds, GrantRequest, KeepIds, Wanted, ask
from keep_grants.serve import Server, unit_of
from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.fakes.grants_helper import grants_helper

CGROUPS = {
    "0::/system.slice/keep-manager.service": "keep-manager.service",
    "0::/": "",
    "": "",
    "12:pids:/system.slice/x.service\n1:name=systemd:/system.slice/keep-manager.service\n0::/": "keep-manager.service",
    "0::/docker/5a/system.slice/keep-manager.service": "keep-manager.service",
    "0::/system.slice/other.service": "other.service",
    "0::/system.slice/keep-manager.service/inner": "",
    "0::/user.slice/user-0.slice/user@0.service/app.slice/keep-manager.service": "",
    "0::/user.slice/user-0.slice/session-1.scope": "session-1.scope",
    "1:name=systemd:/\n0::/system.slice/keep-manager.service": "",
    "4:cpu:/system.slice/keep-manager.service": "",
    "nonsense": "",
}


@pytest.mark.parametrize(("text", "unit"), CGROUPS.items())
def test_the_unit_of_a_process_is_the_one_that_systemd_put_it_in(text: str, unit: str) -> None:
    assert unit_of(text) == unit


@contextmanager
def serving(path: Path, work: Callable[[socket.socket], None], idle_seconds: float) -> Iterator[int]:
    """The helper's loop in a forked process, whose number this is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(16)
        server = os.fork()
        if server == 0:
            try:
                Server(listener, work, idle_seconds).run()
            finally:
                os._exit(0)
        try:
            yield server
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


def wanted(path: Path, rest: str = ".") -> GrantRequest:
    return GrantRequest((Wanted(str(path), rest, False),))


def refused(path: Path, request: GrantRequest) -> KeepfleetError:
    with ExitStack() as held, pytest.raises(KeepfleetError) as caught:
        ask(held, str(path), request)
    return caught.value


def answer(connection: socket.socket) -> None:
    serve.answer(connection, serve.check_same_user, lambda: "a test wants it so", mapped=False)


def test_a_worker_that_is_killed_costs_its_own_request_alone(tmp_path: Path) -> None:
    def work(connection: socket.socket) -> None:
        packet = connection.recv(1 << 18, socket.MSG_PEEK)
        if b"deadly" in packet:
            os.kill(os.getpid(), signal.SIGKILL)
        answer(connection)

    with serving(tmp_path / "s", work, 60):
        assert "ended before it answered" in refused(tmp_path / "s", wanted(tmp_path, "deadly")).message
        with ExitStack() as held:
            ((descriptor, granted),) = ask(held, str(tmp_path / "s"), wanted(tmp_path))
            assert os.path.samestat(os.fstat(descriptor), tmp_path.stat())
            assert granted.lacks == "it is no mount of its own: a test wants it so"


def test_requests_beyond_the_workers_wait_for_their_turn(tmp_path: Path) -> None:
    (arrived, arrive), (released, release) = os.pipe(), os.pipe()

    def work(connection: socket.socket) -> None:
        os.write(arrive, b"x")
        os.read(released, 1)
        answer(connection)

    found: list[int] = []

    def client() -> None:
        with ExitStack() as held:
            found.append(len(ask(held, str(tmp_path / "s"), wanted(tmp_path), 60)))

    with serving(tmp_path / "s", work, 60) as server:
        clients = [threading.Thread(target=client) for _ in range(3 * serve.MAX_WORKERS)]
        for each in clients:
            each.start()
        for count in range(len(clients)):
            os.read(arrived, 1)
            if count >= serve.MAX_WORKERS - 1:  # all places are taken: only one that ends makes room
                children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
                assert len(children) <= serve.MAX_WORKERS
                os.write(release, b"x")
        os.write(release, b"x" * serve.MAX_WORKERS)
        for each in clients:
            each.join()
    assert found == [1] * len(clients)
    for descriptor in (arrived, arrive, released, release):
        os.close(descriptor)


def test_a_client_that_sends_nothing_is_ended_by_the_worker_s_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "WORK_SECONDS", 0.05)
    with serving(tmp_path / "s", answer, 60), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(str(tmp_path / "s"))
        assert silent.recv(1) == b""


def test_the_helper_ends_when_it_was_not_asked_for_a_while(tmp_path: Path) -> None:
    with serving(tmp_path / "s", answer, 0.05) as server:
        waited = os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
        assert waited is not None
        assert waited.si_status == 0


def test_a_keep_s_user_is_needed_where_keeps_are_users_of_their_own(tmp_path: Path) -> None:
    def mapped(connection: socket.socket) -> None:
        serve.answer(connection, serve.check_same_user, lambda: "", mapped=True)

    with serving(tmp_path / "s", mapped, 60):
        error = refused(tmp_path / "s", wanted(tmp_path))
        assert (error.kind, "names no keep" in error.message) == (ErrorKind.BAD_REQUEST, True)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_helper_that_may_miss_what_is_mounted_grants_nothing_and_says_what_to_look_for(
    tmp_path: Path, *, mapped: bool
) -> None:
    def blind(connection: socket.socket) -> None:
        prepare = functools.partial(serve.prepared, "it has one of its own", mapped=mapped)
        serve.answer(connection, serve.check_same_user, prepare, mapped=mapped)

    request = GrantRequest((Wanted(str(tmp_path), ".", False),), KeepIds(61184, 61184))
    with serving(tmp_path / "s", blind, 60):
        error = refused(tmp_path / "s", request)
    assert error.kind is ErrorKind.CONFIGURATION
    assert "cannot trust the grants helper: it has one of its own; look for what gives" in error.message
    assert "systemctl cat" in error.message


def test_no_process_but_the_manager_s_is_answered(tmp_path: Path) -> None:
    def strict(connection: socket.socket) -> None:
        serve.answer(connection, serve.check_manager, lambda: "", mapped=True)

    request = GrantRequest((Wanted(str(tmp_path), ".", True, DiskIds(5, 5)),), KeepIds(61184, 61184))
    with serving(tmp_path / "s", strict, 60):
        error = refused(tmp_path / "s", request)
    assert error.kind is ErrorKind.FORBIDDEN
    assert "only keep-manager.service may ask for them, and this is" in error.message


def test_one_directory_that_is_refused_refuses_the_whole_request(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with grants_helper(tmp_path / "s"):
        request = wanted(tmp_path)
        more = GrantRequest((*request.directories, Wanted(str(tmp_path), "file", False)))
        assert "it is no directory" in refused(tmp_path / "s", more).message
