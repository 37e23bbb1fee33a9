"""One exchange with a server that behaves, and with servers that do everything else."""

from __future__ import annotations

import datetime
import errno
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from keep_client import channel
from keep_client import peer as peer_module
from keep_client.channel import Channel, notice_a_peer_that_is_gone
from keep_client.http import Body, Reply, exchange, json_body
from keep_client.peer import CertificateRefused, ConnectionFailed, Endpoint
from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.fakes.client_pki import Pki
from tests.fakes.tls_peer import Handler, TlsPeer, answer, read_head, read_request, refusing_port

SECONDS = 60.0
SHORT = 0.2


def ask(pki: Pki, peer: TlsPeer, body: Body | None = None, seconds: float = SECONDS, limit: int = 1000) -> Reply:
    endpoint = Endpoint("127.0.0.1", peer.port, "the manager")
    with Channel.open(endpoint, pki.credentials().manager_context(), seconds) as channel:
        return exchange(channel, endpoint, "POST", "/x", body or json_body({"a": 1}), limit)


def asked(pki: Pki, handler: Handler, body: Body | None = None, seconds: float = SECONDS) -> Reply:
    with TlsPeer(pki.manager(), handler) as peer:
        return ask(pki, peer, body, seconds)


def test_an_answer_comes_back_with_its_status_and_body(pki: Pki) -> None:
    seen: list[tuple[str, bytes]] = []

    def handler(connection: ssl.SSLSocket) -> None:
        seen.append(read_request(connection))
        connection.sendall(answer(201, b'{"b":2}'))

    reply = asked(pki, handler)
    assert (reply.status, reply.object()) == (201, {"b": 2})
    assert seen == [("POST /x HTTP/1.1", b'{"a":1}')]


