"""The manager's calls, against a manager in memory over real TLS; credentials and addresses."""

from __future__ import annotations

import os
import pty
import ssl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from keep_client.credentials import Credentials, _passphrases, check_readable, parse_manager, pki_directory
from keep_client.manager import ManagerClient
from keep_client.peer import ConnectionFailed, Endpoint, one_line, printable
from keep_protocol import strict_json
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import OutcomeKind
from keep_protocol.states import State
from tests.fakes.client_pki import Pki
from tests.fakes.manager_in_memory import ManagerInMemory
from tests.fakes.tls_peer import answer


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
    def other(*_: object) -> tuple[int, dict[str, object]]:
        return 200, {"keeps": keeps}

    monkeypatch.setattr(fake, "_answer", other)
    with pytest.raises(KeepfleetError, match="'keeps' must list objects"):
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


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(0o700)
    (tmp_path / "closed" / "ca.crt").write_text("x")
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    else:
        (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(KeepfleetError, match=r"/closed/ca.crt: permission denied; run this as a user who may"):
            check_readable(str(tmp_path / "closed" / "ca.crt"))
    finally:
        if root:
            os.seteuid(0)
        (tmp_path / "closed").chmod(0o700)


def test_only_a_regular_file_is_a_certificate(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(KeepfleetError, match="it is not a regular file"):
            check_readable(str(path))


@pytest.fixture
def encrypted(pki: Pki, tmp_path: Path) -> Credentials:
    """Our certificate, with its key under the passphrase "abcd"."""
    _passphrases.clear()
    key = tmp_path / "admin.key"
    plain = serialization.load_pem_private_key(Path(pki.credentials().key).read_bytes(), None)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(plain.private_bytes(pem, form, serialization.BestAvailableEncryption(b"abcd")))
    key.chmod(0o600)
    return Credentials(pki.layout.ca_certificate, pki.credentials().certificate, str(key))


def at_a_terminal(answer: str, code: str) -> tuple[int, str]:
    """What Python code ends with, and its terminal shows, where a person types `answer`."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])  # noqa: S606  # no shell, by intent
    shown = b""
    with suppress(OSError):  # EIO: the other end is closed
        while more := os.read(terminal, 4096):
            shown += more
            if shown.endswith(b": ") and shown.count(b"Passphrase") == 1:
                os.write(terminal, answer.encode() + b"\n")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


@pytest.mark.parametrize(("typed", "code", "said"), [("abcd", 0, ""), ("wrong", 1, "the passphrase is wrong")])
def test_an_encrypted_keys_passphrase_is_asked_for_once(
    encrypted: Credentials, typed: str, code: int, said: str
) -> None:
    program = (
        f"from keep_client.credentials import Credentials; c = Credentials({encrypted.ca!r}, "
        f"{encrypted.certificate!r}, {encrypted.key!r}); c.manager_context(); c.keep_context()"
    )
    ended, shown = at_a_terminal(typed, program)
    assert (ended, shown.count("Passphrase of")) == (code, 1), shown
    assert said in shown and typed not in shown.splitlines()[0]


def test_without_a_terminal_an_encrypted_key_is_refused_with_the_command_that_decrypts_it(
    encrypted: Credentials,
) -> None:
    code = (
        "from keep_client.credentials import Credentials; "
        f"Credentials({encrypted.ca!r}, {encrypted.certificate!r}, {encrypted.key!r}).manager_context()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    assert "it is encrypted, and there is no terminal to ask for its passphrase" in done.stderr
    assert f"write it without one: openssl pkey -in {encrypted.key}" in done.stderr


def test_a_keep_listens_by_default_where_its_manager_is_reached(client: ManagerClient, pki: Pki) -> None:
    assert client.reached == ""
    assert client.start(client.create().kuuid).address == "127.0.0.1"
    again = ManagerClient(client.endpoint, pki.credentials().manager_context())
    assert again.start(client.create().kuuid).address == "127.0.0.1", "a first call finds it out"


def test_a_keep_listens_by_default_at_the_very_address_by_which_its_manager_is_reached(pki: Pki) -> None:
    with ManagerInMemory(pki.manager(), pki.keep_pem, pki.fingerprint, "127.0.0.2") as fake:
        client = ManagerClient(Endpoint("127.0.0.2", fake.port, "the manager"), pki.credentials().manager_context())
        assert client.start(client.create().kuuid).address == "127.0.0.2"


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


def compiling(connection: ssl.SSLSocket) -> None:
    """The manager's answer to a request whose module is still compiled."""
    error = KeepfleetError(ErrorKind.COMPILING, "cannot run the module yet", ("compiling the module, 2 s",))
    connection.sendall(answer(503, strict_json.dumps({"error": error.to_wire()}), False))


def test_a_request_that_waits_for_a_compilation_is_made_again_and_says_how_far_that_is(
    client: ManagerClient, fake: ManagerInMemory
) -> None:
    fake.instead["POST /v1/keeps"] = [compiling, compiling]
    progress: list[str] = []
    assert client.create(waiting=progress.append).state is State.LISTENING
    assert progress == ["compiling the module, 2 s"] * 2


def test_a_manager_that_is_lost_meanwhile_is_asked_again_where_that_makes_no_second_keep(
    client: ManagerClient, fake: ManagerInMemory
) -> None:
    fake.instead["POST /v1/keeps"] = [compiling, lambda connection: connection.close()]
    assert client.create(idempotency_key="a key").state is State.LISTENING
    fake.instead["POST /v1/keeps"] = [compiling, lambda connection: connection.close()]
    with pytest.raises(ConnectionFailed):
        client.create()
