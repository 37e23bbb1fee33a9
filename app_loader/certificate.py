"""The extended key usages of an X.509 certificate, read from its DER: strict, bounded, and nothing else.

The standard library does not show them, and OpenSSL's own check lets a certificate without any pass as a client's
(measured with OpenSSL 3.0). The certificate's signature has been verified before this is asked.
Pure. Import rule: nothing.
"""

from __future__ import annotations

EXTENDED_KEY_USAGE = bytes.fromhex("551d25")
"""The extension's object identifier, 2.5.29.37, as DER contents (RFC 5280, section 4.2.1.12)."""
CLIENT_AUTH = bytes.fromhex("2b06010505070302")
"""The usage id-kp-clientAuth, 1.3.6.1.5.5.7.3.2."""
MAX_CERTIFICATE_BYTES = 64 * 1024
"""A client's certificate is one to four KiB."""

_SEQUENCE, _BOOLEAN, _OCTET_STRING, _OBJECT_IDENTIFIER = 0x30, 0x01, 0x04, 0x06
_EXTENSIONS = 0xA3
_LONG_FORM = 0x80
_LENGTH_BYTES = 3
"""Lengths of up to three bytes: more than MAX_CERTIFICATE_BYTES can need."""
_HIGH_TAG = 0x1F


class MalformedCertificate(ValueError):
    """The bytes are no DER certificate."""


def _element(data: memoryview) -> tuple[int, memoryview, memoryview]:
    """The first element's tag and contents, and what follows it."""
    if len(data) < 2 or data[0] & _HIGH_TAG == _HIGH_TAG:
        raise MalformedCertificate("an element is cut short or has a long tag")
    length, start = data[1], 2
    if length >= _LONG_FORM:
        count = length - _LONG_FORM
        start = 2 + count
        if not 1 <= count <= _LENGTH_BYTES or len(data) < start:
            raise MalformedCertificate("a length is indefinite or too long")
        length = int.from_bytes(data[2:start], "big")
        if length < _LONG_FORM or data[2] == 0:
            raise MalformedCertificate("a length is not in its shortest form")
    if len(data) < start + length:
        raise MalformedCertificate("an element is longer than what holds it")
    return data[0], data[start : start + length], data[start + length :]


def _children(data: memoryview) -> list[tuple[int, memoryview]]:
    found = []
    while data:
        tag, contents, data = _element(data)
        found.append((tag, contents))
    return found


def _only(data: memoryview, tag: int) -> memoryview:
    """The contents of the one element in `data`, which must have `tag`."""
    found, contents, rest = _element(data)
    if found != tag or rest:
        raise MalformedCertificate(f"one element {tag:#04x} was expected")
    return contents


def _extension(data: memoryview) -> tuple[bytes, memoryview]:
    """An extension's identifier and the DER it wraps."""
    parts = _children(data)
    tags = [tag for tag, _ in parts]
    if tags not in ([_OBJECT_IDENTIFIER, _OCTET_STRING], [_OBJECT_IDENTIFIER, _BOOLEAN, _OCTET_STRING]):
        raise MalformedCertificate("an extension has another shape")
    return bytes(parts[0][1]), parts[-1][1]


def extended_key_usages(der: bytes) -> frozenset[bytes]:
    """The object identifiers (DER contents) of the certificate's extended key usages; empty when it names none.

    Raises MalformedCertificate for anything that is not one DER certificate, or names the extension twice.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise MalformedCertificate(f"it is over {MAX_CERTIFICATE_BYTES} bytes")
    signed = _children(_only(memoryview(der), _SEQUENCE))
    if len(signed) != 3 or signed[0][0] != _SEQUENCE:
        raise MalformedCertificate("it is not what was signed, an algorithm and a signature")
    usages: frozenset[bytes] | None = None
    for tag, contents in _children(signed[0][1]):
        if tag != _EXTENSIONS:
            continue
        for kind, extension in _children(_only(contents, _SEQUENCE)):
            if kind != _SEQUENCE:
                raise MalformedCertificate("an extension is no sequence")
            identifier, value = _extension(extension)
            if identifier != EXTENDED_KEY_USAGE:
                continue
            if usages is not None:
                raise MalformedCertificate("its extended key usage stands twice")
            usages = _usages(value)
    return usages or frozenset()


def _usages(value: memoryview) -> frozenset[bytes]:
    parts = _children(_only(value, _SEQUENCE))
    if not parts or any(tag != _OBJECT_IDENTIFIER for tag, _ in parts):
        raise MalformedCertificate("its extended key usage is no list of identifiers")
    return frozenset(bytes(contents) for _, contents in parts)
