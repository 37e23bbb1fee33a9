"""`keepctl pki …`: roles, uploaders, certificate requests, the rotation of the CA, and what `check` makes of each."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs12

from keep_protocol.certificate import check_client, read_certificate
from keep_protocol.errors import KeepfleetError
from keep_protocol.identity import Identity, Role
from keepctl import authority, files, inspection, pki, rotation
from keepctl.layout import Layout
from tests.fakes.certificates import KEY_KINDS, ForeignAuthority, new_key
from tests.unit.keepctl.conftest import Run

DAY = datetime.timedelta(days=1)


@pytest.fixture
def made(run: Run, directory: Path) -> Path:
    """A PKI."""
    assert run("init").exit_code == 0
    return directory


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def accepted(path: Path, later: datetime.timedelta = datetime.timedelta()) -> Identity | None:
    """What manager and keeps make of a certificate."""
    fields = read_certificate(load(path).public_bytes(serialization.Encoding.DER))
    return check_client(fields, (datetime.datetime.now(datetime.UTC) + later).timestamp())


def test_the_first_client_is_an_operator_of_the_trust_domain(run: Run, directory: Path) -> None:
    assert run("init", "--trust-domain", "edge.example").exit_code == 0
    assert accepted(directory / "clients/admin.crt") == Identity(Role.OPERATOR, "admin", None, "edge.example")
    assert run("pki", "issue", "alice").exit_code == 0
    assert accepted(directory / "clients/alice.crt") == Identity(Role.USER, "alice", None, "edge.example")


def test_a_trust_domain_that_no_uri_can_have_is_refused_and_nothing_is_made(run: Run, directory: Path) -> None:
    result = run("init", "--trust-domain", "Edge/x")
    assert result.exit_code == 1
    assert "invalid trust domain 'Edge/x'" in result.stderr
    assert not directory.exists()


@pytest.mark.parametrize("role", ["operator", "user", "viewer"])
def test_a_certificate_says_its_role(run: Run, made: Path, role: str) -> None:
    result = run("pki", "issue", "a.b@example", "--role", role)
    assert result.exit_code == 0, result.output
    assert accepted(made / "clients/a.b@example.crt") == Identity(Role(role), "a.b@example")
    assert f"spiffe://keepfleet/{role}/a.b@example" in result.output
    assert authority.fingerprint(load(made / "clients/a.b@example.crt")) in result.output
    assert run("pki", "check").exit_code == 0


def test_an_uploader_has_ten_minutes_for_one_keep(run: Run, made: Path) -> None:
    issued = json.loads(run("pki", "issue", "ci", "--role", "uploader", "--keep", "42", "-o", "json").output)
    path = made / "clients/ci+42.crt"
    assert (issued["certificate"], issued["role"], issued["keep"]) == (str(path), "uploader", 42)
    assert accepted(path) == Identity(Role.UPLOADER, "ci", 42)
    assert accepted(path, datetime.timedelta(minutes=9)) == Identity(Role.UPLOADER, "ci", 42)
    with pytest.raises(KeepfleetError, match="it is valid from"):
        accepted(path, datetime.timedelta(minutes=10))
    assert run("pki", "issue", "ci", "--role", "uploader", "--keep", "43", "--for", "1m").exit_code == 0
    assert accepted(made / "clients/ci+43.crt") == Identity(Role.UPLOADER, "ci", 43)
    assert run("pki", "check").exit_code == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--role", "uploader"), "an uploader needs one"),
        (("--keep", "7"), "--keep ID goes with --role uploader"),
        (("--role", "uploader", "--keep", "0"), "as a keep's ID"),
        (("--role", "uploader", "--keep", "7", "--for", "11m"), "it may be 1 minute to 10 minutes"),
        (("--role", "uploader", "--keep", "7", "--for", "30s"), "it may be 1 minute to 10 minutes"),
        (("--for", "826d"), "it may be 1 minute to 825 days"),
        (("--role", "anonymous"), "anonymous"),
        (("--role", "root"), "root"),
        (("--for", "soon"), "cannot read 'soon' as a time"),
        (("--csr", "x.csr", "--p12", "x.p12"), "--p12 holds the key"),
    ],
)
def test_what_cannot_be_issued_is_refused_with_the_reason(
    run: Run, made: Path, words: tuple[str, ...], why: str
) -> None:
    before = sorted(made.rglob("*"))
    result = run("pki", "issue", "ci", *words)
    assert result.exit_code != 0
    assert why in result.stderr
    assert sorted(made.rglob("*")) == before


def test_an_uploader_s_files_are_removed_when_their_time_is_over(made: Path) -> None:
    layout, now = Layout(str(made)), datetime.datetime.now(datetime.UTC)
    life = authority.UPLOADER_LIFE
    pki.issue(layout, "ci", life, now - DAY, Role.UPLOADER, keep=1)
    pki.issue(layout, "ci", life, now, Role.UPLOADER, keep=2)
    assert {name for name in os.listdir(made / "clients") if "+" in name} == {"ci+2.crt", "ci+2.key"}
    with pytest.raises(KeepfleetError, match="revoke it first: keepctl pki revoke ci"):
        pki.issue(layout, "ci", life, now, Role.UPLOADER, keep=2)


def test_the_list_shows_roles_and_leaves_out_uploaders_whose_time_is_over(run: Run, made: Path) -> None:
    layout, now = Layout(str(made)), datetime.datetime.now(datetime.UTC)
    pki.issue(layout, "ci", authority.UPLOADER_LIFE, now - DAY, Role.UPLOADER, keep=1)
    pki.issue(layout, "ci", authority.UPLOADER_LIFE, now, Role.UPLOADER, keep=2)
    pki.issue(layout, "eve", DAY, now, Role.VIEWER)
    rows = {tuple(line.split()[:3]) for line in run("pki", "list").output.splitlines()[1:]}
    assert rows == {
        ("keep-manager", "server", "valid"),
        ("admin", "operator", "valid"),
        ("eve", "viewer", "valid"),
        ("ci", "uploader/2", "valid"),
    }
    assert "uploader/1" in run("pki", "list", "--all").output
    listed = json.loads(run("pki", "list", "--all", "-o", "json").output)
    found = {(entry["name"], entry["kind"], entry["role"], entry["keep"], entry["status"]) for entry in listed}
    assert ("ci", "client", "uploader", 1, "expired") in found
    assert ("keep-manager", "server", None, None, "valid") in found
    fingerprints = {entry["fingerprint"] for entry in listed}
    assert authority.fingerprint(load(made / "clients/eve.crt")) in fingerprints


def test_revoking_a_name_reaches_what_it_was_issued_to_upload(run: Run, made: Path) -> None:
    run("pki", "issue", "ci", "--role", "uploader", "--keep", "2")
    assert run("pki", "revoke", "ci").output.startswith("revoked ")
    assert pki.revoked_serials(Layout(str(made))) == {load(made / "clients/ci+2.crt").serial_number}


def before_roles(made: Path) -> Path:
    """A client's certificate as keepctl issued them before there were roles."""
    layout, now = Layout(str(made)), datetime.datetime.now(datetime.UTC)
    key = authority.new_key()
    issued = authority.issue_client(pki.load_ca(layout), key.public_key(), "old", 30 * DAY, now)
    files.write_new(layout.client_key("old"), authority.key_pem(key), files.PRIVATE_FILE)
    for path in (layout.client_certificate("old"), layout.issued_certificate(issued.serial_number)):
        files.write_new(path, authority.certificate_pem(issued), files.PUBLIC_FILE)
    return Path(layout.client_certificate("old"))


