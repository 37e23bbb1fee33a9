"""All requests of a command on one TLS connection: kept, noticed when it is gone, and no request obeyed twice."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator

import pytest

from keep_client import connection as connection_module
from keep_client.manager import ManagerClient
from keep_client.peer import CertificateRefused, ConnectionFailed, Endpoint
from keep_protocol import sse
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.sse import LogLine
from keep_protocol.states import State
from tests.fakes.client_pki import Pki
from tests.fakes.manager_in_memory import FIRST_ID, ManagerInMemory
from tests.fakes.tls_peer import TlsPeer, answer, read_request

KEEP = f"GET /v1/keeps/{FIRST_ID}"
STOP = f"POST /v1/keeps/{FIRST_ID}/stop"


@pytest.fixture
def fake(pki: Pki) -> Iterator[ManagerInMemory]:
    with ManagerInMemory(pki.manager(), pki.keep_pem, pki.fingerprint) as manager:
        yield manager


def client_of(pki: Pki, peer: TlsPeer) -> ManagerClient:
    return ManagerClient(Endpoint("localhost", peer.port, "the manager"), pki.credentials().manager_context())


@pytest.fixture
def client(pki: Pki, fake: ManagerInMemory) -> ManagerClient:
    return client_of(pki, fake)


def hang_up(_: ssl.SSLSocket) -> None:
    """The answer never comes."""


def test_all_requests_and_a_stream_go_over_one_connection(client: ManagerClient, fake: ManagerInMemory) -> None:
    with client:
        keep = client.create(start=client.starting())
        assert (keep.state, keep.address) == (State.STARTED, "127.0.0.1")
        fake.lines[keep.kuuid] = [LogLine(0.0, "stdout", "hello")]
        assert [line.text for line in client.lines(keep.kuuid, follow=True)] == ["hello"]
        client.stop(keep.kuuid)
        client.remove(keep.kuuid)
        assert client.keeps() == ()
    assert fake.accepted == 1


def test_outside_of_with_each_request_has_a_connection_of_its_own(client: ManagerClient, fake: ManagerInMemory) -> None:
    client.create()
    with client:
        client.keeps()
    client.keeps()
    assert fake.accepted == 3


def test_a_connection_that_the_server_closed_meanwhile_is_not_used(
    client: ManagerClient, fake: ManagerInMemory
) -> None:
    def close_after(connection: ssl.SSLSocket) -> None:
        connection.sendall(answer(200, b'{"keeps":[]}', keep=True))  # and hangs up, which it does not announce

    fake.instead["GET /v1/keeps?limit=500"] = [close_after]
    with client:
        client.keeps()
        kept = client._kept[0]
        kept._wait(1)  # until it has hung up
        client.create()
    assert fake.accepted == 2


def test_a_connection_that_lay_idle_is_not_used(
    client: ManagerClient, fake: ManagerInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "KEPT_SECONDS", 0.0)
    with client:
        client.create()
        client.keeps()
    assert fake.accepted == 2


def test_a_get_is_sent_again_when_its_kept_connection_ends_without_an_answer(
    client: ManagerClient, fake: ManagerInMemory
) -> None:
    fake.lost[KEEP] = [hang_up]
    with client:
        client.create()
        assert client.keep(FIRST_ID).kuuid == FIRST_ID
    assert fake.requests[1:] == [KEEP, KEEP]
    assert fake.accepted == 2


def test_on_a_new_connection_nothing_is_sent_again(client: ManagerClient, fake: ManagerInMemory) -> None:
    fake.lost[KEEP] = [hang_up]
    client.create()
    with client, pytest.raises(CertificateRefused):
        client.keep(FIRST_ID)
    assert fake.requests[1:] == [KEEP]


@pytest.mark.parametrize(
    ("line", "call"),
    [
        (STOP, lambda client: client.stop(FIRST_ID)),
        (f"POST /v1/keeps/{FIRST_ID}/start", lambda client: client.start(FIRST_ID)),
        (f"DELETE /v1/keeps/{FIRST_ID}", lambda client: client.remove(FIRST_ID)),
        ("POST /v1/keeps", lambda client: client.create(idempotency_key="k")),
    ],
    ids=["stop", "start", "remove", "create"],
)
def test_what_may_have_been_obeyed_is_never_sent_again(
    client: ManagerClient, fake: ManagerInMemory, line: str, call: Callable[[ManagerClient], object]
) -> None:
    client.create()
    fake.lost[line] = [hang_up]
    with client:
        client.keeps()
        with pytest.raises(ConnectionFailed, match="it was stopped, or no longer accepts our certificate") as raised:
            call(client)
    assert fake.requests[1:] == ["GET /v1/keeps?limit=500", line]
    assert raised.value.kind is ErrorKind.UNAVAILABLE


def test_a_stream_that_ends_without_its_last_chunk_has_ended_all_the_same(
    client: ManagerClient, fake: ManagerInMemory
) -> None:
    def cut(connection: ssl.SSLSocket) -> None:
        end = sse.encode(sse.END, fake.keeps[FIRST_ID].to_wire())
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(end), end))

    fake.instead[f"{KEEP}/logs?follow=true"] = [cut]
    with client:
        client.create()
        assert list(client.lines(FIRST_ID, follow=True)) == []
        assert client.keep(FIRST_ID).kuuid == FIRST_ID
    assert fake.accepted == 2


ODD_ENDS = [
    b"HTTP/1.1 200 OK\r\n\r\n{}",
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: Close\r\n\r\n{}",
]


@pytest.mark.parametrize("data", ODD_ENDS, ids=["until it hangs up", "HTTP/1.0", "Connection: Close"])
def test_a_connection_is_kept_only_where_another_answer_can_follow(pki: Pki, data: bytes) -> None:
    def handler(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(data)

    with TlsPeer(pki.manager(), handler) as peer, client_of(pki, peer) as client:
        for _ in range(2):
            assert client.request("GET", "/x").body == b"{}"
        assert peer.accepted == 2


WHOLE = [
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\n{\r\n0001\r\n}\r\n0\r\nA: b\r\n\r\n", 200),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201\r\nCONTENT-LENGTH:2\r\n\r\n{}", 201),
    (b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}", 200),
]


@pytest.mark.parametrize(("data", "status"), WHOLE, ids=["chunks", "an interim answer", "bare line feeds"])
def test_an_answer_is_read_in_each_form_a_server_may_give_it(pki: Pki, data: bytes, status: int) -> None:
    def handler(connection: ssl.SSLSocket) -> None:
        for _ in range(2):
            read_request(connection)
            connection.sendall(data)

    with TlsPeer(pki.manager(), handler) as peer, client_of(pki, peer) as client:
        for _ in range(2):
            reply = client.request("GET", "/x")
            assert (reply.status, reply.body) == (status, b"{}")
        assert peer.accepted == 1


def test_no_body_is_waited_for_where_none_may_come(pki: Pki) -> None:
    def handler(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n")
        assert connection.recv(1) == b"", "and what was announced cannot be taken for the next answer"

    with TlsPeer(pki.manager(), handler) as peer, client_of(pki, peer) as client:
        for _ in range(2):
            assert client.request("GET", "/x").body == b""
        assert peer.accepted == 2


AMBIGUOUS = {
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3",
    "a length and chunks": b"Content-Length: 2\r\nTransfer-Encoding: chunked",
    "another coding": b"Transfer-Encoding: gzip",
    "a signed length": b"Content-Length: +2",
    "a folded line": b"Content-Length: 2\r\n X: y",
    "no colon": b"Content-Length 2",
    "a space in a name": b"Content-Length : 2",
    "no chunk": b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "a chunk of another length": b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
    "an endless chunk": b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n{}",
    "a cut chunk": b"Transfer-Encoding: chunked\r\n\r\nff\r\n{}",
    "no last chunk": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
}


@pytest.mark.parametrize("head", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_an_answer_whose_end_is_in_doubt_is_refused(pki: Pki, head: bytes) -> None:
    def handler(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n{}")

    with (
        TlsPeer(pki.manager(), handler) as peer,
        client_of(pki, peer) as client,
        pytest.raises(KeepfleetError, match="it is not whole HTTP"),
    ):
        client.request("GET", "/x")


def test_only_interim_answers_are_no_answer(pki: Pki) -> None:
    def handler(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 11)

    with (
        TlsPeer(pki.manager(), handler) as peer,
        client_of(pki, peer) as client,
        pytest.raises(KeepfleetError, match="only interim answers came"),
    ):
        client.request("GET", "/x")
