"""Signatures in minisign's format: a good one is taken, and each hostile one refused with its reason."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol.errors import ErrorKind
from module_store.signatures import (
    MAX_TRUSTED_COMMENT,
    BadSignature,
    Signed,
    check,
    parse_comment,
    parse_public_key,
    parse_signature,
)
from tests.unit.module_store.signers import COMMENT, Signer

CONTENTS = b"\0asm\1\0\0\0"
RELEASE, OTHER = Signer("release"), Signer("other")
NEWER = "keepfleet name=web version=3.0"
GOOD = RELEASE.sign(CONTENTS)
LINES = GOOD.split(b"\n")


def checked(data: bytes, contents: bytes = CONTENTS, signer: Signer = RELEASE) -> Signed:
    return check(parse_signature(data), signer.public, contents)


def lines(*changed: bytes | None) -> bytes:
    """The good signature with some of its lines replaced; None leaves one as it is."""
    return b"\n".join(old if new is None else new for old, new in zip(LINES[:4], changed, strict=True)) + b"\n"


@pytest.mark.parametrize("algorithm", [b"Ed", b"ED"])
def test_a_good_signature_says_name_and_version(algorithm: bytes) -> None:
    assert checked(RELEASE.sign(CONTENTS, algorithm=algorithm)) == Signed("web", "1.2.0")


def test_the_untrusted_comment_says_nothing_and_may_be_anything() -> None:
    assert checked(RELEASE.sign(CONTENTS, untrusted="x" * 1000)).name == "web"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (GOOD + b"more\n", "it has 5 lines"),
        (GOOD + b"\n", "it has 5 lines"),
        (GOOD + b"x", "its last line is cut off"),
        (GOOD + b"\0", "its last line is cut off"),
        (GOOD[:-1], "its last line is cut off"),
        (GOOD[:-2] + b"\n", "a line that must be Base64 is not"),
        (GOOD[:120], "its last line is cut off"),
        (b"\n".join(LINES[:2]) + b"\n", "it has 2 lines"),
        (b"", "its last line is cut off"),
        (GOOD.replace(b"\n", b"\r\n"), "its lines end in CR LF"),
        (GOOD.replace(b"web", "wéb".encode()), "it is not ASCII"),
        (GOOD.replace(b"by a test", b"by\x1b[31m"), "it has control characters"),
        (GOOD.replace(b"untrusted", b"Untrusted"), "must begin with 'untrusted comment: '"),
        (GOOD.replace(b"\ntrusted comment:", b"\ncomment:"), "must begin with 'trusted comment: '"),
        (RELEASE.sign(CONTENTS, untrusted="x" * 1024), "its untrusted comment is over 1024"),
        (RELEASE.sign(CONTENTS, "x" * MAX_TRUSTED_COMMENT), "its trusted comment is over 8192"),
        (b"x" * 100_000, "it is over 9728 bytes"),
        (RELEASE.sign(CONTENTS, algorithm=b"Ec"), "neither of minisign's two algorithms"),
        (lines(None, LINES[1] + b"AAAA", None, None), "a line that must be"),
        (lines(None, b" " + LINES[1], None, None), "Base64"),
        (lines(None, LINES[1][:-8] + b"====" + LINES[1][-4:], None, None), "Base64"),
        (lines(None, base64.b64encode(base64.b64decode(LINES[1]) + b"x"), None, None), "must be 74 bytes"),
        (lines(None, base64.b64encode(base64.b64decode(LINES[1])[:-1]), None, None), "must be 74 bytes"),
        (lines(None, None, None, base64.b64encode(bytes(63))), "must be 64 bytes"),
    ],
)
def test_a_malformed_signature_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadSignature) as caught:
        checked(data)
    assert reason in caught.value.message
    assert caught.value.kind is ErrorKind.FORBIDDEN


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (RELEASE.sign(CONTENTS + b"x"), "it is not this file's"),
        (RELEASE.sign(CONTENTS).replace(b"version=1.2.0", b"version=9.9.9"), "its trusted comment was changed"),
        (lines(None, None, None, OTHER.sign(CONTENTS).split(b"\n")[3]), "its trusted comment was changed"),
        (
            lines(None, None, *RELEASE.sign(b"another", "keepfleet name=web version=3.0").split(b"\n")[2:4]),
            "was changed",
        ),
        (OTHER.sign(CONTENTS), "it is by the key"),
        (OTHER.sign(CONTENTS, raw_id=RELEASE.raw_id), "it is not this file's"),
        (lines(None, base64.b64encode(b"Ed" + base64.b64decode(LINES[1])[2:]), None, None), "it is not this file's"),
        (RELEASE.sign(CONTENTS, "timestamp:1764288000\tfile:web.wasm\thashed"), 'is not "keepfleet name='),
        (RELEASE.sign(CONTENTS, COMMENT + " "), 'is not "keepfleet name='),
        (RELEASE.sign(CONTENTS, COMMENT + " extra=1"), 'is not "keepfleet name='),
        (RELEASE.sign(CONTENTS, "keepfleet name=../web version=1"), 'is not "keepfleet name='),
        (RELEASE.sign(CONTENTS, "keepfleet name=web version=latest"), 'is not "keepfleet name='),
    ],
)
def test_a_signature_of_something_else_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadSignature) as caught:
        checked(data)
    assert reason in caught.value.message


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_signature_with_any_byte_changed_is_refused_or_says_the_same(at: int, change: int) -> None:
    changed = bytearray(GOOD)
    changed[at] ^= change
    try:
        said = checked(bytes(changed))
    except BadSignature:
        return
    assert said == Signed("web", "1.2.0") and at < GOOD.index(b"\n"), "only the untrusted comment may change"


@given(st.binary(max_size=400))
def test_noise_is_refused_and_raises_nothing_else(noise: bytes) -> None:
    for read in (parse_signature, parse_public_key):
        with pytest.raises(BadSignature):
            read(noise)


def test_a_public_key_is_read_from_its_file_and_from_its_one_line() -> None:
    text = RELEASE.public.to_text()
    assert parse_public_key(text.encode()) == RELEASE.public
    assert parse_public_key(text.splitlines()[1].encode()) == RELEASE.public


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("\n", "\r\n"), "CR LF"),
        (lambda text: text + "x\n", "it has 3 lines"),
        (lambda text: text.replace("RW", "AB", 1), "not for Ed25519"),
        (lambda text: text[:-6] + "\n", "Base64"),
        (lambda text: "comment: x\n" + text.splitlines()[1] + "\n", "must begin with"),
        (lambda text: "untrusted comment: " + "x" * 5000 + "\n" + text.splitlines()[1], "it is over"),
    ],
)
def test_a_public_key_that_is_none_is_refused(change: object, reason: str) -> None:
    assert callable(change)
    body = base64.b64encode(b"Ed" + RELEASE.raw_id + RELEASE.public.public).decode()
    with pytest.raises(BadSignature, match=reason):
        parse_public_key(change(f"untrusted comment: key\n{body}\n").encode())


def test_versions_are_ordered_as_people_mean_them() -> None:
    ordered = [
        "0.9",
        "1.0-alpha",
        "1.0-alpha.1",
        "1.0-alpha.2",
        "1.0-alpha.10",
        "1.0-beta",
        "1.0",
        "1.0.1",
        "1.2",
        "1.10",
        "2",
    ]
    orders = [parse_comment(f"keepfleet name=a version={version}").order for version in ordered]
    assert orders == sorted(orders) and len(set(orders)) == len(orders)
    assert Signed("a", "1").order == Signed("a", "1.0.0").order
