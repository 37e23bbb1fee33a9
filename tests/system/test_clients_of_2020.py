"""The clients of 2020, byte for byte: no certificate for the manager, a slash at the end, numbers, PKCS#12."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from keep_protocol.tls import check_pin
from tests.system.certificates import foreign_ca, issue
from tests.system.fleet import Fleet
from tests.system.host import message_of
from tests.system.life import example

SECONDS = 30


@pytest.fixture(scope="module")
def open_fleet(installed_fleet: Fleet) -> Iterator[Fleet]:
    """The manager with client certificates made optional."""
    with installed_fleet.configured(client_certificates="optional"):
        yield installed_fleet
        installed_fleet.clear()


@pytest.fixture
def identity(open_fleet: Fleet, tmp_path: Path) -> Path:
    """A client's key and certificate out of the PKCS#12 file that `keepctl pki issue --p12` wrote, as one PEM."""
    host, name = open_fleet.host, f"client-{tmp_path.name.replace('_', '-')[-40:]}"
    p12, password = host.path / f"{name}.p12", host.path / f"{name}.password"
    password.write_text("secret of 2020\n")
    host.run(["keepctl", "pki", "issue", name, "--p12", str(p12), "--password-file", str(password)])
    pem = host.run(["openssl", "pkcs12", "-in", str(p12), "-noenc", "-passin", f"file:{password}"]).stdout
    path = tmp_path / "identity.pem"
    path.write_text(pem)
    return path


def exchange(context: ssl.SSLContext, port: int, request: bytes, pin: str = "") -> tuple[bytes, bytes]:
    """Sends exactly `request` and returns status line and body of the answer."""
    with (
        socket.create_connection(("127.0.0.1", port), SECONDS) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        if pin:
            check_pin(sock.getpeercert(binary_form=True), pin)
        sock.sendall(request)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], body


def command(port: int, body: bytes) -> bytes:
    """A command as the original tester posts it."""
    return (
        b"POST /keeps_post/ HTTP/1.1\r\ncontent-type: application/json\r\naccept: */*\r\n"
        + f"host: 127.0.0.1:{port}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
        + body
    )


def manager_context(fleet: Fleet) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(fleet.pki / "ca.crt"))


def test_the_testers_of_2020_do_their_whole_job(open_fleet: Fleet, identity: Path) -> None:
    context, port = manager_context(open_fleet), open_fleet.port
    status, body = exchange(
        context, port, command(port, b'{"command":"new-keep","keep-arch":"wasi","auth-token":"a3f9cb07"}')
    )
    keep = json.loads(body)
    assert status == b"HTTP/1.1 200 OK"
    assert (keep["state"], keep["app_loader_bind_port"], keep["bindaddress"]) == (1, 0, "")

    status, body = exchange(context, port, command(port, b'{"command":"list-keeps"}'))
    assert [listed["kuuid"] for listed in json.loads(body)["klvec"]] == [keep["kuuid"]]

    start = {"command": "start-keep", "kuuid": str(keep["kuuid"]), "keep-addr": "127.0.0.1", "keep-port": "3031"}
    status, body = exchange(context, port, command(port, json.dumps(start).encode()))
    started = json.loads(body)
    assert (status, started["state"], started["bindaddress"]) == (b"HTTP/1.1 200 OK", 2, "127.0.0.1")

    door = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    door.check_hostname, door.verify_mode = False, ssl.CERT_NONE
    door.load_cert_chain(identity)
    numbers = ",".join(str(byte) for byte in example("return-1/return-1"))
    payload = b'{"encoding":"wasm","contents":[' + numbers.encode() + b"]}"
    keep_port = started["app_loader_bind_port"]
    request = (
        b"POST /payload HTTP/1.1\r\ncontent-type: application/json\r\naccept: */*\r\n"
        + f"host: 127.0.0.1:{keep_port}\r\ncontent-length: {len(payload)}\r\n\r\n".encode()
        + payload
    )
    status, body = exchange(door, keep_port, request, pin=started["fingerprint"])
    assert (status, body) == (b"HTTP/1.1 200 OK", b"Payload received")
    unit = f"keep@{keep['kuuid']}.service"
    entry = open_fleet.host.wait_journal(lambda entry: message_of(entry) == "returned: [1]")
    assert entry["_SYSTEMD_UNIT"] == unit


def test_a_command_of_another_time_is_undefined(open_fleet: Fleet) -> None:
    port = open_fleet.port
    status, body = exchange(manager_context(open_fleet), port, command(port, b'{"command":"make-coffee"}'))
    assert (status, json.loads(body)) == (b"HTTP/1.1 400 Bad Request", {"text": "undefined"})


def test_hardware_that_is_not_there_is_a_keep_in_state_15(open_fleet: Fleet) -> None:
    port, before = open_fleet.port, open_fleet.keep_units()
    for arch in (b"AMD-SEV", b"Intel-SGX"):
        body = b'{"command":"new-keep","keep-arch":"' + arch + b'","auth-token":"x"}'
        status, answer = exchange(manager_context(open_fleet), port, command(port, body))
        keep = json.loads(answer)
        assert status == b"HTTP/1.1 200 OK"
        assert (keep["state"], keep["kuuid"], keep["app_loader_bind_port"], keep["bindaddress"]) == (15, 0, 0, "")
        assert "no such hardware" in keep["detail"]
    assert open_fleet.keep_units() == before


def test_optional_certificates_do_not_let_a_foreign_one_in(open_fleet: Fleet, tmp_path: Path) -> None:
    context = manager_context(open_fleet)
    context.load_cert_chain(issue(foreign_ca(), tmp_path / "foreign.pem"))
    with pytest.raises(OSError, match=r"(?i)alert|EOF|reset|closed"):
        status, _ = exchange(context, open_fleet.port, command(open_fleet.port, b'{"command":"list-keeps"}'))
        raise ConnectionError("closed without an answer") if not status else AssertionError(status)
