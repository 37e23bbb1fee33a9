"""A keep's key and certificate: what a client may expect of it, compared with openssl's; and that the key is nowhere
but in its file."""

from __future__ import annotations

import base64
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from app_loader.receive.identity import (
    TlsIdentity,
    alternative_names,
    certificate,
    make_identity,
    read_identity,
    to_be_signed,
)
from app_loader.receive.libcrypto import Key, Libcrypto
from app_loader.settings import Settings, read_settings
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.tls import fingerprint_of, server_context

NOW = 1_800_000_000
ENVIRONMENT = {
    "KEEPFLEET_KUUID": "7",
    "KEEPFLEET_ADDRESS": "127.0.0.1",
    "KEEPFLEET_PORT": "3031",
    "KEEPFLEET_NAMES": "Keep.example,10.0.0.1,::1,keep.example",
}
NAMES = "IP:127.0.0.1,DNS:localhost,DNS:keep.example,IP:10.0.0.1,IP:::1"
"""What these name: each once, in order."""


def settings_for(directory: Path | str, **changed: str) -> Settings:
    return read_settings({**ENVIRONMENT, "KEEPFLEET_RUNTIME_DIRECTORY": str(directory), **changed})


@pytest.fixture
def identity(tmp_path: Path) -> Iterator[TlsIdentity]:
    made = make_identity(settings_for(tmp_path))
    yield made
    os.close(made.descriptor)


@pytest.fixture(scope="module")
def key() -> Iterator[Key]:
    made = Key(Libcrypto())
    yield made
    made.close()


def private(identity: TlsIdentity) -> ec.EllipticCurvePrivateKey:
    text = os.pread(identity.descriptor, 9999, 0)
    found = load_pem_private_key(text[: text.index(b"-----BEGIN CERTIFICATE")], None)
    assert isinstance(found, ec.EllipticCurvePrivateKey)
    return found


def test_the_certificate_is_what_a_client_may_expect(identity: TlsIdentity, tmp_path: Path) -> None:
    shown = x509.load_pem_x509_certificate(identity.certificate.encode())
    assert shown.public_bytes(Encoding.DER) == identity.der
    assert shown.subject.rfc4514_string() == shown.issuer.rfc4514_string() == "CN=keep-7"
    assert (shown.not_valid_after_utc - shown.not_valid_before_utc).days == 397
    assert abs(datetime.now(UTC) - shown.not_valid_before_utc) < timedelta(minutes=10)
    assert shown.serial_number.bit_length() == 129
    extensions = shown.extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints) == x509.Extension(
        x509.BasicConstraints.oid, True, x509.BasicConstraints(False, None)
    )
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature and not usage.value.key_cert_sign
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    shown.verify_directly_issued_by(shown)
    assert private(identity).public_key() == shown.public_key()
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(identity.descriptor).st_mode & 0o777 == 0o600