def test_a_certificate_of_before_there_were_roles_is_renewed_as_it_is(run: Run, made: Path) -> None:
    path = before_roles(made)
    assert accepted(path) is None
    assert "old" in run("pki", "list").output
    assert run("pki", "renew", "old").exit_code == 0
    assert accepted(path) is None
    assert run("pki", "check").exit_code == 0


def test_renewing_keeps_role_and_key_without_the_key_being_there(run: Run, made: Path) -> None:
    run("pki", "issue", "eve", "--role", "viewer", "--for", "30d")
    path, key = made / "clients/eve.crt", (made / "clients/eve.key").read_bytes()
    os.unlink(made / "clients/eve.key")
    old = load(path)
    result = run("pki", "renew", "eve", "--for", "60d")
    assert result.exit_code == 0, result.output
    assert accepted(path) == Identity(Role.VIEWER, "eve")
    assert load(path).public_key() == old.public_key()
    assert load(path).not_valid_after_utc > old.not_valid_after_utc
    (made / "clients/eve.key").write_bytes(key)
    (made / "clients/eve.key").chmod(0o600)
    assert run("pki", "check").exit_code == 0


def test_a_request_is_signed_without_its_key_ever_being_there(run: Run, made: Path, tmp_path: Path) -> None:
    asked = run("pki", "request", "alice", "--out", str(tmp_path))
    assert asked.exit_code == 0, asked.output
    assert (tmp_path / "alice.key").stat().st_mode & 0o777 == 0o600
    result = run("pki", "issue", "--csr", str(tmp_path / "alice.csr"), "--role", "viewer")
    assert result.exit_code == 0, result.output
    assert accepted(made / "clients/alice.crt") == Identity(Role.VIEWER, "alice")
    assert not (made / "clients/alice.key").exists()
    assert "key  " not in result.output
    pki.load_pair(str(made / "clients/alice.crt"), str(tmp_path / "alice.key"))
    assert run("pki", "check").exit_code == 0
    assert run("pki", "renew", "alice").exit_code == 0
    pki.load_pair(str(made / "clients/alice.crt"), str(tmp_path / "alice.key"))
    assert run("pki", "request", "alice", "--out", str(tmp_path)).exit_code == 1, "a key is never overwritten"