def endless_parts(length: int, sent: list[int]) -> Iterator[bytes]:
    for _ in range(length // 65536):
        sent.append(65536)
        yield b"\0" * 65536


def test_an_answer_before_the_body_is_sent_is_read_and_ends_the_sending(pki: Pki) -> None:
    def handler(connection: ssl.SSLSocket) -> None:
        read_head(connection)
        connection.sendall(answer(413, b"too large"))

    sent: list[int] = []
    length = 1 << 30
    reply = asked(pki, handler, Body("application/wasm", length, endless_parts(length, sent)))
    assert (reply.status, reply.body) == (413, b"too large")
    assert sum(sent) < length


def test_an_answer_is_read_though_the_server_neither_reads_on_nor_hangs_up(pki: Pki) -> None:
    done = threading.Event()

    def handler(connection: ssl.SSLSocket) -> None:
        read_head(connection)
        connection.sendall(answer(409, b"taken"))
        done.wait(SECONDS)

    with TlsPeer(pki.manager(), handler) as peer:
        reply = ask(pki, peer, Body("application/wasm", 1 << 30, endless_parts(1 << 30, [])))
        done.set()
    assert reply.status == 409


def test_a_server_that_never_answers_is_given_up_at_the_deadline(pki: Pki) -> None:
    done = threading.Event()
    with TlsPeer(pki.manager(), lambda _: done.wait(SECONDS)) as peer:
        with pytest.raises(ConnectionFailed, match="did not answer in time") as raised:
            ask(pki, peer, seconds=SHORT)
        done.set()
    assert raised.value.kind is ErrorKind.TOO_SLOW


def test_a_server_that_answers_drop_by_drop_is_given_up_at_the_deadline(pki: Pki) -> None:
    done = threading.Event()

    def handler(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not done.wait(SHORT / 10):
            connection.sendall(b".")

    with TlsPeer(pki.manager(), handler) as peer:
        with pytest.raises(ConnectionFailed, match="did not answer in time"):
            ask(pki, peer, seconds=SHORT)
        done.set()


def test_an_answer_over_the_limit_is_refused(pki: Pki) -> None:
    def handler(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(answer(200, b"." * 1001))

    with pytest.raises(KeepfleetError, match="over 1000 bytes") as raised:
        asked(pki, handler)
    assert raised.value.kind is ErrorKind.TOO_LARGE


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A" * 100_000,
    ],
    ids=["no HTTP", "half a body", "a thousand headers", "no status", "an endless header"],
)
def test_an_answer_that_is_not_whole_http_is_an_error_in_words(pki: Pki, data: bytes) -> None:
    def handler(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(data)

    with pytest.raises(KeepfleetError, match="it is not whole HTTP"):
        asked(pki, handler)


def test_a_server_that_wants_another_cas_clients_is_said_to_have_refused_our_certificate(
    pki: Pki, foreign: Pki
) -> None:
    with (
        TlsPeer(pki.manager(client_ca=foreign.ca_pem), lambda _: None) as peer,
        pytest.raises(ConnectionFailed, match="refused our certificate: another CA issued it") as raised,
    ):
        ask(pki, peer)
    assert peer.refused == 1
    assert raised.value.kind is ErrorKind.CERTIFICATE


def test_an_expired_certificate_is_said_to_have_expired(pki: Pki) -> None:
    long_ago = pki.now - datetime.timedelta(days=60)
    credentials = pki.client("expired", long_ago, days=30)
    with TlsPeer(pki.manager(), lambda _: None) as peer:
        endpoint = Endpoint("127.0.0.1", peer.port, "the manager")
        with (
            pytest.raises(ConnectionFailed, match="refused our certificate: it has expired"),
            Channel.open(endpoint, credentials.manager_context(), SECONDS) as channel,
        ):
            exchange(channel, endpoint, "GET", "/")


def test_a_certificate_that_is_not_valid_yet_is_said_to_be_a_matter_of_clocks(pki: Pki) -> None:
    credentials = pki.client("early", pki.now + datetime.timedelta(hours=1), days=30)
    with TlsPeer(pki.manager(), lambda _: None) as peer:
        endpoint = Endpoint("127.0.0.1", peer.port, "the manager")
        with (
            pytest.raises(ConnectionFailed, match="not valid yet by its clock; are both clocks right"),
            Channel.open(endpoint, credentials.manager_context(), SECONDS) as channel,
        ):
            exchange(channel, endpoint, "GET", "/")


def test_a_connection_closed_without_a_word_is_said_to_be_a_refused_certificate_most_likely(pki: Pki) -> None:
    with pytest.raises(ConnectionFailed, match="without an answer; most likely it refused our certificate"):
        asked(pki, lambda _: None)


def test_a_manager_of_another_ca_is_not_trusted(pki: Pki, foreign: Pki) -> None:
    with (
        TlsPeer(foreign.manager(), lambda _: None) as peer,
        pytest.raises(ConnectionFailed, match=r"cannot trust the manager at 127\.0\.0\.1:") as raised,
    ):
        ask(pki, peer)
    assert raised.value.kind is ErrorKind.CERTIFICATE


def test_a_manager_whose_certificate_names_other_addresses_is_not_trusted(
    pki: Pki, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Pki(tmp_path_factory.mktemp("other"), names=("edge.example", "192.0.2.7"))
    with (
        TlsPeer(other.manager(), lambda _: None) as peer,
        pytest.raises(ConnectionFailed, match=r"cannot trust .*IP address mismatch"),
    ):
        ask(other, peer)


def test_a_server_without_tls_is_said_not_to_speak_it(pki: Pki) -> None:
    with TlsPeer(None, lambda _: None) as peer, pytest.raises(ConnectionFailed, match="does not speak TLS"):
        ask(pki, peer)


def test_a_port_without_a_listener_is_an_error_with_its_hint(pki: Pki) -> None:
    with refusing_port() as port:
        endpoint = Endpoint("127.0.0.1", port, "the manager", "is it running?")
        with pytest.raises(ConnectionFailed, match=r"nothing listens there; is it running\?"):
            Channel.open(endpoint, pki.credentials().manager_context(), SECONDS)


def test_a_host_that_does_not_exist_is_an_error_in_words(pki: Pki) -> None:
    with pytest.raises(ConnectionFailed, match=r"cannot reach the manager at nowhere\.invalid:1"):
        Channel.open(Endpoint("nowhere.invalid", 1, "the manager"), pki.credentials().manager_context(), SECONDS)


def test_a_path_with_a_line_break_is_never_sent(pki: Pki) -> None:
    with TlsPeer(pki.manager(), read_head) as peer:
        endpoint = Endpoint("127.0.0.1", peer.port, "the manager")
        with (
            pytest.raises(KeepfleetError, match="it is no path"),
            Channel.open(endpoint, pki.credentials().manager_context(), SECONDS) as channel,
        ):
            exchange(channel, endpoint, "GET", "/x HTTP/1.1\r\nA: b")


def test_an_error_in_another_shape_is_said_with_its_first_lines() -> None:
    error = Reply(502, b"<html>\nBad gateway", "the manager").error()
    assert (error.message, error.evidence) == ("cannot go on: the manager answered 502", ("<html>", "Bad gateway"))


def test_a_server_that_hangs_up_in_the_handshake_has_not_refused_our_certificate(pki: Pki) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        endpoint = Endpoint("127.0.0.1", listener.getsockname()[1], "the manager")
        with pytest.raises(ConnectionFailed, match="during the TLS handshake, before it saw our certificate") as raised:
            Channel.open(endpoint, pki.credentials().manager_context(), SECONDS)
        thread.join()
    assert not isinstance(raised.value, CertificateRefused)


def test_a_handshake_that_does_not_end_is_no_refusal_either(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "HANDSHAKE_SECONDS", SHORT)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = Endpoint("127.0.0.1", listener.getsockname()[1], "the manager")
        with pytest.raises(ConnectionFailed, match=r"handshake did not end.* lose large packets") as raised:
            Channel.open(endpoint, pki.credentials().manager_context(), SECONDS)
    assert raised.value.kind is ErrorKind.TOO_SLOW


def test_a_server_that_hangs_up_late_did_not_receive_what_we_sent(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that gets our certificate at all refuses it immediately."""
    monkeypatch.setattr(peer_module, "REFUSAL_SECONDS", 0.0)
    with pytest.raises(ConnectionFailed, match=r"did not receive all that we sent; .*large packets") as raised:
        asked(pki, lambda _: None)
    assert not isinstance(raised.value, CertificateRefused)


def test_a_broken_pipe_while_reading_is_the_end_of_the_stream(pki: Pki) -> None:
    """OpenSSL 3.5 raises it from SSL_read after a write that failed."""

    class Broken:
        def read(self, _length: int, _buffer: memoryview) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    context = pki.credentials().manager_context()
    with TlsPeer(pki.manager(), lambda connection: connection.recv(1)) as peer:
        endpoint = Endpoint("127.0.0.1", peer.port, "the manager")
        with Channel.open(endpoint, context, SECONDS) as opened:
            opened._session = cast("Any", Broken())
            assert opened.read(8) == b""


def test_a_connection_asks_within_a_minute_whether_its_peer_is_still_there() -> None:
    with socket.socket() as sock:
        notice_a_peer_that_is_gone(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle, interval, count = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)
        assert idle + interval * count <= 60
