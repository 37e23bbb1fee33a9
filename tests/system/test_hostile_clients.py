"""Clients with a good certificate and bad manners, at the manager's endpoint."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.system.calm import undisturbed
from tests.system.fleet import Fleet
from tests.system.wire import Answer, NoAnswer, ask, connect, read_answer, request, send

LEGACY, V1 = "/keeps_post", "/v1/keeps"
GIGABYTE = 1 << 30
UNKNOWN_ID = 4_503_599_627_370_497
"""Drawn once, by hand; no keep of the tests has it but once in 2^53 draws."""

NO_JSON = {
    "nothing": b"",
    "half an object": b'{"command":"list-',
    "an array": b'["list-keeps"]',
    "a string": b'"list-keeps"',
    "two objects": b'{"command":"list-keeps"}{"command":"list-keeps"}',
    "not UTF-8": b'{"command":"\xff\xfe"}',
    "a lone surrogate's escape half": b'{"command":"\\ud8"}',
    "a key that stands twice": b'{"command":"list-keeps","command":"list-keeps"}',
    "NaN": b'{"command":NaN}',
    "Infinity": b'{"command":-Infinity}',
    "60,000 brackets": b"[" * 60_000,
    "60,000 objects": b'{"a":' * 12_000,
    "a number of 60,000 digits": b'{"command":' + b"9" * 60_000 + b"}",
    "a byte order mark": b'\xef\xbb\xbf{"command":"list-keeps"}',
    "NUL bytes": bytes(1000),
}
WRONG_COMMANDS: dict[str, dict[str, object]] = {
    "no command": {},
    "a command that is a number": {"command": 1},
    "a command that is a list": {"command": ["new-keep"]},
    "no architecture": {"command": "new-keep"},
    "an architecture that is null": {"command": "new-keep", "keep-arch": None},
    "an architecture that is a number": {"command": "new-keep", "keep-arch": 7},
    "an unknown architecture": {"command": "new-keep", "keep-arch": "z80"},
    "a member too many": {"command": "list-keeps", "x": "y"},
    "a token of 5,000 characters": {"command": "new-keep", "keep-arch": "wasi", "auth-token": "a" * 5000},
    "no ID": {"command": "start-keep", "keep-addr": "127.0.0.1", "keep-port": "3031"},
    "an ID that is a number": {"command": "start-keep", "kuuid": 5, "keep-addr": "127.0.0.1", "keep-port": "3031"},
    "an ID of zero": {"command": "start-keep", "kuuid": "0", "keep-addr": "127.0.0.1", "keep-port": "3031"},
    "a negative ID": {"command": "start-keep", "kuuid": "-1", "keep-addr": "127.0.0.1", "keep-port": "3031"},
    "an ID in Arabic digits": {"command": "start-keep", "kuuid": "٣", "keep-addr": "127.0.0.1", "keep-port": "3031"},
    "an ID above 2^53": {"command": "start-keep", "kuuid": str(1 << 53), "keep-addr": "127.0.0.1", "keep-port": "3031"},
    "an address by name": {"command": "start-keep", "kuuid": "5", "keep-addr": "localhost", "keep-port": "3031"},
    "an address with a scope": {"command": "start-keep", "kuuid": "5", "keep-addr": "fe80::1%lo", "keep-port": "3031"},
    "port 0": {"command": "start-keep", "kuuid": "5", "keep-addr": "127.0.0.1", "keep-port": "0"},
    "port 65536": {"command": "start-keep", "kuuid": "5", "keep-addr": "127.0.0.1", "keep-port": "65536"},
    "a port with a blank": {"command": "start-keep", "kuuid": "5", "keep-addr": "127.0.0.1", "keep-port": "3031 "},
}
WRONG_V1: dict[str, tuple[str, str, object, int]] = {
    "an unknown member": ("POST", V1, {"arch": "wasi", "unit": "x"}, 400),
    "an architecture that is true": ("POST", V1, {"arch": True}, 400),
    "hardware that is not there": ("POST", V1, {"arch": "Intel-SGX"}, 501),
    "a port that is text": ("POST", f"{V1}/5/start", {"port": "3031"}, 400),
    "a port that is true": ("POST", f"{V1}/5/start", {"port": True}, 400),
    "a port with a fraction": ("POST", f"{V1}/5/start", {"port": 3031.5}, 400),
    "names that are text": ("POST", f"{V1}/5/start", {"names": "a"}, 400),
    "seventeen names": ("POST", f"{V1}/5/start", {"names": ["a"] * 17}, 400),
    "a name that is a number": ("POST", f"{V1}/5/start", {"names": [7]}, 400),
    "an ID that is a word": ("GET", f"{V1}/first", None, 400),
    "an ID of thirty digits": ("GET", f"{V1}/{'9' * 30}", None, 400),
    "a state that is none": ("GET", f"{V1}/5?changed-from=4", None, 400),
    "a wait without end": ("GET", f"{V1}/5?changed-from=1&timeout=inf", None, 400),
    "an unknown parameter": ("GET", f"{V1}/5?x=1", None, 400),
    "a path upwards": ("GET", f"{V1}/../../etc/shadow", None, 404),
    "an encoded path upwards": ("GET", f"{V1}/%2e%2e%2fetc", None, 400),
    "a NUL in the path": ("GET", f"{V1}/5%00", None, 400),
    "an unknown path": ("GET", "/v2/keeps", None, 404),
    "another method": ("PATCH", V1, {}, 405),
}
NOT_THERE = {
    "get": ("GET", f"{V1}/{UNKNOWN_ID}"),
    "wait": ("GET", f"{V1}/{UNKNOWN_ID}?changed-from=1&timeout=60"),
    "start": ("POST", f"{V1}/{UNKNOWN_ID}/start"),
    "stop": ("POST", f"{V1}/{UNKNOWN_ID}/stop"),
    "delete": ("DELETE", f"{V1}/{UNKNOWN_ID}"),
}
NO_HTTP = {
    "no HTTP": b"HELO manager\r\n\r\n",
    "HTTP/9": b"GET / HTTP/9.9\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
    "a header with a newline inside": b"GET / HTTP/1.1\r\nHost: x\r\nA: b\n c\r\x00\r\n\r\n",
    "two lengths": b"POST /keeps_post HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a length and chunks": b"POST /keeps_post HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": b"POST /keeps_post HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a chunk that is no number": b"POST /keeps_post HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "10,000 headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\n",
    "a header of 1 MiB": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n",
    "a target of 1 MiB": b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.fixture(scope="module", autouse=True)
def calm(installed_fleet: Fleet) -> Iterator[None]:
    """After all of this the manager is the same process, holds no more than before and has logged no defect."""
    installed_fleet.clear()
    with undisturbed(installed_fleet):
        yield


def sent(fleet: Fleet, data: bytes) -> Answer:
    return ask(fleet.port, fleet.tls(), data)


def refused(answer: Answer, status: int) -> None:
    """One shape for every refusal: its status, its kind, and words for a person without a traceback."""
    assert answer.status == status, answer
    error = answer.object["error"]
    assert set(error) == {"kind", "message", "evidence"}
    assert error["message"].startswith(("cannot ", "invalid request: "))
    assert "Traceback" not in answer.body.decode()


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_what_is_not_one_json_object_is_refused(fleet: Fleet, body: bytes) -> None:
    for path in (LEGACY, f"{LEGACY}/", V1):
        if body or path != V1:  # of /v1 an empty body asks for a keep with every default
            answer = sent(fleet, request("POST", path, body))
            refused(answer, 400)
            assert answer.kind == "bad-request"
    assert fleet.keep_units() == []


@pytest.mark.parametrize("command", WRONG_COMMANDS.values(), ids=WRONG_COMMANDS)
def test_a_command_with_a_wrong_member_is_refused_by_its_name(fleet: Fleet, command: dict[str, object]) -> None:
    answer = sent(fleet, request("POST", LEGACY, json.dumps(command).encode()))
    refused(answer, 400)
    assert answer.object["text"] == answer.object["error"]["message"]
    assert fleet.keep_units() == []


def test_an_unknown_command_is_answered_as_the_original_did(fleet: Fleet) -> None:
    for word in ("", "format-disk", "NEW-KEEP", "new-keep\0", "ünknown"):
        answer = sent(fleet, request("POST", LEGACY, json.dumps({"command": word}).encode()))
        assert (answer.status, answer.object) == (400, {"text": "undefined"})


@pytest.mark.parametrize("wrong", WRONG_V1.values(), ids=WRONG_V1)
def test_v1_refuses_with_the_proper_status(fleet: Fleet, wrong: tuple[str, str, object, int]) -> None:
    method, path, body, status = wrong
    if path.startswith(f"{V1}/5") and "%" not in path:  # what is asked of no keep is refused before it is read
        path = path.replace("5", str(fleet.client().create().kuuid), 1)
    before = fleet.keep_units()
    refused(sent(fleet, request(method, path, b"" if body is None else json.dumps(body).encode())), status)
    assert fleet.keep_units() == before


@pytest.mark.parametrize("asked", NOT_THERE.values(), ids=NOT_THERE)
def test_a_keep_that_does_not_exist_is_not_found(fleet: Fleet, asked: tuple[str, str]) -> None:
    answer = sent(fleet, request(*asked))
    refused(answer, 404)
    assert str(UNKNOWN_ID) in answer.object["error"]["message"]


def test_the_original_s_commands_say_not_found_too(fleet: Fleet) -> None:
    place = {"keep-addr": "127.0.0.1", "keep-port": "3031"}
    for command in ({"command": "start-keep", **place}, {"command": "stop-keep"}, {"command": "remove-keep"}):
        answer = sent(fleet, request("POST", LEGACY, json.dumps({**command, "kuuid": str(UNKNOWN_ID)}).encode()))
        refused(answer, 404)


def test_a_gigabyte_announced_is_refused_before_it_is_sent(fleet: Fleet) -> None:
    for path in (LEGACY, V1):
        answer = sent(fleet, request("POST", path, b"{", length=GIGABYTE))
        refused(answer, 413)
        assert answer.headers["connection"] == "close"


def test_an_endless_body_in_chunks_is_refused_when_it_is_too_long_and_then_cut(fleet: Fleet) -> None:
    head = b"POST /keeps_post HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    with connect(fleet.port, fleet.tls()) as connection:
        send(connection, head + chunk * 5)
        refused(read_answer(connection), 413)
        with pytest.raises(OSError, match=r"."):
            while True:
                connection.sendall(chunk)


def test_a_body_that_stops_half_way_and_hangs_up_leaves_nothing(fleet: Fleet) -> None:
    with connect(fleet.port, fleet.tls()) as connection:
        connection.sendall(request("POST", V1, b'{"arch":', length=16))
    assert fleet.client().keeps() == ()


@pytest.mark.rare
def test_a_body_that_stops_half_way_and_stays_is_given_up(fleet: Fleet) -> None:
    with connect(fleet.port, fleet.tls()) as connection:
        connection.sendall(request("POST", V1, b'{"arch":', length=16))
        refused(read_answer(connection), 408)
    assert fleet.keep_units() == []


def test_an_encoded_body_is_refused_unread(fleet: Fleet) -> None:
    for coding in ("gzip", "deflate", "br", "GZIP", "identity, gzip", "x"):
        refused(sent(fleet, request("POST", V1, b"\x1f\x8b" + bytes(100), f"Content-Encoding: {coding}")), 415)


@pytest.mark.parametrize("data", NO_HTTP.values(), ids=NO_HTTP)
def test_what_is_not_http_is_refused_or_hung_up_on(fleet: Fleet, data: bytes) -> None:
    try:
        assert 400 <= sent(fleet, data).status < 500
    except NoAnswer:
        return


def test_a_thousand_pipelined_requests_on_one_connection_are_answered_in_order(fleet: Fleet) -> None:
    paths = [f"{V1}/{number}" for number in range(1, 1001)]
    with connect(fleet.port, fleet.tls()) as connection:
        send(connection, b"".join(request("GET", path) for path in paths))
        for number in range(1, 11):
            assert f"keep {number}" in read_answer(connection).object["error"]["message"]


def test_among_fifty_silent_connections_and_fifty_half_requests_a_good_client_is_served(fleet: Fleet) -> None:
    context = fleet.tls()
    silent: list[socket.socket] = []
    try:
        for _ in range(50):
            silent.append(socket.create_connection(("127.0.0.1", fleet.port)))
            silent.append(connect(fleet.port, context))
            silent[-1].sendall(b"POST /v1/keeps HTTP/1.1\r\nHost: x\r\nContent-Le")
        keep = fleet.client().create()
        fleet.client().start(keep.kuuid, "127.0.0.1", None)
        fleet.client().remove(keep.kuuid)
    finally:
        for connection in silent:
            connection.close()