@pytest.mark.parametrize("kind", KEY_KINDS)
def test_a_request_may_bring_any_key_of_tls_and_its_own_words_count_for_nothing(
    run: Run, made: Path, tmp_path: Path, kind: str
) -> None:
    key = new_key(kind)
    builder = x509.CertificateSigningRequestBuilder().subject_name(authority._name("root"))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    uri = x509.UniformResourceIdentifier("spiffe://keepfleet/operator/root")
    builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    signed = builder.sign(key, None if kind == "ed25519" else hashes.SHA256())
    (tmp_path / "x.csr").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    assert run("pki", "issue", "bob", "--csr", str(tmp_path / "x.csr")).exit_code == 0
    assert accepted(made / "clients/bob.crt") == Identity(Role.USER, "bob")
    assert load(made / "clients/bob.crt").public_key() == key.public_key()


def signed_by(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | dsa.DSAPrivateKey | ed25519.Ed25519PrivateKey,
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(authority._name("bob"))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def forged() -> bytes:
    """A request whose signature is of other bytes."""
    request = x509.load_pem_x509_csr(signed_by(ec.generate_private_key(ec.SECP256R1())))
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    at = der.index(b"bob")
    der[at : at + 3] = b"bop"
    return x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("request_of", "why"),
    [
        (lambda: b"hello", "it is no PEM certificate signing request"),
        (lambda: signed_by(ec.generate_private_key(ec.SECP256K1())), "its key must be P-256, P-384, Ed25519, or RSA"),
        (lambda: signed_by(rsa.generate_private_key(65537, 1024)), "or RSA of at least 2048 bits"),  # noqa: S505 - that it is refused
        (lambda: signed_by(dsa.generate_private_key(2048)), "its key must be"),
        (forged, "another key has signed it"),
    ],
)
def test_a_request_that_cannot_be_trusted_is_refused(
    run: Run, made: Path, tmp_path: Path, request_of: object, why: str
) -> None:
    assert callable(request_of)
    (tmp_path / "x.csr").write_bytes(request_of())
    result = run("pki", "issue", "--csr", str(tmp_path / "x.csr"), "bob")
    assert result.exit_code == 1
    assert why in result.stderr
    assert not (made / "clients/bob.crt").exists()


def test_openssl_s_request_is_signed_and_its_certificate_verifies(run: Run, made: Path, tmp_path: Path) -> None:
    command = ["openssl", "req", "-new", "-newkey", "ed25519", "-noenc", "-subj", "/CN=carol"]
    files_of = ["-keyout", str(tmp_path / "carol.key"), "-out", str(tmp_path / "carol.csr")]
    subprocess.run([*command, *files_of], check=True, capture_output=True)
    assert run("pki", "issue", "--csr", str(tmp_path / "carol.csr")).exit_code == 0
    verify = ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", str(made / "ca.crt")]
    subprocess.run([*verify, str(made / "clients/carol.crt")], check=True)


