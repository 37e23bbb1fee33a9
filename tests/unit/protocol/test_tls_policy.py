"""Fingerprints, pins and key files; handshakes are tested with the endpoints that make them."""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol import tls, tls_server
from keep_protocol.errors import ErrorKind, KeepfleetError

DER = b"a certificate"
DIGITS = hashlib.sha256(DER).hexdigest()


def test_a_fingerprint_is_the_digest_of_the_der() -> None:
    assert tls.fingerprint_of(DER) == f"sha256:{DIGITS}"


@pytest.mark.parametrize(
    "text",
    [
        f"sha256:{DIGITS}",
        DIGITS,
        DIGITS.upper(),
        f"SHA256:{DIGITS}",
        f"  {DIGITS}\n",
        ":".join(DIGITS[place : place + 2] for place in range(0, 64, 2)),
        "sha256:" + ":".join(DIGITS[place : place + 2] for place in range(0, 64, 2)).upper(),
    ],
)
def test_a_fingerprint_is_read_as_people_write_it(text: str) -> None:
    assert tls.parse_fingerprint(text) == f"sha256:{DIGITS}"


@pytest.mark.parametrize("text", ["", "sha256:", DIGITS[:-1], DIGITS + "0", "sha1:" + DIGITS, "g" * 64, "٣" * 64])
def test_what_is_no_fingerprint_is_refused(text: str) -> None:
    with pytest.raises(KeepfleetError) as refused:
        tls.parse_fingerprint(text)
    assert refused.value.kind is ErrorKind.BAD_REQUEST


@given(st.text())
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        assert len(tls.parse_fingerprint(text)) == 71
    except KeepfleetError as error:
        assert error.kind is ErrorKind.BAD_REQUEST


def test_a_pin_holds_for_its_certificate_alone() -> None:
    tls.check_pin(DER, DIGITS.upper())
    for shown in (b"another", b"", None):
        with pytest.raises(KeepfleetError, match="cannot trust the keep") as refused:
            tls.check_pin(shown, f"sha256:{DIGITS}")
        assert refused.value.kind is ErrorKind.CERTIFICATE


def test_a_pin_that_is_none_is_refused() -> None:
    with pytest.raises(KeepfleetError):
        tls.check_pin(DER, "")


def test_a_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    key.chmod(0o600)
    tls.check_private_file(str(key))
    for mode in (0o640, 0o604, 0o620):
        key.chmod(mode)
        with pytest.raises(KeepfleetError, match=f"chmod 0600 {key}") as refused:
            tls.check_private_file(str(key))
        assert refused.value.kind is ErrorKind.CERTIFICATE
        assert "secret" not in refused.value.message


def test_a_key_that_is_missing_or_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(KeepfleetError, match="cannot use the key"):
            tls.check_private_file(str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    os.chown(key, 12345, 12345)
    with pytest.raises(KeepfleetError, match="uid 12345"):
        tls.check_private_file(str(key))


def test_a_certificate_that_cannot_be_used_is_an_error_of_ours(tmp_path: Path) -> None:
    broken = tmp_path / "broken.crt"
    broken.write_text("no PEM")
    makers: tuple[Callable[[], ssl.SSLContext], ...] = (
        lambda: tls.server_context(str(broken), None, ""),
        lambda: tls.client_context(str(broken), None, None),
        lambda: tls.client_context(str(tmp_path / "none"), None, None),
        lambda: tls.pinned_client_context(str(broken), None),
    )
    for make in makers:
        with pytest.raises(KeepfleetError) as refused:
            make()
        assert refused.value.kind is ErrorKind.CERTIFICATE


def test_a_wrong_file_is_named_in_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.crt"
    broken.write_text("no PEM")
    with pytest.raises(KeepfleetError, match=f"cannot use the CA file {broken}: there is no certificate in PEM in it"):
        tls.client_context(str(broken), None, None)
    with pytest.raises(KeepfleetError, match=f"cannot use the certificate {broken} with the key None: ") as refused:
        tls.pinned_client_context(str(broken), None)
    assert "_ssl.c" not in refused.value.message


def test_every_context_is_tls_1_3_without_tickets() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls_server.restrict(context)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert context.options & ssl.OP_NO_TICKET
