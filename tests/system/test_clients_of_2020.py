"""The clients of 2020, byte for byte: no certificate for the manager, a PKCS#12 identity of ours for the keep."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keep_protocol.keep import OutcomeKind
from keep_protocol.states import State
from tests.system import certificates
from tests.system.calm import undisturbed
from tests.system.fleet import Fleet, free_port
from tests.system.life import Life, example
from tests.system.wire import NoAnswer, ask, connect, read_answer

RETURNS_1 = example("return-1/return-1")
PASSWORD = "a3f9cb07 ä"


def as_hyper_sends(path: str, body: str, port: int) -> bytes:
    """A request as reqwest 0.10 on hyper 0.13 wrote it."""
    lines = [
        f"POST {path} HTTP/1.1",
        "content-type: application/json",
        "accept: */*",
        f"content-length: {len(body)}",
        f"host: localhost:{port}",
    ]
    return "\r\n".join([*lines, "", body]).encode("ascii")


def payload(module: bytes) -> str:
    """A workload as serde_json wrote it: the encoding, and every byte as a number."""
    return f'{{"encoding":"wasm","contents":[{",".join(map(str, module))}]}}'


@pytest.fixture(scope="module")
def fleet_of_2020(installed_fleet: Fleet) -> Iterator[Fleet]:
    """A manager that lets clients without a certificate in."""
    installed_fleet.clear()
    with installed_fleet.configured(client_certificates="optional"), undisturbed(installed_fleet):
        yield installed_fleet
        installed_fleet.clear()


@pytest.fixture
def old(fleet_of_2020: Fleet) -> Iterator[Fleet]:
    yield fleet_of_2020
    fleet_of_2020.clear()


def command(fleet: Fleet, path: str = "/keeps_post/", **members: str) -> Any:
    """The manager's answer to one of the original's commands, sent without a certificate."""
    body = json.dumps({name.replace("_", "-"): value for name, value in members.items()}, separators=(",", ":"))
    answer = ask(fleet.port, fleet.tls(None), as_hyper_sends(path, body, fleet.port))
    assert answer.status == 200, answer
    assert answer.headers["content-type"].startswith("application/json")
    return answer.object


def started(fleet: Fleet) -> Life:
    """A keep that the original's steps made and started."""
    made = command(fleet, command="new-keep", auth_token="a3f9cb07", keep_arch="wasi")
    place = {"keep_addr": "127.0.0.1", "keep_port": str(free_port())}
    command(fleet, command="start-keep", kuuid=str(made["kuuid"]), **place)
    return Life(fleet, made["kuuid"])


def identity(fleet: Fleet, directory: Path, name: str, password: str = PASSWORD) -> ssl.SSLContext:
    """What a client of 2020 shows to a keep: the identity of a PKCS#12 file that `keepctl pki issue` made.

    Python cannot read one, so the openssl program opens it first. It trusted any certificate, and so does this.
    """
    host, file = fleet.host, f"/etc/keepfleet/{name}.p12"
    host.run(["tee", "/etc/password"], input=password + "\n")
    host.run(["keepctl", "pki", "issue", name, "--p12", file, "--password-file", "/etc/password"])
    opened = host.run(["openssl", "pkcs12", "-in", file, "-passin", "file:/etc/password", "-nodes"]).stdout
    pem = directory / "identity.pem"
    pem.write_text(opened)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(pem)
    return context


@pytest.mark.parametrize("path", ["/keeps_post/", "/keeps_post"])
def test_the_original_s_steps_get_the_original_s_answers(old: Fleet, path: str) -> None:
    made = command(old, path, command="new-keep", auth_token="a3f9cb07", keep_arch="wasi")
    assert list(made)[:4] == ["state", "kuuid", "app_loader_bind_port", "bindaddress"]
    assert (made["state"], made["app_loader_bind_port"], made["bindaddress"]) == (1, 0, "")
    (listed,) = command(old, path, command="list-keeps")["klvec"]
    assert (listed["kuuid"], listed["state"]) == (made["kuuid"], 1)
    port = free_port()
    place = {"keep_addr": "127.0.0.1", "keep_port": str(port)}
    begun = command(old, path, command="start-keep", kuuid=str(made["kuuid"]), **place)
    assert begun == {**begun, "state": 2, "kuuid": made["kuuid"], "app_loader_bind_port": port}
    assert begun["bindaddress"] == "127.0.0.1"


