"""`keepctl pki …`: issuing, exporting, renewing, revoking, listing, checking."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

from keepctl import authority, files, inspection, pki
from keepctl.layout import Layout
from tests.unit.keepctl.conftest import Run

DAY = datetime.timedelta(days=1)


@pytest.fixture
def made(run: Run, directory: Path) -> Path:
    """A PKI."""
    assert run("init").exit_code == 0
    return directory


def serial(path: Path) -> str:
    return f"{x509.load_pem_x509_certificate(path.read_bytes()).serial_number:x}"


def test_a_client_gets_a_key_and_a_certificate_with_its_name(run: Run, made: Path) -> None:
    result = run("pki", "issue", "alice", "--for", "30d")
    assert result.exit_code == 0, result.output
    issued = x509.load_pem_x509_certificate((made / "clients/alice.crt").read_bytes())
    assert authority.common_name(issued) == "alice"
    assert authority.is_client(issued)
    assert datetime.timedelta(days=29) < issued.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < 30 * DAY
    assert f"{issued.serial_number:x}" in result.output


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "a/b", "..", "a" * 65, "a\n", "é", "a b", "a+7", "anonymous", "Anonymous"]
)
def test_a_name_that_is_not_plain_is_refused(run: Run, made: Path, name: str) -> None:
    before = sorted(os.listdir(made / "clients"))
    assert run("pki", "issue", "--", name).exit_code == 1
    assert sorted(os.listdir(made / "clients")) == before


@pytest.mark.parametrize(("password", "given"), [(b"geheim\n", "geheim"), (b"", ""), ("pässe".encode(), "pässe")])
def test_openssl_reads_the_exported_key_with_its_password(
    run: Run, made: Path, tmp_path: Path, password: bytes, given: str
) -> None:
    (tmp_path / "password").write_bytes(password)
    p12 = tmp_path / "alice.p12"
    result = run("pki", "issue", "alice", "--p12", str(p12), "--password-file", str(tmp_path / "password"))
    assert result.exit_code == 0, result.output
    assert p12.stat().st_mode & 0o777 == 0o600
    key, issued, others = pkcs12.load_key_and_certificates(p12.read_bytes(), given.encode() or None)
    assert key is not None
    assert issued == x509.load_pem_x509_certificate((made / "clients/alice.crt").read_bytes())
    assert others == [x509.load_pem_x509_certificate((made / "ca.crt").read_bytes())]
    command = ["openssl", "pkcs12", "-in", str(p12), "-passin", f"pass:{given}", "-noenc", "-info"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "BEGIN PRIVATE KEY" in done.stdout
    assert ("AES-256-CBC" in done.stderr) == bool(given)
    assert ("not encrypted" in result.output) == (not given)


def test_a_wrong_password_does_not_open_the_export(run: Run, made: Path, tmp_path: Path) -> None:
    del made
    p12 = tmp_path / "alice.p12"
    assert run("pki", "issue", "alice", "--p12", str(p12), input="geheim\ngeheim\n").exit_code == 0
    command = ["openssl", "pkcs12", "-in", str(p12), "-passin", "pass:", "-noenc"]
    assert subprocess.run(command, capture_output=True).returncode != 0


def test_an_export_overwrites_nothing_and_issues_nothing_then(run: Run, made: Path, tmp_path: Path) -> None:
    p12 = tmp_path / "alice.p12"
    p12.write_text("mine")
    assert run("pki", "issue", "alice", "--p12", str(p12), input="\n\n").exit_code == 1
    assert p12.read_text() == "mine"
    assert not (made / "clients/alice.crt").exists()


def test_a_client_with_a_valid_certificate_gets_no_second_one_unasked(run: Run, made: Path) -> None:
    run("pki", "issue", "alice")
    before = (made / "clients/alice.crt").read_bytes()
    result = run("pki", "issue", "alice")
    assert result.exit_code == 1
    assert "renew it: keepctl pki renew alice; or revoke it first: keepctl pki revoke alice" in result.stderr
    assert (made / "clients/alice.crt").read_bytes() == before


def test_renewing_keeps_the_key_and_gives_a_later_certificate(run: Run, made: Path) -> None:
    run("pki", "issue", "alice", "--for", "30d")
    key, old = (made / "clients/alice.key").read_bytes(), serial(made / "clients/alice.crt")
    assert run("pki", "renew", "alice").exit_code == 0
    assert (made / "clients/alice.key").read_bytes() == key
    assert serial(made / "clients/alice.crt") != old
    assert run("pki", "check").exit_code == 0


def test_a_revoked_client_gets_a_new_key_and_never_its_old_one(run: Run, made: Path) -> None:
    run("pki", "issue", "alice")
    key = (made / "clients/alice.key").read_bytes()
    run("pki", "revoke", "alice")
    refused = run("pki", "renew", "alice")
    assert refused.exit_code == 1
    assert "its key must not be used again" in refused.stderr
    assert run("pki", "issue", "alice").exit_code == 0
    assert (made / "clients/alice.key").read_bytes() != key


def test_a_certificate_that_has_expired_by_this_clock_is_revoked_all_the_same(made: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    pki.issue(Layout(str(made)), "alice", DAY, now - 2 * DAY)
    assert pki.revoke(Layout(str(made)), "alice") == [serial(made / "clients/alice.crt")]


def test_revoking_a_name_reaches_every_certificate_it_ever_had(run: Run, made: Path) -> None:
    run("pki", "issue", "alice")
    first = serial(made / "clients/alice.crt")
    run("pki", "renew", "alice")
    second = serial(made / "clients/alice.crt")
    assert run("pki", "revoke", "alice").exit_code == 0
    assert set((made / "revoked").read_text().splitlines()) == {first, second}
    again = run("pki", "revoke", "alice")
    assert again.exit_code == 0
    assert "nothing changed" in again.output
    assert len((made / "revoked").read_text().splitlines()) == 2


@pytest.mark.parametrize("shape", ["plain", "upper", "zeros", "colons"])
def test_a_serial_number_is_revoked_however_it_is_written(run: Run, made: Path, shape: str) -> None:
    plain = serial(made / "clients/admin.crt")
    padded = plain.rjust(len(plain) + len(plain) % 2, "0")
    colons = ":".join(padded[i : i + 2] for i in range(0, len(padded), 2))
    written = {"plain": plain, "upper": plain.upper(), "zeros": "00" + plain, "colons": colons}[shape]
    assert run("pki", "revoke", written).exit_code == 0
    assert (made / "revoked").read_text() == plain + "\n"


def test_an_unknown_name_or_serial_number_is_an_error_and_changes_nothing(run: Run, made: Path) -> None:
    result = run("pki", "revoke", "bob")
    assert result.exit_code == 1
    assert "no certificate has that name or serial number" in result.stderr
    assert (made / "revoked").read_bytes() == b""


def test_the_revocation_list_is_appended_to_in_place_since_keeps_hold_it_open(run: Run, made: Path) -> None:
    run("pki", "issue", "alice")
    with open(made / "revoked", encoding="ascii") as held:
        run("pki", "revoke", "alice")
        assert held.read() == serial(made / "clients/alice.crt") + "\n"


def test_a_line_that_a_crash_cut_short_does_not_swallow_the_next(run: Run, made: Path) -> None:
    (made / "revoked").write_text("abc")
    run("pki", "revoke", "admin")
    assert (made / "revoked").read_text() == f"abc\n{serial(made / 'clients/admin.crt')}\n"


def test_renewing_the_server_keeps_its_key_and_names_and_adds_new_ones(run: Run, directory: Path) -> None:
    run("init", "--name", "old.example")
    key = (directory / "manager.key").read_bytes()
    result = run("pki", "renew-server", "--name", "new.example")
    assert result.exit_code == 0, result.output
    renewed = x509.load_pem_x509_certificate((directory / "manager.crt").read_bytes())
    assert {"old.example", "new.example", "localhost"} <= set(authority.alternative_names(renewed))
    assert (directory / "manager.key").read_bytes() == key
    assert "systemctl restart keep-manager" in result.output
    assert run("pki", "check").exit_code == 0


def test_the_list_shows_each_certificate_with_what_became_of_it(run: Run, made: Path) -> None:
    run("pki", "issue", "alice")
    run("pki", "revoke", "alice")
    lines = [line.split() for line in run("pki", "list").output.splitlines()]
    assert lines[0] == ["NAME", "ROLE", "STATUS", "EXPIRES", "SERIAL"]
    rows = {row[0]: row[1:3] for row in lines[1:]}
    assert rows == {
        "keep-manager": ["server", "valid"],
        "admin": ["operator", "valid"],
        "alice": ["user", "revoked"],
    }
    assert serial(made / "clients/alice.crt") in {row[4] for row in lines[1:]}


def test_no_certificate_outlives_its_ca(made: Path) -> None:
    layout = Layout(str(made))
    late = datetime.datetime.now(datetime.UTC) + (authority.CA_DAYS - 30) * DAY
    with pytest.raises(
        Exception, match=r"the CA itself ends on .*ask for less with --for, or make a new CA: keepctl pki rotate"
    ):
        pki.issue(layout, "alice", 60 * DAY, late)
    assert not (made / "clients/alice.crt").exists()


def test_a_failure_half_way_leaves_no_client_and_no_entry(
    run: Run, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {str(path) for path in made.rglob("*")}
    written = files.write_new

    def full(path: str, data: bytes, mode: int) -> None:
        if path.endswith("alice.crt"):
            raise OSError(28, "No space left on device", path)
        written(path, data, mode)

    monkeypatch.setattr(files, "write_new", full)
    result = run("pki", "issue", "alice")
    assert result.exit_code == 1
    assert "cannot issue a certificate to alice" in result.stderr
    assert {str(path) for path in made.rglob("*")} == before


def test_a_sound_pki_is_found_sound(run: Run, made: Path) -> None:
    result = run("pki", "check")
    assert (result.exit_code, result.output) == (0, f"{made}: all is well\n")


@pytest.mark.parametrize(
    ("spoil", "finding"),
    [
        (lambda d: (d / "ca.key").chmod(0o640), "ca.key: its mode is 0640; run: chmod 0600"),
        (lambda d: (d / "clients").chmod(0o755), "clients: its mode is 0755; run: chmod 0700"),
        (lambda d: (d / "revoked").unlink(), "revoked: No such file"),
        (lambda d: (d / "revoked").write_text("zz\n"), "revoked: line 1 must be one serial number in hexadecimal"),
        (lambda d: (d / "manager.crt").write_text("x"), "manager.crt: it is no PEM certificate"),
        (lambda d: (d / "manager.crt").write_bytes((d / "clients/admin.crt").read_bytes()), "is the key of another"),
        (lambda d: (d / "clients/admin.key").write_bytes((d / "ca.key").read_bytes()), "is the key of another"),
        (lambda d: (d / "ca.crt").unlink(), "ca.crt: No such file"),
    ],
)
def test_each_fault_is_found_and_named(run: Run, made: Path, spoil: object, finding: str) -> None:
    assert callable(spoil)
    spoil(made)
    result = run("pki", "check")
    assert result.exit_code == 1
    assert finding in result.stderr


def test_a_certificate_of_another_ca_is_found(run: Run, made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run("init", "--pki", str(other))
    for name in ("ca.crt", "ca.key"):
        (made / name).write_bytes((other / name).read_bytes())
    assert "manager.crt: this CA did not issue it" in run("pki", "check").stderr


@pytest.mark.parametrize(
    ("days", "word"),
    [(-1, "the clock"), (authority.SERVER_DAYS - 10, "expires on"), (authority.SERVER_DAYS + 1, "expired on")],
)
def test_dates_are_checked(made: Path, days: int, word: str) -> None:
    found = inspection.findings(Layout(str(made)), datetime.datetime.now(datetime.UTC) + days * DAY)
    assert any("manager.crt" in line and word in line for line in found)


def test_without_a_pki_every_command_says_what_to_do(run: Run, directory: Path) -> None:
    del directory
    for arguments in (("issue", "a"), ("renew-server",), ("list",), ("revoke", "a")):
        result = run("pki", *arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("keepctl: cannot ")
        assert result.stderr.count("\n") == 1


def test_the_list_and_the_check_are_for_programs_too(run: Run, directory: Path) -> None:
    run("init")
    listed = json.loads(run("pki", "list", "-o", "json").output)
    assert {entry["name"]: (entry["kind"], entry["status"]) for entry in listed} == {
        "keep-manager": ("server", "valid"),
        "admin": ("client", "valid"),
    }
    assert json.loads(run("pki", "check", "-o", "json").output) == {"pki": str(directory), "findings": []}
    (directory / "clients" / "admin.key").chmod(0o644)
    result = run("pki", "check", "-o", "json")
    assert result.exit_code == 1
    assert "run: chmod 0600" in json.loads(result.output)["findings"][0]
