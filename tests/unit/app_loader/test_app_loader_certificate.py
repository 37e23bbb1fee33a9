"""The reader of extended key usages: real certificates, and bytes that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from app_loader.access import Peer, UploadAccess, revoked_serials
from app_loader.certificate import CLIENT_AUTH, MalformedCertificate, extended_key_usages
from keep_protocol.errors import KeepfleetError
from tests.fakes.pki import CLIENT, SERVER, Authority, der_of, load


@pytest.mark.parametrize(
    ("usages", "is_client"), [([CLIENT], True), ([SERVER], False), ([SERVER, CLIENT], True), (None, False)]
)
def test_the_usages_of_a_real_certificate_are_found(
    authority: Authority, usages: list[x509.ObjectIdentifier] | None, is_client: bool
) -> None:
    path = authority.client("read", usages, no_usages=usages is None)
    found = extended_key_usages(der_of(path))
    assert (CLIENT_AUTH in found) is is_client
    assert len(found) == len(usages or [])


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        extended_key_usages(data)
    except MalformedCertificate:
        return


@given(st.data())
def test_a_damaged_certificate_is_read_or_refused(client_der: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(client_der) - 1))
    damaged = bytearray(client_der)
    damaged[at] = data.draw(st.integers(0, 255))
    try:
        extended_key_usages(bytes(damaged))
    except MalformedCertificate:
        return


@given(st.data())
def test_a_cut_or_longer_certificate_is_refused(client_der: bytes, data: st.DataObject) -> None:
    changed = data.draw(
        st.one_of(
            st.integers(0, len(client_der) - 1).map(lambda end: client_der[:end]),
            st.binary(min_size=1, max_size=9).map(lambda more: client_der + more),
        )
    )
    with pytest.raises(MalformedCertificate):
        extended_key_usages(changed)


def test_a_usage_named_twice_is_refused() -> None:
    usage = element(0x30, element(6, bytes.fromhex("551d25")) + element(4, element(0x30, element(6, CLIENT_AUTH))))
    signed = element(0x30, element(2, b"\1") + element(0xA3, element(0x30, usage + usage)))
    der = element(0x30, signed + element(0x30, b"") + element(3, b"\0"))
    with pytest.raises(MalformedCertificate, match="twice"):
        extended_key_usages(der)


def element(tag: int, contents: bytes) -> bytes:
    """One DER element of under 128 bytes."""
    return bytes([tag, len(contents)]) + contents


def test_an_oversized_certificate_is_refused() -> None:
    with pytest.raises(MalformedCertificate, match="over 65536 bytes"):
        extended_key_usages(b"\x30" * 70_000)


def test_revoked_serials_are_read_in_the_forms_people_write() -> None:
    text = b"# a comment\n\n1f\n0x2E\nAB:cd # with a remark\n  07  \n99"
    assert revoked_serials(text) == {0x1F, 0x2E, 0xABCD, 7, 0x99}


def test_a_revocation_list_that_cannot_be_read_lets_nobody_in() -> None:
    with pytest.raises(KeepfleetError, match="not readable"):
        revoked_serials(b"12\nnot a number\n")


def test_a_revocation_list_that_grows_is_seen_at_the_next_question(tmp_path: Path, client: Path) -> None:
    path = tmp_path / "revoked"
    path.write_text("1\n")
    with path.open("rb") as file:
        access, peer = UploadAccess(file.fileno()), Peer(0x2A, 2e10, frozenset({CLIENT_AUTH}))
        access.check(peer)
        with path.open("a") as more:
            more.write("2a\n")
        with pytest.raises(KeepfleetError, match="2a is revoked"):
            access.check(peer)


def test_a_certificate_that_has_expired_since_its_handshake_is_refused(tmp_path: Path) -> None:
    (tmp_path / "revoked").touch()
    with (tmp_path / "revoked").open("rb") as file:
        access, peer = UploadAccess(file.fileno()), Peer(1, 1000.0, frozenset({CLIENT_AUTH}))
        access.check(peer, now=999.0)
        with pytest.raises(KeepfleetError, match="has expired"):
            access.check(peer, now=1001.0)


def test_a_revocation_list_over_its_limit_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    path.write_bytes(b"1\n" * 600_000)
    with path.open("rb") as file, pytest.raises(KeepfleetError, match="over 1048576 bytes"):
        UploadAccess(file.fileno()).check(Peer(1, 2e10, frozenset({CLIENT_AUTH})))


@pytest.fixture(scope="session")
def client_der(client: Path) -> bytes:
    assert load(client).serial_number
    return der_of(client)
