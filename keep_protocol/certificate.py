"""One policy for clients' certificates, for the manager and for every keep; and the fields of a certificate, from DER.

OpenSSL has verified the chain in the handshake. What it leaves open is checked here: a certificate without any
extended key usage, or of an authority, passes there as a client's (measured with OpenSSL 3.0), and one may expire while
its connection stays open. The standard library shows neither, and `cryptography` is 10 MB of a keep.

The reader is strict and bounded: distinguished encoding alone, definite lengths, no byte left over. Whatever else it is
given is refused with KeepfleetError(FORBIDDEN), and so is the client.

Import rule: `_hashlib` (`hashlib` would be 2 ms more), `time` and the light part of keep_protocol.
"""

from __future__ import annotations

import time
from _hashlib import openssl_sha256

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.identity import MAX_UPLOADER_SECONDS, Identity, Role, identity_of
from keep_protocol.revocation import MAX_SERIAL, serial_text

MAX_CERTIFICATE_BYTES = 64 * 1024
"""A client's certificate is one to four KiB."""
CLIENT_AUTH = bytes.fromhex("2b06010505070302")
"""The usage id-kp-clientAuth, 1.3.6.1.5.5.7.3.2, as DER contents."""
KEY_USAGES = (
    "digitalSignature",
    "nonRepudiation",
    "keyEncipherment",
    "dataEncipherment",
    "keyAgreement",
    "keyCertSign",
    "cRLSign",
    "encipherOnly",
    "decipherOnly",
)
"""By their bit (RFC 5280, 4.2.1.3)."""
SHOWN = 64
"""Characters of a subject that a log line repeats."""

_BOOLEAN, _INTEGER, _BIT_STRING, _OCTET_STRING, _OBJECT_IDENTIFIER = 0x01, 0x02, 0x03, 0x04, 0x06
_UTC_TIME, _GENERALIZED_TIME, _SEQUENCE, _SET = 0x17, 0x18, 0x30, 0x31
_VERSION, _ISSUER_ID, _SUBJECT_ID, _EXTENSIONS, _URI = 0xA0, 0x81, 0x82, 0xA3, 0x86
_CODECS = {
    0x0C: "utf-8",
    0x12: "ascii",
    0x13: "ascii",
    0x14: "latin-1",
    0x16: "ascii",
    0x1A: "ascii",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}
"""The string types of names: UTF8, Numeric, Printable, Teletex, IA5, Visible, Universal and BMP."""
_COMMON_NAME = "2.5.4.3"
_SHORT = {
    "2.5.4.3": "CN",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
}
"""RFC 4514, section 3; other attributes are written with their numbers."""
_KEY_USAGE, _ALTERNATIVE_NAMES, _BASIC_CONSTRAINTS, _EXTENDED_KEY_USAGE = (
    bytes.fromhex(text) for text in ("551d0f", "551d11", "551d13", "551d25")
)
_LONG_FORM, _HIGH_TAG = 0x80, 0x1F
_LENGTH_BYTES = 3
"""Lengths of up to three bytes: more than MAX_CERTIFICATE_BYTES can need."""
_MAX_ELEMENTS = 1024
"""In one element: 64 KiB hold thirty thousand, 60 ms to read; a subject has ten."""
_OID_BITS = 128
"""The longest numbers in use are UUIDs (2.25.…)."""
_DAYS_TO_1970 = 719162
"""From the first day of the year 1."""
_DAYS_BEFORE = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365)


class CertificateFields(Record):
    """What a certificate says.

    subject: its common name, or where it has none its whole subject (RFC 4514); not_before, not_after: seconds of the
    epoch, valid from the one and until before the other; usages: its extended key usages as DER contents; key_usage:
    names of KEY_USAGES, None where it does not limit its key; uris: of its subject alternative names; fingerprint:
    `sha256:` and 64 digits.
    """

    subject: str
    serial: int
    not_before: int
    not_after: int
    usages: frozenset[bytes]
    is_ca: bool
    key_usage: frozenset[str] | None
    uris: tuple[str, ...]
    fingerprint: str

    def __str__(self) -> str:
        shown = "".join(c if c.isprintable() else "?" for c in self.subject[:SHOWN])
        return f"{shown} (serial {serial_text(self.serial)})"


