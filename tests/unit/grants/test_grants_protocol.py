"""What the grants helper takes for a request, and what the manager makes of an answer or of none."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_grants.protocol import (
    MAX_REQUEST,
    DiskIds,
    Granted,
    GrantRequest,
    KeepIds,
    Wanted,
    WantedFile,
    ask,
    decode_request,
    encode_answer,
    encode_error,
)
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError

WANTED = Wanted("/srv/alice", "out", True, DiskIds(1000, 1000))
REQUEST = GrantRequest((WANTED, Wanted("/srv", ".", False)), KeepIds(61184, 65519))
FILE = WantedFile("/etc", "passwd")
ONE_FILE = GrantRequest((), KeepIds(61184, 65519), (FILE,))


def test_a_request_arrives_as_it_was_sent() -> None:
    assert decode_request(REQUEST.encode()) == REQUEST
    assert [wanted.path for wanted in REQUEST.directories] == ["/srv/alice/out", "/srv"]
    assert decode_request(ONE_FILE.encode()) == ONE_FILE
    assert (FILE.path, WantedFile("/srv", ".").path) == ("/etc/passwd", "/srv")


BAD = {
    "root's files": {"directories": [{**WANTED.to_wire(), "disk": {"uid": 0, "gid": 1}}]},
    "a root's group's files": {"directories": [{**WANTED.to_wire(), "disk": {"uid": 1, "gid": 0}}]},
    "a user of the host's as the keep": {"keep": {"uid": 1000, "gid": 61184}},
    "a group of the host's as the keep's": {"keep": {"uid": 61184, "gid": 27}},
    "root as the keep": {"keep": {"uid": 0, "gid": 0}},
    "the user behind the last dynamic one": {"keep": {"uid": 65520, "gid": 65519}},
    "a number that is no user": {"directories": [{**WANTED.to_wire(), "disk": {"uid": 2**32 - 1, "gid": 1}}]},
    "a negative number": {"directories": [{**WANTED.to_wire(), "disk": {"uid": -1, "gid": 1}}]},
    "a number that is true": {"keep": {"uid": True, "gid": 61184}},
    "a root that is relative": {"directories": [{**WANTED.to_wire(), "root": "srv"}]},
    "a rest that is absolute": {"directories": [{**WANTED.to_wire(), "rest": "/etc"}]},
    "an empty rest": {"directories": [{**WANTED.to_wire(), "rest": ""}]},
    "a NUL": {"directories": [{**WANTED.to_wire(), "rest": "a\0b"}]},
    "a path that is too long": {"directories": [{**WANTED.to_wire(), "root": "/" + "x" * 4095}]},
    "too many": {"directories": [WANTED.to_wire()] * 17},
    "an unknown field": {"mode": 0o777},
    "an unknown field of a directory": {"directories": [{**WANTED.to_wire(), "flags": 1}]},
    "a file by an absolute rest": {"files": [{"root": "/srv", "rest": "/etc/shadow"}]},
    "a file to be written to": {"files": [{**FILE.to_wire(), "writable": True}]},
    "too many files": {"files": [FILE.to_wire()] * 18},
    "no directories": {"directories": None},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_what_no_manager_of_ours_asks_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(KeepfleetError) as caught:
        decode_request(strict_json.dumps({**REQUEST.to_wire(), **changes}))
    assert caught.value.kind is ErrorKind.BAD_REQUEST


def test_a_request_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(KeepfleetError) as caught:
        decode_request(b"[" * (MAX_REQUEST + 1))
    assert caught.value.kind is ErrorKind.TOO_LARGE


@given(st.binary(max_size=300) | st.text().map(str.encode))
def test_no_packet_is_anything_but_a_request_or_refused(packet: bytes) -> None:
    with pytest.raises(KeepfleetError):
        decode_request(packet)


class Answering:
    """A helper's end that sends what a test says, to be asked at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.path)
        self.listener.listen(1)

    def ask(
        self, reply: Callable[[socket.socket], object], seconds: float = 20.0, request: GrantRequest = REQUEST
    ) -> list[tuple[int, Granted]]:
        """What `ask` makes of `reply`; whatever it opens is closed again."""

        def serve() -> None:
            connection, _ = self.listener.accept()
            with connection:
                connection.recv(MAX_REQUEST)
                reply(connection)

        server = threading.Thread(target=serve)
        server.start()
        try:
            with ExitStack() as held:
                return ask(held, self.path, request, seconds)
        finally:
            server.join()


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Answering]:
    before = len(os.listdir("/proc/self/fd"))
    made = Answering(tmp_path / "socket")
    with made.listener:
        yield made
    assert len(os.listdir("/proc/self/fd")) == before, "it left a descriptor open"


