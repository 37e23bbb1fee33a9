"""The decision whether a module may start by its signatures."""

from __future__ import annotations

import hashlib

import pytest

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import parse
from keep_protocol.store import InUse
from module_store.signatures import Signed
from module_store.trust import MAX_SIGNATURES, Accepted, Newest, Trust, affected, after, decide, forced
from tests.unit.module_store.signers import Signer

CONTENTS = b"\0asm\1\0\0\0"
DIGEST = f"sha256:{hashlib.sha256(CONTENTS).hexdigest()}"
ELSE = f"sha256:{'0' * 64}"
ALICE, BOB, STRANGER = Signer("alice"), Signer("bob"), Signer("stranger")
KEYS = (ALICE.key, BOB.key)
ALL, ONE, NONE = Trust(require=("alice", "bob")), Trust(any_of=("alice", "bob")), Trust()


def decided(trust: Trust, *signatures: bytes, newest: Newest | None = None, force: bool = False) -> Accepted:
    seen = {"web": newest} if newest else {}
    return decide(trust, KEYS, signatures, CONTENTS, DIGEST, seen, force=force)


def refusal(trust: Trust, *signatures: bytes, newest: Newest | None = None) -> KeepfleetError:
    with pytest.raises(KeepfleetError) as caught:
        decided(trust, *signatures, newest=newest)
    assert caught.value.kind is ErrorKind.FORBIDDEN
    return caught.value


def test_all_that_are_required_must_have_signed() -> None:
    both = decided(ALL, ALICE.sign(CONTENTS), BOB.sign(CONTENTS))
    assert both == Accepted(("alice", "bob"), Signed("web", "1.2.0"))
    error = refusal(ALL, ALICE.sign(CONTENTS))
    assert "not signed by bob; modules must be signed by alice and bob" in error.message


def test_of_several_one_is_enough() -> None:
    assert decided(ONE, BOB.sign(CONTENTS)).keys == ("bob",)
    assert "not signed by one of alice, bob" in refusal(ONE).message


def test_without_a_requirement_everything_starts_and_what_is_wrong_is_said() -> None:
    assert decided(NONE) == Accepted((), None)
    assert decided(NONE, ALICE.sign(CONTENTS)).keys == ("alice",)
    accepted = decided(NONE, ALICE.sign(CONTENTS + b"x"))
    assert accepted.keys == () and "not this file's" in accepted.notes[0]
    assert NONE.text() == "no signature is required"


def test_signatures_of_others_do_not_count_and_the_reason_is_said() -> None:
    error = refusal(ONE, STRANGER.sign(CONTENTS), ALICE.sign(CONTENTS + b"x"))
    assert "which this store does not know" in error.evidence[0] and "not this file's" in error.evidence[1]
    assert refusal(ONE).evidence == ("it has no signature",)


def test_a_bad_signature_next_to_a_good_one_does_no_harm() -> None:
    accepted = decided(ONE, b"noise", BOB.sign(CONTENTS))
    assert accepted.keys == ("bob",) and len(accepted.notes) == 1


def test_a_revoked_key_counts_no_more() -> None:
    revoked = (ALICE.key.replace(revoked=1.0, reason="stolen"), BOB.key)
    with pytest.raises(KeepfleetError) as caught:
        decide(ALL, revoked, (ALICE.sign(CONTENTS), BOB.sign(CONTENTS)), CONTENTS, DIGEST, {})
    assert caught.value.evidence == ("it is signed by alice, which was revoked: stolen",)


def test_signers_must_say_the_same_of_a_module() -> None:
    error = refusal(ALL, ALICE.sign(CONTENTS), BOB.sign(CONTENTS, "keepfleet name=web version=2.0"))
    assert error.evidence == (
        "alice: keepfleet name=web version=1.2.0",
        "bob: keepfleet name=web version=2.0",
    )


def test_an_older_version_than_the_newest_seen_is_refused_unless_forced() -> None:
    newest = Newest("1.10.0", ELSE)
    error = refusal(ONE, ALICE.sign(CONTENTS), newest=newest)
    assert "it is version 1.2.0 of web, older than 1.10.0, the newest seen; to go back to it" in error.message
    assert "forced" in decided(ONE, ALICE.sign(CONTENTS), newest=newest, force=True).notes[0]


def test_a_version_that_was_forced_starts_until_a_newer_one_than_all_seen_does() -> None:
    seen = forced(DIGEST, Newest("1.10.0", ELSE))
    assert forced(DIGEST, seen) == seen
    assert "forced" in decided(ONE, ALICE.sign(CONTENTS), newest=seen).notes[0]
    assert after(Signed("web", "1.2.0"), DIGEST, seen) == seen
    assert after(Signed("web", "1.10.0"), ELSE, seen) == seen
    assert after(Signed("web", "1.11"), ELSE, seen) == Newest("1.11", ELSE)
    assert forced(ELSE, Newest("1.10.0", ELSE)) == Newest("1.10.0", ELSE)


def test_another_file_of_a_version_that_was_seen_is_refused() -> None:
    assert "another file" in refusal(ONE, ALICE.sign(CONTENTS), newest=Newest("1.2", ELSE)).message
    assert decided(ONE, ALICE.sign(CONTENTS), newest=Newest("1.2", DIGEST)).notes == ()


def test_a_newer_version_starts_and_becomes_the_newest_and_a_forced_older_one_does_not() -> None:
    assert decided(ONE, ALICE.sign(CONTENTS), newest=Newest("1.1", ELSE)).signed == Signed("web", "1.2.0")
    assert after(Signed("web", "1.2.0"), DIGEST, Newest("1.1", ELSE)) == Newest("1.2.0", DIGEST)
    assert after(Signed("web", "1.2.0"), DIGEST, None) == Newest("1.2.0", DIGEST)
    assert after(Signed("web", "1.0"), DIGEST, Newest("1.1", ELSE)) == Newest("1.1", ELSE)


def test_more_signatures_than_are_looked_at_are_refused() -> None:
    assert f"at most {MAX_SIGNATURES}" in refusal(ONE, *(b"x" for _ in range(MAX_SIGNATURES + 1))).message


def test_what_runs_under_a_revoked_key_is_listed() -> None:
    keys = (ALICE.key.replace(revoked=1.0), BOB.key)
    uses = tuple(
        InUse(user, DIGEST, signers)
        for user, signers in (("keep a", ("alice",)), ("keep ab", ("alice", "bob")), ("keep b", ("bob",)))
    )
    assert [use.user for use in affected(ONE, keys, uses)] == ["keep a"]
    assert [use.user for use in affected(ALL, keys, uses)] == ["keep a", "keep ab", "keep b"]
    assert affected(ONE, KEYS, uses) == () and affected(NONE, keys, uses) == ()


def test_one_of_both_requirements_alone_is_said() -> None:
    with pytest.raises(KeepfleetError, match="both `require` and `any_of`"):
        Trust(require=("a",), any_of=("b",))
    assert parse(Trust, ALL.to_wire(), "trust", strict=True) == ALL