def check_client(certificate: CertificateFields, now: float) -> Identity | None:
    """The identity its URI names, or None, when a client may use the certificate at `now`, seconds of the epoch.

    Whether it is revoked is another question. Raises KeepfleetError(FORBIDDEN) with the reason.
    """
    try:
        identity = identity_of(certificate.uris)
    except KeepfleetError as error:
        raise _refused(certificate, error.message) from error
    why = _purpose_fault(certificate) or _uploader_fault(certificate, identity) or _time_fault(certificate, now)
    if why:
        raise _refused(certificate, why)
    return identity


def _refused(certificate: CertificateFields, why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.FORBIDDEN, f"cannot accept the certificate of {certificate}: {why}")


def _purpose_fault(certificate: CertificateFields) -> str:
    if not certificate.usages:
        return "it was not made for a client: it names no extended key usage"
    if CLIENT_AUTH not in certificate.usages:
        return "it was not made for a client: its extended key usage lacks clientAuth"
    if certificate.is_ca:
        return "it is a certificate authority's, not a client's"
    if certificate.key_usage is not None and "digitalSignature" not in certificate.key_usage:
        return "its key usage lacks digitalSignature"
    if certificate.key_usage is not None and "keyCertSign" in certificate.key_usage:
        return "its key usage is a certificate authority's, not a client's"
    return ""


def _time_fault(certificate: CertificateFields, now: float) -> str:
    if certificate.not_before <= now < certificate.not_after:
        return ""
    begin, end = (
        time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment))
        for moment in (certificate.not_before, certificate.not_after)
    )
    return f"it is valid from {begin} to {end} UTC"


def _uploader_fault(certificate: CertificateFields, identity: Identity | None) -> str:
    if identity is None or identity.role is not Role.UPLOADER:
        return ""
    if certificate.not_after - certificate.not_before <= MAX_UPLOADER_SECONDS:
        return ""
    return f"an uploader's certificate must not be valid for longer than {MAX_UPLOADER_SECONDS} seconds"


def read_certificate(der: bytes) -> CertificateFields:
    """The fields of one DER certificate. Raises KeepfleetError(FORBIDDEN) for any other bytes."""
    try:
        if len(der) > MAX_CERTIFICATE_BYTES:
            raise _Malformed(f"it is over {MAX_CERTIFICATE_BYTES} bytes")
        return _read(der)
    except ValueError as error:  # _Malformed, and UnicodeDecodeError
        raise KeepfleetError(ErrorKind.FORBIDDEN, f"cannot read the certificate: {error}") from error


class _Malformed(ValueError):
    """The bytes are no DER certificate."""


def _read(der: bytes) -> CertificateFields:
    signed = _children(_only(memoryview(der), _SEQUENCE))
    if [tag for tag, _ in signed] != [_SEQUENCE, _SEQUENCE, _BIT_STRING]:
        raise _Malformed("it is not what was signed, an algorithm and a signature")
    parts = _children(signed[0][1])
    version = 1
    if parts and parts[0][0] == _VERSION:
        version = 1 + _whole(_only(parts.pop(0)[1], _INTEGER))
    tags = [tag for tag, _ in parts]
    if tags[:6] != [_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE] or not _ends_well(tags[6:]):
        raise _Malformed("its parts are not those of a certificate")
    if tags[-1] == _EXTENSIONS and version != 3:
        raise _Malformed(f"version {version} has no extensions")
    serial = _whole(parts[0][1])
    if serial > MAX_SERIAL:
        raise _Malformed("its serial number is over 20 bytes, and could not be revoked")
    times = [_time(tag, contents) for tag, contents in _children(parts[3][1])]
    if len(times) != 2:
        raise _Malformed("its validity is not two times")
    extensions = _extensions(parts[-1][1]) if tags[-1] == _EXTENSIONS else {}
    return CertificateFields(
        subject=_subject(parts[4][1]),
        serial=serial,
        not_before=times[0],
        not_after=times[1],
        usages=_usages(extensions[_EXTENDED_KEY_USAGE]) if _EXTENDED_KEY_USAGE in extensions else frozenset(),
        is_ca=_BASIC_CONSTRAINTS in extensions and _is_ca(extensions[_BASIC_CONSTRAINTS]),
        key_usage=_key_usage(extensions[_KEY_USAGE]) if _KEY_USAGE in extensions else None,
        uris=_uris(extensions[_ALTERNATIVE_NAMES]) if _ALTERNATIVE_NAMES in extensions else (),
        fingerprint="sha256:" + openssl_sha256(der).hexdigest(),
    )


