"""The reader of certificates and its policy, compared with `cryptography`'s reading of the same ones, and fuzzed."""

from __future__ import annotations

import datetime
import time
from functools import cache

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from hypothesis import example, given
from hypothesis import strategies as st

from keep_protocol.certificate import (
    CLIENT_AUTH,
    KEY_USAGES,
    MAX_CERTIFICATE_BYTES,
    CertificateFields,
    check_client,
    read_certificate,
)
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import Identity, Role
from keep_protocol.tls import fingerprint_of
from tests.fakes.certificates import CLIENT, KEY_KINDS, SERVER, ForeignAuthority, Issued, Key, key_usage, new_key

USER = "spiffe://keepfleet/user/alice"
USAGE_NAMES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)
ODD_EXTENSIONS: tuple[tuple[x509.ExtensionType, bool], ...] = (
    (x509.TLSFeature([x509.TLSFeatureType.status_request]), False),
    (x509.OCSPNoCheck(), False),
    (x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x00" * 300), True),
    (
        x509.CRLDistributionPoints([x509.DistributionPoint([x509.UniformResourceIdentifier(USER)], None, None, None)]),
        False,
    ),
    (x509.IssuerAlternativeName([x509.UniformResourceIdentifier(USER)]), False),
    (x509.PrecertPoison(), True),
)


@cache
def authority(kind: str, *, intermediate: bool = False) -> ForeignAuthority:
    root = ForeignAuthority(f"{kind} CA", kind)
    return ForeignAuthority("below", kind, above=root) if intermediate else root


@cache
def key(kind: str) -> Key:
    return new_key(kind)


def by_cryptography(der: bytes) -> CertificateFields:
    """The same fields, as `cryptography` reads them."""
    found = x509.load_der_x509_certificate(der)
    extensions = {type(extension.value): extension.value for extension in found.extensions}
    usages = extensions.get(x509.ExtendedKeyUsage, ())
    constraints, usage = extensions.get(x509.BasicConstraints), extensions.get(x509.KeyUsage)
    names = extensions.get(x509.SubjectAlternativeName, ())
    return CertificateFields(
        subject=str(found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value),
        serial=found.serial_number,
        not_before=int(found.not_valid_before_utc.timestamp()),
        not_after=int(found.not_valid_after_utc.timestamp()),
        usages=frozenset(CLIENT_AUTH if oid == CLIENT else oid.dotted_string.encode() for oid in usages),
        is_ca=isinstance(constraints, x509.BasicConstraints) and constraints.ca,
        key_usage=None if not isinstance(usage, x509.KeyUsage) else frozenset(_names(usage)),
        uris=tuple(str(name.value) for name in names if isinstance(name, x509.UniformResourceIdentifier)),
        fingerprint=fingerprint_of(der),
    )


def _names(usage: x509.KeyUsage) -> list[str]:
    found = [name for name, ours in zip(USAGE_NAMES, KEY_USAGES, strict=False) if getattr(usage, name)]
    if usage.key_agreement:
        found += ["encipherOnly"] * usage.encipher_only + ["decipherOnly"] * usage.decipher_only
    return [KEY_USAGES[USAGE_NAMES.index(name)] if name in USAGE_NAMES else name for name in found]


@st.composite
def certificates(draw: st.DrawFn) -> Issued:
    """Certificates of many kinds: keys, names, usages, identities, times and extensions."""
    other = st.sampled_from([NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME, NameOID.DOMAIN_COMPONENT])
    text = st.text(min_size=1, max_size=16)  # 64 bytes
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, draw(text))]
    attributes += [x509.NameAttribute(oid, draw(text)) for oid in draw(st.lists(other, max_size=3))]
    usages = draw(st.none() | st.sets(st.sampled_from([CLIENT, SERVER, ExtendedKeyUsageOID.OCSP_SIGNING]), min_size=1))
    bits = draw(st.sets(st.sampled_from(USAGE_NAMES), min_size=1))
    ends = ["encipher_only", "decipher_only"] if "key_agreement" in bits else []
    start = draw(st.datetimes(datetime.datetime(1951, 1, 1), datetime.datetime(9000, 1, 1)))
    start = start.replace(microsecond=0, tzinfo=datetime.UTC)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    life = datetime.timedelta(seconds=draw(st.integers(1, 10**9)))
    return authority(draw(st.sampled_from(KEY_KINDS)), intermediate=draw(st.booleans())).issue(
        x509.Name(attributes),
        key=key(draw(st.sampled_from(KEY_KINDS))),
        usages=None if usages is None else tuple(usages),
        uris=tuple(draw(st.lists(st.sampled_from([USER, "spiffe://x", "https://a.example", "urn:x"]), max_size=3))),
        ca=draw(st.booleans()),
        usage=key_usage(*bits, *draw(st.sets(st.sampled_from(ends)) if ends else st.just([]))),
        others=tuple(draw(st.lists(st.sampled_from(ODD_EXTENSIONS), unique_by=lambda e: type(e[0])))),
        begin=start - now,
        end=start - now + life,
        serial=draw(st.integers(1, (1 << 159) - 1)),
    )


