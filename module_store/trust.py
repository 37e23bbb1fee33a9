"""Whether a module may start, by its signatures: one decision from what is signed, known, required and was seen. Pure.

Import rule: that of module_store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Items, Maybe, Record, Seconds, Text, field, invalid
from keep_protocol.store import DIGEST, KEY_NAME, MAX_KEYS, MAX_REASON, InUse, KnownKey
from module_store.signatures import BadSignature, PublicKey, Signed, check, parse_signature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from module_store.signatures import Contents
    from module_store.store import Store

SIGNATURE = "signature."
"""What the kinds of attachments that are signatures begin with; a key's name follows."""
MAX_FORCED = 16
"""As many moves as a reference keeps: who goes back goes to one of those."""
MAX_SIGNATURES = 64
"""Of one module; each costs a pass over its bytes."""
_KEYS = Items(KEY_NAME, MAX_KEYS)


class Key(Record):
    """A public key with a name. revoked: when, in seconds of the epoch; None for one that is in force."""

    name: str = field(KEY_NAME, about="what it is called here")
    id: str = field(Text(16, "[0-9A-F]{16}"), about="its identifier, as minisign shows it")
    public: PublicKey
    revoked: float | None = field(Maybe(Seconds()), default=None, about="when it was revoked, in seconds of the epoch")
    reason: str = field(Text(MAX_REASON), default="", about="why it was revoked")

    @property
    def known(self) -> KnownKey:
        """The same as it is shown."""
        return KnownKey(self.name, self.id, self.revoked, self.reason)


class Trust(Record):
    """What a store's modules must be signed by to start: all of `require`, or one of `any_of`."""

    require: tuple[str, ...] = field(_KEYS, default=(), about="keys that all must have signed")
    any_of: tuple[str, ...] = field(_KEYS, default=(), about="keys of which one must have signed")

    def _check(self) -> None:
        if self.require and self.any_of:
            raise invalid("trust", "it has both `require` and `any_of`; a store has one of them")

    @property
    def asks(self) -> bool:
        """Whether anything must be signed."""
        return bool(self.require or self.any_of)

    def text(self) -> str:
        """What is said of it at start, and where something is refused."""
        if self.require:
            return f"modules must be signed by {' and '.join(self.require)}"
        return (
            f"modules must be signed by one of {', '.join(self.any_of)}" if self.any_of else "no signature is required"
        )


class Newest(Record):
    """The newest version of a module that was accepted, and which file that is. forced: older files that an operator
    lets start all the same; the next newer version ends that."""

    version: str = field(Text(128), about="the version")
    digest: str = field(Text(71, DIGEST, "a digest"), about="the module's digest")
    forced: tuple[str, ...] = field(
        Items(Text(71, DIGEST, "a digest"), MAX_FORCED), default=(), about="older files that may start"
    )


class Accepted(Record):
    """A module may start. keys: who signed it; notes: what its owner should know."""

    keys: tuple[str, ...]
    signed: Signed | None
    notes: tuple[str, ...] = ()


def _refused(why: str, evidence: Iterable[str] = ()) -> KeepfleetError:
    return KeepfleetError(ErrorKind.FORBIDDEN, f"cannot start the module: {why}", tuple(evidence))


def _by_each_key(
    signatures: Iterable[bytes], keys: Iterable[Key], contents: Contents
) -> tuple[dict[str, Signed], list[str]]:
    """What each key that is in force has signed of the contents, and why other signatures do not count."""
    known = {key.id: key for key in keys}
    found: dict[str, Signed] = {}
    faults: list[str] = []
    for data in signatures:
        try:
            signature = parse_signature(data)
            key = known.get(signature.key_id)
            if key is None:
                faults.append(f"it is signed by the key {signature.key_id}, which this store does not know")
            elif key.revoked is not None:
                faults.append(f"it is signed by {key.name}, which was revoked{f': {key.reason}' if key.reason else ''}")
            elif key.name not in found:
                found[key.name] = check(signature, key.public, contents)
        except BadSignature as error:
            faults.append(error.message)
    return found, faults


def signer(data: bytes, keys: Iterable[Key], contents: Contents) -> Key:
    """Whose signature of the contents this is. Raises BadSignature unless it is that of a key which is in force."""
    given = tuple(keys)
    found, faults = _by_each_key((data,), given, contents)
    for key in given:
        if key.name in found:
            return key
    raise BadSignature("signature", faults[0])


