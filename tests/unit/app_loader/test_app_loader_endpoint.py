"""The endpoint under clients that are wrong, slow, silent or many: each hears why, and a good one is served next."""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import select
import socket
import ssl
import struct
from pathlib import Path

import pytest

from keep_protocol.keep import Module
from keep_protocol.reports import ReportType
from tests.fakes.pki import CLIENT, DAY, SERVER, Authority, load
from tests.unit.app_loader.app_loader_process import (
    PATIENCE,
    AppLoaderProcess,
    ask,
    listening,
    post,
    put,
    read_answer,
    request,
    wasm,
)

NOTHING = wasm('(module (func (export "_start")))')
LONG = NOTHING + b"\0\x84\x80\x04\3abc" + bytes(65536)
RAW = {"Content-Type": "application/wasm"}


def serves(process: AppLoaderProcess, client: Path) -> None:
    """The endpoint still takes a good upload and lets it run, with nothing left of what came before."""
    assert ask(process, client, put(NOTHING)).status == 200
    process.expect(ReportType.RECEIVING, ReportType.ACCEPTED)
    assert process.outcome().exit_code == 0


def turned_away(process: AppLoaderProcess, certificate: Path | None) -> None:
    """A client that is refused in its handshake; what it sees of that depends on who closes first."""
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)), process.connect(certificate) as connection:
        connection.sendall(put(NOTHING))
        if not connection.recv(1000):
            raise EOFError


def test_a_client_without_a_certificate_is_turned_away(process: AppLoaderProcess, client: Path) -> None:
    turned_away(process, None)
    serves(process, client)


def test_a_client_of_another_ca_is_turned_away(process: AppLoaderProcess, client: Path, tmp_path: Path) -> None:
    turned_away(process, Authority(tmp_path, "test CA").client("stranger"))
    serves(process, client)


@pytest.mark.parametrize(("starts", "ends"), [(-2 * DAY, -DAY), (DAY, 2 * DAY)], ids=["expired", "not yet valid"])
def test_a_certificate_outside_its_time_is_turned_away(
    process: AppLoaderProcess, authority: Authority, client: Path, starts: object, ends: object
) -> None:
    turned_away(process, authority.client("late", starts=starts, valid_for=ends))  # type: ignore[arg-type]
    serves(process, client)


def test_a_servers_certificate_is_turned_away(process: AppLoaderProcess, authority: Authority, client: Path) -> None:
    turned_away(process, authority.client("server", [SERVER]))
    serves(process, client)


def test_a_certificate_without_any_usage_is_forbidden(
    process: AppLoaderProcess, authority: Authority, client: Path
) -> None:
    answer = ask(process, authority.client("no-usage", no_usages=True), put(NOTHING))
    assert (answer.status, answer.error["kind"]) == (403, "forbidden")
    serves(process, client)
    process.end()
    assert b"refused (forbidden)" in process.output


def test_a_certificate_for_clients_and_servers_is_let_in(process: AppLoaderProcess, authority: Authority) -> None:
    serves(process, authority.client("both", [SERVER, CLIENT]))


def test_a_client_that_speaks_an_older_tls_is_turned_away(process: AppLoaderProcess, client: Path) -> None:
    context = process.context(client)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", process.port), PATIENCE) as plain, pytest.raises(OSError):
        context.wrap_socket(plain)
    serves(process, client)


def test_no_session_is_resumed(process: AppLoaderProcess, client: Path) -> None:
    with process.connect(client) as connection:
        connection.sendall(request("GET", "/", {}))
        assert b"awaiting a workload" in connection.recv(1000)
        assert connection.session is None or not connection.session.has_ticket


def test_a_client_that_speaks_no_tls_is_turned_away(process: AppLoaderProcess, client: Path) -> None:
    with socket.create_connection(("127.0.0.1", process.port), PATIENCE) as plain:
        plain.sendall(request("GET", "/", {}))
        with contextlib.suppress(ConnectionError):
            while plain.recv(1000):
                pass
    serves(process, client)