@given(certificates())
def test_a_certificate_reads_as_cryptography_reads_it(issued: Issued) -> None:
    ours, theirs = read_certificate(issued.der), by_cryptography(issued.der)
    assert ours.replace(usages=theirs.usages) == theirs
    assert (CLIENT_AUTH in ours.usages) is (CLIENT_AUTH in theirs.usages)
    assert len(ours.usages) == len(theirs.usages)


@given(certificates(), st.integers(-(10**9), 10**10))
def test_the_policy_is_what_a_reading_by_cryptography_says(issued: Issued, now: int) -> None:
    read = by_cryptography(issued.der)
    bits = read.key_usage or frozenset()
    good = (
        CLIENT_AUTH in read.usages
        and not read.is_ca
        and "digitalSignature" in bits
        and "keyCertSign" not in bits
        and read.not_before <= now < read.not_after
        and [uri for uri in read.uris if uri.startswith("spiffe:")] in ([], [USER])
    )
    if good:
        assert check_client(read_certificate(issued.der), now) in (None, Identity(Role.USER, "alice"))
        return
    with pytest.raises(KeepfleetError, match="cannot accept the certificate of ") as refused:
        check_client(read_certificate(issued.der), now)
    assert refused.value.kind is ErrorKind.FORBIDDEN


def a_client(**options: object) -> Issued:
    return authority("p256").issue("alice", **options)  # type: ignore[arg-type] # one thing at a time


def accepted(**options: object) -> Identity | None:
    return check_client(read_certificate(a_client(**options).der), time.time())


HOUR = datetime.timedelta(hours=1)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"usages": None}, "it was not made for a client: it names no extended key usage"),
        ({"usages": (SERVER,)}, "its extended key usage lacks clientAuth"),
        ({"usages": (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)}, "its extended key usage lacks clientAuth"),
        ({"ca": True}, "it is a certificate authority's"),
        ({"ca": True, "usage": key_usage("digital_signature", "key_cert_sign")}, "it is a certificate authority's"),
        ({"usage": key_usage("digital_signature", "key_cert_sign")}, "its key usage is a certificate authority's"),
        ({"usage": key_usage("key_agreement")}, "its key usage lacks digitalSignature"),
        ({"begin": HOUR, "end": 2 * HOUR}, r"it is valid from \d{4}-\d\d-\d\d \d\d:\d\d:\d\d to .* UTC"),
        ({"begin": -2 * HOUR, "end": -HOUR}, "it is valid from"),
        ({"uris": (USER, USER)}, "has 2, not one"),
        ({"uris": ("spiffe://keepfleet/root/x",)}, "its role must be"),
        ({"uris": ("spiffe://keepfleet/uploader/ci/keep/7",)}, "must not be valid for longer than 600 seconds"),
    ],
)
def test_what_is_no_good_client_s_certificate_is_refused_with_its_reason(fault: dict[str, object], why: str) -> None:
    with pytest.raises(KeepfleetError, match=why) as refused:
        accepted(**fault)
    assert refused.value.kind is ErrorKind.FORBIDDEN


def test_a_good_certificate_says_who_it_is() -> None:
    assert accepted() is None
    assert accepted(uris=(USER, "https://alice.example")) == Identity(Role.USER, "alice")
    ten_minutes = datetime.timedelta(minutes=10)
    uploader = {"uris": ("spiffe://keepfleet/uploader/ci/keep/7",), "begin": -HOUR / 60, "end": ten_minutes - HOUR / 60}
    assert accepted(**uploader) == Identity(Role.UPLOADER, "ci", 7)