def _ends_well(tags: list[int]) -> bool:
    """Behind the key: two identifiers that are out of use, and the extensions, each at most once, in order."""
    return tags == [tag for tag in (_ISSUER_ID, _SUBJECT_ID, _EXTENSIONS) if tag in tags]


def _element(data: memoryview) -> tuple[int, memoryview, memoryview]:
    """The first element's tag and contents, and what follows it."""
    if len(data) < 2 or data[0] & _HIGH_TAG == _HIGH_TAG:
        raise _Malformed("an element is cut short or has a long tag")
    length, start = data[1], 2
    if length >= _LONG_FORM:
        count = length - _LONG_FORM
        start = 2 + count
        if not 1 <= count <= _LENGTH_BYTES or len(data) < start:
            raise _Malformed("a length is indefinite or too long")
        length = int.from_bytes(data[2:start], "big")
        if length < _LONG_FORM or data[2] == 0:
            raise _Malformed("a length is not in its shortest form")
    if len(data) < start + length:
        raise _Malformed("an element is longer than what holds it")
    return data[0], data[start : start + length], data[start + length :]


def _children(data: memoryview) -> list[tuple[int, memoryview]]:
    found = []
    while data:
        tag, contents, data = _element(data)
        found.append((tag, contents))
        if len(found) > _MAX_ELEMENTS:
            raise _Malformed(f"an element holds more than {_MAX_ELEMENTS}")
    return found


def _only(data: memoryview, tag: int) -> memoryview:
    """The contents of the one element in `data`, which must have `tag`."""
    found, contents, rest = _element(data)
    if found != tag or rest:
        raise _Malformed(f"one element {tag:#04x} was expected")
    return contents


def _whole(contents: memoryview) -> int:
    """The value of an INTEGER that is not negative."""
    if not contents or contents[0] >= 0x80 or (len(contents) > 1 and contents[0] == 0 and contents[1] < 0x80):
        raise _Malformed("a number is negative or not in its shortest form")
    return int.from_bytes(contents, "big")


def _flag(contents: memoryview) -> bool:
    """The value of a BOOLEAN that is present, and so is true: DER leaves out what is the default."""
    if bytes(contents) != b"\xff":
        raise _Malformed("a truth value is not DER's true")
    return True


def _time(tag: int, contents: memoryview) -> int:
    """A time in seconds of the epoch: YYMMDDhhmmssZ or YYYYMMDDhhmmssZ (RFC 5280, 4.1.2.5)."""
    digits = bytes(contents[:-1]).decode("ascii")
    if {_UTC_TIME: 12, _GENERALIZED_TIME: 14}.get(tag) != len(digits) or not digits.isdigit() or contents[-1] != 0x5A:
        raise _Malformed("a time is not written as RFC 5280 has it")
    if tag == _UTC_TIME:
        digits = ("19" if digits[:2] >= "50" else "20") + digits
    year, month, day, hour, minute, second = int(digits[:4]), *(int(digits[at : at + 2]) for at in range(4, 14, 2))
    if not (year and 1 <= month <= 12 and hour < 24 and minute < 60 and second < 60):
        raise _Malformed("a time does not exist")
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not 1 <= day <= _DAYS_BEFORE[month] - _DAYS_BEFORE[month - 1] + (leap and month == 2):
        raise _Malformed("a day does not exist")
    past = year - 1
    days = past * 365 + past // 4 - past // 100 + past // 400 - _DAYS_TO_1970
    days += _DAYS_BEFORE[month - 1] + (leap and month > 2) + day - 1
    return ((days * 24 + hour) * 60 + minute) * 60 + second


def _subject(name: memoryview) -> str:
    """The first common name, or where there is none the whole subject as RFC 4514 writes it."""
    sets = [_attributes(contents) for contents in _of(name, _SET)]
    for pairs in sets:
        for kind, text in pairs:
            if kind == _COMMON_NAME:
                return text
    shown = ["+".join(f"{_SHORT.get(kind, kind)}={_escaped(text)}" for kind, text in pairs) for pairs in reversed(sets)]
    return ",".join(shown)


