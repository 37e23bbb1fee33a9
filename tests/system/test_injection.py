"""Not one byte of what a client sends reaches a unit: no name, no property, no file, and nothing runs because of it."""

from __future__ import annotations

import datetime
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from keep_protocol.spec import MAX_LABEL_VALUE, MAX_LABELS
from keep_protocol.states import State
from keepctl import authority
from tests.system import hostile
from tests.system.calm import undisturbed
from tests.system.fleet import MANAGER, Fleet, free_port
from tests.system.host import message_of
from tests.system.life import Life
from tests.system.wire import ask, ask_each, request

MARK = "zzmark"
"""Stands in every string below; it may be found in answers and in the manager's log, and nowhere else."""
TRACE = f"/run/{MARK}-ran"
STRINGS = (
    f"{MARK}\n[Service]\nExecStartPre=/bin/touch {TRACE}\n",
    f"1\n[Service]\nExecStopPost=+/bin/touch {TRACE}\n#{MARK}",
    f"../../../etc/systemd/system/{MARK}",
    f"{MARK}/../../x.service",
    f"%n-%i-%H-{MARK}",
    f"$HOME ${{PATH}} $(touch {TRACE}) `touch {TRACE}` {MARK}",
    f"keep@{MARK}",
    f"keep@1.service {MARK}.service",
    f"1\0{MARK}",
    f"1 {MARK}",
    f"{MARK}\\x2d\\n\\\\",
    f"127.0.0.1\r\nX-Header: {MARK}",
    f"'; touch {TRACE}; '{MARK}",
    f"１２３{MARK}",
    f"{MARK}\u202e\ud7ff\u2028é",
    f"{MARK}" + "a" * 300,
    f"READY=1\nMAINPID=1\nFDSTOREREMOVE=1\n{MARK}",
)
EVIL_NAMES = (f"{MARK}\nMAINPID=1\nFDSTOREREMOVE=1", f"%n $HOME $(touch {TRACE})", "\x1b[2J\u202e", "<0>\0x", "a" * 64)
"""What a certificate of our CA can bear: up to 64 characters."""
PLACES = ("/run/systemd", "/etc/systemd", "/run/keepfleet", "/run/user")


@pytest.fixture(scope="module", autouse=True)
def calm(installed_fleet: Fleet) -> Iterator[None]:
    """After all of this the manager is the same process, holds no more than before and has logged no defect."""
    installed_fleet.clear()
    with undisturbed(installed_fleet):
        yield


def unit_texts(fleet: Fleet) -> str:
    """Everything systemd has of any keep, the manager and the slices: files, properties, names of all units."""
    host = fleet.host
    patterns = ("keep*.service", "keep*.slice", MANAGER)
    # A slice that was made as needed has no file, which `cat` calls an error.
    texts = [host.systemctl("cat", *patterns, check=False), host.systemctl("show", "--all", *patterns)]
    texts += [host.systemctl("list-units", "--all"), host.systemctl("list-unit-files"), host.systemctl("list-jobs")]
    return "\n".join(texts)


def assert_clean(fleet: Fleet) -> None:
    """No trace of MARK where systemd looks, now and after it has read everything again, and nothing has run."""
    fleet.host.daemon_reload()
    assert MARK not in unit_texts(fleet)
    assert fleet.host.run(["grep", "-rls", MARK, *PLACES], check=False).stdout == ""
    assert fleet.host.run(["find", "/run", "/etc", "-name", f"*{MARK}*"]).stdout == ""
    assert fleet.host.run(["test", "-e", TRACE], check=False).returncode == 1


def legacy_requests(text: str, kuuid: int) -> Iterator[bytes]:
    """The original's commands with `text` in one member after the other."""
    good = {"command": "start-keep", "kuuid": str(kuuid), "keep-addr": "127.0.0.1", "keep-port": "3031"}
    commands = [{**good, member: text} for member in good]
    commands += [{"command": "new-keep", "keep-arch": text}, {"command": "list-keeps", text: "x"}]
    commands += [{"command": "stop-keep", "kuuid": text}, {"command": "remove-keep", "kuuid": text}]
    for command in commands:
        yield request("POST", "/keeps_post", json.dumps(command).encode())


def v1_requests(text: str, kuuid: int) -> Iterator[bytes]:
    """The calls of /v1 with `text` in every place that takes one."""
    keep, encoded = f"/v1/keeps/{kuuid}", quote(text, safe="")
    for path, body in (("", {"arch": text}), (f"/{kuuid}/start", {"address": text}), (f"/{encoded}/start", {})):
        yield request("POST", f"/v1/keeps{path}", json.dumps(body).encode())
    for names in ({"names": [text]}, {"names": ["localhost", text]}, {text: ["localhost"]}):
        yield request("POST", f"{keep}/start", json.dumps(names).encode())
    for wish in ({"name": text}, {"labels": {f"{text}_": "x"}}, {text: "x"}):
        yield request("POST", "/v1/keeps", json.dumps(wish).encode())
    for workload in (
        {text: ["x"]},
        {"restart": text},
        {"environment": {f"={text}": "x"}},
        {"directories": [{"host": "/", "guest": text}]},
        {"directories": [{"host": text, "guest": "/x"}]},
        {"secrets": [{"name": text, "file": "/x"}]},
        {"stdin": {"file": text}},
    ):
        yield request("POST", f"{keep}/start", json.dumps({"workload": workload}).encode())
    for query in (f"changed-from={encoded}", f"changed-from=1&timeout={encoded}", f"{encoded}=1"):
        yield request("GET", f"{keep}?{query}")
    for method in ("GET", "DELETE"):
        yield request(method, f"/v1/keeps/{encoded}")
    yield request("POST", f"/v1/keeps/{encoded}/stop")