def test_check_is_content_with_a_ca_key_that_was_moved_away(run: Run, made: Path, tmp_path: Path) -> None:
    shutil.move(made / "ca.key", tmp_path / "ca.key")
    result = run("pki", "check")
    assert (result.exit_code, result.output) == (0, f"{made}: all is well\n")
    for words in (("issue", "alice"), ("renew", "admin"), ("renew-server",)):
        result = run("pki", *words)
        assert result.exit_code == 1
        assert "ca.key: No such file or directory; to sign a certificate, bring the CA's key back" in result.stderr
        assert "keepctl init" not in result.stderr
    assert run("pki", "revoke", "admin").exit_code == 0
    shutil.move(tmp_path / "ca.key", made / "ca.key")
    assert run("pki", "issue", "alice").exit_code == 0


def test_check_names_a_key_of_another_ca(run: Run, made: Path, tmp_path: Path) -> None:
    run("init", "--pki", str(tmp_path / "other"))
    (made / "ca.key").write_bytes((tmp_path / "other/ca.key").read_bytes())
    assert "it is the key of no certificate in" in run("pki", "check").stderr


def test_a_file_that_is_there_but_cannot_be_read_is_no_reason_to_make_a_pki(run: Run, made: Path) -> None:
    os.rename(made / "ca.crt", made / "real.crt")
    os.symlink(made / "real.crt", made / "ca.crt")
    result = run("pki", "issue", "alice")
    assert result.exit_code == 1
    assert f"{made}/ca.crt: Too many levels of symbolic links; read it as its owner" in result.stderr
    os.unlink(made / "ca.crt")
    assert f"{made}/ca.crt: No such file or directory; make one: keepctl init" in run("pki", "issue", "alice").stderr


@pytest.mark.parametrize("words", [("list",), ("revoke", "admin"), ("renew", "admin"), ("rotate", "--finish")])
def test_a_list_with_an_unreadable_line_is_named_by_every_command_that_needs_it(
    run: Run, made: Path, words: tuple[str, ...]
) -> None:
    rotation.begin(Layout(str(made)), datetime.datetime.now(datetime.UTC))
    (made / "revoked").write_text("12\nnot a serial\n")
    result = run("pki", *words)
    assert result.exit_code == 1
    assert f"cannot read {made}/revoked: line 2 must be one serial number in hexadecimal" in result.stderr


@pytest.mark.parametrize("notation", ["colons", "0x", "upper"])
def test_the_list_shows_as_revoked_what_manager_and_keeps_refuse(run: Run, made: Path, notation: str) -> None:
    serial = load(made / "clients/admin.crt").serial_number
    colons = serial.to_bytes(20, "big").hex(":").upper()
    text = {"colons": colons, "0x": f"0x{serial:x}", "upper": f"{serial:X}"}[notation]
    (made / "revoked").write_text(f"# by hand\n{text}\n")
    rows = {line.split()[0]: line.split()[2] for line in run("pki", "list").output.splitlines()[1:]}
    assert rows == {"keep-manager": "valid", "admin": "revoked"}
    assert run("pki", "check").exit_code == 0


