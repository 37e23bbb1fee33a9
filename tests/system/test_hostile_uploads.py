"""Clients with a good certificate and bad manners, at a keep's endpoint: it goes on waiting, whole and no bigger."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from keep_protocol.states import State
from tests.system.calm import settled, undisturbed, usage_of
from tests.system.fleet import Fleet
from tests.system.life import Bystanders, Life, example
from tests.system.wire import SECONDS, Answer, NoAnswer, ask, connect, read_answer, request, send

MODULE = example("hello-wat/hello")
JSON, WASM = "Content-Type: application/json", "Content-Type: application/wasm"
GIGABYTE = 1 << 30
GROWTH = 16 << 20
"""What an endpoint may have kept of it: its imports of the first client are 5 MB, its largest buffer a quarter."""
START = b'{"encoding":"wasm","contents":['

PAYLOADS = {
    "nothing": (b"", 400),
    "no object": (b"[1,2]", 400),
    "half": (START + b"0,97,115", 400),
    "another encoding": (b'{"encoding":"gzip","contents":[0]}', 415),
    "no encoding": (b'{"contents":[0]}', 400),
    "no contents": (b'{"encoding":"wasm"}', 400),
    "contents twice": (START + b'0],"contents":[1]}', 400),
    "a member too many": (START + b'0],"x":1}', 400),
    "contents that are text": (b'{"encoding":"wasm","contents":"AGFzbQ=="}', 400),
    "an empty array": (START + b"]}", 422),
    "a number over 255": (START + b"0,97,115,256]}", 400),
    "a negative number": (START + b"0,-1]}", 400),
    "a fraction": (START + b"0,1.5]}", 400),
    "a number of 60,000 digits": (START + b"9" * 60_000 + b"]}", 400),
    "100,000 brackets": (START + b"[" * 100_000, 400),
    "100,000 blanks": (START + b" " * 100_000 + b"0]}", 400),
    "NaN": (START + b"NaN]}", 400),
    "something after the end": (START + b"0]}{}", 400),
    "not UTF-8": (b'{"enc\xff":1}', 400),
}
WRONG = {
    "another path": (request("POST", "/payload/..", MODULE, JSON), 404),
    "another method": (request("DELETE", "/workload"), 405),
    "a raw upload without its type": (request("PUT", "/workload", MODULE), 415),
    "a raw upload of another type": (request("PUT", "/workload", MODULE, "Content-Type: text/plain"), 415),
    "gzip": (request("PUT", "/workload", MODULE, WASM, "Content-Encoding: gzip"), 415),
    "a gigabyte announced": (request("PUT", "/workload", b"\0asm", WASM, length=GIGABYTE), 413),
    "ten gigabytes of JSON announced": (request("POST", "/payload", b"{", JSON, length=10 * GIGABYTE), 413),
    "10,000 headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\n", 431),
    "200 headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 200 + b"\r\n", 431),
    "no HTTP": (b"HELO keep\r\n\r\n", 400),
    "two lengths": (b"PUT /workload HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "a negative length": (b"PUT /workload HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
}


@pytest.fixture(scope="module")
def life(installed_fleet: Fleet) -> Iterator[Life]:
    """One keep for all of this: after it, it is the same process and no bigger, and takes a workload."""
    fleet = installed_fleet
    fleet.clear()
    bystanders, life = Bystanders(fleet), Life.awaiting(fleet)
    ask(life.info.port, life.context, request("GET", "/"))
    endpoint = life.endpoint_pid
    before = usage_of(life.host, endpoint)
    with undisturbed(fleet):
        yield life
        assert life.endpoint_pid == endpoint
        after = settled(life.host, endpoint, before)
        assert after.descriptors <= before.descriptors
        assert after.memory < before.memory + GROWTH
    assert life.upload(MODULE).status == 200
    life.until(State.STARTED, State.COMPLETE)
    bystanders.check()
    fleet.clear()


def sent(life: Life, data: bytes) -> Answer:
    return ask(life.info.port, life.context, data)


def awaits(life: Life) -> bool:
    """Whether the keep is in state 2 and awaits a workload, once its loader has heard how the last upload ended."""
    deadline = time.monotonic() + SECONDS
    while (info := life.look()).detail.startswith("receiving") and time.monotonic() < deadline:
        continue
    return info.state is State.STARTED and info.detail.startswith("awaiting") and info.outcome is None


def refused(life: Life, answer: Answer, status: int) -> None:
    """One shape for every refusal, and the keep goes on waiting."""
    assert answer.status == status, answer
    assert answer.object["error"]["message"].startswith("cannot ")
    assert answer.headers["connection"] == "close"
    assert awaits(life)


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_that_is_not_the_original_s_is_refused(life: Life, name: str) -> None:
    body, status = PAYLOADS[name]
    refused(life, sent(life, request("POST", "/payload", body, JSON)), status)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_refused_with_its_status(life: Life, name: str) -> None:
    data, status = WRONG[name]
    refused(life, sent(life, data), status)


def test_an_endless_body_in_chunks_is_refused_at_the_limit_and_leaves_nothing_on_disk(life: Life) -> None:
    chunk = b"100000\r\n" + b"\0asm" * 0x40000 + b"\r\n"
    head = f"PUT /workload HTTP/1.1\r\nHost: x\r\n{WASM}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with connect(life.info.port, life.context) as connection:
        connection.sendall(head)
        while send(connection, chunk):
            continue
        try:
            refused(life, read_answer(connection), 413)
        except NoAnswer:  # a reset may overtake the answer of a peer that goes on sending for ever
            assert awaits(life)


@pytest.mark.parametrize("part", [0, 1, len(MODULE) // 2, len(MODULE) - 1])
def test_an_upload_that_stops_and_hangs_up_is_forgotten(life: Life, part: int) -> None:
    with connect(life.info.port, life.context) as connection:
        connection.sendall(request("PUT", "/workload", MODULE[:part], WASM, length=len(MODULE)))
    assert sent(life, request("GET", "/")).status == 200
    assert awaits(life)


def test_while_one_client_uploads_another_hears_409_and_the_first_one_s_end_frees_the_endpoint(life: Life) -> None:
    with connect(life.info.port, life.context) as first:
        first.sendall(request("PUT", "/workload", MODULE[:9], WASM, length=len(MODULE)))
        while "receiving" not in life.look().detail:
            continue
        answer = sent(life, request("PUT", "/workload", MODULE, WASM))
        assert (answer.status, answer.kind) == (409, "conflict")
    assert sent(life, request("GET", "/")).status == 200
    assert awaits(life)


def test_a_thousand_requests_in_one_packet_are_answered_once(life: Life) -> None:
    with connect(life.info.port, life.context) as connection:
        send(connection, request("GET", "/") * 1000)
        heard = b""
        try:
            while more := connection.recv(65536):
                heard += more
        except OSError:
            pass
    assert heard.count(b"HTTP/1.1 200") <= 1
    assert awaits(life)


def test_a_client_that_resets_in_every_stage_disturbs_no_other(life: Life) -> None:
    for data in (b"", b"PUT", request("PUT", "/workload", MODULE[:9], WASM, length=len(MODULE)), request("GET", "/")):
        connection = connect(life.info.port, life.context)
        connection.sendall(data)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    assert sent(life, request("GET", "/")).status == 200
    assert awaits(life)
