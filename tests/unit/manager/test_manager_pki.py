"""Certificates: which clients are judged good, for how long, and which files a manager starts with."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest

from keep_manager import pki
from keep_protocol.errors import ErrorKind, KeepfleetError
from tests.fakes.fake_pki import CLIENT, DAY, SERVER, FakeAuthority, Identity


def judge(authority: FakeAuthority, identity: Identity) -> None:
    directory = Path(authority.file).parent
    judge = pki.ClientCertificates(pki.Revoked(str(directory / "revoked")))
    judge.check(judge.identify(identity.der))


def test_a_client_s_certificate_is_good(authority: FakeAuthority) -> None:
    judge(authority, authority.issue("a"))
    judge(authority, authority.issue("b", usages=(SERVER, CLIENT)))


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
        judge(authority, authority.issue("bad", **options))  # type: ignore[arg-type] # one fault at a time
    assert caught.value.kind is ErrorKind.FORBIDDEN
    assert "serial" in caught.value.message


def test_bytes_that_are_no_certificate_are_refused(authority: FakeAuthority) -> None:
    judge = pki.ClientCertificates(pki.Revoked(pki.Directory(str(Path(authority.file).parent)).revoked))
    with pytest.raises(KeepfleetError, match="cannot be read"):
        judge.check(judge.identify(b"\x30\x00"))


def test_a_certificate_that_expires_while_it_is_used_is_refused(
    authority: FakeAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = pki.ClientCertificates(pki.Revoked(pki.Directory(str(Path(authority.file).parent)).revoked))
    identity = judge.identify(authority.issue("a").der)
    judge.check(identity)
    later = pki.now() + 2 * DAY
    monkeypatch.setattr(pki, "now", lambda: later)
    with pytest.raises(KeepfleetError, match="valid from"):
        judge.check(identity)


def test_a_serial_in_the_revoked_file_is_refused_from_then_on(authority: FakeAuthority) -> None:
    file = Path(authority.file).parent / "revoked"
    judge = pki.ClientCertificates(pki.Revoked(str(file)))
    identity = judge.identify(authority.issue("a").der)
    judge.check(identity)
    with file.open("a") as revoked:
        revoked.write(f"# stolen\n\n{identity.serial:x}  # a\n")
    with pytest.raises(KeepfleetError, match="revoked"):
        judge.check(identity)


def test_a_line_that_is_no_serial_does_not_hide_the_others(
    authority: FakeAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    file = Path(authority.file).parent / "revoked"
    file.write_bytes(b"nonsense\n\xff\n1f\n")
    assert pki.Revoked(str(file)).serials() == {0x1F}
    assert "line 1" in caplog.text


def test_without_the_revoked_file_nobody_is_let_in(authority: FakeAuthority) -> None:
    (Path(authority.file).parent / "revoked").unlink()
    with pytest.raises(KeepfleetError, match="nobody is let in") as caught:
        judge(authority, authority.issue("a"))
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
    with pytest.raises(KeepfleetError, match="holds no certificate"):
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