@pytest.mark.rare
def test_no_string_of_a_client_s_reaches_a_unit(fleet: Fleet) -> None:
    life, context = Life.create(fleet), fleet.tls()
    for text in STRINGS:
        requests = (*legacy_requests(text, life.kuuid), *v1_requests(text, life.kuuid))
        for data, answer in ask_each(fleet.port, context, requests):
            assert 400 <= answer.status < 500, data
    assert fleet.keep_units() == [life.unit]
    assert_clean(fleet)
    assert life.look().port == 0


def test_words_that_a_guest_and_its_labels_may_have_arrive_whole_and_reach_no_unit(fleet: Fleet) -> None:
    words = [text for text in STRINGS if "\0" not in text]
    plain = [text for text in words if text.isprintable() and len(text) <= MAX_LABEL_VALUE]
    labels = {f"l{number}": text for number, text in enumerate(plain[:MAX_LABELS])}
    variables = {text.replace("=", "-"): text for text in words}
    life = Life(fleet, fleet.client().create(name="plain", labels=labels).kuuid)
    given: dict[str, object] = {"arguments": words, "environment": variables}
    life.info = fleet.client().start(life.kuuid, "127.0.0.1", free_port(), (), given)
    assert dict(life.info.labels) == labels
    assert life.upload(hostile.counts_its_words()).status == 200
    outcome = life.until(State.STARTED, State.COMPLETE).outcome
    assert outcome is not None
    strings = ["workload.wasm", *words, *(f"{name}={text}" for name, text in variables.items())]
    assert outcome.exit_code == sum(len(text.encode()) + 1 for text in strings)
    assert_clean(fleet)


def test_a_keep_s_name_and_owner_stand_in_its_unit_as_safe_words_and_its_labels_nowhere(fleet: Fleet) -> None:
    labels = {f"l{number}": text for number, text in enumerate(STRINGS) if text.isprintable() and len(text) < 256}
    life = Life(fleet, fleet.client().create(name="a-1-b", labels=dict(list(labels.items())[:MAX_LABELS])).kuuid)
    for _ in range(2):
        shown = fleet.host.show(life.unit, "Description", "LogExtraFields")
        assert shown["Description"] == "Keep a-1-b of admin"
        assert "KEEP_NAME=a-1-b" in shown["LogExtraFields"]
        assert "KEEP_OWNER=admin" in shown["LogExtraFields"]
        assert_clean(fleet)
    for name in (f"a\n{MARK}", f"{MARK}%n", f"{MARK} x", f'{MARK}"', "A" + MARK, f"{MARK}é"):
        answer = ask(fleet.port, fleet.tls(), request("POST", "/v1/keeps", json.dumps({"name": name}).encode()))
        assert answer.status == 400
    assert_clean(fleet)


def test_a_token_and_headers_which_are_taken_and_not_used_reach_no_unit(fleet: Fleet) -> None:
    context = fleet.tls()
    for text in STRINGS:
        body = json.dumps({"command": "new-keep", "keep-arch": "wasi", "auth-token": text}).encode()
        line = quote(text)
        answer = ask(fleet.port, context, request("POST", "/keeps_post", body, f"User-Agent: {line}", f"X: {line}"))
        assert (answer.status, answer.object["state"]) == (200, 1)
    assert len(fleet.keep_units()) == len(STRINGS)
    assert_clean(fleet)


def evil_client(fleet: Fleet, directory: Path, name: str) -> ssl.SSLContext:
    """A client whose certificate, rightly issued by our CA, bears `name`: keepctl would not issue it."""
    pki = fleet.pki
    ca = authority.load_certificate((pki / "ca.crt").read_bytes(), "ca")
    ca_key, key = authority.load_key((pki / "ca.key").read_bytes(), "ca.key"), authority.new_key()
    now = datetime.datetime.now(datetime.UTC)
    good = authority.issue_client(
        authority.KeyPair(ca, ca_key), key.public_key(), "good", datetime.timedelta(days=1), now
    )
    builder = x509.CertificateBuilder().issuer_name(ca.subject).public_key(key.public_key())
    builder = builder.subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
    builder = builder.serial_number(good.serial_number).not_valid_before(now - datetime.timedelta(minutes=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    for extension in good.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    signed = builder.sign(ca_key, hashes.SHA256())
    file = directory / "evil.pem"
    file.write_bytes(authority.certificate_pem(signed) + authority.key_pem(key))
    context = fleet.tls(None)
    context.load_cert_chain(file)
    return context


@pytest.mark.parametrize("text", EVIL_NAMES, ids=range(len(EVIL_NAMES)))
def test_the_name_in_a_certificate_is_shown_as_plain_text_and_means_nothing_to_systemd(
    fleet: Fleet, tmp_path: Path, text: str
) -> None:
    context = evil_client(fleet, tmp_path, text)
    life = Life.awaiting(fleet)
    cursor = fleet.host.cursor()
    assert ask(fleet.port, context, request("POST", f"/v1/keeps/{life.kuuid}/stop")).status == 200
    outcome = life.look().outcome
    assert outcome is not None
    assert outcome.text.isprintable()
    assert "stopped by" in message_of(life.line("stopped by", cursor))
    life.without_process()
    shown = fleet.host.show(life.unit, "StatusText", "MainPID", "ActiveState", "NFileDescriptorStore")
    assert (shown["MainPID"], shown["ActiveState"]) == ("0", "active")
    assert len(shown) == 4  # a newline would have made another property of the rest
    fleet.host.daemon_reload()
    assert fleet.host.run(["test", "-e", TRACE], check=False).returncode == 1
    assert MARK not in fleet.host.systemctl("cat", life.unit)
