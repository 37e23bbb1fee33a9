"""Certificates: which clients' are accepted, for how long, and which files a manager starts with."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest

from keep_manager import pki
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Identity, Role
from keep_protocol.revocation import RevokedFile
from tests.fakes.certificates import ForeignAuthority
from tests.fakes.fake_pki import CLIENT, DAY, SERVER, FakeAuthority
from tests.fakes.fake_pki import Identity as Made


def check(authority: FakeAuthority, identity: Made) -> None:
    directory = Path(authority.file).parent
    certificates = pki.ClientCertificates(RevokedFile(str(directory / "revoked")))
    certificates.check(certificates.identify(identity.der))


def test_a_client_s_certificate_is_good(authority: FakeAuthority) -> None:
    check(authority, authority.issue("a"))
    check(authority, authority.issue("b", usages=(SERVER, CLIENT)))


@pytest.mark.parametrize(
    ("why", "options"),
    [
        ("no extended key usage", {"usages": None}),
        ("lacks clientAuth", {"usages": (SERVER,)}),
        ("authority's", {"ca": True}),
        ("digitalSignature", {"digital_signature": False}),
        ("valid from", {"ends_in": -DAY / 2}),
        ("valid from", {"began": -DAY / 2}),
    ],
)
def test_a_certificate_with_a_fault_is_refused_with_the_fault(
    authority: FakeAuthority, why: str, options: dict[str, object]
) -> None:
    with pytest.raises(KeepfleetError, match=why) as caught:
        check(authority, authority.issue("bad", **options))  # type: ignore[arg-type] # one fault at a time
    assert caught.value.kind is ErrorKind.FORBIDDEN
    assert "serial" in caught.value.message


def test_bytes_that_are_no_certificate_are_refused(authority: FakeAuthority) -> None:
    certificates = pki.ClientCertificates(RevokedFile(pki.Directory(str(Path(authority.file).parent)).revoked))
    with pytest.raises(KeepfleetError, match="cannot read the certificate"):
        certificates.check(certificates.identify(b"\x30\x00"))


def test_a_certificate_that_expires_while_it_is_used_is_refused(
    authority: FakeAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = pki.ClientCertificates(RevokedFile(pki.Directory(str(Path(authority.file).parent)).revoked))
    identity = certificates.identify(authority.issue("a").der)
    certificates.check(identity)
    later = pki.now() + 2 * DAY
    monkeypatch.setattr(pki, "now", lambda: later)
    with pytest.raises(KeepfleetError, match="valid from"):
        certificates.check(identity)


def test_a_serial_in_the_revoked_file_is_refused_from_then_on(authority: FakeAuthority) -> None:
    file = Path(authority.file).parent / "revoked"
    certificates = pki.ClientCertificates(RevokedFile(str(file)))
    identity = certificates.identify(authority.issue("a").der)
    certificates.check(identity)
    with file.open("a") as revoked:
        revoked.write(f"# stolen\n\n{identity.serial:x}  # a\n")
    with pytest.raises(KeepfleetError, match="revoked"):
        certificates.check(identity)


def test_a_list_with_a_line_that_is_no_serial_number_refuses_everybody_and_the_log_says_which_line(
    authority: FakeAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    file = Path(authority.file).parent / "revoked"
    certificates = pki.ClientCertificates(RevokedFile(str(file)))
    identity = certificates.identify(authority.issue("a").der)
    file.write_bytes(b"1f\nnonsense\n")
    for _ in range(3):
        with pytest.raises(KeepfleetError, match=f"cannot read {file}: line 2 must be one serial number") as caught:
            certificates.check(identity)
        assert caught.value.kind is ErrorKind.CERTIFICATE
    assert [record.getMessage().count("line 2") for record in caplog.records] == [1]
    with pytest.raises(KeepfleetError, match="line 2"):
        pki.Directory(str(file.parent)).check()
    file.write_bytes(b"1f\n")
    certificates.check(identity)


@pytest.mark.parametrize("notation", ["{:x}", "{:X}", "0x{:x}", "{:020x}"])
def test_a_serial_number_is_revoked_in_every_notation(authority: FakeAuthority, notation: str) -> None:
    file = Path(authority.file).parent / "revoked"
    certificates = pki.ClientCertificates(RevokedFile(str(file)))
    identity = certificates.identify(authority.issue("a").der)
    for text in (notation.format(identity.serial), identity.serial.to_bytes(2, "big").hex(":").upper()):
        file.write_text(f"{text}\n")
        with pytest.raises(KeepfleetError, match="it was revoked"):
            certificates.check(identity)


def test_a_certificate_says_who_its_client_is(authority: FakeAuthority) -> None:
    certificates = pki.ClientCertificates(RevokedFile(str(Path(authority.file).parent / "revoked")))
    foreign = ForeignAuthority()
    identity = certificates.identify(foreign.issue("Alice A.", uris=("spiffe://edge/user/alice",)).der)
    assert identity.identity == Identity(Role.USER, "alice", None, "edge")
    assert identity.subject == "Alice A."
    assert identity.fingerprint.startswith("sha256:")
    assert certificates.identify(authority.issue("b").der).identity is None
    certificates.check(identity)


def test_an_identity_that_cannot_be_read_is_refused_permanently(authority: FakeAuthority) -> None:
    certificates = pki.ClientCertificates(RevokedFile(str(Path(authority.file).parent / "revoked")))
    identity = certificates.identify(ForeignAuthority().issue("a", uris=("spiffe://edge/root/a",)).der)
    with pytest.raises(KeepfleetError, match=r"certificate of a \(serial .*its role must be") as caught:
        certificates.check(identity)
    assert caught.value.kind is ErrorKind.FORBIDDEN


def test_without_the_revoked_file_no_one_is_admitted(authority: FakeAuthority) -> None:
    (Path(authority.file).parent / "revoked").unlink()
    with pytest.raises(
        KeepfleetError, match=r"cannot accept any certificate: cannot read .*/revoked: No such file or directory"
    ) as caught:
        check(authority, authority.issue("a"))
    assert caught.value.kind is ErrorKind.CERTIFICATE


def test_the_files_a_manager_needs_are_good(authority: FakeAuthority) -> None:
    pki.Directory(str(Path(authority.file).parent)).check()


@pytest.mark.parametrize("name", ["ca.crt", "manager.crt", "manager.key", "revoked"])
def test_a_missing_file_is_named(authority: FakeAuthority, name: str) -> None:
    (Path(authority.file).parent / name).unlink()
    with pytest.raises(KeepfleetError, match=name) as caught:
        pki.Directory(str(Path(authority.file).parent)).check()
    assert caught.value.kind is ErrorKind.CERTIFICATE


def test_a_key_others_can_read_is_refused_with_the_way_out(authority: FakeAuthority) -> None:
    key = Path(authority.file).parent / "manager.key"
    key.chmod(0o640)
    with pytest.raises(KeepfleetError, match="chmod 0600"):
        pki.Directory(str(key.parent)).check()


def test_a_directory_others_can_write_is_refused(authority: FakeAuthority) -> None:
    directory = Path(authority.file).parent
    directory.chmod(0o777)
    with pytest.raises(KeepfleetError, match="others could change"):
        pki.Directory(str(directory)).check()


def test_a_missing_directory_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(KeepfleetError, match="keepctl init"):
        pki.Directory(str(tmp_path / "none")).check()


def test_a_certificate_that_is_no_certificate_is_refused(authority: FakeAuthority) -> None:
    Path(authority.file).write_text("hello")
    with pytest.raises(KeepfleetError, match="it holds no certificate"):
        pki.Directory(str(Path(authority.file).parent)).check()


def test_a_certificate_that_is_not_valid_yet_is_a_matter_of_the_clock(
    authority: FakeAuthority, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pki.now() - datetime.timedelta(days=400)
    monkeypatch.setattr(pki, "now", lambda: before)
    pki.Directory(str(Path(authority.file).parent)).check()
    assert "UTC on; is the clock right?" in caplog.text


def test_a_certificate_about_to_expire_is_warned_about(
    authority: FakeAuthority, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = pki.Directory(str(Path(authority.file).parent))
    files.check()
    assert "expires on" in caplog.text
    later = pki.now() + datetime.timedelta(days=2)
    monkeypatch.setattr(pki, "now", lambda: later)
    files.check()
    assert "expired on" in caplog.text
    assert "run: keepctl pki renew-server" in caplog.text
    assert os.path.basename(files.certificate) in caplog.text


def test_a_file_that_is_there_but_cannot_be_read_says_so_and_not_to_make_another(authority: FakeAuthority) -> None:
    directory = Path(authority.file).parent
    Path(authority.file).unlink()
    Path(authority.file).symlink_to(directory / "manager.crt")
    with pytest.raises(KeepfleetError, match=r"/ca\.crt: ") as caught:
        pki.Directory(str(directory)).check()
    assert "keepctl init" not in caught.value.message


def test_every_certificate_of_a_bundle_is_looked_at(authority: FakeAuthority, caplog: pytest.LogCaptureFixture) -> None:
    directory = Path(authority.file).parent
    bundle = directory / "client-ca.crt"
    bundle.write_text("# ours, and the partner's\n" + Path(authority.file).read_text() + ForeignAuthority(end=DAY).pem)
    files = pki.Directory(str(directory))
    assert files.client_ca == str(bundle)
    files.check()
    assert caplog.text.count(f"certificate {bundle} expires on") == 2
    assert "add its successor to the file" in caplog.text
    bundle.write_text(ForeignAuthority().pem + "-----BEGIN CERTIFICATE-----\nMII")
    with pytest.raises(KeepfleetError, match="or one that is cut short"):
        files.check()
    bundle.write_text("ä")
    with pytest.raises(KeepfleetError, match="it is not PEM in ASCII"):
        files.check()