def _attributes(contents: memoryview) -> list[tuple[str, str]]:
    """The attributes of one element of a name: number, and text or `#` and the value's DER in hexadecimal."""
    found = []
    for attribute in _of(contents, _SEQUENCE):
        parts = _children(attribute)
        if len(parts) != 2 or parts[0][0] != _OBJECT_IDENTIFIER:
            raise _Malformed("an attribute of its subject has another shape")
        kind, (tag, value) = _dotted(parts[0][1]), parts[1]
        try:
            text = bytes(value).decode(_CODECS[tag]) if tag in _CODECS else None
        except UnicodeDecodeError:
            text = None
        if text is None and kind == _COMMON_NAME:
            raise _Malformed("its common name is no text")
        found.append((kind, f"#{tag:02x}{bytes(value).hex()}" if text is None else text))
    return found


def _escaped(text: str) -> str:
    return "".join("\\" + c if c in ' "#+,;<=>\\' else c for c in text)


def _dotted(contents: memoryview) -> str:
    """An object identifier as numbers with dots."""
    if not contents or contents[-1] >= 0x80:
        raise _Malformed("an object identifier is cut short")
    numbers, number = [], 0
    for byte in contents:
        if number == 0 and byte == 0x80:
            raise _Malformed("an object identifier is not in its shortest form")
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            numbers.append(number)
            number = 0
        if number >> _OID_BITS:
            raise _Malformed("a number of an object identifier is too long")
    first = min(numbers[0] // 40, 2)
    return ".".join(str(number) for number in (first, numbers[0] - 40 * first, *numbers[1:]))


def _of(data: memoryview, tag: int) -> list[memoryview]:
    """The contents of all elements, each of which must have `tag`."""
    parts = _children(data)
    if any(found != tag for found, _ in parts):
        raise _Malformed(f"elements {tag:#04x} alone were expected")
    return [contents for _, contents in parts]


def _extensions(data: memoryview) -> dict[bytes, memoryview]:
    """The DER of each extension by its identifier's."""
    found: dict[bytes, memoryview] = {}
    for extension in _of(_only(data, _SEQUENCE), _SEQUENCE):
        parts = _children(extension)
        tags = [tag for tag, _ in parts]
        if tags not in ([_OBJECT_IDENTIFIER, _OCTET_STRING], [_OBJECT_IDENTIFIER, _BOOLEAN, _OCTET_STRING]):
            raise _Malformed("an extension has another shape")
        if tags[1] == _BOOLEAN:
            _flag(parts[1][1])
        identifier = bytes(parts[0][1])
        if identifier in found:
            raise _Malformed(f"its extension {_dotted(parts[0][1])} is there twice")
        found[identifier] = parts[-1][1]
    return found


def _usages(value: memoryview) -> frozenset[bytes]:
    identifiers = _of(_only(value, _SEQUENCE), _OBJECT_IDENTIFIER)
    if not identifiers:
        raise _Malformed("its extended key usage is empty")
    return frozenset(bytes(contents) for contents in identifiers)


def _is_ca(value: memoryview) -> bool:
    parts = _children(_only(value, _SEQUENCE))
    tags = [tag for tag, _ in parts]
    if tags not in ([], [_BOOLEAN], [_BOOLEAN, _INTEGER]):
        raise _Malformed("its basic constraints have another shape")
    if tags[1:]:
        _whole(parts[1][1])
    return bool(parts) and _flag(parts[0][1])


def _key_usage(value: memoryview) -> frozenset[str]:
    """A BIT STRING: the number of unused bits at the end, which must be zero, and the bits, no byte of them empty."""
    bits = bytes(_only(value, _BIT_STRING))
    if not 2 <= len(bits) <= 3 or bits[0] > 7 or bits[-1] & ((1 << bits[0]) - 1) or not bits[-1]:
        raise _Malformed("its key usage is no short string of bits")
    number = int.from_bytes(bits[1:].ljust(2, b"\0"), "big")
    return frozenset(name for at, name in enumerate(KEY_USAGES) if number >> 15 - at & 1)


def _uris(value: memoryview) -> tuple[str, ...]:
    """The URIs among the general names, of which each has a tag of the context's class."""
    names = _children(_only(value, _SEQUENCE))
    if any(tag & 0xC0 != 0x80 for tag, _ in names):
        raise _Malformed("its alternative names have another shape")
    return tuple(bytes(contents).decode("ascii") for tag, contents in names if tag == _URI)