def test_a_certificate_ends_as_openssl_ends_it_at_its_last_second() -> None:
    fields = read_certificate(a_client().der)
    check_client(fields, fields.not_before)
    check_client(fields, fields.not_after - 0.001)
    for moment in (fields.not_before - 0.001, fields.not_after, fields.not_after + 1):
        with pytest.raises(KeepfleetError, match="it is valid from"):
            check_client(fields, moment)


def test_a_subject_without_a_common_name_is_named_whole() -> None:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.DOMAIN_COMPONENT, "example"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Widgets, Inc"),
            x509.NameAttribute(ObjectIdentifier("1.2.3.400"), "x"),
        ]
    )
    fields = read_certificate(authority("p256").issue(name).der)
    assert fields.subject == r"1.2.3.400=x,O=Widgets\,\ Inc,DC=example"
    assert read_certificate(authority("p256").issue(x509.Name([])).der).subject == ""


def test_a_name_for_the_log_is_short_and_printable() -> None:
    fields = read_certificate(a_client(serial=0xABC).der)
    assert str(fields) == "alice (serial abc)"
    assert str(fields.replace(subject="a\nb\x1b[1m" + "c" * 100)) == "a?b?[1m" + "c" * 57 + " (serial abc)"


@cache
def a_der(kind: str) -> bytes:
    return authority(kind, intermediate=True).issue("alice", key=key(kind), uris=(USER,), others=ODD_EXTENSIONS).der


def read_or_refused(data: bytes) -> None:
    """No bytes do more than be refused."""
    try:
        fields = read_certificate(data)
        check_client(fields, time.time())
    except KeepfleetError as error:
        assert error.kind is ErrorKind.FORBIDDEN
    else:
        assert fields.fingerprint == fingerprint_of(data)


@given(st.sampled_from(KEY_KINDS), st.data())
def test_a_damaged_certificate_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    der = bytearray(a_der(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    read_or_refused(bytes(der))


@given(st.sampled_from(KEY_KINDS), st.data())
def test_a_cut_or_longer_certificate_is_refused(kind: str, data: st.DataObject) -> None:
    der = a_der(kind)
    changed = der[: data.draw(st.integers(0, len(der) - 1))] if data.draw(st.booleans()) else der + b"\0"
    with pytest.raises(KeepfleetError, match="cannot read the certificate"):
        read_certificate(changed)


def element(tag: int, contents: bytes) -> bytes:
    length = len(contents)
    size = b"" if length < 128 else length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, length if length < 128 else 0x80 | len(size)]) + size + contents


TAGS = st.sampled_from([1, 2, 3, 4, 5, 6, 0x0C, 0x13, 0x17, 0x18, 0x1E, 0x30, 0x31, 0x80, 0x81, 0x82, 0x86, 0xA0, 0xA3])
NESTED = st.recursive(
    st.builds(element, TAGS, st.binary(max_size=20)),
    lambda inner: st.builds(element, TAGS, st.lists(inner, max_size=5).map(b"".join)),
    max_leaves=30,
)


@given(NESTED | st.binary(max_size=300))
@example(b"")
@example(b"\x30\x80\x00\x00")
@example(b"\x1f\x1f\x1f")
@example(b"\x30" * 2000)
@example(element(0x30, b"\x30\x00" * 30000))
def test_bytes_that_are_no_certificate_are_refused(data: bytes) -> None:
    with pytest.raises(KeepfleetError, match="cannot read the certificate") as refused:
        read_certificate(data)
    assert refused.value.kind is ErrorKind.FORBIDDEN


def test_an_oversized_certificate_is_refused() -> None:
    others = ((x509.UnrecognizedExtension(ObjectIdentifier("1.2.3"), b"x" * MAX_CERTIFICATE_BYTES), False),)
    with pytest.raises(KeepfleetError, match="it is over 65536 bytes"):
        read_certificate(a_client(others=others).der)


def test_a_certificate_of_very_many_parts_is_refused_before_they_are_read() -> None:
    with pytest.raises(KeepfleetError, match="an element holds more than 1024"):
        read_certificate(element(0x30, b"\x30\x00" * 30000))


OID_EKU, OID_BC, OID_KU, OID_SAN = (bytes.fromhex("0603" + text) for text in ("551d25", "551d13", "551d0f", "551d11"))