def test_a_revoked_certificate_is_forbidden_on_a_connection_already_open(
    process: AppLoaderProcess, authority: Authority, client: Path
) -> None:
    revoked = authority.client("revoked")
    connection = process.connect(revoked)
    process.revoked.write_text(f"{load(revoked).serial_number:x}\n")
    connection.sendall(put(NOTHING))
    answer = read_answer(connection)
    assert (answer.status, answer.error["kind"]) == (403, "forbidden")
    assert "is revoked" in str(answer.error["message"])
    serves(process, client)


def test_a_certificate_revoked_during_its_upload_ends_the_upload(
    process: AppLoaderProcess, authority: Authority, client: Path
) -> None:
    revoked = authority.client("revoked-later")
    connection = process.connect(revoked)
    connection.sendall(put(NOTHING)[:-1])
    process.expect(ReportType.RECEIVING)
    process.revoked.write_text(f"{load(revoked).serial_number:X}\n")
    assert read_answer(connection).status == 403
    process.expect(ReportType.AWAITING)
    serves(process, client)


def test_a_body_of_a_gigabyte_is_refused_by_its_length_alone(process: AppLoaderProcess, client: Path) -> None:
    answer = ask(process, client, request("PUT", "/workload", {**RAW, "Content-Length": 1 << 30}))
    assert (answer.status, answer.error["kind"]) == (413, "too-large")
    serves(process, client)


@pytest.mark.parametrize("path", ["/workload", "/payload"])
def test_an_endless_body_in_chunks_is_refused_at_the_limit(
    tmp_path: Path, authority: Authority, client: Path, path: str
) -> None:
    with listening(tmp_path, authority, {"KEEPFLEET_MAX_WORKLOAD": "100000"}) as process:
        method, kind = ("PUT", "application/wasm") if path == "/workload" else ("POST", "application/json")
        connection = process.connect(client)
        connection.sendall(request(method, path, {"Content-Type": kind, "Transfer-Encoding": "chunked"}))
        if path == "/payload":
            connection.sendall(b'1b\r\n{"encoding":"wasm","content\r\n5\r\ns":[0\r\n')
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            for _ in range(10_000):
                connection.sendall(b"1000\r\n" + b",0" * 2048 + b"\r\n")
        assert read_answer(connection).status == 413
        process.expect(ReportType.RECEIVING, ReportType.AWAITING)
        serves(process, client)


@pytest.mark.parametrize("keep", [0, 1, 20, len(NOTHING) - 1])
def test_an_upload_that_is_cut_leaves_nothing_behind(process: AppLoaderProcess, client: Path, keep: int) -> None:
    assert ask(process, client, request("GET", "/", {})).status == 200
    before = len(process.descriptors())
    data = put(NOTHING)
    with process.connect(client) as connection:
        connection.sendall(data[: len(data) - len(NOTHING) + keep])
        process.expect(ReportType.RECEIVING)
    process.expect(ReportType.AWAITING)
    assert len(process.descriptors()) <= before
    assert process.children() == set()
    serves(process, client)


@pytest.mark.parametrize("sent", [0, 10, 200, None])
def test_a_client_that_resets_its_connection_leaves_the_endpoint_serving(
    process: AppLoaderProcess, client: Path, sent: int | None
) -> None:
    """Before, in and after its headers, and while its module is checked and answered."""
    with process.connect(client) as connection:
        connection.sendall(put(LONG)[:sent])
        if sent not in (0, 10):  # a reset takes along what was not read before it
            process.expect(ReportType.RECEIVING)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if sent is None and process.report().type is ReportType.ACCEPTED:  # before the reset was seen
        assert process.outcome().exit_code == 0
        return
    if sent == 200:
        process.expect(ReportType.AWAITING)
    serves(process, client)


@pytest.mark.parametrize("name", ["hello.wasm", "grüße ∑.wasm", "x" * 255, ""])
def test_a_module_is_reported_with_its_name_digest_and_size(process: AppLoaderProcess, client: Path, name: str) -> None:
    headers = {**RAW, "Content-Length": len(NOTHING), "X-Module-Name": name}
    assert ask(process, client, request("PUT", "/workload", headers, NOTHING)).status == 200
    report = process.expect(ReportType.RECEIVING, ReportType.ACCEPTED)
    assert report.module == Module(f"sha256:{hashlib.sha256(NOTHING).hexdigest()}", name, len(NOTHING))


