"""The manager's calls, against a manager in memory over real TLS; credentials and addresses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from keep_client.credentials import Credentials, parse_manager, pki_directory
from keep_client.endpoint import Endpoint
from keep_client.manager import ManagerClient
from keep_client.text import one_line, printable
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import OutcomeKind
from keep_protocol.states import State
from tests.fakes.client_pki import Pki
from tests.fakes.manager_in_memory import ManagerInMemory


@pytest.fixture
def fake(pki: Pki) -> Iterator[ManagerInMemory]:
    with ManagerInMemory(pki.manager(), pki.keep_pem, pki.fingerprint) as manager:
        yield manager


@pytest.fixture
def client(pki: Pki, fake: ManagerInMemory) -> ManagerClient:
    return ManagerClient(Endpoint("localhost", fake.port, "the manager"), pki.credentials().manager_context())


def test_a_keep_is_created_started_stopped_and_removed(client: ManagerClient, pki: Pki) -> None:
    keep = client.create()
    assert keep.state is State.LISTENING
    started = client.start(keep.kuuid, "127.0.0.1", None, ("edge.example",))
    assert (started.state, started.port, started.fingerprint) == (State.STARTED, 3031, pki.fingerprint)
    assert client.keep(keep.kuuid) == started
    assert client.keeps() == (started,)
    stopped = client.stop(keep.kuuid)
    assert stopped.outcome is not None
    assert stopped.outcome.kind is OutcomeKind.STOPPED
    client.remove(keep.kuuid)
    assert client.keeps() == ()


def test_the_managers_error_is_raised_with_its_kind_and_evidence(client: ManagerClient) -> None:
    with pytest.raises(KeepfleetError) as raised:
        client.keep(12)
    assert (raised.value.kind, raised.value.evidence) == (ErrorKind.NOT_FOUND, ("a line of evidence",))


def test_a_wait_names_the_state_and_the_time(client: ManagerClient, fake: ManagerInMemory) -> None:
    keep = client.create()
    client.changed(keep.kuuid, State.STARTED, 60)
    assert fake.requests[-1] == f"GET /v1/keeps/{keep.kuuid}?changed-from=2&timeout=60"


@pytest.mark.parametrize("keeps", [None, 3, ["no keep"], {"a": 1}])
def test_a_list_of_another_shape_is_an_error_in_words(
    client: ManagerClient, fake: ManagerInMemory, monkeypatch: pytest.MonkeyPatch, keeps: object
) -> None:
    def other(method: str, target: str, body: bytes) -> tuple[int, dict[str, object]]:
        return 200, {"keeps": keeps}

    monkeypatch.setattr(fake, "_answer", other)
    with pytest.raises(KeepfleetError, match="'keeps' must list keeps"):
        client.keeps()


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:3030", "127.0.0.1", 3030),
        ("edge.example", "edge.example", 3030),
        ("https://edge.example:4030/", "edge.example", 4030),
        ("[::1]:3030", "::1", 3030),
        ("[2001:db8::7]", "2001:db8::7", 3030),
    ],
)
def test_a_managers_address_is_read(text: str, host: str, port: int) -> None:
    endpoint = parse_manager(text)
    assert (endpoint.host, endpoint.port) == (host, port)


@pytest.mark.parametrize(
    "text", ["", ":3030", "a b", "http://a", "a:0", "a:65536", "a:3030/x", "::1", "a\r\nb", "[a]:1"]
)
def test_what_is_no_managers_address_is_refused(text: str) -> None:
    with pytest.raises(KeepfleetError, match="it must be HOST:PORT") as raised:
        parse_manager(text)
    assert raised.value.kind is ErrorKind.BAD_REQUEST


def test_an_ipv6_endpoint_is_written_in_brackets() -> None:
    assert str(Endpoint("::1", 3030, "the manager")) == "the manager at [::1]:3030"


def test_a_key_that_others_can_read_is_refused_with_the_command_that_mends_it(pki: Pki, tmp_path: Path) -> None:
    key = tmp_path / "k.key"
    key.write_bytes(Path(pki.credentials().key).read_bytes())
    key.chmod(0o640)
    credentials = Credentials.find(pki.layout.ca_certificate, pki.credentials().certificate, str(key))
    with pytest.raises(KeepfleetError, match=f"its mode is 0640; run: chmod 0600 {key}"):
        credentials.manager_context()


def test_missing_certificates_are_an_error_that_names_the_next_step(tmp_path: Path) -> None:
    credentials = Credentials.find(str(tmp_path / "ca.crt"), str(tmp_path / "a.crt"))
    assert credentials.key == str(tmp_path / "a.key")
    with pytest.raises(KeepfleetError, match=r"there is no such file; make a PKI with `keepctl init`"):
        credentials.manager_context()


def test_the_pki_lies_where_the_variable_says_else_in_etc_for_root_else_in_the_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEEPFLEET_PKI", "/srv/pki")
    assert pki_directory() == "/srv/pki"
    monkeypatch.delenv("KEEPFLEET_PKI")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert pki_directory() == "/etc/keepfleet/pki"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert pki_directory() == "/home/ann/.config/keepfleet/pki"


def test_what_a_guest_chose_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[31mb\x00\r\x9b2J\u202e\tc\n") == "a\\x1b[31mb\\x00\\r\\x9b2J\\u202e\tc\n"
    assert one_line("a\n b\tc") == "a b c"