def cas(made: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((made / "ca.crt").read_bytes())


def test_a_rotation_trusts_both_cas_until_nothing_of_the_old_one_is_in_use(run: Run, made: Path) -> None:
    (old,) = cas(made)
    for words in (("eve",), ("ci", "--role", "uploader", "--keep", "7")):
        assert run("pki", "issue", *words).exit_code == 0
    begun = run("pki", "rotate")
    assert begun.exit_code == 0, begun.output
    assert "systemctl restart keep-manager" in begun.output
    new, also = cas(made)
    assert also == old
    assert authority.trust_domain(new) == authority.trust_domain(old) == "keepfleet"
    assert run("pki", "issue", "alice").exit_code == 0
    assert authority.issued_by(load(made / "clients/alice.crt"), new)
    assert authority.issued_by(load(made / "clients/admin.crt"), old)
    checked = run("pki", "check")
    assert checked.exit_code == 1
    assert "a rotation is under way; end it with: keepctl pki rotate --finish" in checked.stderr
    assert checked.stderr.count("\n    ") == 1, "both CAs' certificates are good"
    assert "a rotation is under way" in run("pki", "rotate").stderr

    early = run("pki", "rotate", "--finish")
    assert early.exit_code == 1
    assert f"{made}/manager.crt: keepctl pki renew-server" in early.stderr
    assert f"{made}/clients/admin.crt: keepctl pki renew admin" in early.stderr
    assert "alice" not in early.stderr
    assert len(cas(made)) == 2

    run("pki", "revoke", "eve")
    assert run("pki", "renew-server").exit_code == run("pki", "renew", "admin").exit_code == 0
    assert run("pki", "rotate", "--finish").exit_code == 0
    assert cas(made) == [new]
    assert run("pki", "check").exit_code == 0
    assert "none is under way" in run("pki", "rotate", "--finish").stderr


def test_a_rotation_ends_by_force_although_the_old_ca_s_certificates_are_in_use(run: Run, made: Path) -> None:
    run("pki", "rotate", "--trust-domain", "new.example")
    run("pki", "issue", "alice")
    assert run("pki", "renew", "admin").exit_code == 0
    assert accepted(made / "clients/admin.crt") == Identity(Role.OPERATOR, "admin", None, "new.example")
    assert run("pki", "rotate", "--finish", "--force").exit_code == 0
    (ca,) = cas(made)
    assert authority.trust_domain(ca) == "new.example"
    assert "this CA did not issue it" in run("pki", "check").stderr


def test_a_rotation_needs_no_key_of_the_old_ca(run: Run, made: Path) -> None:
    os.unlink(made / "ca.key")
    assert run("pki", "rotate").exit_code == 0
    assert (made / "ca.key").stat().st_mode & 0o777 == 0o600
    assert run("pki", "issue", "alice").exit_code == 0
    os.unlink(made / "ca.key")
    assert run("pki", "rotate", "--finish", "--force").exit_code == 0
    (ca,) = cas(made)
    assert authority.issued_by(load(made / "clients/alice.crt"), ca)


def test_a_rotation_cut_short_between_its_two_files_leaves_a_pki_that_works(
    run: Run, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = cas(made)
    replaced = files.replace

    def full(path: str, data: bytes, mode: int) -> None:
        if path.endswith("ca.key"):
            raise OSError(28, "No space left on device", path)
        replaced(path, data, mode)

    monkeypatch.setattr(files, "replace", full)
    assert "cannot make a new CA" in run("pki", "rotate").stderr
    monkeypatch.undo()
    assert len(cas(made)) == 2
    run("pki", "issue", "alice", "--pki", str(made))
    assert authority.issued_by(load(made / "clients/alice.crt"), old)
    assert run("pki", "rotate", "--finish", "--pki", str(made)).exit_code == 0
    assert cas(made) == [old]


def test_a_rotation_keeps_the_clients_bundle_in_step(run: Run, made: Path) -> None:
    foreign = ForeignAuthority()
    (old,) = cas(made)
    (made / "client-ca.crt").write_text((made / "ca.crt").read_text() + foreign.pem)
    run("pki", "rotate")
    new = cas(made)[0]
    bundle = made / "client-ca.crt"
    assert x509.load_pem_x509_certificates(bundle.read_bytes()) == [new, old, foreign.certificate]
    run("pki", "rotate", "--finish", "--force")
    assert x509.load_pem_x509_certificates(bundle.read_bytes()) == [new, foreign.certificate]


def test_check_looks_into_the_clients_bundle(made: Path) -> None:
    layout, now, bundle = Layout(str(made)), datetime.datetime.now(datetime.UTC), made / "client-ca.crt"
    bundle.write_text(ForeignAuthority(end=DAY).pem)
    assert any("our own CA is not in it" in line for line in inspection.findings(layout, now))
    assert any("client-ca.crt: it expires on" in line for line in inspection.findings(layout, now))
    bundle.write_text("x")
    assert any("client-ca.crt: it is no PEM certificate" in line for line in inspection.findings(layout, now))


def test_an_export_during_a_rotation_holds_both_cas(run: Run, made: Path, tmp_path: Path) -> None:
    run("pki", "rotate")
    (tmp_path / "password").write_bytes(b"")
    words = ("--p12", str(tmp_path / "a.p12"), "--password-file", str(tmp_path / "password"))
    assert run("pki", "issue", "alice", *words).exit_code == 0
    assert pkcs12.load_key_and_certificates((tmp_path / "a.p12").read_bytes(), None)[2] == cas(made)


def test_an_uploader_whose_time_is_over_is_sent_for_another_certificate(made: Path) -> None:
    layout, now = Layout(str(made)), datetime.datetime.now(datetime.UTC)
    grant = pki.issue(layout, "ci", authority.UPLOADER_LIFE, now - DAY, Role.UPLOADER, keep=7)
    said = inspection.fault_of_ours(grant.path, layout.ca_certificate, now)
    assert said is not None and said.endswith("keepctl pki issue ci --role uploader --keep 7")