@pytest.mark.parametrize("name", ["../x", "x" * 256, "a\tb", "\u202e", "a\u2028b"])
def test_a_modules_name_that_could_deceive_a_reader_is_refused(
    process: AppLoaderProcess, client: Path, name: str
) -> None:
    headers = {**RAW, "Content-Length": len(NOTHING), "X-Module-Name": name}
    answer = ask(process, client, request("PUT", "/workload", headers, NOTHING))
    assert (answer.status, answer.error["kind"]) == (400, "bad-request")
    assert "X-Module-Name must be" in str(answer.error["message"])


def test_a_body_in_chunks_is_taken(process: AppLoaderProcess, client: Path) -> None:
    connection = process.connect(client)
    connection.sendall(request("PUT", "/workload", {**RAW, "Transfer-Encoding": "chunked"}))
    for byte in NOTHING:
        connection.sendall(b"1\r\n%c\r\n" % byte)
    connection.sendall(b"0\r\n\r\n")
    answer = read_answer(connection)
    assert (answer.status, json.loads(answer.body)["size"]) == (200, len(NOTHING))


def test_a_client_that_asks_first_is_answered_to_go_on(process: AppLoaderProcess, client: Path) -> None:
    connection = process.connect(client)
    headers = {**RAW, "Content-Length": len(NOTHING), "Expect": "100-continue"}
    connection.sendall(request("PUT", "/workload", headers))
    assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
    connection.sendall(NOTHING)
    assert read_answer(connection).status == 200


def test_a_second_upload_hears_that_the_first_is_being_received(process: AppLoaderProcess, client: Path) -> None:
    first = process.connect(client)
    first.sendall(put(NOTHING)[:-1])
    process.expect(ReportType.RECEIVING)
    second = ask(process, client, put(NOTHING))
    assert (second.status, second.error["kind"]) == (409, "conflict")
    first.sendall(NOTHING[-1:])
    assert read_answer(first).status == 200
    process.expect(ReportType.ACCEPTED)
    assert process.outcome().exit_code == 0


def test_a_client_that_waits_while_another_is_accepted_hears_409(process: AppLoaderProcess, client: Path) -> None:
    waiting = process.connect(client)
    waiting.sendall(b"PUT /workload HTTP/1.1\r\n")
    assert ask(process, client, put(NOTHING)).status == 200
    assert read_answer(waiting).status == 409


def test_a_stalled_upload_is_ended_and_the_next_one_served(tmp_path: Path, authority: Authority, client: Path) -> None:
    with listening(tmp_path, authority, STALL_SECONDS=0.2) as process:
        connection = process.connect(client)
        connection.sendall(put(NOTHING)[:-1])
        answer = read_answer(connection)
        assert (answer.status, answer.error["kind"]) == (408, "too-slow")
        process.expect(ReportType.RECEIVING, ReportType.AWAITING)
        serves(process, client)


def test_an_upload_in_drops_is_ended(tmp_path: Path, authority: Authority, client: Path) -> None:
    with listening(tmp_path, authority, GRACE_SECONDS=0.1, ACCESS_RECHECK_SECONDS=0.1) as process:
        connection = process.connect(client)
        connection.sendall(request("PUT", "/workload", {**RAW, "Content-Length": 1000}))
        for _ in range(900):  # a byte each time nothing has been said for a moment, until the answer comes
            connection.sendall(b"\0")
            if select.select([connection], [], [], 0.02)[0]:
                break
        assert read_answer(connection).status == 408


def test_a_client_that_sends_no_request_gets_an_answer(tmp_path: Path, authority: Authority, client: Path) -> None:
    with listening(tmp_path, authority, HEADERS_SECONDS=0.2) as process:
        for _ in range(2):  # each is served: a good one might not be in time, either
            assert read_answer(process.connect(client)).status == 408


def test_a_client_that_does_not_shake_hands_is_cut(tmp_path: Path, authority: Authority, client: Path) -> None:
    with listening(tmp_path, authority, HANDSHAKE_SECONDS=0.2) as process:
        for _ in range(2):  # it goes on: a good client might not be in time, either
            with socket.create_connection(("127.0.0.1", process.port), PATIENCE) as silent:
                assert silent.recv(1) == b""