def test_the_original_s_walk_starts_the_keep_it_made_each_time(old: Fleet) -> None:
    """It started the last one of the list, which it took for the one it had just made."""
    for number in range(1, 5):
        made = command(old, command="new-keep", auth_token="a3f9cb07", keep_arch="wasi")
        listed = command(old, command="list-keeps")["klvec"]
        assert (len(listed), listed[-1]["kuuid"], listed[-1]["state"]) == (number, made["kuuid"], 1)
        place = {"keep_addr": "127.0.0.1", "keep_port": "3031"}
        assert command(old, command="start-keep", kuuid=str(listed[-1]["kuuid"]), **place)["state"] == 2


def test_several_commands_on_one_connection_are_answered(old: Fleet) -> None:
    data = as_hyper_sends("/keeps_post/", '{"command":"list-keeps"}', old.port)
    with connect(old.port, old.tls(None), name="localhost") as connection:
        for _ in range(3):
            connection.sendall(data)
            assert read_answer(connection).object == {"klvec": []}


def test_hardware_that_is_not_there_is_a_keep_in_state_15(old: Fleet) -> None:
    for arch in ("AMD-SEV", "Intel-SGX"):
        answer = command(old, command="new-keep", auth_token="a3f9cb07", keep_arch=arch)
        assert (answer["state"], answer["kuuid"]) == (15, 0)
        assert answer["detail"]
    assert old.keep_units() == []


@pytest.mark.parametrize("password", [PASSWORD, ""], ids=["with a password", "without"])
def test_a_payload_in_numbers_with_a_pkcs12_identity_is_received_and_run(
    old: Fleet, tmp_path: Path, password: str
) -> None:
    context = identity(old, tmp_path, f"old-client-{len(password)}", password)
    life = started(old)
    answer = ask(life.info.port, context, as_hyper_sends("/payload", payload(RETURNS_1), life.info.port))
    assert (answer.status, answer.body) == (200, b"Payload received")
    outcome = life.until(State.STARTED, State.COMPLETE).outcome
    assert outcome is not None
    assert (outcome.kind, outcome.exit_code) == (OutcomeKind.EXITED, 0)
    assert "returned: [1]" in life.output()


def test_a_payload_that_comes_in_small_packets_is_received(old: Fleet, tmp_path: Path) -> None:
    life = started(old)
    data = as_hyper_sends("/payload", payload(RETURNS_1), life.info.port)
    with connect(life.info.port, identity(old, tmp_path, "slow-client")) as connection:
        for start in range(0, len(data), 7):
            connection.sendall(data[start : start + 7])
        assert read_answer(connection).body == b"Payload received"


def test_a_keep_takes_nothing_from_a_client_without_an_identity(old: Fleet) -> None:
    life = started(old)
    context = ssl.create_default_context(cadata=life.info.certificate)
    with pytest.raises(NoAnswer):
        ask(life.info.port, context, as_hyper_sends("/payload", payload(RETURNS_1), life.info.port))
    assert life.look().detail == "awaiting workload"


def test_a_certificate_that_is_shown_to_the_manager_must_still_be_a_good_one(old: Fleet, tmp_path: Path) -> None:
    data = as_hyper_sends("/keeps_post/", '{"command":"list-keeps"}', old.port)
    foreign, unmarked, good = old.tls(None), old.tls(None), old.tls()
    foreign.load_cert_chain(certificates.issue(certificates.foreign_ca(), tmp_path / "foreign.pem"))
    unmarked.load_cert_chain(certificates.issue(certificates.installed_ca(old), tmp_path / "any.pem", usages=None))
    with pytest.raises(NoAnswer):
        ask(old.port, foreign, data)
    assert ask(old.port, unmarked, data).status == 403
    revoked = old.tls(None)
    files = old.issue("gone-2020")
    revoked.load_cert_chain(files.certificate, files.key)
    old.host.run(["keepctl", "pki", "revoke", "gone-2020"])
    assert ask(old.port, revoked, data).status == 403
    assert ask(old.port, good, data).status == 200
