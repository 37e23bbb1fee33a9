"""Identities in URIs, names of owners, and who may upload."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.identity import (
    Identity,
    Role,
    check_name,
    check_trust_domain,
    identity_of,
    is_name,
    may_upload,
    owner_of,
    parse_identity,
)
from keep_protocol.spec import OWNER

NAMES = st.text("abcXYZ019._@-", min_size=1, max_size=64).filter(is_name)
ROLES = st.sampled_from([role for role in Role if role is not Role.ANONYMOUS])
FINGERPRINT = "sha256:" + "0" * 64


@given(ROLES, NAMES, st.integers(1, (1 << 53) - 1), st.text("abc.-_", min_size=1, max_size=255))
def test_an_identity_is_read_back_from_its_uri(role: Role, name: str, keep: int, domain: str) -> None:
    identity = Identity(role, name, keep if role is Role.UPLOADER else None, domain)
    assert parse_identity(identity.uri()) == identity


@given(st.one_of(st.text(max_size=80), st.text(max_size=60).map(lambda text: f"spiffe://keepfleet/{text}")))
def test_any_text_is_an_identity_written_back_alike_or_refused(uri: str) -> None:
    try:
        identity = parse_identity(uri)
    except KeepfleetError as error:
        assert error.kind is ErrorKind.FORBIDDEN
    else:
        assert identity.uri() == uri


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://keepfleet/anonymous/a",
        "spiffe://keepfleet/user/anonymous",
        "spiffe://keepfleet/user/Anonymous",
        "spiffe://keepfleet/user/cn-0123456789abcdef",
        "spiffe://keepfleet/user/..",
        "spiffe://keepfleet/user/a/",
        "spiffe://keepfleet/user//a",
        "spiffe://keepfleet/user/a b",
        "spiffe://keepfleet/user/a?x=1",
        "spiffe://keepfleet/user/a%20b",
        "spiffe://keepfleet/user/ä",
        "spiffe://keepfleet/user/" + "a" * 65,
        "spiffe://keepfleet/root/a",
        "spiffe://keepfleet/User/a",
        "spiffe://keepfleet/user/a/keep/7",
        "spiffe://keepfleet/operator/a/keep/7",
        "spiffe://keepfleet/uploader/a",
        "spiffe://keepfleet/uploader/a/keep",
        "spiffe://keepfleet/uploader/a/keep/",
        "spiffe://keepfleet/uploader/a/keep/0",
        "spiffe://keepfleet/uploader/a/keep/07",
        "spiffe://keepfleet/uploader/a/keep/9007199254740992",
        "spiffe://keepfleet/uploader/a/kept/7",
        "spiffe://keepfleet/uploader/a/keep/7/more",
        "spiffe://KEEPFLEET/user/a",
        "spiffe://user@keepfleet/user/a",
        "spiffe://keepfleet:1/user/a",
        "spiffe:///user/a",
        "SPIFFE://keepfleet/user/a",
        "spiffe:keepfleet/user/a",
        "spiffe://ns/x/sa/y",
    ],
)
def test_a_malformed_identity_is_refused_rather_than_passed_over(uri: str) -> None:
    with pytest.raises(KeepfleetError, match="cannot read the identity") as refused:
        identity_of(["https://elsewhere.example/", uri])
    assert refused.value.kind is ErrorKind.FORBIDDEN


def test_several_identities_are_refused_even_if_they_are_alike() -> None:
    uri = "spiffe://keepfleet/user/a"
    with pytest.raises(KeepfleetError, match="has 2, not one"):
        identity_of([uri, uri])
    assert identity_of([uri, "https://a.example"]) == Identity(Role.USER, "a")
    assert identity_of(["https://a.example"]) is None


@given(st.text(max_size=100))
def test_every_common_name_has_an_owner_word_that_no_other_has(common_name: str) -> None:
    owner = owner_of(common_name)
    assert OWNER.parse(owner) == owner != "anonymous"
    assert owner == common_name or (owner.startswith("cn-") and not is_name(owner))


@pytest.mark.parametrize("common_name", ["", "anonymous", "ANONYMOUS", "..", "cn-0123456789abcdef", "a" * 65, "a\nb"])
def test_a_common_name_that_could_be_taken_for_something_else_is_hashed(common_name: str) -> None:
    assert owner_of(common_name) != common_name
    assert owner_of(common_name).startswith("cn-")


def test_names_are_checked_before_a_certificate_is_made() -> None:
    assert check_name("A.b_c@d-9") == "A.b_c@d-9"
    assert check_trust_domain("edge.example") == "edge.example"
    with pytest.raises(KeepfleetError, match="invalid name 'anonymous': it must be 1 to 64"):
        check_name("anonymous")
    with pytest.raises(KeepfleetError, match="invalid trust domain 'Edge': it must be"):
        check_trust_domain("Edge")


@pytest.mark.parametrize(
    ("identity", "subject", "uploaders", "expected"),
    [
        (None, "alice", ["name:alice"], True),
        (None, "alice", ["name:bob"], False),
        (None, "alice", [], False),
        (None, "alice", [FINGERPRINT], True),
        (None, "alice", ["sha256:" + "1" * 64], False),
        (None, "alice", ["*"], True),
        (None, "*", ["name:*"], False),
        (Identity(Role.USER, "alice"), "bob", ["name:alice"], True),
        (Identity(Role.USER, "alice"), "bob", ["name:bob"], False),
        (Identity(Role.OPERATOR, "root"), "root", ["name:alice"], False),
        (Identity(Role.VIEWER, "eve"), "eve", ["*", "name:eve", FINGERPRINT], False),
        (Identity(Role.UPLOADER, "ci", 7), "ci", [], True),
        (Identity(Role.UPLOADER, "ci", 8), "ci", ["*", "name:ci", FINGERPRINT], False),
    ],
)
def test_an_upload_is_for_whom_the_keep_s_entries_name_and_for_its_own_uploader(
    identity: Identity | None, subject: str, uploaders: list[str], expected: bool
) -> None:
    assert may_upload(uploaders, 7, identity, subject, FINGERPRINT) is expected