def sent(packet: bytes, *paths: str, flags: int = os.O_RDONLY) -> Callable[[socket.socket], object]:
    """Sends this packet with these files opened."""

    def reply(connection: socket.socket) -> None:
        descriptors = [os.open(path, flags) for path in paths]
        try:
            socket.send_fds(connection, [packet], descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    return reply


TWO = encode_answer((Granted(DiskIds(1000, 1000)), Granted(None, "it lacks a map")))


def test_an_answer_brings_a_directory_for_each_that_was_asked_for(answering: Answering) -> None:
    made = answering.ask(sent(TWO, "/", "/"))
    assert [granted for _, granted in made] == [Granted(DiskIds(1000, 1000)), Granted(None, "it lacks a map")]


def test_the_helper_s_error_is_the_caller_s(answering: Answering) -> None:
    error = KeepfleetError(ErrorKind.FORBIDDEN, "cannot grant /x: no")
    with pytest.raises(KeepfleetError) as caught:
        answering.ask(sent(encode_error(error)))
    assert (caught.value.kind, caught.value.message) == (error.kind, error.message)


@pytest.mark.parametrize(
    "reply",
    [
        sent(TWO),
        sent(TWO, "/"),
        sent(TWO, "/", "/", "/"),
        sent(TWO, *["/"] * 20),
        sent(TWO, "/", "/etc/passwd"),
        sent(encode_answer(()), "/", "/"),
        sent(b"{}", "/", "/"),
        sent(b"[]"),
        sent(b"x" * 70_000),
        sent(b'{"error": 5}', "/"),
        sent(b'{"granted": [{"disk": {"uid": 0, "gid": 0}}, {}]}', "/", "/"),
    ],
)
def test_an_answer_of_another_shape_is_an_error_and_leaves_nothing_open(
    answering: Answering, reply: Callable[[socket.socket], object]
) -> None:
    with pytest.raises(KeepfleetError):
        answering.ask(reply)


ONE = encode_answer((Granted(),))


def test_an_answer_brings_a_file_that_was_asked_for(answering: Answering) -> None:
    assert [granted for _, granted in answering.ask(sent(ONE, "/etc/passwd"), request=ONE_FILE)] == [Granted()]


@pytest.mark.parametrize(
    ("path", "flags"),
    [("", os.O_RDWR), ("", os.O_WRONLY), ("", os.O_PATH), ("/", os.O_RDONLY), ("/dev/null", os.O_RDONLY)],
)
def test_what_is_no_regular_file_opened_for_reading_alone_is_taken_from_no_helper(
    answering: Answering, tmp_path: Path, path: str, flags: int
) -> None:
    (tmp_path / "file").touch()
    path = path or str(tmp_path / "file")
    with pytest.raises(KeepfleetError) as caught:
        answering.ask(sent(ONE, path, flags=flags), request=ONE_FILE)
    assert caught.value.kind is ErrorKind.INTERNAL
    assert "not all that it brings are regular files, opened read-only" in caught.value.message


def test_a_helper_that_ends_first_is_said_to_have(answering: Answering) -> None:
    with pytest.raises(
        KeepfleetError, match=r"ended before it answered; the journal says why: journalctl -u"
    ) as caught:
        answering.ask(lambda _: None)
    assert caught.value.kind is ErrorKind.UNAVAILABLE


def test_a_helper_that_does_not_answer_is_given_up(answering: Answering) -> None:
    with pytest.raises(KeepfleetError, match="did not answer within"):
        answering.ask(lambda connection: connection.recv(1), 0.01)  # until it was given up


def test_a_queue_that_stays_full_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, ExitStack() as held:
        listener.bind(str(tmp_path / "full"))
        listener.listen(0)
        held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)).connect(str(tmp_path / "full"))
        with pytest.raises(KeepfleetError, match="did not answer within"):
            ask(held, str(tmp_path / "full"), REQUEST, 0.01)


def test_without_a_listener_it_says_what_to_start(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
    for where in (path, tmp_path / "none"):
        with (
            ExitStack() as held,
            pytest.raises(KeepfleetError, match=r"run: systemctl restart keepfleet-grants\.socket"),
        ):
            ask(held, str(where), REQUEST)
