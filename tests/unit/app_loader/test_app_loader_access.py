"""Who may upload: the policy on its own, and the endpoint's answers to those who may not."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app_loader.receive.access import UploadAccess
from keep_protocol.certificate import CertificateFields, read_certificate
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.keep import Uploader
from keep_protocol.reports import ReportType
from tests.fakes.certificates import ForeignAuthority
from tests.fakes.pki import Authority, der_of, load
from tests.unit.app_loader.app_loader_process import ask, listening, put, request, wasm

KEEP = 4711
MINUTE = datetime.timedelta(minutes=1)
NOTHING = wasm('(module (func (export "_start")))')


@pytest.fixture(scope="module")
def foreign() -> ForeignAuthority:
    return ForeignAuthority()


@pytest.fixture
def revoked(tmp_path: Path) -> Iterator[int]:
    """The list of revoked certificates, open read-only."""
    (tmp_path / "revoked").touch()
    descriptor = os.open(tmp_path / "revoked", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def certificate(authority: ForeignAuthority, name: str, *uris: str, minutes: int = 60) -> CertificateFields:
    """A client's certificate that began a minute ago and lives so long."""
    return read_certificate(authority.issue(name, uris=uris, begin=-MINUTE, end=(minutes - 1) * MINUTE).der)


def refusal(policy: UploadAccess, client: CertificateFields, now: float | None = None) -> str:
    """Why the policy refuses the client; "" where it lets it in."""
    try:
        policy.check(client, now)
    except KeepfleetError as error:
        assert error.kind is ErrorKind.FORBIDDEN
        return error.message
    return ""


def test_a_certificate_is_let_in_by_its_fingerprint_its_holders_name_or_a_star(
    foreign: ForeignAuthority, revoked: int
) -> None:
    alice, bob = certificate(foreign, "alice"), certificate(foreign, "bob")
    for entry in (alice.fingerprint, "name:alice", "*"):
        assert UploadAccess(revoked, KEEP, (entry,)).check(alice) == Uploader(
            alice.fingerprint, "alice", f"{alice.serial:x}"
        )
    for entry in (alice.fingerprint, "name:alice", "name:bo", "name:bobby"):
        assert "may not upload into this keep" in refusal(UploadAccess(revoked, KEEP, (entry,)), bob)


def test_the_name_of_a_certificates_uri_counts_and_not_its_common_name(foreign: ForeignAuthority, revoked: int) -> None:
    mallory = certificate(foreign, "alice", "spiffe://keepfleet/user/mallory")
    assert refusal(UploadAccess(revoked, KEEP, ("name:alice",)), mallory)
    assert UploadAccess(revoked, KEEP, ("name:mallory",)).check(mallory).name == "mallory"


def test_where_no_uploader_is_named_no_one_is_admitted(foreign: ForeignAuthority, revoked: int) -> None:
    assert refusal(UploadAccess(revoked, KEEP, ()), certificate(foreign, "alice"))
    assert refusal(UploadAccess(revoked, KEEP, ()), certificate(foreign, "o", "spiffe://keepfleet/operator/o"))


def test_an_uploaders_certificate_is_for_its_keep_alone_and_lives_ten_minutes_at_most(
    foreign: ForeignAuthority, revoked: int
) -> None:
    policy = UploadAccess(revoked, KEEP, ("*",))
    ours, other = (f"spiffe://keepfleet/uploader/ci/keep/{keep}" for keep in (KEEP, 4712))
    assert UploadAccess(revoked, KEEP, ()).check(certificate(foreign, "ci", ours, minutes=10)).name == "ci"
    assert "for an upload into another keep, 4712" in refusal(policy, certificate(foreign, "ci", other, minutes=10))
    assert "longer than 600 seconds" in refusal(policy, certificate(foreign, "ci", ours, minutes=11))


def test_a_viewer_may_not_upload(foreign: ForeignAuthority, revoked: int) -> None:
    viewer = certificate(foreign, "v", "spiffe://keepfleet/viewer/v")
    assert "a viewer's" in refusal(UploadAccess(revoked, KEEP, ("name:v", "*")), viewer)


def test_a_list_of_revoked_certificates_is_read_again_when_it_grows(
    foreign: ForeignAuthority, revoked: int, tmp_path: Path
) -> None:
    policy, client = UploadAccess(revoked, KEEP, ("*",)), certificate(foreign, "alice")
    assert not refusal(policy, client)
    with (tmp_path / "revoked").open("a") as file:
        file.write(f"{client.serial:x}\n")
    assert "it is revoked" in refusal(policy, client)


def test_a_list_of_revoked_certificates_that_cannot_be_read_admits_no_one(
    foreign: ForeignAuthority, revoked: int, tmp_path: Path
) -> None:
    policy, client = UploadAccess(revoked, KEEP, ("*",)), certificate(foreign, "alice")
    for text in ("12\nnot a number\n", "1\n" * 3_000_000):
        (tmp_path / "revoked").write_text(text)
        assert "cannot read the list of revoked certificates" in refusal(policy, client)
    (tmp_path / "revoked").write_text("12\n")
    assert not refusal(policy, client)


def test_a_certificate_that_has_expired_since_its_handshake_is_refused(foreign: ForeignAuthority, revoked: int) -> None:
    policy, client = UploadAccess(revoked, KEEP, ("*",)), certificate(foreign, "alice")
    assert not refusal(policy, client, client.not_after - 1)
    assert "it is valid from" in refusal(policy, client, client.not_after + 1)


def test_a_certificate_of_the_client_ca_that_is_no_uploaders_is_answered_403_and_logged(
    tmp_path: Path, authority: Authority, client: Path
) -> None:
    stranger = authority.client("bob")
    with listening(tmp_path, authority, {"KEEPFLEET_UPLOADERS": "name:client"}) as process:
        for data in (put(NOTHING), request("GET", "/", {})):
            answer = ask(process, stranger, data)
            assert (answer.status, answer.error["kind"]) == (403, "forbidden")
            assert "may not upload into this keep" in str(answer.error["message"])
        process.hear(f"client: bob (serial {load(stranger).serial_number:x}), sha256:".encode())
        assert ask(process, client, put(NOTHING)).status == 200
        receiving, accepted = process.expect(ReportType.RECEIVING), process.expect(ReportType.ACCEPTED)
        fields = read_certificate(der_of(client))
        assert receiving.upload == accepted.upload == Uploader(fields.fingerprint, "client", f"{fields.serial:x}")
        assert "from client (serial " in accepted.text


def test_an_uploaders_certificate_uploads_into_its_keep_and_no_other(
    tmp_path: Path, authority: Authority, client: Path
) -> None:
    ours, other = (
        authority.client(
            f"ci-{keep}", uri=f"spiffe://keepfleet/uploader/ci/keep/{keep}", starts=-MINUTE, valid_for=8 * MINUTE
        )
        for keep in (KEEP, KEEP + 1)
    )
    with listening(tmp_path, authority, {"KEEPFLEET_UPLOADERS": "name:client"}) as process:
        assert ask(process, other, put(NOTHING)).status == 403
        assert ask(process, ours, put(NOTHING)).status == 200
        report = process.expect(ReportType.RECEIVING, ReportType.ACCEPTED)
        assert report.upload is not None and report.upload.name == "ci"