def test_a_good_client_is_served_among_twenty_silent_ones(process: AppLoaderProcess, client: Path) -> None:
    with contextlib.ExitStack() as connections:
        for _ in range(20):
            connections.enter_context(socket.create_connection(("127.0.0.1", process.port), PATIENCE))
        good = process.connect(client)
        for _ in range(20):
            connections.enter_context(socket.create_connection(("127.0.0.1", process.port), PATIENCE))
        good.sendall(put(NOTHING))
        assert read_answer(good).status == 200


def test_an_upload_is_not_pushed_out_by_silent_clients(process: AppLoaderProcess, client: Path) -> None:
    good = process.connect(client)
    good.sendall(put(NOTHING)[:-1])
    process.expect(ReportType.RECEIVING)
    with contextlib.ExitStack() as connections:
        for _ in range(40):
            connections.enter_context(socket.create_connection(("127.0.0.1", process.port), PATIENCE))
        good.sendall(NOTHING[-1:])
        assert read_answer(good).status == 200


def test_known_clients_are_not_pushed_out_by_a_ninth(process: AppLoaderProcess, client: Path) -> None:
    with contextlib.ExitStack() as connections:
        known = [connections.enter_context(process.connect(client)) for _ in range(8)]
        for connection in known[:7]:
            connection.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
            process.connect(client)
        known[0].sendall(b"Host: keep\r\n\r\n")
        assert read_answer(known[0]).status == 200


def test_a_full_disk_is_reported_and_the_endpoint_waits_again(process: AppLoaderProcess, client: Path) -> None:
    unlimited = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (10, unlimited[1]))
    answer = ask(process, client, put(NOTHING))
    assert (answer.status, answer.error["kind"]) == (507, "no-space")
    process.expect(ReportType.RECEIVING, ReportType.AWAITING)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
    serves(process, client)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("GET", "/elsewhere", {}), 404),
        (request("GET", "/payload", {}), 405),
        (request("HEAD", "/", {}), 405),
        (request("PUT", "/workload", {"Content-Length": 3}, b"abc"), 415),
        (request("PUT", "/workload", {**RAW, "Content-Encoding": "gzip", "Content-Length": 3}, b"abc"), 415),
        (request("PUT", "/workload", RAW), 411),
        (request("PUT", "/workload", {**RAW, "Transfer-Encoding": "gzip"}), 501),
        (request("PUT", "/workload", {**RAW, "Transfer-Encoding": "chunked", "Content-Length": 3}), 400),
        (request("GET", "/", {"X": "y" * 70_000}), 431),
        (request("GET", "/", {f"X-{number}": number for number in range(200)}), 431),
        (b"nonsense\r\n\r\n", 400),
        (b"\0" * 100 + b"\r\n\r\n", 400),
        (request("GET", "/", {"Content-Length": "-1"}), 400),
    ],
)
def test_a_wrong_request_is_answered_with_its_status(
    process: AppLoaderProcess, client: Path, data: bytes, status: int
) -> None:
    answer = ask(process, client, data)
    assert answer.status == status
    assert data.startswith(b"HEAD") or answer.error["message"]
    assert (answer.headers["Allow"] is not None) == (status == 405)
    serves(process, client)


def test_a_payload_that_is_not_json_is_answered_400(process: AppLoaderProcess, client: Path) -> None:
    data = request("POST", "/payload", {"Content-Type": "application/json", "Content-Length": 9}, b'{"a": 1.}')
    assert ask(process, client, data).status == 400
    process.expect(ReportType.RECEIVING, ReportType.AWAITING)
    serves(process, client)


def test_pipelined_requests_are_answered_once(process: AppLoaderProcess, client: Path) -> None:
    with process.connect(client) as connection:
        connection.sendall(request("GET", "/", {}) * 1000)
        received = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := connection.recv(65536):
                received += data
    assert received.count(b"HTTP/1.1 200 ") == 1
    serves(process, client)


def test_a_large_payload_in_json_arrives_whole(process: AppLoaderProcess, client: Path) -> None:
    module = NOTHING + b"\0\x84\x80\x04\3abc" + bytes(range(256)) * 256
    assert ask(process, client, post(module)).status == 200
    process.expect(ReportType.RECEIVING)
    assert f"{len(module)} bytes" in process.expect(ReportType.ACCEPTED).text