def decide(
    trust: Trust,
    keys: Iterable[Key],
    signatures: Iterable[bytes],
    contents: Contents,
    digest: str,
    newest: Mapping[str, Newest],
    *,
    force: bool = False,
) -> Accepted:
    """Whether a module with these signatures may start. Raises KeepfleetError(FORBIDDEN) with each reason.

    contents: the module, of which `digest` is the digest; newest: the newest version accepted, by the module's name;
    force: an older version than that may start again. Only keys that `trust` names have a say.
    """
    given = tuple(signatures)
    if len(given) > MAX_SIGNATURES:
        raise _refused(f"it has {len(given)} signatures, and at most {MAX_SIGNATURES} are looked at")
    if not trust.asks and not given:
        return Accepted((), None)
    found, faults = _by_each_key(given, keys, contents)
    if not trust.asks:
        return Accepted(tuple(found), next(iter(found.values()), None), tuple(faults))
    missing = [name for name in trust.require if name not in found]
    signers = [name for name in (trust.require or trust.any_of) if name in found]
    if missing or not signers:
        by = " and ".join(missing) or f"one of {', '.join(trust.any_of)}"
        raise _refused(f"it is not signed by {by}; {trust.text()}", faults or ["it has no signature"])
    said = {found[name] for name in signers}
    if len(said) > 1:
        lines = [f"{name}: {found[name].to_text()}" for name in signers]
        raise _refused("its signatures say different things of it", lines)
    (signed,) = said
    notes = _compared(signed, digest, newest.get(signed.name), force)
    return Accepted(tuple(signers), signed, (*notes, *faults))


def _compared(signed: Signed, digest: str, seen: Newest | None, force: bool) -> tuple[str, ...]:
    """Raises where a module is older than the newest one seen, or another of the same version."""
    if seen is None:
        return ()
    order, newest = signed.order, Signed(signed.name, seen.version).order
    if order > newest or (order == newest and digest == seen.digest):
        return ()
    if order < newest:
        why = f"it is version {signed.version} of {signed.name}, older than {seen.version}, the newest seen"
    else:
        why = (
            f"it is version {signed.version} of {signed.name}, and another file of that version was seen, {seen.digest}"
        )
    if not force and digest not in seen.forced:
        raise _refused(f"{why}; to go back to it: keepctl store tag {digest} NAME:TAG --force")
    return (f"forced: {why}",)


def after(signed: Signed, digest: str, seen: Newest | None) -> Newest:
    """The newest version seen once this one was accepted: a forced older one does not change it, and a newer one ends
    what was forced."""
    if seen is None or signed.order > Signed(signed.name, seen.version).order:
        return Newest(signed.version, digest)
    return seen


def forced(digest: str, seen: Newest) -> Newest:
    """The same, and this file may start although it is older: until a newer version than `seen` is accepted."""
    if digest in (seen.digest, *seen.forced):
        return seen
    return seen.replace(forced=(*seen.forced, digest)[-MAX_FORCED:])


def attached_signatures(store: Store, digest: str) -> tuple[bytes, ...]:
    """The signatures that are attached to an object. Raises KeepfleetError for a damaged one."""
    kinds = (kind for kind in store.attachments(digest) if kind.startswith(SIGNATURE))
    return tuple(data for data in (store.attached(digest, kind) for kind in kinds) if data is not None)


def signed_by(signatures: Iterable[bytes], keys: Iterable[Key], contents: Contents) -> tuple[str, ...]:
    """The keys that have signed the contents, those that were revoked among them."""
    found, _ = _by_each_key(signatures, [key.replace(revoked=None) for key in keys], contents)
    return tuple(found)


def affected(trust: Trust, keys: Iterable[Key], in_use: Iterable[InUse]) -> tuple[InUse, ...]:
    """What runs, and could not start any more with the keys as they are: as after one was revoked."""
    if not trust.asks:
        return ()
    valid = {key.name for key in keys if key.revoked is None}

    def holds(use: InUse) -> bool:
        signers = valid.intersection(use.keys)
        return signers.issuperset(trust.require) and (not trust.any_of or not signers.isdisjoint(trust.any_of))

    return tuple(use for use in in_use if not holds(use))