def with_extensions(*extensions: bytes) -> bytes:
    """A certificate with these extensions, each an element, and a signature that fits nothing."""
    name = element(0x30, element(0x31, element(0x30, b"\x06\x03\x55\x04\x03" + element(0x0C, b"alice"))))
    times = element(0x30, element(0x17, b"200101000000Z") + element(0x17, b"491231235959Z"))
    signed = element(0xA0, b"\x02\x01\x02") + b"\x02\x01\x05" + b"\x30\x00" + name + times + name + b"\x30\x00"
    signed += element(0xA3, element(0x30, b"".join(element(0x30, extension) for extension in extensions)))
    return element(0x30, element(0x30, signed) + b"\x30\x00" + b"\x03\x01\x00")


def test_a_certificate_written_by_hand_is_read() -> None:
    fields = read_certificate(with_extensions(OID_BC + element(4, b"\x30\x00")))
    assert (fields.subject, fields.serial, fields.is_ca) == ("alice", 5, False)


@pytest.mark.parametrize(
    "extensions",
    [
        [OID_EKU + element(4, b"\x30\x00")],
        [OID_EKU + element(4, element(0x30, element(6, CLIENT_AUTH)) + b"\x05\x00")],
        [OID_EKU + element(4, element(0x30, element(2, b"\x01")))],
        [OID_EKU + element(4, element(0x30, element(6, CLIENT_AUTH)))] * 2,
        [OID_BC + element(4, b"\x30\x00"), OID_BC + element(4, element(0x30, b"\x01\x01\xff"))],
        [OID_BC + element(4, element(0x30, b"\x01\x01\x00"))],
        [OID_BC + element(4, element(0x30, b"\x01\x01\x01"))],
        [OID_BC + element(4, element(0x30, b"\x02\x01\x00"))],
        [OID_BC + b"\x01\x01\x00" + element(4, b"\x30\x00")],
        [OID_KU + element(4, b"\x03\x01\x00")],
        [OID_KU + element(4, b"\x03\x02\x08\x80")],
        [OID_KU + element(4, b"\x03\x02\x07\xc0")],
        [OID_KU + element(4, b"\x03\x04\x00\x80\x00\x01")],
        [OID_SAN + element(4, element(0x30, element(0x86, b"spiffe\xff")))],
        [OID_SAN + element(4, element(0x30, element(0x0C, b"x")))],
        [b"\x02\x01\x05" + element(4, b"")],
        [OID_SAN],
    ],
)
def test_an_extension_that_is_not_written_in_der_or_stands_twice_is_refused(extensions: list[bytes]) -> None:
    with pytest.raises(KeepfleetError, match="cannot read the certificate"):
        read_certificate(with_extensions(*extensions))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"200101000000Z", b"200230000000Z"),
        (b"200101000000Z", b"201301000000Z"),
        (b"200101000000Z", b"200101240000Z"),
        (b"200101000000Z", b"200101000060Z"),
        (b"200101000000Z", b"2001010000+0Z"),
        (b"200101000000Z", b"2001010000000"),
        (b"\x02\x01\x05", b"\x02\x01\x85"),
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01"),
        (b"\x0c\x05alice", b"\x0c\x05alic\xff"),
        (b"\x0c\x05alice", b"\x04\x05alice"),
    ],
)
def test_a_part_that_is_not_what_it_must_be_is_refused(old: bytes, new: bytes) -> None:
    der = with_extensions(OID_BC + element(4, b"\x30\x00"))
    with pytest.raises(KeepfleetError, match="cannot read the certificate"):
        read_certificate(der.replace(old, new))


def test_a_serial_number_that_no_list_could_revoke_is_refused() -> None:
    der = with_extensions(OID_BC + element(4, b"\x30\x00"))
    serial = element(2, b"\x01" * 21)
    inner = der[der.index(b"\xa0\x03") :]  # what the first two lengths cover has grown
    signed = inner[: -len(b"\x30\x00\x03\x01\x00")].replace(b"\x02\x01\x05", serial, 1)
    grown = element(0x30, element(0x30, signed) + b"\x30\x00" + b"\x03\x01\x00")
    with pytest.raises(KeepfleetError, match="could not be revoked"):
        read_certificate(grown)