def test_the_certificate_is_byte_for_byte_what_openssl_makes(identity: TlsIdentity, tmp_path: Path) -> None:
    """With the same key, number and second: all that is signed."""
    (tmp_path / "key").write_bytes(private(identity).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    serial = os.urandom(16)
    command = ["openssl", "req", "-x509", "-key", str(tmp_path / "key"), "-sha256", "-days", "397", "-outform", "DER"]
    command += ["-subj", "/CN=keep-7", "-set_serial", "0x01" + serial.hex()]
    for extension in (
        f"subjectAltName={NAMES}",
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        "extendedKeyUsage=serverAuth",
        "subjectKeyIdentifier=hash",
    ):
        command += ["-addext", extension]
    done = subprocess.run(command, env={"OPENSSL_CONF": "/dev/null", "PATH": "/usr/bin:/bin"}, capture_output=True)
    theirs = x509.load_der_x509_certificate(done.stdout)
    public = x509.load_der_x509_certificate(identity.der).public_key()
    assert theirs.public_key() == public
    ours = to_be_signed(
        7,
        alternative_names(settings_for(tmp_path)),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        serial,
        theirs.not_valid_before_utc.timestamp(),
    )
    assert ours == theirs.tbs_certificate_bytes


def test_openssl_accepts_the_certificate_under_its_strict_rules(identity: TlsIdentity, tmp_path: Path) -> None:
    (tmp_path / "certificate").write_text(identity.certificate)
    command = ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-purpose", "sslserver", "-verify_hostname"]
    command += ["keep.example", "-CAfile", str(tmp_path / "certificate"), str(tmp_path / "certificate")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_client_that_trusts_it_by_name_is_let_in_without_a_pin(identity: TlsIdentity) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(identity.path)
    client = ssl.create_default_context(cadata=identity.certificate)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1"),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for end in (*ends, *ends):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert fingerprint_of(ends[0].getpeercert(binary_form=True) or b"") == fingerprint_of(identity.der)


@given(
    st.integers(1, (1 << 53) - 1),
    st.lists(st.from_regex(r"[a-z0-9](?:[a-z0-9.-]{0,30}[a-z0-9])?", fullmatch=True), max_size=16, unique=True),
    st.ip_addresses(),
    st.integers(0, 250_000_000_000 // 100),
    st.binary(min_size=16, max_size=16),
)
def test_any_keeps_certificate_is_read_as_it_was_meant(
    key: Key, kuuid: int, names: list[str], address: object, now: int, serial: bytes
) -> None:
    changed = {"KEEPFLEET_KUUID": str(kuuid), "KEEPFLEET_ADDRESS": str(address), "KEEPFLEET_NAMES": ",".join(names)}
    wanted = alternative_names(settings_for("/", **changed))
    signed = to_be_signed(kuuid, wanted, key.public, serial, now)
    shown = x509.load_der_x509_certificate(certificate(signed, key.sign(signed)))
    shown.verify_directly_issued_by(shown)
    assert shown.subject.rfc4514_string() == f"CN=keep-{kuuid}"
    assert shown.serial_number == int.from_bytes(b"\1" + serial, "big")
    assert shown.not_valid_before_utc == datetime.fromtimestamp(now, UTC)
    assert shown.not_valid_after_utc == datetime.fromtimestamp(now, UTC) + timedelta(days=397)
    found = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.IPAddress)[0] == ip_address(str(address))
    assert set(found.get_values_for_type(x509.DNSName)) <= {*names, "localhost"}
    assert len(list(found)) == len(set(found))


def test_two_keeps_have_two_keys_and_two_serials(tmp_path: Path) -> None:
    first, second = (make_identity(settings_for(tmp_path)) for _ in range(2))
    certificates = [x509.load_der_x509_certificate(each.der) for each in (first, second)]
    assert len({each.serial_number for each in certificates}) == 2
    assert private(first).private_numbers() != private(second).private_numbers()
    for each in (first, second):
        os.close(each.descriptor)


def test_an_identity_that_was_made_is_read_again_and_once_wiped_never(identity: TlsIdentity) -> None:
    again = read_identity(identity.descriptor)
    assert (again.certificate, again.der) == (identity.certificate, identity.der)
    server_context(again.path, None, identity.certificate)
    identity.wipe()
    assert os.fstat(identity.descriptor).st_size == 0
    with pytest.raises(KeepfleetError, match="no key and certificate are in it"):
        read_identity(identity.descriptor)


MAKES_ONE = """
import os, sys
sys.path.append(sys.argv[1])
from app_loader.receive.identity import make_identity
from app_loader.settings import read_settings
identity = make_identity(read_settings(os.environ))
print(identity.descriptor, flush=True)
sys.stdin.read()
"""


def test_the_key_is_nowhere_in_the_memory_of_the_process_that_made_it(tmp_path: Path) -> None:
    """Before TLS loads it: neither as a number, in either order of its bytes, nor as text."""
    command = [sys.executable, "-I", "-S", "-c", MAKES_ONE, str(Path(__file__).parents[3])]
    environment = {**ENVIRONMENT, "KEEPFLEET_RUNTIME_DIRECTORY": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        number = int(process.stdout.readline())
        text = Path(f"/proc/{process.pid}/fd/{number}").read_bytes()
        memory = memory_of(process.pid)
        process.stdin.close()
    found = load_pem_private_key(text[: text.index(b"-----BEGIN CERTIFICATE")], None)
    assert isinstance(found, ec.EllipticCurvePrivateKey)
    secret = found.private_numbers().private_value.to_bytes(32, "big")
    assert found.public_key().public_numbers().x.to_bytes(32, "big") in memory, "what is there is found"
    assert secret not in memory
    assert secret[::-1] not in memory
    lines = text.splitlines()
    assert base64.b64decode(lines[1]).find(secret[:8]) > 0 or base64.b64decode(lines[1] + lines[2]).find(secret[:8]) > 0
    assert lines[1][-24:] not in memory and lines[2][:12] not in memory


def memory_of(pid: int) -> bytes:
    """All that a process can write."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if match:
                start, end = (int(word, 16) for word in match.groups())
                memory.seek(start)
                found.append(memory.read(end - start))
    return b"\0".join(found)


def test_a_directory_that_is_not_there_is_an_error_in_words() -> None:
    with pytest.raises(KeepfleetError, match="cannot store the keep's key in /nowhere") as caught:
        make_identity(settings_for("/nowhere"))
    assert caught.value.kind is ErrorKind.CONFIGURATION


def test_a_host_without_libcrypto_names_what_to_install() -> None:
    with pytest.raises(KeepfleetError, match="install it: apt-get install libssl3") as caught:
        Libcrypto(("libnowhere.so.3", "libc.so.6"))
    assert caught.value.kind is ErrorKind.CONFIGURATION


def test_an_openssl_that_is_part_of_the_interpreter_is_passed_over_for_the_hosts_own() -> None:
    key = Key(Libcrypto((None, "libcrypto.so.3")))
    assert len(key.public) == 91
    key.close()
    key.close()


def test_a_call_that_fails_is_named_with_openssls_reason(key: Key, tmp_path: Path) -> None:
    closed = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(KeepfleetError, match="PEM_write_bio_PrivateKey: error:") as caught:
        key.write(closed)  # a directory
    os.close(closed)
    assert caught.value.kind is ErrorKind.CERTIFICATE
