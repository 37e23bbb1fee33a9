"""Uploading to a keep: the pin before the first byte, both encodings, what the keep confirms."""

from __future__ import annotations

import json
import os
import ssl
from pathlib import Path

import pytest

from keep_client.keep import (
    CHUNK,
    UploadEndpoint,
    endpoint_at,
    endpoint_of,
    numbers_body,
    open_workload,
    received,
    upload,
    upload_numbers,
    upload_raw,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import KeepInfo
from keep_protocol.states import State
from tests.fakes.client_pki import Pki
from tests.fakes.tls_peer import TlsPeer, answer, read_request
from tests.fakes.upload_stub import UploadStub

MODULE = b"\0asm\1\0\0\0" + bytes(range(256))


@pytest.fixture
def module(tmp_path: Path) -> str:
    path = tmp_path / "m.wasm"
    path.write_bytes(MODULE)
    return str(path)


def at(peer: TlsPeer, pki: Pki) -> UploadEndpoint:
    return endpoint_at("127.0.0.1", peer.port, pki.fingerprint)


@pytest.mark.parametrize("upload", [upload_raw, upload_numbers])
def test_a_module_arrives_whole_and_is_confirmed(pki: Pki, module: str, upload: object) -> None:
    with UploadStub(pki.keep()) as stub, open_workload(module) as file:
        send = upload_raw if upload is upload_raw else upload_numbers
        reply = send(at(stub, pki), pki.credentials().keep_context(), file)
        assert "received" in received(reply, file)
    assert stub.received == MODULE


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("m.wasm", "m.wasm"),
        ("größe 1.wasm", "größe 1.wasm"),
        ("a\nb", None),
        ("\x1b[31m", None),
        ("ä" * 127, "ä" * 127),
    ],
)
def test_a_modules_name_is_that_of_its_file_where_people_can_be_shown_it(
    pki: Pki, tmp_path: Path, name: str, sent: str | None
) -> None:
    (tmp_path / name).write_bytes(MODULE)
    with UploadStub(pki.keep()) as stub, open_workload(str(tmp_path / name)) as file:
        upload_raw(at(stub, pki), pki.credentials().keep_context(), file)
    assert stub.headers.get("x-module-name") == sent


def test_nothing_is_sent_to_a_keep_with_another_certificate(pki: Pki, module: str) -> None:
    heard: list[bytes] = []
    with TlsPeer(pki.keep(), lambda c: heard.append(c.recv(1))) as peer, open_workload(module) as file:
        stub = endpoint_at("127.0.0.1", peer.port, "sha256:" + "0" * 64)
        with pytest.raises(KeepfleetError, match=r"cannot trust the keep.*nothing was sent") as raised:
            upload_raw(stub, pki.credentials().keep_context(), file)
    assert raised.value.kind is ErrorKind.CERTIFICATE
    assert heard in ([], [b""])


def test_a_keep_that_confirms_other_bytes_is_not_believed(pki: Pki, module: str) -> None:
    def lie(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(answer(200, b'{"sha256":"00","size":264}'))

    with TlsPeer(pki.keep(), lie) as peer, open_workload(module) as file:
        reply = upload_raw(at(peer, pki), pki.credentials().keep_context(), file)
        with pytest.raises(KeepfleetError, match="cannot be sure of the workload"):
            received(reply, file)


def test_a_refused_module_is_the_keeps_own_error(pki: Pki, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("hello")
    with UploadStub(pki.keep()) as stub, open_workload(str(path)) as file:
        reply = upload_raw(at(stub, pki), pki.credentials().keep_context(), file)
        with pytest.raises(KeepfleetError) as raised:
            received(reply, file)
    assert (raised.value.kind, raised.value.evidence) == (ErrorKind.INVALID_MODULE, ("magic header",))


def test_a_file_that_shrinks_while_it_is_sent_is_an_error_and_no_upload(pki: Pki, tmp_path: Path) -> None:
    path = tmp_path / "m.wasm"
    path.write_bytes(MODULE)
    with UploadStub(pki.keep()) as stub, open_workload(str(path)) as file:
        body = numbers_body(file)
        os.truncate(path, 3)
        with pytest.raises(KeepfleetError, match="it changed while it was read"):
            upload(at(stub, pki), pki.credentials().keep_context(), "POST", "/payload", body)
    assert stub.received is None


@pytest.mark.parametrize("size", [0, 1, 255, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_numbers_are_the_json_of_the_original_at_every_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "m"
    data = bytes(index % 256 for index in range(size))
    path.write_bytes(data)
    with open_workload(str(path)) as file:
        body = numbers_body(file)
        text = b"".join(body.parts)
    assert len(text) == body.length
    assert json.loads(text) == {"encoding": "wasm", "contents": list(data)}


def test_only_a_regular_file_is_a_workload(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, why in (
        (tmp_path / "fifo", "regular file"),
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(KeepfleetError, match=f"cannot read .*{why}"), open_workload(str(path)):
            pass


@pytest.mark.parametrize(
    ("address", "manager", "host"),
    [
        ("::", "127.0.0.1", "::1"),
        ("::", "127.0.0.2", "::1"),
        ("::", "::1", "::1"),
        ("::", "2001:db8::7", "2001:db8::7"),
        ("0.0.0.0", "192.0.2.7", "192.0.2.7"),
        ("0.0.0.0", "::1", "127.0.0.1"),
        ("0.0.0.0", "localhost", "127.0.0.1"),
        ("192.0.2.9", "edge.example", "192.0.2.9"),
    ],
)
def test_a_keep_on_every_address_is_met_at_its_managers_of_that_family(address: str, manager: str, host: str) -> None:
    keep = KeepInfo(7, State.STARTED, address=address, port=3031, fingerprint="sha256:" + "1" * 64)
    assert endpoint_of(keep, manager).endpoint.host == host


@pytest.mark.parametrize(("address", "manager"), [("::", "192.0.2.7"), ("0.0.0.0", "2001:db8::7")])
def test_a_keep_of_the_other_family_is_said_to_be_that(address: str, manager: str) -> None:
    keep = KeepInfo(7, State.STARTED, address=address, port=3031, fingerprint="sha256:" + "1" * 64)
    with pytest.raises(KeepfleetError, match=f"it listens on {address}, which is IPv. alone, and {manager} has no"):
        endpoint_of(keep, manager)


@pytest.mark.parametrize("state", [State.LISTENING, State.COMPLETE, State.ERROR])
def test_only_a_started_keep_has_an_upload_endpoint(state: State) -> None:
    keep = KeepInfo(7, state, detail="elsewhere", address="127.0.0.1", port=3031, fingerprint="sha256:" + "1" * 64)
    with pytest.raises(KeepfleetError, match="keep 7: it is elsewhere") as raised:
        endpoint_of(keep, "localhost")
    assert raised.value.kind is ErrorKind.CONFLICT


def test_progress_counts_every_byte_that_went_out(pki: Pki, tmp_path: Path) -> None:
    path = tmp_path / "m.wasm"
    path.write_bytes(b"\0asm" + bytes(700_000))
    said: list[int] = []
    with UploadStub(pki.keep()) as stub, open_workload(str(path)) as file:
        reply = upload_raw(
            endpoint_at("127.0.0.1", stub.port, pki.fingerprint), pki.credentials().keep_context(), file, said.append
        )
        assert received(reply, file).startswith("700004 bytes received whole")
    assert said == sorted(said)
    assert said[-1] == 700_004
